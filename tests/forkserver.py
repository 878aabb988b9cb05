"""Starts the workers of the tests, and the commands: a process that has imported what they import, and forks one for each.

A worker is a process of its own as ever, with its signals, files and environment, and runs what `python -m eventflow run APP`
runs; it only does not spend half a second of both cores on imports, of which the tests start more than a thousand. The server
has no threads, no connections, and nothing of a program. (After multiprocessing's forkserver, whose children are no programs.)
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import queue
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_IMPORTS = (
    "eventflow.app", "eventflow.cli", "eventflow.incarnation", "eventflow.sessions", "eventflow.sync",
    "sqlalchemy.dialects.postgresql.psycopg", "uvloop",
)  # fmt: skip


class Forked:
    """A worker, with what `subprocess.Popen` has for one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.over = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal.

        Raises:
            TimeoutExpired: it has not ended by then.

        """
        if not self.over.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def command(
    *arguments: str, environment: dict[str, str], cwd: Path | None = None, given: bytes = b"", timeout: float = 90
) -> "subprocess.CompletedProcess[str]":
    """What `eventflow` does with these arguments."""
    done = run(["eventflow", *arguments], cwd or Path.cwd(), environment, given, timeout)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class ForkServer:
    """The server as this process uses it; it ends with it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        self._known: dict[int, Forked] = {}
        self._started = queue.SimpleQueue[Forked]()
        self._order = threading.Lock()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EVENTFLOW_")}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        threading.Thread(target=self._listen, name="forkserver", daemon=True).start()
        atexit.register(self._line.close)

    def start(self, argv: list[str], cwd: Path, environment: dict[str, str], files: tuple[int, int, int]) -> Forked:
        """A process that runs `eventflow` with these arguments, or a file of Python; its standard files are these."""
        request = json.dumps({"argv": argv, "cwd": str(cwd), "environment": environment}).encode()
        with self._order:
            socket.send_fds(self._line, [len(request).to_bytes(4)], list(files))
            self._line.sendall(request)
            return self._started.get(timeout=30)

    def _listen(self) -> None:
        with self._line.makefile("rb") as lines:
            for line in lines:
                pid, status = json.loads(line)
                if status is None:
                    self._known[pid] = Forked(pid)
                    self._started.put(self._known[pid])
                else:
                    one = self._known.pop(pid)
                    one.returncode = status
                    one.over.set()


_server: ForkServer | None = None


def fork(argv: list[str], cwd: Path, environment: dict[str, str], files: tuple[int, int, int]) -> Forked:
    """Start a process, through this one's server, with these as its standard input, output and errors."""
    global _server  # noqa: PLW0603
    if _server is None:
        _server = ForkServer()
    return _server.start(argv, cwd, environment, files)


def run(
    argv: list[str], cwd: Path, environment: dict[str, str], given: bytes = b"", timeout: float = 90
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end, as `subprocess.run` does.

    Raises:
        TimeoutExpired: it has not ended by then, in seconds; it was killed.

    """
    with tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        into.write(given)
        into.seek(0)
        forked = fork(argv, cwd, environment, (into.fileno(), out.fileno(), errors.fileno()))
        try:
            status = forked.wait(timeout)
        finally:
            forked.send_signal(signal.SIGKILL)
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(argv, status, out.read(), errors.read())


# ---- the server -------------------------------------------------------------------------------------


def serve(line: socket.socket) -> list[str]:
    """Fork for each request, and say who has ended; in a child, what it is to run."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    while True:
        ready = select.select([line, reader], [], [])[0]
        if reader in ready:
            os.read(reader, 4096)
        for pid, status in iter(_ended, None):
            line.sendall(f"{json.dumps([pid, status])}\n".encode())
        if line in ready:
            head, descriptors, _, _ = socket.recv_fds(line, 4, 3)
            if not head:
                sys.exit()
            request = json.loads(line.recv(int.from_bytes(head), socket.MSG_WAITALL))
            pid = os.fork()
            if pid == 0:
                return _become(request, descriptors, [line.fileno(), reader, writer])
            for descriptor in descriptors:
                os.close(descriptor)
            line.sendall(f"{json.dumps([pid, None])}\n".encode())


def _ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _become(request: dict[str, Any], files: list[int], others: list[int]) -> list[str]:
    """Be as a process that was started by itself."""
    from eventflow import journal, telemetry

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(files):
        os.dup2(descriptor, standard)
    for descriptor in (*files, *others):
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    telemetry._armed.update(telemetry._from_environment(os.environ))  # noqa: SLF001  # read as it was imported
    journal._armed = bool(telemetry._armed)  # noqa: SLF001
    return request["argv"]


def main(descriptor: str) -> None:
    """Import what workers import; serve; in a child, run the program."""
    for module in _IMPORTS:
        importlib.import_module(module)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()
    line = socket.socket(fileno=int(descriptor))
    argv = serve(line)
    line.detach()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = argv[0] == "eventflow"
    first = str(Path.cwd()) if module else str(Path(argv[0]).resolve().parent)
    sys.path[:1] = [first, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = argv
    if module:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
