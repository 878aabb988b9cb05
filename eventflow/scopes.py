"""What is kept in order (PROTOCOL.md R11): a partition, or the messages of one key in it; who is next, and who is held back.

A scope lets its runs take turns in the order in which they came, and none past a row of the ledger that is unfinished or
parked. A partition is one scope. Keys are as many as there are; a scope of a key is there while two messages of it are in
flight, or the ledger has something of it that is unfinished, and then no more (`Scopes`). A message that is alone with its
key, as most are, is in a scope that has no state, and is one for all of them (`Alone`).

A partition that waits leaves the rest of its log to Kafka. A key cannot: what comes behind it in the log is others'. So those
that wait behind a key which does not move get a row that is *in line* (queued, executor 0), the position passes them, and the
partition's owner takes them from the ledger when it is their turn (docs/adr/0015).
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from eventflow.idempotency import key_scope_id

Run = Any  # a `runs.Run`, which has a scope and therefore stands above
# What the ledger has unfinished of a scope: its id, what holds it back, the first and the last offset of its line.
Left = tuple[str, list[str], int | None, int | None]


class Scope:
    """One scope; of a partition, as it stands here.

    Attributes:
        unfinished: ids of its rows that hold it back: accepted before and not final, or parked.

    """

    __slots__ = ("_id", "_last", "_line", "_lock", "_passed", "_turns", "unfinished")

    def __init__(self, id: str, unfinished: list[str], lock: "threading.Lock | None" = None) -> None:  # noqa: A002
        self._id = id
        self.unfinished = unfinished
        self._line: deque[Run] | None = None  # who waits for his turn
        self._passed: int = 0  # how many have left the line
        self._turns: int = 0  # how many have theirs: one, or those that share a transaction or a batch
        self._last: Run | None = None  # whose turn came last
        self._lock = lock or threading.Lock()

    @property
    def id(self) -> str:
        """As the ledger has it."""
        return self._id

    @property
    def known_id(self) -> str | None:
        """The same, if it is known: a row that is final from the first goes without, for it holds nobody back."""
        return self._id or None

    def __str__(self) -> str:
        """As logs name it."""
        return f"scope {self.id}"

    def enter(self, run: Run) -> bool:
        """Whether it may start now; else it waits in line."""
        with self._lock:
            if self._line or self._blocked() or not self._may_pass(run):
                if self._line is None:
                    self._line = deque()
                self._line.append(run)
                return False
            self._begin(run)
            return True

    def enter_again(self, run: Run) -> None:
        """It has a row, and was final or parked, or in another process: it goes before who waits here and is behind it."""
        with self._lock:
            self._line = deque(sorted([run, *(self._line or ())], key=_offset))

    def give_back(self) -> list[Run]:
        """The claim is another's: who waits here and has a row is to be let go of; the owner takes rows that nobody holds."""
        with self._lock:
            line = self._line or ()
            rows = [run for run in line if run.in_ledger]
            if rows:
                self._line = deque(run for run in line if not run.in_ledger)
                self._passed += len(rows)
            return rows

    def leave(self, run: Run) -> Run | None:
        """Its function has ended for good: who may start now."""
        with self._lock:
            if not run.turn:
                return None
            run.turn = False
            self._turns -= 1
            return self._follow()

    def hold_back(self, run: Run) -> None:
        """It has ended and is not final: parked, asleep or let go of. What comes behind it waits, too."""
        with self._lock:
            self.unfinished.append(run.workflow_id)
            self._turns -= run.turn
            run.turn = False

    def following(self) -> Run | None:
        """The first in line, whose turn it is from now on, if nothing holds them back."""
        with self._lock:
            return self._follow()

    def accompany(self, limit: int) -> list[Run]:
        """Who comes next, and may have his turn together with the one whose turn it is, in order.

        Not who is to be accepted before he runs: that takes a commit of its own.
        """
        with self._lock:
            line, company = self._line, list[Run]()
            while line and len(company) < limit and not line[0].wary and self._may_pass(line[0]):
                company.append(self._next(line))
            return company

    def put_back(self, runs: list[Run]) -> Run | None:
        """Their turn came and nothing was done: they are in line again, where they were. Who may start now."""
        with self._lock:
            before = runs[0].before
            if before is None or before.turn or before.ended:  # else it was put back, too, and nobody has come since
                self._last = before
            for run in runs:
                run.turn, run.before = False, None
                self._put_first(run)
            if self._line:
                self._line = deque(sorted(self._line, key=_offset))
            self._turns -= len(runs)
            return self._follow()

    def waiting(self) -> int:
        """How many wait in line here."""
        return len(self._line or ())

    def finished(self, ids: set[str]) -> bool:
        """These hold it back no more; whether nothing does."""
        with self._lock:
            self.unfinished = [one for one in self.unfinished if one not in ids]
            return not self.unfinished

    def freed(self, ids: set[str]) -> "list[Scope]":
        """The same; the scopes that nothing holds back any more."""
        return [self] if self.finished(ids) else []

    def let_go(self, run: Run) -> None:
        """This message of it is over, durably or by being dropped."""

    def stored_one(self) -> None:
        """One of its messages is in line in the ledger, durably, or never will be."""

    def of(self, run: Run) -> "Scope":  # noqa: ARG002
        """The scope of this one, with its state."""
        return self

    def id_of(self, run: Run) -> str:  # noqa: ARG002
        """The id of that."""
        return self.id

    def _follow(self) -> Run | None:
        line = self._line
        return self._next(line) if line and not self._blocked() and self._may_pass(line[0]) else None

    def _next(self, line: "deque[Run]") -> Run:
        self._passed += 1
        return self._begin(line.popleft())

    def _begin(self, run: Run) -> Run:
        last, self._last = self._last, run
        run.turn = True
        self._turns += 1
        if last is not None and not last.over():
            run.before, last.after = last, run
        return run

    def _put_first(self, run: Run) -> None:
        if self._line is None:
            self._line = deque()
        self._line.appendleft(run)
        self._passed -= 1

    def _may_pass(self, run: Run) -> bool:  # noqa: ARG002
        """Whether nobody in line in the ledger is before it."""
        return True

    def _blocked(self) -> bool:
        return self._turns > 0 or bool(self.unfinished)


def _offset(run: Run) -> int:
    return int(run.offset)


class KeyScope(Scope):
    """The messages of one key in one partition; some may be in line in the ledger, ahead of those in line here.

    Attributes:
        key: None where the ledger alone has told of it.
        messages: how many of its messages are in memory.
        stored: whether rows of it are in line in the ledger. storing: how many are on their way there.

    """

    __slots__ = ("_before", "_marked", "_scopes", "_taken", "key", "messages", "stored", "storing")

    def __init__(
        self,
        scopes: "Scopes",
        key: bytes | None,
        id: str,  # noqa: A002
        unfinished: list[str],
        in_line: int | None = None,
    ) -> None:
        super().__init__(id, unfinished, scopes.lock)
        self._scopes = scopes
        self.key = key
        self.messages = 0
        self.stored, self.storing = in_line is not None, 0
        self._before = in_line  # who comes from Kafka below this offset goes before those in line in the ledger
        self._taken: deque[Run] | None = None  # from the ledger's line
        self._marked: int = 0  # of so many it has been noted that they wait, or have

    @property
    def id(self) -> str:
        """As the ledger has it; made when it is first wanted."""
        if not self._id and self.key is not None:
            self._id = key_scope_id(self._scopes.claim, self.key)
        return self._id

    def begin_with(self, run: Run) -> None:
        """This one was alone with the key until now. With the lock held."""
        self.messages, self._turns, self._last = 1, int(run.turn), run
        run.scope = self

    def enter_again(self, run: Run) -> None:
        """The same, with those from the ledger's line: who is in line here may be put there, and it is not to be again."""
        with self._lock:
            self._taken = deque(sorted([run, *(self._taken or ())], key=_offset))

    def give_back(self) -> list[Run]:
        """The same; those that were taken from the ledger's line, too."""
        with self._lock:
            taken, self._taken = self._taken or (), None
        return [*taken, *super().give_back()]

    def hold_back(self, run: Run) -> None:
        """The same."""
        super().hold_back(run)
        self._scopes.slow.add(self)

    def finished(self, ids: set[str]) -> bool:
        """The same; one that nothing needs is gone."""
        free = super().finished(ids)
        with self._lock:
            self._vanish()
        return free

    def let_go(self, run: Run) -> None:  # noqa: ARG002
        """The same; the last one takes the scope along."""
        with self._lock:
            self.messages -= 1
            if not self.messages:
                self._last = None  # or they would keep each other, until garbage is collected
            self._vanish()

    # ---- its line in the ledger; in the consumer's thread ----

    def store(self, longest: int | None = None) -> list[Run]:
        """Who is to stand in line in the ledger instead of here, in order: all that wait here, where that may take long.

        That is where it is held back, or where others are in line there; with `longest`, also where more than that wait, and
        somebody has since it was last called so, behind one whose function has been called.
        """
        with self._lock:
            line = self._line
            if not line or not (self.unfinished or self.stored or self.storing or self._is_long(line, longest)):
                return []
            if self._before is not None and line[0].offset < self._before:
                self._before = None  # who comes from Kafka from here on is behind these
            self._line = None
            self._passed += len(line)
            self.stored = True
            self.storing += len(line)
            self._scopes.slow.add(self)
            return list(line)

    def _is_long(self, line: "deque[Run]", longest: int | None) -> bool:
        if longest is None or self._last is None:
            return False
        waited, self._marked = self._passed < self._marked, self._passed + len(line)
        return waited and len(line) > longest and (self._last.begun or self._last.submitted > 0)

    def stored_one(self) -> None:
        """The same."""
        with self._lock:
            self.storing -= 1

    def waits(self) -> bool:
        """Whether any of its messages waits, here or in the ledger."""
        return bool(self._line or self._taken or self.stored)

    def taken(self) -> int:
        """How many that were taken from the ledger's line wait here."""
        return len(self._taken or ())

    def wants(self) -> bool:
        """Whether those in line in the ledger are to be taken now: all before them are over, durably."""
        return (
            self.stored and not (self.storing or self._taken or self._blocked()) and self._last_is_over()
            and not (self._line and self._may_pass(self._line[0]))
        )  # fmt: skip

    def take(self, runs: list[Run], *, more: bool, behind: str | None = None) -> None:
        """These were taken from the ledger's line, where there may be more, behind this workflow, if any."""
        with self._lock:
            self._taken, self._before = deque(runs), None
            self.messages += len(runs)
            self.stored = more
            self.unfinished += [behind] if behind else []
            self._vanish()

    def _follow(self) -> Run | None:
        if self._taken:  # they are before those that wait here
            return None if self._blocked() else self._begin(self._taken.popleft())
        return super()._follow()

    def _last_is_over(self) -> bool:
        return self._last is None or self._last.over()

    def _put_first(self, run: Run) -> None:
        if not run.in_ledger:
            super()._put_first(run)
            if self.stored or self.storing:  # they were behind it, and are so still
                self._before = max(self._before or 0, run.offset + 1)
        elif self._taken:
            self._taken.appendleft(run)
        else:
            self._taken = deque([run])

    def _may_pass(self, run: Run) -> bool:
        if self._before is not None and run.offset < self._before:
            return True
        return not (self.stored or self.storing or self._taken)

    def _blocked(self) -> bool:
        return self._turns > 0 or bool(self.unfinished) or bool(self._scopes.unfinished)

    def _vanish(self) -> None:
        if not (self.stored or self.storing or self.unfinished):
            self._scopes.slow.discard(self)
            if not self.messages:
                self._scopes.forget(self)


class Alone(Scope):
    """What all messages of a claim are in that are alone with their keys: they wait for nobody, and nobody for them.

    When another message of its key comes, or it is held back, one gets a scope of its own, and `run.scope` is that. So each
    method looks, with the lock held, whether it still is this one.

    Attributes:
        runs: those that are in flight, by key.

    """

    __slots__ = ("_scopes", "runs")

    def __init__(self, scopes: "Scopes") -> None:
        super().__init__("", [], scopes.lock)
        self._scopes = scopes
        self.runs: dict[bytes, Run] = {}

    def leave(self, run: Run) -> Run | None:
        """The same."""
        with self._lock:
            if run.scope is self:
                run.turn = False
                return None
        return run.scope.leave(run)

    def let_go(self, run: Run) -> None:
        """The same."""
        with self._lock:
            if run.scope is self:
                run.turn = False
                self.runs.pop(run.key, None)
                return
        run.scope.let_go(run)

    def hold_back(self, run: Run) -> None:
        """The same."""
        self.of(run).hold_back(run)

    def of(self, run: Run) -> Scope:
        """The same: it is alone no more."""
        with self._lock:
            if run.scope is self:
                run.scope = self._scopes.own(run)
        return run.scope

    def id_of(self, run: Run) -> str:
        """The same; it needs no state."""
        return key_scope_id(self._scopes.claim, run.key)


class Scopes:
    """The scopes of one claim, by key: those that anything is in flight or unfinished of.

    Attributes:
        claim: its id. alone: the scope of those that are alone with their keys.
        lock: held to change any of them.
        unfinished: ids of rows of no key that hold all of them back: from a time when the partition was one scope.
        slow: those that the ledger has something of: what holds them back, or their line.
        unread: the line in the ledger is not taken from before the claim has read up to there.

    """

    def __init__(self, claim: int, left: Iterable[Left] = ()) -> None:
        self.claim = claim
        self.lock = threading.Lock()
        self.unfinished: list[str] = []
        self.slow: set[KeyScope] = set()
        self.unread = -1
        self.alone = Alone(self)
        self._by_key: dict[bytes, KeyScope] = {}
        self._unmet: dict[str, KeyScope] = {}  # whose key no message has told yet
        for scope_id, ids, first, last in left:
            if scope_id == str(claim):
                self.unfinished += ids
            else:
                self._unmet[scope_id] = scope = KeyScope(self, None, scope_id, ids, first)
                self.slow.add(scope)
                self.unread = max(self.unread, -1 if last is None else last)

    def __len__(self) -> int:
        return len(self.alone.runs) + len(self._by_key) + len(self._unmet)

    def place(self, run: Run) -> Scope | None:
        """That of a message that has come from Kafka, and is in memory from now on; None where it has no key.

        Where it is alone with its key, it is its turn.
        """
        key = run.key
        if key is None:
            return None
        with self.lock:
            scope = self._of(key)
            if scope is None:
                if not self.unfinished:
                    self.alone.runs[key] = run
                    run.turn = True
                    return self.alone
                scope = self._new(key)
            scope.messages += 1
            return scope

    def of(self, key: bytes | None) -> KeyScope | None:
        """That of a message with this key, which is in memory from now on; None where it has no key."""
        if key is None:
            return None
        with self.lock:
            scope = self._of(key) or self._new(key)
            scope.messages += 1
            return scope

    def own(self, run: Run) -> KeyScope:
        """That of one which was alone with its key. With the lock held."""
        return self._of(run.key) or self._new(run.key)

    def _of(self, key: bytes) -> KeyScope | None:
        scope = self._by_key.get(key)
        if scope is None:
            run = self.alone.runs.get(key)
            scope = self._met(key) if run is None else self._part(run)
        return scope

    def _part(self, run: Run) -> KeyScope:
        """This one is not to be alone with its key any more."""
        del self.alone.runs[run.key]
        scope = self._new(run.key)
        scope.begin_with(run)
        return scope

    def _new(self, key: bytes) -> KeyScope:
        scope = self._by_key[key] = KeyScope(self, key, "", [])
        return scope

    def _met(self, key: bytes) -> KeyScope | None:
        scope = self._unmet.pop(key_scope_id(self.claim, key), None) if self._unmet else None
        if scope is not None:
            scope.key = key
            self._by_key[key] = scope
        return scope

    def freed(self, ids: set[str]) -> list[KeyScope]:
        """These hold none of them back any more; those that are free, if all are."""
        with self.lock:
            self.unfinished = [one for one in self.unfinished if one not in ids]
            return [] if self.unfinished else [*self._by_key.values(), *self._unmet.values()]

    def all(self) -> list[KeyScope]:
        """Those that there are, but for those of messages that are alone."""
        with self.lock:
            return [*self._by_key.values(), *self._unmet.values()]

    def lines(self) -> list[int]:
        """How many wait in each line, empty ones included."""
        return [*(scope.waiting() for scope in self.all()), *[0] * len(self.alone.runs)]

    def of_the_ledger(self) -> list[KeyScope]:
        """The slow ones."""
        with self.lock:
            return list(self.slow)

    def forget(self, scope: KeyScope) -> None:
        """Nothing is left of it. With the lock held."""
        if scope.key is not None:
            self._by_key.pop(scope.key, None)
        else:
            self._unmet.pop(scope.id, None)
