"""What is kept is a policy: one background pruner deletes in small batches what nobody needs any more.

Succeeded workflows older than `EVENTFLOW_KEEP`, the numbers of old flushes (never a lane's newest, R3), and executors
that died long ago. One process at a time prunes, under an advisory lock; a batch never stalls the hot path.
"""

import logging
import random
import threading
from datetime import timedelta

import psycopg

from eventflow.database import Connection, Database, in_transaction
from eventflow.errors import EventflowError

logger = logging.getLogger(__name__)

_EVERY = 60.0
_BATCH = 1000


def prune_once(database: Database, connection: Connection, keep: timedelta | None, batch: int = _BATCH) -> int:
    """One round; how many workflows went. Does nothing where another process prunes just now."""
    gone = 0
    in_transaction(connection, lambda c: _flushes(database, c))
    while keep is not None:
        count = in_transaction(connection, lambda c: _workflows(database, c, keep, batch))
        gone += count
        if count < batch:
            break
    return gone


def _locked(database: Database, connection: Connection) -> bool:
    [(got,)] = database.run(connection, "lock_pruning", {"name": f"eventflow.prune {database.schema}"})
    return got


def _flushes(database: Database, connection: Connection) -> None:
    if _locked(database, connection):
        database.run(connection, "prune_flushes")
        database.run(connection, "prune_executors")


def _workflows(database: Database, connection: Connection, keep: timedelta, batch: int) -> int:
    if not _locked(database, connection):
        return 0
    return len(database.run(connection, "prune_workflows", {"keep": keep, "batch": batch}))


class Pruner:
    """The background thread; its connection is open only while it prunes."""

    def __init__(self, database: Database, keep: timedelta | None) -> None:
        self._database, self._keep = database, keep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="eventflow pruner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY * (0.5 + random.random())):
            try:
                with self._database.connect("pruner") as connection:
                    prune_once(self._database, connection, self._keep)
            except (psycopg.Error, EventflowError) as error:
                logger.debug("pruning: %s", error)
