"""Threads that pull whole pieces of work from one deque: no hop per piece, no lock between threads that have work.

How many run at once follows what the work does. Work that waits wants many threads; work that computes wants few, since
each further one only takes the interpreter lock (GIL) from the others, the loop and the journal. So a *governor* measures,
while work is queued, how late it is given the lock: early, it lets twice as many run; late, an eighth fewer. A few that
are not at one piece for long may run in any case, however late a crowded machine makes everything.
(The measure is that of the gilknocker project; the two speeds are those of congestion control.)
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, NoReturn, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
_here = threading.local()  # the pool that this thread works for

_FEW = 2  # threads that run at once in any case, beside those that take long
_LONG = 0.05  # seconds at one piece of work
_PROBE = 0.005  # seconds between two measures
_AHEAD = 0.1  # seconds' worth of work that is brought before it is needed
_LATE = 0.003  # seconds; who holds the interpreter lock is asked for it after 0.005


def works_for_a_pool() -> bool:
    """Whether this thread is one of `Threads`."""
    return getattr(_here, "pool", None) is not None


def give_up() -> NoReturn:
    """Never return: what this thread of a pool does cannot be ended. Another one takes its place."""
    _here.pool.lose()
    while True:
        threading.Event().wait()


class Threads(Generic[T]):
    """Calls `work(item)` for each item that is put, in as many threads as are of use, `limit` at most."""

    def __init__(self, limit: int, work: Callable[[T], None]) -> None:
        self.stopped = threading.Event()
        self._limit = limit
        self._work = work
        self._allowed = min(_FEW, limit)
        self._queue: deque[T] = deque()
        self._busy: dict[int, float] = {}  # threads that work or look for work, and since when
        self._open = True
        self._ready = threading.Condition()
        self._sleeping = 0
        self._made = 0
        self._filled = threading.Event()
        self._done = 0  # roughly: threads count without a lock
        self._seen = (time.perf_counter(), 0)
        self._ahead = 0

    def put(self, items: Iterable[T]) -> None:
        """Queue these, in order; from any thread."""
        self._queue.extend(items)
        self._wake()
        if not self._filled.is_set():
            self._filled.set()

    def alone(self, item: T) -> None:
        """Work on this one at once, in a thread of its own, even while closed."""
        threading.Thread(target=self._one, args=(item,), name="eventflow worker", daemon=True).start()

    def open(self, value: bool) -> None:
        """Whether queued work may begin."""
        self._open = value
        if value:
            self._wake()

    def active(self) -> int:
        """How many threads work."""
        return len(self._busy)

    def free(self) -> int:
        """How much more is worth bringing: what all threads do at a time, or lately did in 0.1 s, beside what is here."""
        now, done = time.perf_counter(), self._done
        since, before = self._seen
        if now - since > _AHEAD:
            self._ahead, self._seen = int((done - before) * _AHEAD / (now - since)), (now, done)
        return max(0, max(2 * self._limit, self._ahead) - len(self._busy) - len(self._queue))

    def waiting(self) -> int:
        """How much is queued."""
        return len(self._queue)

    def stop(self) -> None:
        """Begin nothing more, and drop what is queued; work under way ends by itself."""
        self.stopped.set()
        self._queue.clear()
        self._filled.set()
        with self._ready:
            self._ready.notify_all()

    def lose(self) -> None:
        """This thread of the pool will never come back."""
        self._busy.pop(threading.get_ident(), None)
        if _here.pulls:
            with self._ready:
                self._made -= 1
        self._wake()

    # ---- the threads ----

    def _wake(self) -> None:
        """Wake or make as many threads as there is work and leave for."""
        if not self._open or self.stopped.is_set():
            return
        with self._ready:
            wanted = min(len(self._queue), self._allowed - len(self._busy))
            if not self._made:
                wanted = max(wanted, min(len(self._queue), 1))  # and a governor, however many work alone
            if wanted > 0 and self._sleeping:
                self._ready.notify(min(wanted, self._sleeping))
            for _ in range(min(wanted - self._sleeping, self._limit - self._made)):
                if not self._made:
                    threading.Thread(target=self._govern, name="eventflow governor", daemon=True).start()
                self._made += 1
                threading.Thread(target=self._pull, name="eventflow worker", daemon=True).start()

    def _pull(self) -> None:
        me = threading.get_ident()
        _here.pool, _here.pulls = self, True
        while not self.stopped.is_set():
            self._busy[me] = time.perf_counter()  # before the look at the gate: who closes it may trust `active`
            item = self._next()
            if item is not None:
                try:
                    self._work(item)
                except BaseException:
                    logger.exception("a worker thread")  # it goes on: what it was given must see to itself
                self._done += 1
            else:
                self._busy.pop(me, None)
                self._sleep()
        self._busy.pop(me, None)

    def _next(self) -> T | None:
        if not self._open or len(self._busy) > self._allowed:
            return None
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def _sleep(self) -> None:
        with self._ready:
            self._sleeping += 1
            if not (self.stopped.is_set() or (self._queue and self._open and len(self._busy) < self._allowed)):
                self._ready.wait()
            self._sleeping -= 1

    def _one(self, item: T) -> None:
        me = threading.get_ident()
        _here.pool, _here.pulls = self, False
        self._busy[me] = time.perf_counter()
        try:
            self._work(item)
        finally:
            self._busy.pop(me, None)
            self._wake()

    # ---- the governor ----

    def _govern(self) -> None:
        while self._filled.wait() and not self.stopped.is_set():
            late = _lateness()
            if self._queue:
                self._adjust(late)
            else:
                self._filled.clear()
                if self._queue:
                    self._filled.set()  # it was put between the look and the clearing

    def _adjust(self, late: float) -> None:
        if late >= _LATE:
            wanted = self._allowed - max(1, self._allowed // 8)
        elif len(self._busy) >= self._allowed:
            wanted = self._allowed * 2
        else:
            return
        self._allowed = min(self._limit, max(wanted, _FEW + self._taking_long()))
        self._wake()

    def _taking_long(self) -> int:
        since = time.perf_counter() - _LONG
        return sum(began < since for began in list(self._busy.values()))


def _lateness() -> float:
    """For how many seconds a thread that wakes up waits for the interpreter lock."""
    began = time.perf_counter()
    time.sleep(_PROBE)
    return time.perf_counter() - began - _PROBE
