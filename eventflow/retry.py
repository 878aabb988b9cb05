"""When to try again, and after how long: pure; chance is passed in."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta

from eventflow.errors import CodecError, DeterminismError, FencedError, HistoryTooLongError, UsageError

Seconds = float | timedelta
Which = Callable[[Exception], bool] | tuple[type[Exception], ...]
_LONGEST = 1000 * 366 * 86400.0  # seconds; what is further off, no calendar of Postgres's or Python's holds
_NEVER = (UsageError, DeterminismError, HistoryTooLongError, CodecError, FencedError)


def doubled(first: float, times: int, longest: float) -> float:
    """So many seconds, doubled so many times, at most so many."""
    return min(first * 2 ** min(times, 10), longest)  # no more: the power of an outage of days is no float


def is_one(error: Exception, which: Which, note: str) -> bool:
    """Whether an exception is of these classes, or the user's function says so; where that raises, it is none, with a note."""
    if not callable(which):
        return isinstance(error, which)
    try:
        return bool(which(error))
    except Exception as problem:
        error.add_note(f"eventflow: {note.format(problem)}")
        return False


def seconds(value: Seconds, what: str = "a time") -> float:
    """A duration in seconds.

    Raises:
        UsageError: it is negative or not finite.

    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        result = float(value) if abs(value) <= _LONGEST else math.inf
    else:
        raise UsageError(f"{what} must be a number of seconds or a timedelta, not {value!r}")
    if not 0 <= result <= _LONGEST:
        raise UsageError(
            f"{what} must be a finite number of seconds, not negative, a thousand years at most: {value!r}"
        )
    return result


@dataclass(frozen=True)
class Retry:
    """A policy: `retries` attempts after the first, with exponential backoff, a cap and jitter.

    Attributes:
        retries: how often to try again; 0 is one attempt.
        delay: seconds before the first retry; each further one waits `factor` times longer, up to `max_delay`.
        factor: 1 or more.
        max_delay: seconds, jitter not counted.
        jitter: the share of a wait that chance may add or take, from 0 to 1.
        retry_if: which exceptions are worth it: classes, or a function of the exception. All, by default.

    Mistakes of the program (`UsageError`, `CodecError`, `DeterminismError`) are never tried again.

    Raises:
        UsageError: a number that cannot be: negative, not finite, `factor` below 1, `jitter` above 1.

    """

    retries: int
    _: KW_ONLY
    delay: Seconds = 1.0
    factor: float = 2.0
    max_delay: Seconds = 60.0
    jitter: float = 0.1
    retry_if: Which | None = None

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise UsageError(f"retries cannot be negative: {self.retries}")
        seconds(self.delay, "delay")
        seconds(self.max_delay, "max_delay")
        if not (self.factor >= 1 and math.isfinite(self.factor)) or not 0 <= self.jitter <= 1:
            raise UsageError("factor must be at least 1, and jitter between 0 and 1")

    def wants(self, error: Exception, attempts: int) -> bool:
        """Whether an attempt shall follow after `attempts` failed, the last with this error."""
        if attempts > self.retries or isinstance(error, _NEVER):
            return False
        if self.retry_if is None:
            return True
        return is_one(error, self.retry_if, "retry_if raised {!r}; there is no further attempt")

    def longest(self) -> float:
        """The longest wait between two attempts, in seconds, but for chance."""
        return min(seconds(self.delay) * self.factor ** min(max(self.retries - 1, 0), 64), seconds(self.max_delay))

    def wait(self, attempt: int, draw: float) -> float:
        """Seconds between attempt `attempt` and the next; `draw` is chance, from 0 to 1."""
        base = seconds(self.delay) * self.factor ** min(attempt - 1, 64)
        capped = min(base, seconds(self.max_delay))
        return capped * (1 + self.jitter * (2 * draw - 1))


def as_retry(value: int | Retry) -> Retry:
    """A number of retries as a policy."""
    return value if isinstance(value, Retry) else Retry(value)
