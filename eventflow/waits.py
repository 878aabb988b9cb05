"""What the runs of this process wait for, and which of them leave memory meanwhile (API.md 2.5).

A wait ends when its time comes, or when something has come from outside: from this process at once, from another when the
ledger is asked again. A run all of whose branches wait, for longer than is worth its memory, is *suspended*: its waits end
with `Suspended`, it unwinds, and the ledger knows when and by what to wake it. Everything here happens on the loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from eventflow.context import Suspended
from eventflow.payloads import unread
from eventflow.reader import Rows, Source
from eventflow.replay import Await
from eventflow.runs import Life, Request, Run

logger = logging.getLogger(__name__)

Ask = Callable[[Source, Callable[[Rows], None]], None]  # `Reader.ask`


class Timer(Protocol):
    """A call that is yet to be made."""

    def cancel(self) -> None: ...


class Later(Protocol):
    """Calls a function on the loop in so many seconds."""

    def __call__(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer: ...


_LOOK_EVERY = 0.25  # seconds; what another process did is seen after so long at the latest
_SOON = 0.005  # seconds until an inbox is read again whose receipts are on their way to the ledger
_STILL = 0.05  # seconds for which a run has to stand still before it may leave memory
_BAD_ENDS = ("cancelled", "failed", "parked")  # as one ends that was told to
_ROOM = 0.01  # seconds between two looks at who gives his thread back, while others wait for one


class Wait:
    """One branch's wait: `resolve` is told what came, None at its time, or `Suspended`; once, from the loop."""

    __slots__ = ("asked", "awaited", "expired", "heard", "over", "resolve", "run", "taken", "timer", "unread")

    def __init__(self, run: Run, awaited: Await, resolve: Callable[[Any], None]) -> None:
        self.run = run
        self.awaited = awaited
        self.resolve = resolve
        self.timer: Timer | None = None
        self.asked: dict[Source, bool] = {}  # questions under way, and whether they are to be asked again
        self.unread = set(awaited.sources)  # of which the ledger has said nothing yet
        self.heard = 0 if run.life is None else run.life.heard  # the last request that is known to who waits
        self.over = False
        self.taken: int | None = None  # the message that it was told of
        self.expired = False  # its time has come, and the ledger is asked once more


class Waits:
    """All waits of one incarnation."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ask: Ask,
        *,
        now: Callable[[], float],
        later: "Later",
        suspend_after: float,
        crowded: Callable[[], bool],
    ) -> None:
        self._loop, self._ask, self._now, self._later = loop, ask, now, later
        self._suspend_after, self._crowded = suspend_after, crowded
        self.on_asked: Callable[[list[Request]], None]  # people ask something of who waits here
        self._sources: dict[Source, set[Wait]] = {}
        self._runs: set[Run] = set()
        self._in_threads: set[Run] = set()  # those of them that hold threads
        self._ticking: asyncio.TimerHandle | None = None
        self._making_room: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._leaving = False

    def leave(self) -> None:
        """The process is about to leave: from now on whoever stands still leaves memory, however soon he would go on."""
        self._leaving = True

    def add(self, wait: Wait) -> None:
        """Begin to wait."""
        life = life_of(wait.run)
        if life.suspending:
            self._end(wait, Suspended())
            return
        life.waits[wait] = wait.awaited
        life.seen = None
        self._runs.add(wait.run)
        if not wait.run.spec.is_async:
            self._in_threads.add(wait.run)
        until = wait.awaited.until
        if until is not None:
            wait.timer = self._later(max(0.0, until - self._now()), self._expired, wait)
        for source in wait.awaited.sources:
            self._sources.setdefault(source, set()).add(wait)
            self._look(wait, source)
        if self._ticking is None:
            self._ticking = self._loop.call_later(_STILL, self._tick)

    def arrived(self, source: Source, what: Any = None) -> None:
        """Something has come, from this process; `what` it is, where that is known here."""
        for wait in list(self._sources.get(source, ())):
            if what is None:
                self._look(wait, source)
            else:
                self._came(wait, source, what)

    def standing(self) -> int:
        """How many runs do nothing but wait."""
        return sum(
            not run.acting and not life.suspending and not life.is_to_be_told()
            for run in self._runs if (life := life_of(run))
        )  # fmt: skip

    def awaited(self, source: Source) -> bool:
        """Whether a run of this process waits for it."""
        return source in self._sources

    def end(self, run: Run, what: BaseException) -> None:
        """End all that the run waits for."""
        if run.life is not None:
            for wait in list(run.life.waits):
                self._end(wait, what)

    # ---- looking ----

    def _look(self, wait: Wait, source: Source) -> None:
        """Ask the ledger for what has come; asked already, once more after the answer."""
        if source in wait.asked:
            wait.asked[source] = True
            return
        wait.asked[source] = False

        def answer(rows: Rows) -> None:
            self._loop.call_soon_threadsafe(self._answered, wait, source, rows)

        self._ask(source, answer)

    def _answered(self, wait: Wait, source: Source, rows: Rows) -> None:
        again = wait.asked.pop(source)
        wait.unread.discard(source)
        if wait.over:
            return
        found = _first_new(wait, source, rows)
        if isinstance(found, Exception):
            self._end(wait, found)
        elif found is not None:
            self._came(wait, source, found)
        elif again:
            self._look(wait, source)
        elif wait.expired and not wait.asked:
            self._end(wait, None)
        elif rows:  # what its inbox shows is received, and the ledger is about to know
            self._loop.call_later(_SOON, self._look_again, wait, source)

    def _came(self, wait: Wait, source: Source, what: Any) -> None:
        """End a wait by what has come; but it may be what people have ended with the whole family of who waits.

        What they ask of him was committed before that, and his process may not have read it yet: he is told of that first.
        """
        if source[0] != "outcome" or what[0] not in _BAD_ENDS:
            self._end(wait, (source, what))
            return
        wait.unread.add(source)  # until then it stays

        def answer(rows: Rows) -> None:
            self._loop.call_soon_threadsafe(self._asked, wait, source, what, rows)

        self._ask(("asked", wait.run.workflow_id), answer)

    def _asked(self, wait: Wait, source: Source, what: Any, rows: Rows) -> None:
        """Whoever is told to end, and waits on all the same, has it by the next look."""
        if wait.over or not rows:
            return
        requests: list[Any] = [row for row in rows if (row[3] or 0) > wait.heard]
        if requests:
            wait.heard = requests[-1][3]
            self.on_asked(requests)
        elif not life_of(wait.run).is_to_be_told():  # one that replays is told a little later
            self._end(wait, (source, what))

    def _look_again(self, wait: Wait, source: Source) -> None:
        if not wait.over:
            self._look(wait, source)

    def _expired(self, wait: Wait) -> None:
        """Its time has come; what has come before that counts, so the ledger is asked once more."""
        if not wait.awaited.sources:
            self._end(wait, None)
            return
        wait.expired = True
        for source in wait.awaited.sources:
            self._look(wait, source)

    def _end(self, wait: Wait, what: Any) -> None:
        if not wait.over:
            self.drop(wait)
            wait.resolve(what)

    def drop(self, wait: Wait) -> None:
        """End a wait without an answer."""
        wait.over = True
        if wait.timer is not None:
            wait.timer.cancel()
        for source in wait.awaited.sources:
            waiting = self._sources.get(source)
            if waiting is not None:
                waiting.discard(wait)
                if not waiting:
                    del self._sources[source]
        life = wait.run.life
        if life is not None:
            life.waits.pop(wait, None)
            if not life.waits:
                self._runs.discard(wait.run)
                self._in_threads.discard(wait.run)

    def give_back(self, wait: Wait) -> None:
        """Who waited was cancelled before he had it: the message that it was told of is received by the next one."""
        if wait.taken is not None:
            life_of(wait.run).taken.discard(wait.taken)

    # ---- leaving memory ----

    def _tick(self) -> None:
        self._ticking = None
        if not self._runs:
            return
        now = self._loop.time()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            for source, waits in list(self._sources.items()):
                for wait in waits:
                    self._look(wait, source)
        for run in list(self._runs):
            life = run.life
            if life is not None and self._may_leave(run, life):
                self.suspend(run)
        if self._in_threads and self._making_room is None:
            self._make_room()
        self._ticking = self._loop.call_later(_STILL, self._tick)

    def _make_room(self) -> None:
        """While work waits for a thread, whoever only waits in one leaves at once: all that he does is counted in `acting`."""
        self._making_room = None
        if not self._crowded():
            return
        for run in list(self._in_threads):
            life = life_of(run)
            if _stands(run, life) and not _unread(life):
                self.suspend(run)
        if self._in_threads:
            self._making_room = self._loop.call_later(_ROOM, self._make_room)

    def _may_leave(self, run: Run, life: Life) -> bool:
        """Whether it stands still in its waits, and will for long enough."""
        place = (run.history.seq, len(life.waits), run.acting)
        if place != life.seen or not _stands(run, life) or life.is_to_be_told():
            life.seen = place
            return False
        if self._leaving:
            return True
        if _unread(life):
            return False
        worth = self._suspend_after if run.spec.is_async else min(self._suspend_after, 1.0)
        return all(w.until is None or w.until - self._now() > worth for w in life.waits.values())

    def suspend(self, run: Run) -> None:
        """End all its waits, so that it unwinds; the executor records what it waits for."""
        life = life_of(run)
        life.suspending = True
        life.seen, life.unread = tuple(life.waits.values()), _unread(life)
        for wait in list(life.waits):
            self._end(wait, Suspended())

    def suspend_all(self) -> None:
        """The process leaves: whoever waits is woken by another one."""
        for run in list(self._runs):
            if run.life is not None and not run.life.suspending and not run.acting:
                self.suspend(run)

    def stop(self, what: BaseException) -> None:
        """The incarnation is over: end every wait."""
        for timer in (self._ticking, self._making_room):
            if timer is not None:
                timer.cancel()
        for run in list(self._runs):
            self.end(run, what)


def _stands(run: Run, life: Life) -> bool:
    """Whether it does nothing but wait, and all that it has done is durable."""
    return not run.acting and not life.suspending and run.settled()


def _unread(life: Life) -> bool:
    """Whether something may have come that none of its waits knows of yet."""
    return any(wait.unread for wait in life.waits)


def life_of(run: Run) -> Life:
    """What the run has that waits, talks or has relatives; made when first needed."""
    if run.life is None:
        run.life = Life()
    return run.life


def _first_new(wait: Wait, source: Source, rows: Rows) -> Any:
    """What a wait is told of an answer: its row; of an inbox, the first message that the run has not received.

    Where that cannot be read it is an error, and a message stays where it is.
    """
    if source[0] != "inbox":
        return (unread(rows[0]) or rows[0]) if rows else None
    taken = life_of(wait.run).taken
    for row in rows:
        if row[0] not in taken:
            unreadable = unread(row)
            if unreadable is None:
                taken.add(row[0])
                wait.taken = row[0]
            return unreadable or row
    return None
