"""The lanes of transaction steps, and the calls that wait for one, which may share its transaction (docs/adr/0011).

A call takes a *place*: a lane with its connection. When its function has ended and the next in line is a call of the same
transaction, it hands the place on as it is, in the midst of the transaction, and waits for what comes of it; the last
commits for all. So each function runs where it was called, in its own task or thread, and nobody waits behind a function
that has not ended while another lane is free.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

from eventflow.errors import for_future
from eventflow.journal import Lane
from eventflow.records import Checkpoint, Rider
from eventflow.registry import TransactionSpec
from eventflow.runs import Run

SHARED = 50  # calls in one transaction at most
_BRIEF = 0.02  # seconds that it has been open, after which nobody else comes in
# Before others come in: what they find by then, a mark that goes if a statement of theirs ends the transaction, and how long
# they wait for a lock.
_OPEN = b"""select current_setting('transaction_isolation'), set_config('eventflow.shared', '1', true),
               case when current_setting('lock_timeout') = '0' then set_config('lock_timeout', '2s', true) end"""
STILL_OPEN: tuple[bytes, dict[str, Any]] = (
    b"select 1 / (coalesce(current_setting('eventflow.shared', true), '') = '1')::int", {},
)  # fmt: skip

Told = asyncio.Future[Any] | Future[Any]


def _is_open(answer: list[Any]) -> bool:
    """The function may have chosen its isolation by a statement."""
    return bool(answer[0][0] == "read committed")


class Member:
    """A call whose function has ended in an open transaction, and what is to be recorded of it.

    `told` is whether it was committed; if not, it is to run again, alone.
    """

    __slots__ = ("checkpoint", "riders", "run", "told")

    def __init__(self, run: Run, checkpoint: Checkpoint, riders: list[Rider], told: Told) -> None:
        self.run, self.checkpoint, self.riders, self.told = run, checkpoint, riders, told


class Place:
    """A lane, its connection, and whose work the transaction that is open on it holds."""

    def __init__(self, lane: Lane, port: Any, threaded: Any = None) -> None:
        self.lane, self.port, self.threaded = lane, port, threaded
        self.members: list[Member] = []
        self.shares = False  # whether others may come in: each statement sees what is committed by then
        self.began = 0.0

    def begun(self, *, shares: bool) -> None:
        """A transaction is open on it."""
        self.shares, self.began = shares, time.perf_counter()

    def has_room(self) -> bool:
        """Whether one more may come in."""
        return self.shares and len(self.members) < SHARED and time.perf_counter() - self.began < _BRIEF

    def leave(self) -> list[Member]:
        """The transaction is over; those who are in it."""
        members, self.members = self.members, []
        return members


def tell(members: list[Member], outcome: bool | BaseException) -> None:
    """What came of their transaction."""
    for member in members:
        if member.told.done():
            continue
        if isinstance(outcome, BaseException):
            member.told.set_exception(for_future(outcome))
        else:
            member.told.set_result(outcome)


class Places:
    """Those of one colour, and who waits for one, with the transaction that he would share; None: with nobody."""

    def __init__(self, places: list[Place]) -> None:
        self._idle = deque(places)
        self._waiting: deque[tuple[TransactionSpec | None, Told]] = deque()
        self._lock = threading.Lock()

    def take(self, spec: TransactionSpec | None, future: Callable[[], Told]) -> "Place | Told":
        """One that is idle, or what will be one."""
        with self._lock:
            if self._idle:
                return self._idle.popleft()
            promise = future()
            self._waiting.append((spec, promise))
            return promise

    def give(self, place: Place) -> None:
        """It is free."""
        with self._lock:
            if self._first() is None:
                self._idle.append(place)
            else:
                self._waiting.popleft()[1].set_result(place)

    def close(self) -> list[Place]:
        """Those that are idle, which nobody gets any more."""
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
            return idle

    def crowded(self, spec: TransactionSpec) -> bool:
        """Whether the next in line would share its transaction."""
        with self._lock:
            return self._first() == spec

    def pass_on(self, place: Place, spec: TransactionSpec) -> bool:
        """Hand it to the next in line, in the midst of its transaction; whether there was one for it."""
        with self._lock:
            if self._first() != spec:
                return False
            self._waiting.popleft()[1].set_result(place)
            return True

    def _first(self) -> Any:
        """Which transaction the first in line would share; "" where he shares none, None where nobody waits."""
        while self._waiting and self._waiting[0][1].cancelled():
            self._waiting.popleft()
        return (self._waiting[0][0] or "") if self._waiting else None


class _Seat:
    """What one call asks for: a place, and on it what its port does."""

    place: Place | None = None

    def __init__(self, places: Places, spec: TransactionSpec, future: Callable[[], Told]) -> None:
        self._places, self._spec, self._future = places, spec, future

    def crowded(self) -> bool:
        """Whether somebody waits who would come in."""
        return self._places.crowded(self._spec)

    def member(self, run: Run, checkpoint: Checkpoint, riders: list[Rider]) -> Member:
        """Its work is in the transaction."""
        assert self.place is not None
        member = Member(run, checkpoint, riders, self._future())
        self.place.members.append(member)
        return member

    def pass_on(self) -> bool:
        """Hand the place on with its open transaction; whether somebody took it."""
        assert self.place is not None
        if not self._places.pass_on(self.place, self._spec):
            return False
        self.place = None
        return True

    def give(self) -> None:
        """Give the place back, if it is still held."""
        if self.place is not None:
            place, self.place = self.place, None
            self._places.give(place)


class Seat(_Seat):
    """Of a call in a thread."""

    def __init__(self, places: Places, spec: TransactionSpec) -> None:
        super().__init__(places, spec, Future)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        assert self.place is not None
        return getattr(self.place.port, method)

    def take(self, share: TransactionSpec | None) -> None:
        """Wait for a place, or for that of somebody who runs the same transaction."""
        taken = self._places.take(share, self._future)
        self.place = taken if isinstance(taken, Place) else taken.result()

    def open_to_others(self) -> bool:
        """What waits for a lock for long is to wait alone. Whether each statement still sees all that is committed by then."""
        return _is_open(self.execute(_OPEN))

    def outcome(self, member: Member) -> bool:
        """Whether it was committed."""
        return member.told.result()  # type: ignore[no-any-return]


class AsyncSeat(_Seat):
    """Of a call on the loop; a sync transaction's function runs in one of the user's threads."""

    def __init__(self, places: Places, spec: TransactionSpec) -> None:
        super().__init__(places, spec, asyncio.get_running_loop().create_future)
        self._cancelled: asyncio.CancelledError | None = None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        assert self.place is not None
        return getattr(self.place.port if self._spec.is_async else self.place.threaded, method)

    async def take(self, share: TransactionSpec | None) -> None:
        """The same. One that was handed over just when the call was cancelled may have others' work on it: see `user`."""
        taken = self._places.take(share, self._future)
        if isinstance(taken, Place):
            self.place = taken
            return
        promise = cast("asyncio.Future[Place]", taken)
        try:
            self.place = await promise
        except asyncio.CancelledError as error:
            if promise.cancelled() or not promise.done():
                raise
            self.place, self._cancelled = promise.result(), error

    async def user(self, *args: Any) -> Any:
        """Run the user's function."""
        if self._cancelled is not None:
            raise self._cancelled
        return await self.__getattr__("user")(*args)

    async def open_to_others(self) -> bool:
        """The same."""
        return _is_open(await self.execute(_OPEN))

    def outcome(self, member: Member) -> Told:
        """Whether it was committed."""
        return member.told
