"""A circuit breaker: a dependency that fails holds its consumer up, and uses no retries up. Pure, but for a lock."""

import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from eventflow.errors import UsageError
from eventflow.retry import Seconds, is_one, seconds

_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Breaker:
    """When a consumer stops calling its handler because what that depends on is away, and how it finds out that it is back.

    `failures` calls in a row that fail with one of `errors`, with no success between, open it: nothing is fetched, what was
    fetched and not begun waits, and what fails so meanwhile waits without a retry being counted. After `pause` seconds one
    message is tried: if it succeeds, all go on; if it fails so again, the pause is twice as long, `max_pause` at most. Per
    consumer and process.

    Attributes:
        failures: 1 or more.
        pause: seconds. max_pause: seconds.
        errors: which exceptions tell of the dependency: classes, or a function of the exception.

    Raises:
        UsageError: a number that cannot be.

    """

    failures: int
    _: KW_ONLY
    errors: tuple[type[Exception], ...] | Callable[[Exception], bool]
    pause: Seconds = 10.0
    max_pause: Seconds = 300.0

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise UsageError(f"Breaker: failures must be at least 1, not {self.failures}")
        if not 0 < seconds(self.pause, "pause") <= seconds(self.max_pause, "max_pause"):
            raise UsageError("Breaker: pause is above 0, and max_pause not below it")

    def counts(self, error: BaseException) -> bool:
        """Whether this exception tells of the dependency."""
        note = "the breaker's `errors` raised {!r}; it is not counted"
        return isinstance(error, Exception) and is_one(error, self.errors, note)


class Circuit:
    """The state of one consumer's breaker in this process. Who calls is any object that stands for a run. From any thread."""

    def __init__(self, breaker: Breaker, clock: Callable[[], float]) -> None:
        self._breaker, self._clock = breaker, clock
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._pause = seconds(breaker.pause)
        self._opens_at: float | None = None  # when one may be tried; None while closed
        self._probe: object = None

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._opens_at is not None

    def failed(self, run: object, error: BaseException) -> bool:
        """Its call has failed; whether it is to wait, charged with nothing."""
        if not self._breaker.counts(error):
            if run is self._probe:
                self.succeeded(run)  # the dependency is there: it fails for something else
            return False
        with self._lock:
            now = self._clock()
            if self._is_trial(run, now):
                self._pause = min(2 * self._pause, seconds(self._breaker.max_pause))
                self._open(now)
            elif self._opens_at is None:
                self._failures += 1
                if self._failures >= self._breaker.failures:
                    self._open(now)
            return self._opens_at is not None

    def succeeded(self, run: object) -> None:
        """Its call has ended well."""
        if not self._failures and self._opens_at is None:
            return
        with self._lock:
            if self._opens_at is None:
                self._failures = 0
            elif self._is_trial(run, self._clock()):
                self._failures, self._opens_at, self._probe = 0, None, None
                self._pause = seconds(self._breaker.pause)

    def wait(self, run: object | None) -> float:
        """Seconds until it is worth asking again; 0: it may be called now. None asks for one that is yet to be fetched."""
        with self._lock:
            if self._opens_at is None:
                return 0.0
            now = self._clock()
            if run is not None and run is self._probe:
                return 0.0
            if now < self._opens_at:
                return min(_LOOK_EVERY, self._opens_at - now)
            if run is not None:
                self._probe = run
                self._opens_at = now + self._pause  # if nobody hears of it by then, another one is tried
            return 0.0

    def _is_trial(self, run: object, now: float) -> bool:
        """Whether what becomes of it says how the dependency is: not of a call that was under way when it opened."""
        return self._opens_at is not None and (run is self._probe or now >= self._opens_at)

    def _open(self, now: float) -> None:
        self._opens_at, self._probe = now + self._pause, None
