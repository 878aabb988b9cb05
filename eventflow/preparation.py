"""Messages whose deserializer has to fetch something before they can be read, and which no consumer has prepared.

A consumer prepares what it hands over. What comes otherwise (taken over, woken, resumed) may need a schema that this process
has not seen yet: it waits here for it, in one thread for all, for as long as that cannot be had. That is no failure of its own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from eventflow.errors import UnavailableError
from eventflow.idempotency import parse_message_workflow_id
from eventflow.runs import Run
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_LONGEST = 5.0  # seconds between two attempts


class Preparation:
    """Those of one executor."""

    def __init__(self, again: Callable[[Run], None]) -> None:
        """`again` runs one anew that is prepared; from the thread here."""
        self._again = again
        self._waiting: deque[Run] = deque()
        self._come = threading.Event()
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, run: Run) -> None:
        """Have it prepared, and run anew. From any thread."""
        self._waiting.append(run)
        self._come.set()
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="eventflow preparation", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Prepare nothing more: whoever runs these next prepares them."""
        self._stopped.set()
        self._come.set()

    def _work(self) -> None:
        refused = 0
        while not self._stopped.is_set():
            self._come.wait()
            self._come.clear()
            while self._waiting and not self._stopped.is_set():
                run = self._waiting[0]
                try:
                    if not run.ended and not run.dropped:
                        _prepare(run)
                except UnavailableError as error:
                    refused += 1
                    seldom.say(logger, f"{run.name} waits: {error}; trying again")
                    self._stopped.wait(min(0.1 * 2**refused, _LONGEST))
                    continue
                refused = 0
                self._waiting.popleft()
                if not run.ended and not run.dropped:
                    self._again(run)


def _prepare(run: Run) -> None:
    identity = parse_message_workflow_id(run.workflow_id)
    assert identity is not None
    run.spec.reader.prepare(run.value, run.key, run.headers, identity.topic)
