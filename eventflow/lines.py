"""Who is next in a queue: the lines that wait in it, one for each priority and key, and how many of each may begin.

Pure: what stands in the ledger comes in as arguments, what is to be asked of it goes out. A line is known by where its
head was last seen, so that it is found again without walking over what has been taken from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class Cursor:
    """What a reader has seen of rows that carry the transaction that wrote them: all but what it lists as missed.

    A transaction with a smaller number may commit later; so the number alone does not tell (PROTOCOL.md R19). The
    snapshot of the last look does: it names those that were under way.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Read everything again."""
        self.since = "0"
        self.missed: list[str] = []

    def advance(self, snapshot: str, own: str | None = None) -> None:
        """A look with this snapshot, as Postgres writes it ("xmin:xmax:under,way"), has seen what there was.

        `own` is the transaction that looked, which is under way, too, and which its own snapshot does not name.
        """
        _, self.since, under_way = snapshot.split(":")
        self.missed = [*filter(None, (*under_way.split(","), own))]

    def params(self) -> dict[str, object]:
        """As the queries have it."""
        return {"since": self.since, "missed": self.missed}


@dataclass(frozen=True, slots=True)
class Limits:
    """A queue's settings, as the ledger has them.

    Attributes:
        rate, rate_per_key: so many begin within so many seconds at most.

    """

    concurrency: int | None = None
    concurrency_per_process: int | None = None
    concurrency_per_key: int | None = None
    rate: tuple[int, float] | None = None
    rate_per_key: tuple[int, float] | None = None

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Limits":
        """From the ledger's JSON."""
        known: dict[str, Any] = {name: settings[name] for name in cls.__slots__ if name in settings}
        return cls(**{name: tuple(one) if isinstance(one, list) else one for name, one in known.items()})  # type: ignore[arg-type]

    def shared(self) -> bool:
        """Whether processes must count together."""
        return any((self.concurrency, self.concurrency_per_key, self.rate, self.rate_per_key))


@dataclass(slots=True)
class Used:
    """What is used up of a queue's limits: by key, those that have begun and not ended, and those of each rate's time."""

    slots: dict[str, int] = field(default_factory=dict[str, int])
    started: dict[str, int] = field(default_factory=dict[str, int])
    started_of_key: dict[str, int] = field(default_factory=dict[str, int])

    def left(self, limits: Limits) -> int | None:
        """How many more may begin in all; None: any number."""
        counts = [
            *([limits.concurrency - sum(self.slots.values())] if limits.concurrency is not None else []),
            *([limits.rate[0] - sum(self.started.values())] if limits.rate is not None else []),
        ]
        return max(0, min(counts)) if counts else None

    def left_of(self, limits: Limits, key: str) -> int | None:
        """How many more of a key may begin; None: any number."""
        counts = [
            *([limits.concurrency_per_key - self.slots.get(key, 0)] if limits.concurrency_per_key is not None else []),
            *([limits.rate_per_key[0] - self.started_of_key.get(key, 0)] if limits.rate_per_key is not None else []),
        ]
        return max(0, min(counts)) if counts else None


@dataclass(frozen=True, slots=True)
class Ask:
    """A line to take from: `share` of it at most, from where its head was last seen."""

    priority: int
    key: str
    low: int
    share: int


class Lines:
    """The lines of one queue that may hold something. Those asked go behind the others: keys take turns."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, int]] = {}  # priority -> key -> from which transaction on its head is

    def __bool__(self) -> bool:
        return bool(self._lines)

    def arrived(self, priority: int, key: str, placed: int) -> None:
        """Something has come into a line, put there by this transaction."""
        line = self._lines.setdefault(priority, {})
        line[key] = min(placed, line.get(key, placed))

    def plan(self, budget: int, left_of: Callable[[str], int | None]) -> list[Ask]:
        """What to ask, so that `budget` may begin: the smallest priority first, its keys alike, each within its limit."""
        asks: list[Ask] = []
        promised: dict[str, int] = {}
        wanted = budget
        for priority in sorted(self._lines):
            line = self._lines[priority]
            open_keys: list[tuple[str, int]] = []
            for key in line:
                left = left_of(key)
                most = budget if left is None else min(budget, left - promised.get(key, 0))
                if most > 0:
                    open_keys.append((key, most))
                if len(open_keys) + len(asks) >= budget:
                    break
            fair = -(-wanted // len(open_keys)) if open_keys else 0
            for key, most in open_keys:
                share = min(most, max(fair, 1))
                promised[key] = promised.get(key, 0) + share
                asks.append(Ask(priority, key, line[key], share))
                wanted -= share
            if wanted <= 0 or len(asks) >= budget:
                break
        return asks

    def answered(self, asks: list[Ask], taken: Iterable[tuple[int, int]], budget: int) -> list[Ask]:
        """What came of it: of which asks, numbered from 1, and where the rows taken stood.

        A line that gave less than was asked is empty, unless the budget cut it short, or somebody else held its head: it is
        forgotten, and returned, so that the ledger is asked once more.
        """
        doubted: list[Ask] = []
        given: dict[int, list[int]] = {}
        total = 0
        for n, placed in taken:
            given.setdefault(n, []).append(placed)
            total += 1
        for n, ask in enumerate(asks, 1):
            line = self._lines[ask.priority]
            came = given.get(n, [])
            low = line.pop(ask.key)
            if len(came) >= ask.share or total >= budget:
                line[ask.key] = max([low, *came])
            else:
                doubted.append(ask)
            if not line:
                del self._lines[ask.priority]
        return doubted
