"""`eventflow run --processes N`, and `--reload`: processes that run a program, each a `eventflow run` of its own.

The supervisor imports nothing of the program. A process that dies is started again, after a while that grows; on SIGTERM all
drain; on SIGHUP each is replaced, one after another: the next one is told to go once its successor is ready, and where one
does not come up, the rest stay as they are. What is wrong with a program ends all where none has ever been ready, and later
nobody but the process that it is found in. Each holds one end of a socket: it says there that it is ready, and when the
supervisor is gone, it drains, so that nothing outlives it unseen.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eventflow.retry import doubled

logger = logging.getLogger(__name__)

_FIRST, _LONGEST = 0.5, 30.0  # seconds until a process that died is started again; twice as long each time
_STEADY = 30.0  # seconds after which one that dies is not held to have failed at its start
_WRONG = 2  # the status of a process whose command, program or settings are wrong
_LOOK = 0.5  # seconds between two looks at the files
_PASSED_OVER = {"node_modules", "__pycache__", "site-packages"}


@dataclass(eq=False)
class Worker:
    """One process, from its start to its end."""

    number: int
    process: "subprocess.Popen[bytes]"
    line: socket.socket
    began: float
    release: int
    ready: bool = False
    told: bool = False  # to go

    @property
    def name(self) -> str:
        """As the log has it."""
        return f"process {self.number} of this program ({self.process.pid})"

    def leave(self, times: int = 1) -> None:
        """Tell it to go; told twice, it lets go of what runs at once."""
        self.told = True
        for _ in range(times):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)


@dataclass
class Place:
    """One of the N: the process that has it, and when the next one is due."""

    number: int
    worker: Worker | None = None
    failures: int = 0
    due: float = 0.0
    successor: Worker | None = None


class Signals:
    """Signals as events of a loop that sleeps until one comes."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _heard)

    def wait(self, others: Sequence[socket.socket], timeout: float) -> tuple[list[int], list[socket.socket]]:
        """The signals that have come, and which of the others have something to say, after so many seconds at the latest."""
        ready = select.select([self._reader, *others], [], [], timeout)[0]
        came: list[int] = []
        if self._reader in ready:
            ready.remove(self._reader)
            came = list(self._reader.recv(4096))
        return came, ready


@dataclass
class Supervisor:
    """Keeps N processes running.

    Attributes:
        command: what each is started with; `{fd}` in it stands for its end of the socket. reload: changes of files.
        port: of the first one's health and metrics; each has the next one.

    """

    command: Sequence[str]
    count: int
    reload: Callable[[], Iterator[Path | None]] | None = None
    port: int | None = None
    clock: Callable[[], float] = time.monotonic
    places: list[Place] = field(default_factory=list[Place])
    release: int = 0  # of the program: each SIGHUP is for another one
    replacing: bool = False  # those of other releases
    proven: bool = False  # a process has been ready: the program can run
    leaving: bool = False
    status: int = 0

    def run(self) -> int:
        """Until all have ended; the exit status: 0 where each drained, and none was wrong."""
        signals = Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD))
        self.places = [Place(number) for number in range(1, self.count + 1)]
        changes = None if self.reload is None else self.reload()
        while True:
            self._fill()
            if self.leaving and not any(place.worker or place.successor for place in self.places):
                return self.status
            came, spoke = signals.wait([one.line for one in self._workers() if not one.ready], self._patience())
            for number in came:
                self._on(number)
            for one in self._workers():
                if one.line in spoke and not one.ready and one.line.recv(16):
                    one.ready = self.proven = True
            self._reap()
            self._replace()
            changed = None if changes is None or self.leaving else next(changes)
            if changed is not None:
                logger.info("%s has changed: starting again", changed)
                self._again()

    def _workers(self) -> list[Worker]:
        return [one for place in self.places for one in (place.worker, place.successor) if one is not None]

    def _patience(self) -> float:
        """Until something is due."""
        due = [place.due - self.clock() for place in self.places if place.worker is None and not self.leaving]
        return max(0.0, min([*due, 60.0 if self.reload is None else _LOOK]))

    def _on(self, number: int) -> None:
        if number == signal.SIGHUP and not self.leaving:
            logger.info("SIGHUP: each process is replaced, one after another")
            self.release, self.replacing = self.release + 1, True
            for place in self.places:
                place.due = 0.0
        elif number in {signal.SIGTERM, signal.SIGINT}:
            logger.info("%s: %d processes drain", signal.Signals(number).name, len(self._workers()))
            self._leave()

    def _leave(self) -> None:
        again, self.leaving, self.replacing = self.leaving, True, False
        for one in self._workers():
            if again or not one.told:
                one.leave()

    def _fill(self) -> None:
        """Start what is due."""
        for place in self.places:
            if place.worker is None and not self.leaving and place.due <= self.clock():
                try:
                    place.worker = self._start(place.number)
                except OSError as error:  # no memory, or no more processes: those that run are in nobody's way
                    logger.error("process %d cannot be started: %s; trying again", place.number, error)
                    place.due = self.clock() + _FIRST

    def _start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [part.format(fd=theirs.fileno()) if part == "{fd}" else part for part in self.command]
            # In a session of its own: Ctrl-C is for the supervisor, which tells each once.
            more = {} if not self.port else {"EVENTFLOW_HTTP_PORT": str(self.port + number - 1)}
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], start_new_session=True, env=os.environ | more
            )
        return Worker(number, process, ours, self.clock(), self.release)

    def _reap(self) -> None:
        """See who has ended, and what follows."""
        for place in self.places:
            successor, worker = place.successor, place.worker
            if successor is not None and successor.process.poll() is not None:
                successor.line.close()
                place.successor = None
                self._refuse(successor)
            if worker is not None and worker.process.poll() is not None:
                worker.line.close()
                place.worker, place.successor = place.successor, None
                self._ended(place, worker)

    def _ended(self, place: Place, worker: Worker) -> None:
        status = worker.process.returncode
        if worker.told or self.leaving:
            # One that has ended but for its last lines may be told again.
            if status not in {0, -signal.SIGTERM} and worker.ready:
                logger.warning("%s %s", worker.name, _said(status))
                self.status = self.status or 1
            return
        if self.reload is not None and status != 0:
            logger.warning("%s %s; it is started again when a file changes", worker.name, _said(status))
            place.due = float("inf")
            return
        if status == _WRONG and not self.proven:
            logger.error("%s %s: it would end so again", worker.name, _said(status))
            self.status = _WRONG
            self._leave()
            return
        self._refuse(worker)
        place.failures = 1 if self.clock() - worker.began > _STEADY else place.failures + 1
        wait = doubled(_FIRST, place.failures - 1, _LONGEST)
        place.due = self.clock() + wait
        logger.warning("%s %s; it is started again in %g s", worker.name, _said(status), wait)

    def _replace(self) -> None:
        """Go on with a rolling restart: one place at a time, first those where no process is ready."""
        left = [p for p in self.places if p.worker is None or not p.worker.ready or p.worker.release != self.release]
        self.replacing = self.replacing and left != []
        if not self.replacing:
            return
        place = min(left, key=lambda place: place.worker is not None and place.worker.ready)
        worker = place.worker
        if worker is None or worker.told or worker.release == self.release:
            return  # its successor is under way
        if self.port is None and place.successor is None:
            place.successor = self._start(place.number)
        elif place.successor is None or place.successor.ready:
            worker.leave()  # first, where its successor is to have its port

    def _refuse(self, worker: Worker) -> None:
        """End a rolling restart, where what is new has not come up."""
        if not self.replacing or worker.ready or worker.release != self.release:
            return
        self.replacing = False
        said = _said(worker.process.returncode)
        logger.error("%s %s before it was ready: the others stay as they are", worker.name, said)
        for place in self.places:
            if place.successor is not None and place.worker is not None and not place.worker.told:
                place.successor.leave()

    def _again(self) -> None:
        """All at once, and without waiting for what runs: for development."""
        for place in self.places:
            place.due, place.failures = 0.0, 0
            if place.worker is not None:
                place.worker.leave(times=2)


def _heard(_number: int, _frame: object) -> None:
    """What there is to do about a signal is done by the loop."""


def _said(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def changes(folder: Path, clock: Callable[[], float] = time.monotonic) -> Iterator[Path | None]:
    """The next Python file below a folder that has changed, or None, each time it is asked; looks twice a second at most."""
    known, looked = _times(folder), clock()
    while True:
        changed = None
        if clock() - looked >= _LOOK:
            now, looked = _times(folder), clock()
            changed = next((file for file in sorted({*now, *known}) if now.get(file) != known.get(file)), None)
            known = now
        yield changed


def _times(folder: Path) -> dict[Path, int]:
    found: dict[Path, int] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and one not in _PASSED_OVER]
        for name in files:
            if name.endswith(".py"):
                try:
                    found[Path(place, name)] = Path(place, name).stat().st_mtime_ns
                except OSError:
                    continue  # it has just gone
    return found


def supervised(fd: int) -> Callable[[], None]:
    """In a process of a supervisor: leave when that is gone. Returns what says that this process is ready."""
    line = socket.socket(fileno=fd)

    def watch() -> None:
        line.recv(1)  # says nothing, ever
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="eventflow supervisor", daemon=True).start()

    def ready() -> None:
        with contextlib.suppress(OSError):  # it is gone, and this process is about to leave for that
            line.sendall(b"ready")

    return ready


def command_of(module: str, options: Sequence[str]) -> list[str]:
    """What a process of a supervisor is started with."""
    return [sys.executable, "-m", "eventflow", "run", module, *options, "--supervised", "{fd}"]
