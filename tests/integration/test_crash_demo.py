"""The crash demo: SIGQUIT between step one and step two, and the next start of the program goes on at step two."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventflow.migrations import migrate

DEMO = Path(__file__).resolve().parents[2] / "examples" / "crash_demo"


def wait(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def _heed_the_terminal() -> None:
    """What runs in the background of a script is told to ignore Ctrl-\\ ."""
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


class Program:
    """The demo as the README starts it, on a port of its own."""

    def __init__(self, database_url: str, folder: Path, number: int) -> None:
        self._log = folder / f"program-{number}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EVENTFLOW_")} | {
            "DATABASE_URL": database_url, "CRASH_DEMO_PAUSE": "2", "EVENTFLOW_LEASE": "1", "EVENTFLOW_BEAT": "0.2",
        }  # fmt: skip
        with self._log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(DEMO), "--port", "0"],
                cwd=folder, env=environment, stdout=out, stderr=out, preexec_fn=_heed_the_terminal,
            )  # fmt: skip
        self.address = wait(self._address, "the web server runs")

    def _address(self) -> str | None:
        assert self.process.poll() is None, self.log
        found = re.search(r"running on (http://\S+)", self.log)
        return found and found[1]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, method: str, path: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, method=method), timeout=10) as answer:
            return answer.read()

    def order(self, name: str) -> Any:
        return json.loads(self.ask("GET", f"/orders/{name}"))


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Callable[[], Program]]:
    migrate(database_url)
    programs: list[Program] = []

    def start() -> Program:
        programs.append(Program(database_url, tmp_path, len(programs)))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.process.wait()


@pytest.mark.crash
def test_the_order_goes_on_at_step_two(start: Callable[[], Program]) -> None:
    first = start()
    assert b"Place an order" in first.ask("GET", "/")
    first.ask("POST", "/orders/7")
    wait(lambda: first.order("7")["done"] == ["step_one"], "step one is done")
    first.process.send_signal(signal.SIGQUIT)
    assert first.process.wait(10) == -signal.SIGQUIT

    second = start()
    wait(lambda: second.order("7")["status"] == "succeeded", "the order is done")
    assert second.order("7")["done"] == ["step_one", "step_two"]
    assert said(first) == [("7", "step one", first.process.pid)]
    assert said(second) == [("7", "step two", second.process.pid)]


def said(program: Program) -> list[tuple[str, str, int]]:
    found = re.findall(r"^order (\w+): (step \w+), in process (\d+)$", program.log, re.MULTILINE)
    return [(order, what, int(process)) for order, what, process in found]
