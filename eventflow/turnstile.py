"""Wakes many blocked threads one after another.

A hundred that are woken at once do not run at once: they wait for the interpreter lock (GIL), each asking for it every 5 ms,
and so take it from those who have work. Here one is woken, and wakes the next as soon as it has the lock.
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic

from typing_extensions import TypeVar

T = TypeVar("T")

_PATIENCE = 1.0  # seconds; who was to wake the next may have been interrupted before it did


class Answer(Generic[T]):
    """What one blocked thread waits for."""

    __slots__ = ("outcome", "turn", "woken")

    def __init__(self) -> None:
        self.outcome: T | BaseException | None = None
        self.turn = threading.Lock()
        self.turn.acquire()
        self.woken = False


class Turnstile(Generic[T]):
    """Those who have an answer and sleep, and whose turn it is to wake up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line = deque[Answer[T]]()
        self._passing = False  # one was woken, and has not woken the next
        self._left = set[Answer[T]]()  # interrupted before they had an answer

    def wait(self, answer: Answer[T]) -> T:
        """Block until it is given.

        Raises:
            BaseException: what was given is an error.

        """
        try:
            while not answer.turn.acquire(timeout=_PATIENCE) and answer.outcome is None:
                pass
        finally:
            self._pass(answer)
        outcome = answer.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        return outcome

    def let_through(self, answers: Iterable[tuple[Answer[T], T | BaseException]]) -> None:
        """Give each its outcome, and have them woken."""
        with self._lock:
            for answer, outcome in answers:
                answer.outcome = outcome
                if answer in self._left:
                    self._left.remove(answer)
                else:
                    self._line.append(answer)
            if not self._passing:
                self._wake_next()

    def _pass(self, answer: Answer[T]) -> None:
        """The next one's turn. Who was interrupted, or has waited too long for its own, stands in line no more."""
        with self._lock:
            if not answer.woken:
                if answer.outcome is None:
                    self._left.add(answer)
                    return
                self._line.remove(answer)
            self._wake_next()

    def _wake_next(self) -> None:
        self._passing = bool(self._line)
        if self._line:
            answer = self._line.popleft()
            answer.woken = True
            answer.turn.release()
