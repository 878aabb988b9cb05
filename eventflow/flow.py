"""How much a consumer takes: so many messages in flight, so many bytes, so many a second. Pure; the clock is an argument."""

from collections.abc import Callable

HEAVY = 4096  # bytes; values up to here count by their number alone
_BURST = 0.1  # seconds for which a rate may be used up at once


class Rate:
    """So many a second, in even steps: what is not used is lost after a tenth of a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST)
        self._left, self._at = 1.0, float("-inf")

    def room(self, now: float) -> int:
        """How many may be taken now."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        return int(self._left)

    def take(self, count: int) -> None:
        """So many were taken: more than there was room for is paid back."""
        self._left -= count

    def wait(self) -> float:
        """Seconds until there is room for one."""
        return max(0.0, (1.0 - self._left) / self._per_second)


class Flow:
    """The bounds of one consumer: messages in flight, bytes of those that are heavy, and a rate."""

    def __init__(self, messages: int, weight: int, per_second: float | None, clock: Callable[[], float]) -> None:
        self._messages, self._weight, self._clock = messages, weight, clock
        self._own: float | None = per_second
        self._per_second: float | None = per_second
        self._rate = None if per_second is None else Rate(per_second)
        self._mean = 0.0  # bytes that the last messages weighed

    def room(self, in_flight: int, weight: int) -> int:
        """How many messages may be taken, with so many in flight that weigh so much."""
        room, left = self._messages - in_flight, self._weight - weight
        if self._mean:
            room = min(room, int(left / self._mean) + 1)
        if self._rate is not None:
            room = min(room, self._rate.room(self._clock()))
        return room if left > 0 else 0

    def limit(self, per_second: float | None) -> None:
        """Keep this rate, too, from now on; None: only its own."""
        wanted = min((one for one in (self._own, per_second) if one is not None), default=None)
        if wanted != self._per_second:
            self._per_second = wanted
            self._rate = None if wanted is None else Rate(wanted)

    def took(self, messages: int, weight: int) -> None:
        """So many were taken, and weigh so much."""
        self._mean = weight / messages
        if self._rate is not None:
            self._rate.take(messages)

    def wait(self) -> float:
        """Seconds until it is worth asking again."""
        return 0.001 if self._rate is None else min(0.02, max(0.001, self._rate.wait()))
