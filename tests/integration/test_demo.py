"""The demo, run as a user runs it: it ends by itself, its proof holds, and nothing is left of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_cli import running_below, wait_until


def start(folder: Path, orders: int) -> "subprocess.Popen[str]":
    """In a process group of its own; the addresses of a program's own services are there to be ignored."""
    own = {"DATABASE_URL": "postgresql://not:this@127.0.0.1:1/x", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    wrong = {"EVENTFLOW_DATABASE_SCHEMA": "elsewhere", "EVENTFLOW_LEASE": "600"}
    return subprocess.Popen(
        [sys.executable, "-m", "eventflow", "demo", "--orders", str(orders), "--folder", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | own | wrong, start_new_session=True,
    )  # fmt: skip


def workers() -> list[str]:
    found = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    return [command.decode() for command in found if b"eventflow.demo.app" in command]


def number(text: str, title: str) -> float:
    [found] = re.findall(rf"^  {title}\s+([\d,.]+)( s)?$", text, re.MULTILINE)
    return float(found[0].replace(",", ""))


@pytest.mark.alone
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_demo_is_exact_and_so_is_a_second_one(private_root: Path, times: int) -> None:
    for _ in range(times):
        began = time.monotonic()
        process = start(private_root, 5000)
        try:
            text, errors = process.communicate(timeout=170)
        finally:
            process.kill()
        assert process.returncode == 0, text + errors
        assert time.monotonic() - began < 120
        for title in ("messages produced", "workflows completed", "effects written"):
            assert number(text, title) == 5000
        assert number(text, "duplicates") == number(text, "lost") == 0
        assert number(text, "takeover after SIGKILL") < 10
        assert "SIGKILL to worker 1: it held 8 partitions" in text
        assert "\x1b" not in text, "no colour where there is no terminal"
        assert running_below(private_root) == workers() == []


@pytest.mark.parametrize(
    "sent",
    [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.long) for other in (signal.SIGTERM, signal.SIGKILL))],
)
def test_ended_in_the_middle_it_leaves_nothing_running(private_root: Path, sent: int) -> None:
    process = start(private_root, 20_000)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "the orders begin to flow" in line:
                break
        assert len(workers()) == 2
        assert len(running_below(private_root)) == 2
        process.send_signal(sent)
        status = process.wait(30)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert status == (-9 if sent == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    wait_until(lambda: not running_below(private_root) and not workers(), "all that it started has ended")


def test_two_in_one_folder(private_root: Path) -> None:
    first = start(private_root, 1000)
    try:
        wait_until(lambda: running_below(private_root), "the first one has begun")
        second = start(private_root, 1000)
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 1
        assert errors.startswith("error: another demo runs in")
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
