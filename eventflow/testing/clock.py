"""A clock that only moves when it is told: the executor's, with its timers. `sql/testing/clock.sql` is the ledger's."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from eventflow.recovery import LedgerClock


class Timer:
    """A call at a time of the clock."""

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback, self._args = callback, args
        self.over = False

    def cancel(self) -> None:
        """It is not made."""
        self.over = True

    def fire(self) -> None:
        if not self.over:
            self.over = True
            self._callback(*self._args)


class Clock(LedgerClock):
    """Stands still; its timers fire when it is moved past them. On the loop's thread, but for `now`."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        super().__init__(0.0)

    def tell(self, time_there: float, asked: float, answered: float) -> None:  # noqa: ARG002
        """What the ledger says is what it was told."""
        self.heard = self._at

    def now(self) -> float:
        return self._at

    def later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it in so many seconds of this clock; at once, where there are none."""
        timer = Timer(callback, args)
        if delay <= 0:
            asyncio.get_running_loop().call_soon(timer.fire)
        else:
            heapq.heappush(self._timers, (self._at + delay, next(self._numbers), timer))
        return timer

    def due(self) -> float | None:
        """When the next timer fires."""
        while self._timers and self._timers[0][2].over:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def move(self, to: float) -> None:
        """It is so late now; what was due until then fires."""
        self._at = to
        while (due := self.due()) is not None and due <= to:
            heapq.heappop(self._timers)[2].fire()
