"""What the relay decides, as values: which events go out together, and what became of a batch whose relay died. No I/O.

A *batch* is what is sent in one Kafka transaction. Its number and its random id stand in the ledger, and, as a message of
the relay's own topic, inside that very transaction: so whoever comes next reads both, and knows (PROTOCOL.md R17).
A *slot* is a transactional id with a partition of its own for these numbers; batches go out through two of them in turn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from eventflow.errors import EventflowError

Number = tuple[int, str]  # of a batch: n, and its random id
Key = tuple[str, bytes]  # a topic, and a key in it: what is kept in order


class MismatchError(EventflowError):
    """Ledger and Kafka do not fit together, and nothing may be published until a person has looked."""


class Event(NamedTuple):
    """An event as the relay takes it: `id` is the outbox's. `unread` says why it could not be decoded from what is stored."""

    id: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    unread: str | None = None

    @property
    def scope(self) -> Key | None:
        """What it is kept in order with; None: with nothing."""
        return None if self.key is None else (self.topic, self.key)


class Parked(NamedTuple):
    """An event that does not go out, and why; `behind`: for another one before it does not."""

    id: int
    behind: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A numbered batch as the ledger has it."""

    n: int
    slot: int
    id: str
    events: int
    at: datetime

    @property
    def number(self) -> Number:
        """What stands in Kafka once it is out."""
        return self.n, self.id


class Finding(NamedTuple):
    """What is to be done with a slot's newest batch.

    `send`: it is not out. `renumber`: it is, and Kafka has forgotten its number. `look`: Kafka has forgotten the number, and
    only its events tell whether it is out.
    """

    batch: Batch
    what: Literal["send", "renumber", "look"]


def compare(batches: Sequence[Batch], due: Batch | None, said: Mapping[int, Number | None]) -> list[Finding]:
    """What is to be done, by what the ledger has, what of it is due, and what Kafka says of each slot (R17.7).

    Raises:
        MismatchError: Kafka says what cannot be: the ledger has lost commits, or is a copy of another one.

    """
    found: list[Finding] = []
    for slot in sorted({batch.slot for batch in batches}):
        mine = [batch for batch in batches if batch.slot == slot]
        newest, before = mine[-1], mine[-2].number if len(mine) > 1 else None
        is_due, number = newest is due, said[slot]
        if number == newest.number:
            continue
        if number is None:
            found.append(Finding(newest, "look" if is_due else "renumber"))
        elif is_due and number == before:
            found.append(Finding(newest, "send"))
        else:
            raise MismatchError(
                f"Kafka has batch {number} of slot {slot}, the ledger {newest.number} after {before}: it has lost commits, "
                "or is a copy of another ledger"
            )
    return sorted(found, key=lambda finding: finding.batch.n)


def ranges(ids: Iterable[int]) -> str:
    """Ids, which rise, as Postgres writes a multirange."""
    joined: list[list[int]] = []
    for one in ids:
        if joined and joined[-1][1] == one:
            joined[-1][1] = one + 1
        else:
            joined.append([one, one + 1])
    return "{" + ",".join(f"[{low},{high})" for low, high in joined) + "}"


Blocked = dict[Key, int]  # by key, the id of the first event that does not go out: those behind it wait


def block(blocked: Blocked, events: Iterable[Event]) -> None:
    """These do not go out."""
    for event in events:
        scope = event.scope
        if scope is not None:
            blocked[scope] = min(event.id, blocked.get(scope, event.id))


def sift(
    events: Iterable[Event], blocked: Mapping[Key, int], refusal: Callable[[Event], str | None]
) -> tuple[list[Event], list[Parked]]:
    """Which of these, in order of id, go out, and which are parked: refused, or behind one that is."""
    going: list[Event] = []
    parked: list[Parked] = []
    stopped: set[Key] = set()
    for event in events:
        scope = event.scope
        if scope is not None and (scope in stopped or (scope in blocked and blocked[scope] < event.id)):
            parked.append(Parked(event.id, True, "behind another event of its key"))
        elif (reason := event.unread or refusal(event)) is not None:
            parked.append(Parked(event.id, False, reason))
            if scope is not None:
                stopped.add(scope)
        else:
            going.append(event)
    return going, parked


class Refused(NamedTuple):
    """A parked event as it is found again: what was parked, and what a person wants of it."""

    event: Event
    behind: bool
    wanted: str | None


@dataclass(slots=True)
class Review:
    """A walk over what is parked, in order of id, after a person has decided something; in parts, if it is much.

    Per key it lets go, in order, what a person wants tried again and what was only behind that, up to the first of which
    nobody has said anything.
    """

    after: int = 0
    _stopped: Blocked = field(default_factory=Blocked)
    _late: Blocked = field(default_factory=Blocked)

    def part(self, parked: Sequence[Refused]) -> tuple[list[Event], list[int]]:
        """What of the next part goes out, and the ids of what is dropped."""
        going: list[Event] = []
        dropped: list[int] = []
        for event, behind, wanted in parked:
            scope = event.scope
            self.after = event.id
            if wanted == "drop":
                dropped.append(event.id)
            elif scope is not None and scope in self._stopped:
                continue
            elif behind or wanted == "retry":
                going.append(event)
            elif scope is not None:
                self._stopped[scope] = event.id
        return going, dropped

    def parked(self, events: Iterable[Event]) -> None:
        """Between two parts, these were parked; some where it has passed already."""
        block(self._late, (event for event in events if event.id <= self.after))

    def end(self) -> tuple[Blocked, bool]:
        """At the end: what is blocked from now on, and whether another walk must follow."""
        both = {k: min(self._stopped.get(k, i), i) for k, i in self._late.items()}
        return self._stopped | both, bool(self._late)


class Bound:
    """An id below which the outbox holds nothing, and never will: it saves reading over dead rows, and must be proven.

    Whoever inserts holds a lock on the table from before it draws an id until it ends. So once all who held it after some
    id was seen have ended, whatever has a lower id was there for the next read, which begins with the lowest.
    """

    def __init__(self) -> None:
        self.low = 0
        self._seen = 0
        self._pending: tuple[int, frozenset[str]] | None = None

    def look(self, writers: Iterable[str]) -> None:
        """These hold the lock now."""
        now = frozenset(writers)
        if self._pending is not None:
            self._pending = self._pending[0], self._pending[1] & now
        elif self._seen > self.low:
            self._pending = self._seen, now

    def read(self, ids: Sequence[int]) -> None:
        """A read that began after the last look has found these, lowest first; between the bound and them there is nothing."""
        if self._pending is not None and not self._pending[1]:
            self.low = min(self._pending[0], ids[0] - 1) if ids else self._pending[0]
            self._pending = None
        if ids:
            self._seen = max(self._seen, ids[-1])


@dataclass(slots=True)
class Size:
    """How many events a batch has: fewer after one was refused as a whole, so that the one to blame stands alone soon."""

    most: int
    now: int = 0

    def __post_init__(self) -> None:
        self.now = self.most

    def refused(self, events: int) -> None:
        """A batch of so many was refused."""
        self.now = max(1, events // 2)

    def sent(self) -> None:
        """A batch has gone out."""
        self.now = min(self.most, self.now * 2)
