"""Reads what runs wait for: many questions of one kind go out as one query, again and again, batches formed by load.

A thread and a connection of its own, opened when the first question comes. What it reads may be old by the time it is
known; whoever asks is told again when something has come (`waits`).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg

from eventflow.database import Database, KeptConnection
from eventflow.errors import UnavailableError
from eventflow.journal import backoff

logger = logging.getLogger(__name__)

Source = tuple[str, ...]  # the kind of question, and what is asked for
Rows = list[tuple[Any, ...]]
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inbox": ("read_inboxes", ("workflow_id", "topic")),
    "outcome": ("read_outcomes", ("workflow_id",)),
    "event": ("read_events", ("workflow_id", "key")),
    "asked": ("read_asked", ("workflow_id",)),
    "stream": ("read_streams", ("workflow_id", "key", "after", "skip")),
}
_BATCH = 2000


class Reader:
    """Answers questions by callback, in its thread; while the server is away they wait."""

    def __init__(self, database: Database, stopped: threading.Event) -> None:
        self._connection = KeptConnection(database, "reader")
        self._stopped = stopped
        self._questions: deque[tuple[Source, Callable[[Rows], None]]] = deque()
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self, source: Source, answer: Callable[[Rows], None]) -> None:
        """Ask the ledger; `answer` gets the rows, without their number. From the loop's thread."""
        self._questions.append((source, answer))
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="eventflow reader", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; nothing is answered any more."""
        self._asked.set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._asked.wait()
            self._asked.clear()
            while self._questions and not self._stopped.is_set():
                self._answer([self._questions.popleft() for _ in range(min(len(self._questions), _BATCH))])
        self._connection.close()

    def _answer(self, questions: list[tuple[Source, Callable[[Rows], None]]]) -> None:
        for kind, (query, names) in _KINDS.items():
            mine = [(source, answer) for source, answer in questions if source[0] == kind]
            if not mine:
                continue
            params = {name: [source[i] for source, _ in mine] for i, name in enumerate(names, 1)}
            found = _by_number(self._read(query, params))
            for n, (_, answer) in enumerate(mine, 1):
                answer(found.get(n, []))

    def _read(self, query: str, params: dict[str, Any]) -> Rows:
        attempt = 0
        while True:
            try:
                return self._connection.run(query, params)
            except (psycopg.Error, UnavailableError) as error:
                logger.debug("reading: %s", error)
                if not isinstance(error, UnavailableError):
                    self._connection.close()
                attempt += 1
                if self._stopped.wait(backoff(attempt)):
                    return []


def _by_number(rows: Rows) -> dict[int, Rows]:
    """Rows by the number of the question that they answer, which is their first column."""
    found: dict[int, Rows] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row[1:])
    return found
