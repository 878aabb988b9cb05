"""Whose turn it is where the ledger has a say: what it has of a scope holds others back, or stands in line there (R11).

In a consumer's thread, and for the claims that it holds: so nobody else takes from a line, and what of a scope was read from
Kafka is either behind its line or in it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import psycopg

from eventflow.claims import Claims
from eventflow.database import Connection, KeptConnection, lost_claims
from eventflow.errors import UnavailableError
from eventflow.idempotency import parse_message_workflow_id
from eventflow.runs import Claim, Run, weigh
from eventflow.scopes import KeyScope, Scope, Scopes

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.05  # seconds; ten times as long as a look takes, if that is more
_LOOK_AT_ALL_EVERY = 0.5  # seconds; who has waited for as long gets a row
_ASK_FOR_ALL_EVERY = 5.0  # seconds between two questions for scopes of which nobody waits
_TIMES = 4
_TAKEN = 50  # messages taken from a scope's line at once; fewer where those that wait here take half of the room
_ASKED = 10_000  # rows asked for at once


class Desk(Protocol):
    """What the executor does for it."""

    def dispatch(self, runs: list[Run]) -> None: ...
    def unblock(self, scope: Scope) -> None: ...
    def store(self, runs: list[Run]) -> None: ...
    def release(self, runs: list[Run]) -> None: ...
    def take(self, run: Run) -> None: ...


class Turns:
    """The scopes of one consumer's claims, and the ledger."""

    def __init__(
        self, executor: int, name: str, claims: Claims, bound: int, ledger: KeptConnection, desk: Desk,
        run_of: Callable[[Any], Run], on_lost: Callable[[list[Claim]], None],
    ) -> None:  # fmt: skip
        self._names = [name]  # a row of another one is of before it was renamed
        self._executor, self._claims, self._bound, self._ledger = executor, claims, bound, ledger
        self._desk, self._run_of, self._on_lost = desk, run_of, on_lost
        self._look_at = self._look_at_all_at = self._ask_for_all_at = 0.0

    def tend(self, now: float) -> None:
        """What is due: see who is free, take who is in line in the ledger, and put there who has waited long."""
        if now < self._look_at:
            return
        for scope in self._free(everyone=self._is_time(now)):
            self._desk.unblock(scope)
        self._take()
        self._store(now)
        took = time.monotonic() - now
        self._look_at = now + took + max(_LOOK_EVERY, 10 * took)

    def _is_time(self, now: float) -> bool:
        """Whether to ask for all."""
        due = now >= self._ask_for_all_at
        if due:
            self._ask_for_all_at = now + _ASK_FOR_ALL_EVERY
        return due

    def _store(self, now: float) -> None:
        """Give rows to those that wait long, so that neither the position nor the room is theirs."""
        held = self._scopes()
        if now < self._look_at_all_at:
            runs = [run for scopes in held for scope in scopes.of_the_ledger() for run in scope.store()]
        else:
            self._look_at_all_at = now + _LOOK_AT_ALL_EVERY
            longest = self._longest([waiting for scopes in held for waiting in scopes.lines()])
            runs = [run for scopes in held for scope in scopes.all() for run in scope.store(longest)]
        if runs:
            self._desk.store(runs)

    def _scopes(self) -> list[Scopes]:
        return [claim.scopes for claim in self._claims.usable() if claim.scopes is not None]

    def _longest(self, lines: list[int]) -> int:
        """How many may wait in one line: some times as many as in the shortest, so that Kafka keeps what all keys are slow for.

        Where there is but one key in flight, it has half of the room.
        """
        return self._bound // 2 if len(lines) < 2 else _TIMES * (1 + min(lines))

    # ---- who comes again ----

    def take_again(self, runs: Iterable[Run]) -> None:
        """Those whose rows this executor has taken go before those that wait in their scopes, in order of offsets.

        Where the scope waits for this very one, it runs now. So does one of a partition that is not held: whoever claims that
        learns of it.
        """
        scopes: dict[Scope, None] = {}
        for run in runs:
            claim, scope = self._place(run)
            if claim is None or scope is None:
                self._desk.dispatch([run])
            else:
                self._come(claim, scope, run)
                scope.enter_again(run)
                scopes[scope] = None
        for scope in scopes:  # once all have come: who came first need not be the first
            self._desk.unblock(scope)

    def give_back(self, claims: Iterable[Claim]) -> None:
        """These claims are no more ours: neither are the rows that wait for their turn under them."""
        for claim in claims:
            scopes = ([] if claim.scope is None else [claim.scope]) if claim.scopes is None else claim.scopes.all()
            rows = [run for scope in scopes for run in scope.give_back()]
            if rows:
                self._desk.release(rows)

    def _place(self, run: Run) -> tuple[Claim | None, Scope | None]:
        place = parse_message_workflow_id(run.workflow_id)
        claim = None if place is None else self._claims.get(place.topic, place.partition)
        if claim is None or claim.revoked or not claim.has(run):
            return None, None
        if claim.scopes is None:
            scope = claim.scope
            return claim, None if scope is None or run.workflow_id in scope.unfinished else scope
        of_key = claim.scopes.of(run.key)
        if of_key is not None and (run.workflow_id in of_key.unfinished or run.workflow_id in claim.scopes.unfinished):
            of_key.let_go(run)
            return claim, None
        return claim, of_key

    def _come(self, claim: Claim, scope: Scope, run: Run) -> None:
        """A row of the ledger takes room here from now on."""
        run.claim, run.scope = claim, scope
        run.wary = True  # it may have killed a process; its row says first that it runs
        claim.handed += 1
        claim.wary += 1  # which counts those that come from Kafka
        weigh([run])

    # ---- what holds others back ----

    def _free(self, *, everyone: bool) -> list[Scope]:
        """Scopes that nothing of the ledger holds back any more; asks only where something did.

        `everyone`: also those of keys of which nobody waits.
        """
        blocked = list(self._held_back(everyone=everyone))
        ids = [one for _, held in blocked for one in held]
        still = set[str]()
        try:
            for at in range(0, len(ids), _ASKED):
                still.update(i for (i,) in self._ledger.run("still_unfinished", {"ids": ids[at : at + _ASKED]}))
        except (psycopg.Error, UnavailableError):
            return []  # asked again soon
        # Only of those it had before the ledger was asked: one that was parked since is not in the answer.
        return [scope for one, held in blocked for scope in one.freed(held - still)]

    def _held_back(self, *, everyone: bool) -> Iterator[tuple[Scope | Scopes, set[str]]]:
        for claim in self._claims.usable():
            ones: list[Scope | Scopes] = [] if claim.scope is None else [claim.scope]
            if claim.scopes is not None:
                ones = [claim.scopes, *(s for s in claim.scopes.of_the_ledger() if everyone or s.waits())]
            yield from ((one, set(one.unfinished)) for one in ones if one.unfinished)

    # ---- who is in line there ----

    def _take(self) -> None:
        free = (
            (claim, scope) for claim in self._claims.usable()
            if claim.scopes is not None and claim.next_offset > claim.scopes.unread and not self._claims.is_paused(claim)
            for scope in claim.scopes.of_the_ledger() if scope.wants()
        )  # fmt: skip
        # One in any case: it may be why there is no room.
        room = max(1, (self._bound - self._claims.in_flight()) // _TAKEN)
        wanted: dict[str, tuple[Claim, KeyScope]] = {scope.id: (claim, scope) for claim, scope in islice(free, room)}
        if not wanted:
            return
        limit = self._at_once(len(wanted))
        try:
            rows, left = self._ledger.transact(lambda connection: self._take_rows(connection, wanted, limit))
        except (psycopg.Error, UnavailableError) as error:
            # Tried again soon. What was taken all the same is in the way then, and is run as what this executor holds (R10b).
            logger.debug("lines: %s", error)
            if isinstance(error, psycopg.Error) and error.sqlstate == "EF002":
                self._lose(lost_claims(error))
            return
        taken: dict[str, list[Any]] = {}
        for row in sorted(rows, key=lambda row: row[7]):
            taken.setdefault(row[17], []).append(row)
        remain = {scope: (first, in_line) for scope, first, in_line in left}
        for scope_id, (claim, scope) in wanted.items():
            runs = [self._taken(claim, scope, row) for row in taken.get(scope_id, ())]
            first, in_line = remain.get(scope_id, (None, False))
            scope.take(runs, more=first is not None, behind=None if runs or in_line else first)
            self._desk.unblock(scope)

    def _at_once(self, scopes: int) -> int:
        """How many to take of each of so many: what waits behind one that is parked takes room until a person decides."""
        taken = sum(scope.taken() for one in self._scopes() for scope in one.of_the_ledger())
        return max(1, min(_TAKEN, (self._bound // 2 - taken) // scopes))

    def _lose(self, ids: list[int]) -> None:
        """These claims are others'; where Kafka disagrees, they are claimed again (R7)."""
        lost = [claim for claim in self._claims.usable() if claim.id in ids]
        for claim in lost:
            claim.lose()
        self._on_lost(lost)

    def _take_rows(
        self, connection: Connection, wanted: dict[str, tuple[Claim, KeyScope]], limit: int
    ) -> tuple[list[Any], list[Any]]:
        run, scopes = self._ledger.database.run, list(wanted)
        claims = sorted({claim for claim, _ in wanted.values()}, key=lambda claim: claim.id)
        held = {"executor": self._executor, "claims": [c.id for c in claims], "epochs": [c.epoch for c in claims]}
        run(connection, "fence", {"executor": self._executor})
        run(connection, "hold_claims", held)
        asked = {"scopes": scopes, "names": self._names}
        rows = run(connection, "take_in_line", {"executor": self._executor, "limit": limit, **asked})
        return rows, run(connection, "lines_left", {"taken": [row[0] for row in rows], **asked})

    def _taken(self, claim: Claim, scope: KeyScope, row: Any) -> Run:
        run = self._run_of(row[:17])
        self._come(claim, scope, run)
        self._desk.take(run)
        return run
