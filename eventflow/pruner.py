"""What is kept is a policy: one background pruner deletes in small batches what nobody needs any more.

Succeeded workflows older than `EVENTFLOW_KEEP`, dead letters older than `EVENTFLOW_KEEP_DEAD_LETTERS`, the numbers of
old flushes (never a lane's newest, R3), and executors that died long ago. One process at a time prunes, under an advisory
lock; a batch never stalls the hot path, and a pass over the table takes at most a quarter of the time. Why there is no
index to find old rows by: docs/adr/0002-pruning.md.
In other databases, results that the ledger has, or will never ask for, a day after: docs/adr/0008-other-databases.md.
"""

import logging
import random
import threading
import time
from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from eventflow.database import Connection, Database, in_transaction
from eventflow.errors import EventflowError, UnavailableError, first_line
from eventflow.idempotency import first_ticket
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_EVERY = 60.0  # seconds between two rounds of flush numbers and executors
_EVERY_RESULTS = 3600.0  # seconds between two passes over another database
_KEEP_RESULTS = timedelta(days=1)  # twice as long as `eventflow_results.record` trusts a process that was frozen
_BATCH = 1000  # workflows per transaction
_PAGES = 1024  # of the table, looked at per transaction
_SHARE = 3  # rest this many times as long as a batch took


def prune_ledger(database: Database, connection: Connection) -> None:
    """Old flush numbers and executors. Does nothing where another process prunes just now."""
    in_transaction(connection, lambda c: _ledger(database, c))


def prune_workflows(
    database: Database, connection: Connection, keep: timedelta | None, letters: timedelta | None = None
) -> Generator[int]:
    """One pass over the workflows; yields after each batch how many went. Ends where another process prunes.

    Succeeded ones stay for `keep`, messages that failed for good or were dropped for `letters`; None: for ever.
    """
    [(pages,)] = database.run(connection, "workflow_pages")
    page, after = 0, "(0,0)"
    while page <= pages:
        place: dict[str, object] = {
            "after": after, "page": page + _PAGES, "keep": keep, "keep_dead": letters, "batch": _BATCH,
        }  # fmt: skip
        found = in_transaction(connection, lambda c, p=place: _batch(database, c, p))
        if found is None:
            return
        gone, last = found
        if gone < _BATCH:
            page += _PAGES
            last = f"({page},0)"
        after = last
        yield gone


def prune_results(
    database: Database, connection: Connection, other: Database, there: Connection, ledger: UUID,
    keep: timedelta = _KEEP_RESULTS,
) -> Generator[int]:  # fmt: skip
    """One pass over another database's results; yields after each batch how many went. Ends where another process prunes.

    A row that the ledger may still ask for stays: one whose ticket is there, and whose result is not.
    """
    before = first_ticket(int((time.time() - keep.total_seconds()) * 1000) + 60_000)
    place: dict[str, Any] = {
        "ledger": ledger, "keep": keep, "before": before, "after": UUID(int=0), "after_id": "", "batch": _BATCH,
    }  # fmt: skip
    while True:
        rows = other.run(there, "old_results", place)
        if not rows:
            return
        tickets, ids, positions = ([row[n] for row in rows] for n in range(3))
        asked_for = in_transaction(connection, lambda c, i=ids, p=positions: _asked_for(database, c, i, p))
        if asked_for is None:
            return
        gone = [n for n in range(len(rows)) if n + 1 not in asked_for]
        if gone:
            going = {"ticket": [tickets[n] for n in gone], "workflow_id": [ids[n] for n in gone]}
            other.run(there, "delete_results", going)
        yield len(gone)
        place |= {"after": tickets[-1], "after_id": ids[-1]}


def _asked_for(database: Database, connection: Connection, ids: list[str], positions: list[str]) -> set[int] | None:
    if not _locked(database, connection):
        return None
    return {n for (n,) in database.run(connection, "results_asked_for", {"workflow_id": ids, "position": positions})}


def _locked(database: Database, connection: Connection) -> bool:
    [(got,)] = database.run(connection, "lock_pruning", {"name": f"eventflow.prune {database.schema}"})
    return got


def _ledger(database: Database, connection: Connection) -> None:
    if _locked(database, connection):
        database.run(connection, "prune_flushes")
        database.run(connection, "prune_executors")
        database.run(connection, "prune_signals")


def _batch(database: Database, connection: Connection, place: dict[str, object]) -> tuple[int, str] | None:
    if not _locked(database, connection):
        return None
    connection.execute("set local synchronous_commit = off")
    [(workflows, _, last)] = database.run(connection, "prune_workflows", place)
    return workflows, last


class Pruner:
    """The background thread; its connection is open only while it prunes."""

    def __init__(
        self, database: Database, keep: timedelta | None, others: Mapping[str, Database], ledger: UUID, *,
        letters: timedelta | None = None,
    ) -> None:  # fmt: skip
        self._database, self._others, self._ledger = database, others, ledger
        self._keep, self._letters = keep, letters
        self._stop = threading.Event()
        self._passed = time.monotonic()
        self._passed_elsewhere = self._passed - _EVERY_RESULTS
        self._thread = threading.Thread(target=self._loop, name="eventflow pruner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.wait(min(_EVERY, self._period()) * (0.5 + random.random())):
            try:
                with self._database.connect("pruner") as connection:
                    prune_ledger(self._database, connection)
                    self._pass(connection)
                    self._pass_elsewhere(connection)
            except (psycopg.Error, EventflowError) as error:
                logger.debug("pruning: %s", error)
            except Exception as error:  # whatever it is, there is another pass
                seldom.say(logger, f"pruning: {type(error).__name__}: {first_line(error)}", logging.ERROR)

    def _period(self) -> float:
        """Seconds between two passes: a hundredth of the time that workflows are kept, at least one, at most an hour."""
        times = [kept.total_seconds() for kept in (self._keep, self._letters) if kept is not None]
        return min(max(min(times) / 100, 1.0), 3600.0) if times else _EVERY

    def _pass(self, connection: Connection) -> None:
        nothing = self._keep is None and self._letters is None
        if nothing or time.monotonic() - self._passed < self._period() / 2:
            return
        gone = self._rest_between(prune_workflows(self._database, connection, self._keep, self._letters))
        self._passed = time.monotonic()
        logger.debug("pruned %d workflows", gone)

    def _pass_elsewhere(self, connection: Connection) -> None:
        if time.monotonic() - self._passed_elsewhere < _EVERY_RESULTS:
            return
        self._passed_elsewhere = time.monotonic()
        for name, other in self._others.items():
            try:
                with other.connect("pruner") as there:
                    gone = self._rest_between(prune_results(self._database, connection, other, there, self._ledger))
            except (psycopg.Error, UnavailableError) as error:
                logger.debug("pruning: database %r: %s", name, error)
            else:
                logger.debug("pruned %d results in database %r", gone, name)

    def _rest_between(self, batches: Generator[int]) -> int:
        """Go through them, at most a quarter of the time; how many rows went."""
        began, gone = time.monotonic(), 0
        for count in batches:
            gone += count
            if self._stop.wait(_SHARE * (time.monotonic() - began)):
                break
            began = time.monotonic()
        return gone
