"""Messages whose deserializer has to fetch something before they can be read, and which no consumer has prepared.

A consumer prepares what it hands over. What comes otherwise (taken over, woken, resumed) may need a schema that this process
has not seen yet: it waits here for it, in one thread for all, for as long as that cannot be had. That is no failure of its own.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from eventflow.errors import UnavailableError
from eventflow.idempotency import parse_message_workflow_id
from eventflow.retry import doubled
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
        self._refused = self._returned = 0  # times in a row
        self._passed: dict[Run, float] = {}  # which were run again lately, and when

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
        while not self._stopped.is_set():
            self._come.wait()
            self._come.clear()
            runs = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._put_off(runs)
            for run in runs:
                while not self._stopped.is_set() and not self._prepared(run):
                    pass
                self._pass_on(run)

    def _put_off(self, runs: list[Run]) -> None:
        """Wait where one has come back: what it needs is not to be had by preparing it, but by trying again."""
        now = time.monotonic()
        self._passed = {run: at for run, at in self._passed.items() if now - at < 2 * _LONGEST}
        if any(run in self._passed for run in runs):
            self._returned += 1
            seldom.say(logger, f"{runs[0].name} waits: its messages cannot be read now; trying again")
            self._wait(self._returned)
        elif not self._passed:
            self._returned = 0

    def _prepared(self, run: Run) -> bool:
        """Whether it may be run; else it is worth another try, after a while."""
        try:
            if not run.ended and not run.dropped:
                _prepare(run)
        except UnavailableError as error:
            self._refused += 1
            seldom.say(logger, f"{run.name} waits: {error}; trying again")
            self._wait(self._refused)
            return False
        except Exception:  # reading it will tell; the others are to go on
            logger.exception("%s cannot be prepared", run.workflow_id)
        self._refused = 0
        return True

    def _pass_on(self, run: Run) -> None:
        if self._stopped.is_set() or run.ended or run.dropped:
            return
        self._passed[run] = time.monotonic()
        try:
            self._again(run)
        except Exception:
            logger.exception("%s cannot be run again", run.workflow_id)

    def _wait(self, times: int) -> None:
        self._stopped.wait(doubled(0.1, times, _LONGEST))


def _prepare(run: Run) -> None:
    identity = parse_message_workflow_id(run.workflow_id)
    assert identity is not None
    run.spec.reader.prepare(run.value, run.key, run.headers, identity.topic)
