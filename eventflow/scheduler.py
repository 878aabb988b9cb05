"""Schedules fire here: a thread and a connection that have nothing to do until a fire time comes.

The beat (`recovery.Lease`) tells when that is; at that moment, by the ledger's clock as the beat tells it, one transaction
asks what is due and fires it (`firing`). A process whose own clock is wrong asks at the wrong time and is told that there is
nothing. Any number of processes do so at once, and share what is due; who dies before the commit has done nothing, and what he
has committed is found by whoever takes over.
"""

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from eventflow.adoption import Adoption
from eventflow.database import Connection, Database, KeptConnection, in_transaction
from eventflow.errors import FencedError
from eventflow.firing import fire_due
from eventflow.telemetry import crash_point

logger = logging.getLogger(__name__)

_LONGEST = 3600.0  # seconds without a look
_SHORTEST = 0.002
_PATIENCE = (
    "select set_config('lock_timeout', '2s', true), set_config('idle_in_transaction_session_timeout', '10s', true)",
    "set local synchronous_commit = on",
)


class Scheduler:
    """The schedules that one executor fires: those of the workflows that it knows."""

    def __init__(
        self,
        database: Database,
        executor: int,
        application: str,
        workflows: Sequence[str],
        only: Sequence[str] | None,
        *,
        adoption: Adoption,
        room: Callable[[], int],
        now: Callable[[], float],
        who: str,
        on_fenced: Callable[[FencedError], None],
    ) -> None:
        """`only`: of these names alone."""
        self._database, self._executor, self._application = database, executor, application
        self._workflows, self._only, self._who = list(workflows), only, who
        self._adoption, self._room, self._now = adoption, room, now
        self._on_fenced = on_fenced
        self.on_left: Callable[[], None] = lambda: None  # there are rows for whoever has room
        self.on_lost: Callable[[], None] = lambda: None  # a commit may have been made without an answer
        self._due_at: float | None = None  # by the ledger's clock
        self._work = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="eventflow schedules", daemon=True)

    def start(self, *, look: bool) -> None:
        """Begin to fire; `look`: at once, and not when the first beat tells what is due."""
        if self._workflows:
            self._thread.start()
        if look:
            self.look()

    def leave(self) -> None:
        """Fire nothing more."""
        self._leaving.set()
        self._work.set()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def params(self) -> dict[str, Any]:
        """What the beat asks for it."""
        return {"scheduled": self._workflows, "schedules": self._only}

    def told(self, due: float | None) -> None:
        """What the beat has found."""
        if due != self._due_at:
            self._due_at = due
            self._work.set()

    def look(self) -> None:
        """This process has changed something about a schedule."""
        self._due_at = 0.0
        self._work.set()

    # ---- the thread ----

    def _loop(self) -> None:
        kept = KeptConnection(self._database, "schedules")
        while not self._leaving.is_set():
            try:
                self._work.wait(self._pause())
                self._work.clear()
                while self._due() and not self._leaving.is_set():
                    self._round(kept.open())
            except FencedError as error:
                self._on_fenced(error)
                break
            except Exception as error:  # whatever it is, a fire time that is not fired is still there
                kept.failed(error, logger)
                self.on_lost()
                self._leaving.wait(0.2)
        kept.close()

    def _pause(self) -> float | None:
        """Seconds until something is due that nobody tells of."""
        return None if self._due_at is None else min(max(self._due_at - self._now(), _SHORTEST), _LONGEST)

    def _due(self) -> bool:
        return self._due_at is not None and self._due_at <= self._now()

    def _round(self, connection: Connection) -> None:
        """Fire what is due, a batch of it, and learn what comes next."""

        def work(connection: Connection) -> tuple[int, list[tuple[Any, ...]]]:
            run = functools.partial(self._database.run, connection)
            run("fence", {"executor": self._executor})
            crash_point("scheduler.before_fire")
            fired = fire_due(
                run, self._application, self._workflows, self._only, self._who, self._executor, self._room()
            )
            if fired[0]:
                crash_point("scheduler.before_commit")
            return fired

        count, rows = in_transaction(connection, work, *_PATIENCE)
        if count:
            crash_point("scheduler.after_commit")
        if rows:
            self._adoption.adopt(connection, rows, begun="woken")
        if count:
            self.on_left()
        asked = {"application": self._application, "workflows": self._workflows, "only": self._only}
        [(self._due_at, there)] = self._database.run(connection, "next_due", asked)
        if self._due_at is not None and self._due_at > there:  # by the ledger's own clock, whatever ours says
            self._work.wait(min(self._due_at - there, _LONGEST))
