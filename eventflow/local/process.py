"""A service as a child process: in a session of its own, ended with its parent, awaited with a deadline."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eventflow.local.errors import LocalServiceError

_PR_SET_PDEATHSIG = 1


def spawn(command: list[str], log: Path, parting: signal.Signals, **options: Any) -> "subprocess.Popen[Any]":
    """Start a service. Ctrl-C does not reach it; where its parent's thread dies, Linux sends it `parting`.

    The signal is tied to the thread that starts it: a service belongs to a thread that lives as long as it is wanted.
    """
    prctl: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def before_exec() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(parting))
            if os.getppid() != parent:
                os._exit(1)

    with log.open("ab") as output:
        process: subprocess.Popen[Any] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=before_exec, **options,
        )  # fmt: skip
    return process


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[Any]", log: Path, what: str, limit: float) -> None:
    """Wait until a service is ready.

    Raises:
        LocalServiceError: it ended, or took longer than `limit` seconds; with the end of its log.

    """
    until = time.monotonic() + limit
    while not ready():
        if process.poll() is not None:
            raise LocalServiceError(f"{what} ended at once with status {process.returncode}:\n{tail(log)}")
        if time.monotonic() > until:
            raise LocalServiceError(f"{what} was not ready after {limit:.0f} s:\n{tail(log)}")
        time.sleep(0.02)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end(process: "subprocess.Popen[Any]", kind: signal.Signals, limit: float) -> None:
    """Ask a process to end, and kill it where it does not within `limit` seconds."""
    if process.poll() is not None:
        return
    process.send_signal(kind)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
