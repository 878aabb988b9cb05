"""Processes that die, in this one: each with a loop, threads and connections of its own, all on one ledger.

A *process* here is a whole `App` beside others, which production forbids. What tells them apart are their threads: a thread
that is started by one of theirs is of the same process, so the one slot of `context`, the crash points and what code does
outside all know whose they are.

Death is as SIGKILL's: from one moment on nothing of it reaches the ledger or the world. Its connections are cut at their
sockets, with what was sent and not answered on its way; it opens no others; whatever it does outside raises `Killed`, as
does the next crash point in each of its threads. No lease is given back, nothing is flushed. What is left of it in memory is
taken apart behind the curtain, and another process takes its place. Nobody waits for a lease: a peer is told to presume.
"""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import eventflow.app
import eventflow.journal
from eventflow.app import App
from eventflow.context import slot
from eventflow.database import Database, database_of
from eventflow.registry import registry
from eventflow.settings import Settings

_UNWIND = 10.0  # seconds that what is left of a dead process gets to end its threads
_START = 20.0  # seconds for one to start, on a machine that does something else
_PRESUMED = 3.0  # seconds in which a peer takes over whom it presumes dead; then another one is told to


class Killed(BaseException):
    """Unwinds what a thread of a dead process was doing; nobody sees what it still does."""


def here() -> "Process | None":
    """The process that this thread is of; None in the test's own."""
    return getattr(threading.current_thread(), "process", None)


class _MortalDatabase(Database):
    """The ledger's door of one process; it closes when that dies."""

    __slots__ = ("process",)

    def options(self, role: str) -> dict[str, Any]:
        self.process.refuse_if_cut()
        return Database.options(self, role)

    def adopt(self, connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
        Database.adopt(self, connection)
        self.process.hold(connection)


def _database_of_this_process(settings: Settings) -> Database:
    whole, process = database_of(settings), here()
    database = _MortalDatabase(whole.url, whole.schema, whole.prepared, payloads=whole.payloads)
    assert process is not None
    object.__setattr__(database, "process", process)
    return database


class _App(App):
    """It remembers whom it was last, also while that one leaves."""

    last: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_incarnation" and value is not None:
            self.last = value.id
        super().__setattr__(name, value)


class Process:
    """One process: born, alive, and either dead or gone as on SIGTERM."""

    def __init__(self, settings: Settings, on_death: "Callable[[Process], None]") -> None:
        self._settings, self._on_death = settings, on_death
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._cut = False
        self._left: int | None = None  # crash points that it still passes
        self.dead = False
        self.where = ""  # it died
        self.followed = False
        self.error: BaseException | None = None
        self.app: _App | None = None
        self.started = threading.Event()  # it runs, or never will
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process", daemon=True)
        self._thread.process = self  # type: ignore[attr-defined]
        self._thread.start()

    # ---- life ----

    def _run(self) -> None:
        self.loop = loop = asyncio.new_event_loop()
        self._leaving = asyncio.Event()
        try:
            loop.run_until_complete(self._live())
        except BaseException as error:
            self.error = error
        finally:
            self.started.set()
            self.over.set()
            with contextlib.suppress(BaseException):
                loop.run_until_complete(asyncio.wait_for(_cancel_all(), _UNWIND))
            loop.close()

    async def _live(self) -> None:
        app = self.app = _App(self._settings, False, False, registry)
        async with app.run():
            self.started.set()
            await self._leaving.wait()
            if self.dead:
                if app._supervisor is not None:
                    app._supervisor.cancel()
                incarnation, app._incarnation = app._incarnation, None
                if incarnation is not None:
                    await incarnation.abort()

    @property
    def alive(self) -> bool:
        return self.started.is_set() and not self._cut and not self.over.is_set() and not self._leaving.is_set()

    @property
    def executor(self) -> int | None:
        """The id of its incarnation, if it has one just now."""
        incarnation = self.app and self.app._incarnation
        return incarnation.id if incarnation else None

    def start(self, work: Callable[[], Any]) -> Any:
        """Begin a coroutine on its loop: what a program does that runs eventflow. Its future is never done once it died."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop)

    def presume_dead(self, executor: int) -> None:
        """Take over what this executor holds, as if its lease had run out."""
        incarnation = self.app and self.app._incarnation
        if incarnation:
            incarnation._lease._suspects.add(executor)
            incarnation._lease._work.set()

    def leave(self) -> None:
        """As on SIGTERM: what runs may end, the rest is handed over."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._leaving.set)

    # ---- death ----

    def arm(self, nth: int) -> None:
        """Die at the nth crash point passed from now on, by any of its threads."""
        self._left = nth
        eventflow.journal._armed = True

    def disarm(self) -> None:
        self._left = None

    def pass_point(self, name: str) -> None:
        """One of its threads is at a crash point."""
        if self.dead:
            raise Killed
        with self._lock:
            if self._left is None:
                return
            self._left -= 1
            if self._left > 0:
                return
        self.die(name)
        raise Killed

    def die(self, where: str) -> None:
        """Here and now, from any thread."""
        with self._lock:
            if self._cut or self.over.is_set():
                return
            self._cut, self.where = True, where
            held = list(self._connections)
        for connection in held:
            _cut(connection)
        self.dead = True  # not before: who learns of it unwinds, and what unwinds must not be recorded
        self._on_death(self)

    def hold(self, connection: Any) -> None:
        """It has opened this connection."""
        with self._lock:
            self._connections.add(connection)
            cut = self._cut
        if cut:
            _cut(connection)

    def refuse_if_cut(self) -> None:
        if self._cut:
            raise psycopg.OperationalError("this process is dead")

    def bury(self) -> None:
        """Take apart what is left in memory."""
        if self.app is not None:
            self.app._stop.set()
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(self._leaving.set)
        self.over.wait(_UNWIND)


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=2)


def _cut(connection: Any) -> None:
    """Close both directions of its socket, as the kernel does for a process that is gone; what was sent still arrives."""
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class Processes:
    """So many processes on one ledger; whoever goes is followed by another."""

    def __init__(self, settings: Settings, count: int = 2) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._following: list[threading.Thread] = []
        self._closed = False
        self._presumed: dict[
            int, tuple[Process, float] | None
        ] = {}  # dead executors, and who is to take over since when
        self.fenced: list[int] = []  # executors that live and were presumed dead
        self.history: list[str] = []
        self.places = [self._new() for _ in range(count)]
        for process in self.places:
            process.started.wait(_START)
            assert process.alive, process.error

    def _new(self) -> Process:
        return Process(self._settings, self._on_death)

    def close(self) -> None:
        self._closed = True
        self.settle()
        for process in self.places:
            process.die("the end")
            process.bury()
        self.settle()

    def settle(self) -> None:
        """Wait until whoever went has been followed."""
        while self._following:
            self._following.pop().join(_UNWIND + _START)

    def disarm(self) -> None:
        for process in self.places:
            process.disarm()
        eventflow.journal._armed = False

    def living(self) -> list[Process]:
        return [process for process in self.places if process.alive]

    def leave(self, process: Process) -> None:
        """As by a deploy: it goes, and another one comes."""
        if process.alive:
            self.history.append(f"executor {process.executor} leaves")
            process.leave()
            self._follow(process)

    def fence(self, process: Process) -> int | None:
        """A peer presumes it dead although it lives, and takes over; it is told when it next writes, or looks."""
        peers = [peer for peer in self.living() if peer is not process]
        executor = process.executor
        if not process.alive or executor is None or not peers:
            return None
        self.history.append(f"executor {executor} is presumed dead")
        self.fenced.append(executor)
        peers[0].presume_dead(executor)
        return executor

    def _on_death(self, process: Process) -> None:
        executor = process.app and process.app.last  # which may leave just now
        self.history.append(f"executor {executor} dies: {process.where}")
        if executor is not None:
            with self._lock:
                self._presumed[executor] = None
        if not self._closed:
            self._follow(process)

    def _follow(self, process: Process) -> None:
        with self._lock:
            if process.followed:
                return
            process.followed = True
        following = threading.Thread(target=self._succeed, args=(process,), name="following", daemon=True)
        following.process = None  # type: ignore[attr-defined]  # whoever starts it: it is the test's
        self._following.append(following)
        following.start()

    def _succeed(self, process: Process) -> None:
        self.presume()
        until = time.monotonic() + _UNWIND
        while not process.over.wait(0.02) and time.monotonic() < until:
            if process.dead:
                process.bury()
        with self._lock:
            place = self.places.index(process)
        following = self._new()
        with self._lock:
            self.places[place] = following
        following.started.wait(_START)
        self.presume()

    def presume(self, still_alive: Callable[[list[int]], set[int]] | None = None) -> None:
        """Have a living peer take over from each dead one; from those that the ledger still knows as alive, if it is asked."""
        with self._lock:
            if still_alive is not None and self._presumed:
                alive = still_alive(list(self._presumed))
                self._presumed = {dead: taker for dead, taker in self._presumed.items() if dead in alive}
            living, now = self.living(), time.monotonic()
            if not living:
                return
            for dead, taker in self._presumed.items():
                if taker is None or not taker[0].alive or now - taker[1] > _PRESUMED:
                    peer = living[dead % len(living)]
                    self._presumed[dead] = (peer, now)
                    peer.presume_dead(dead)


# ---- many in one ---------------------------------------------------------------------------------------


def _pass_point(name: str) -> None:
    process = here()
    if process is not None:
        process.pass_point(name)


_start_thread = threading.Thread.start


def _start(thread: threading.Thread) -> None:
    if not hasattr(thread, "process"):
        thread.process = here()  # type: ignore[attr-defined]
    _start_thread(thread)


def _runtime_of_this_process(_: object) -> Any:
    process = here()
    return None if process is None else process.app


@contextlib.contextmanager
def many_in_one() -> Iterator[None]:
    """Within it, `Process` may be used: threads know their process, the slot has an application for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _start)
        patch.setattr(type(slot), "runtime", property(_runtime_of_this_process, lambda *_: None))
        patch.setattr(eventflow.app, "database_of", _database_of_this_process)
        patch.setattr(eventflow.journal, "_armed", False)  # a process that is armed sets it
        for name, module in list(sys.modules.items()):
            if name.startswith("eventflow.") and hasattr(module, "crash_point"):
                patch.setattr(module, "crash_point", _pass_point)
        yield
