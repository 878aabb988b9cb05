"""Scopes of keys: who is next, who is held back, what stands in line in the ledger, and that idle ones are gone."""

import gc
import random
import sys
import threading
import time
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.idempotency import key_scope_id
from eventflow.scopes import KeyScope, Scope, Scopes


class Waiter(SimpleNamespace):
    """What a scope knows of a run."""

    def __init__(self, name: str) -> None:
        super().__init__(
            workflow_id=name,
            offset=ord(name[0]),
            turn=False,
            before=None,
            after=None,
            wary=False,
            begun=False,
            submitted=0,
            in_ledger=False,
            done=False,
            ended=False,
            scope=None,
            key=None,
        )

    def over(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        return str(self.workflow_id)

    __hash__ = object.__hash__


def waiters(names: str) -> list[Any]:
    return [Waiter(name) for name in names]


def entered(scopes: Scopes, key: bytes, names: str) -> tuple[KeyScope, list[Any]]:
    """Messages of a key that came from Kafka, in order."""
    runs = waiters(names)
    for run in runs:
        scope = scopes.of(key)
        assert scope is not None
        scope.enter(run)
    return scope, runs


def end(scope: Scope, run: Any) -> Any:
    run.done = True
    follower = scope.leave(run)
    scope.let_go(run)
    return follower


def placed(scopes: Scopes, key: bytes, names: str) -> list[Any]:
    """Messages of a key as they come from Kafka, each in its scope."""
    runs = waiters(names)
    for run in runs:
        run.key = key
        run.scope = scopes.place(run)
    return runs


def test_a_message_without_a_key_has_no_scope() -> None:
    assert Scopes(1).of(None) is None
    assert Scopes(1).of(b"") is not None, "an empty key is one"


def test_scopes_of_idle_keys_are_gone() -> None:
    scopes, most = Scopes(1), 0
    for n in range(100_000):
        scope, [run] = entered(scopes, n.to_bytes(4, "big"), "a")
        most = max(most, len(scopes))
        end(scope, run)
    assert (len(scopes), most) == (0, 1)


def test_keys_do_not_wait_for_each_other() -> None:
    scopes = Scopes(1)
    scope, [a, b] = entered(scopes, b"x", "ab")
    _, [c] = entered(scopes, b"y", "c")
    assert (a.turn, b.turn, c.turn) == (True, False, True)
    assert end(scope, a) is b


def test_a_scope_that_is_looked_up_stays_until_its_message_is_over() -> None:
    """Between its lookup and its entry the message before it may end."""
    scopes = Scopes(1)
    scope, [a] = entered(scopes, b"x", "a")
    assert scopes.of(b"x") is scope
    end(scope, a)
    assert scopes.of(b"x") is scope


def test_what_was_not_durable_when_the_next_began_is_before_it() -> None:
    scopes = Scopes(1)
    scope, [a, b] = entered(scopes, b"x", "ab")
    assert scope.leave(a) is b
    assert (b.before, a.after) == (a, b)


def test_company_is_in_order_and_shares_the_turn() -> None:
    scope = Scope("1", [])
    runs = waiters("abcde")
    assert [scope.enter(run) for run in runs] == [True, False, False, False, False]
    assert scope.accompany(3) == runs[1:4]
    assert scope.leave(runs[0]) is None
    assert scope.put_back(runs[2:3]) is None, "one of them has its turn still"
    assert scope.put_back(runs[3:4]) is None
    assert scope.leave(runs[1]) is runs[2]
    assert scope.accompany(9) == runs[3:]


def test_who_is_to_be_accepted_before_he_runs_keeps_no_company() -> None:
    scope = Scope("1", [])
    runs = waiters("abc")
    runs[1].wary = True
    for run in runs:
        scope.enter(run)
    assert scope.accompany(9) == []


def test_behind_a_parked_one_all_are_stored_in_order() -> None:
    scopes = Scopes(1)
    scope, runs = entered(scopes, b"x", "abcd")
    assert scope.store() == [], "what is fast is not stored"
    runs[0].done = True
    scope.hold_back(runs[0])
    scope.let_go(runs[0])
    assert scope.store() == runs[1:]
    _, [e] = entered(scopes, b"x", "e")
    assert not e.turn, "those in the ledger are before it"
    assert scope.store() == [e]
    for _ in range(4):
        scope.stored_one()
        scope.let_go(runs[0])
    assert not scope.wants(), "one holds it back"
    assert len(scopes) == 1
    assert scope.finished({"a"})
    assert scope.wants()


def test_who_was_taken_goes_before_those_that_wait_here() -> None:
    scopes = Scopes(1, [(key_scope_id(1, b"x"), [], 97, 98)])
    scope, [late] = entered(scopes, b"x", "z")
    assert scope.wants()
    taken = waiters("ab")
    for run in taken:
        run.in_ledger = True
    scope.take(taken, more=True)
    assert scope.following() is taken[0]
    assert end(scope, taken[0]) is taken[1]
    assert end(scope, taken[1]) is None, "there may be more"
    scope.take([], more=False)
    assert scope.following() is late
    end(scope, late)
    assert len(scopes) == 0


def test_who_comes_again_takes_the_next_turn_in_order_of_offsets() -> None:
    """A redelivered one does not run beside who has the turn, and goes before who waits; twice the same, by key and partition."""
    scopes = Scopes(1)
    of_key, runs = entered(scopes, b"k", "mnq")
    again = waiters("ba")
    for run in again:
        scopes.of(b"k")
        of_key.enter_again(run)
        assert of_key.following() is None, "m has the turn"
    assert [str(one) for one in turns(of_key, runs[0])] == ["a", "b", "n", "q"]
    partition = Scope("1", [])
    for run in (first := waiters("mnq")):
        partition.enter(run)
    for run in waiters("ba"):
        partition.enter_again(run)
        assert partition.following() is None
    assert [str(one) for one in turns(partition, first[0])] == ["a", "b", "n", "q"]


def turns(scope: Scope, run: Any) -> list[Any]:
    """Who follows, one after another."""
    found: list[Any] = []
    while (run := scope.leave(run)) is not None:
        found.append(run)
    return found


def test_who_waits_long_in_a_long_line_is_stored() -> None:
    scopes = Scopes(1)
    scope, runs = entered(scopes, b"x", "abcd")
    assert scope.store(2) == []
    assert scope.store(2) == [], "the one whose turn it is waits itself, for a thread or a lane"
    runs[0].begun = True
    assert scope.store(3) == [], "so many may wait"
    assert scope.store() == []
    assert scope.store(2) == runs[1:]


def test_a_line_in_which_nobody_waits_long_is_not_stored() -> None:
    scopes = Scopes(1)
    scope, runs = entered(scopes, b"x", "abcd")
    for run in runs:
        run.begun = True
    assert scope.store(2) == []
    for run in runs[:3]:
        end(scope, run)
    _, late = entered(scopes, b"x", "efgh")
    assert scope.store(2) == []
    for run in [runs[3], *late]:
        assert run.turn
        end(scope, run)
    assert len(scopes) == 0


def test_who_is_put_back_goes_before_those_that_were_stored_meanwhile() -> None:
    scopes = Scopes(1)
    scope, [a, b, c, d] = entered(scopes, b"x", "abcd")
    assert scope.accompany(1) == [b]
    a.begun = b.begun = True
    assert scope.store(1) == [], "nobody has waited yet"
    assert scope.store(1) == [c, d]
    for _ in (c, d):
        scope.stored_one()
    assert scope.put_back([a, b]) is a
    assert not scope.wants(), "those before the ledger's line are here"
    assert end(scope, a) is b
    assert end(scope, b) is None
    assert scope.wants()


def test_who_comes_from_kafka_and_is_before_the_line_goes_first() -> None:
    """It was in flight when the former owner died, unaccepted, and those behind it were in line already."""
    scopes = Scopes(1, [(key_scope_id(1, b"x"), [], ord("m"), ord("n"))])
    assert scopes.unread == ord("n"), "before all that may come first was read, nobody is taken"
    scope, [b, c, z] = entered(scopes, b"x", "bcz")
    assert (b.turn, c.turn, z.turn) == (True, False, False)
    assert not scope.wants()
    assert end(scope, b) is c
    assert end(scope, c) is None, "that one is behind the line"
    assert scope.wants()
    m = Waiter("m")
    m.in_ledger = True
    scope.take([m], more=False)
    assert scope.following() is m
    assert end(scope, m) is z


def test_nobody_is_taken_before_the_last_one_is_durable() -> None:
    """Else a crash would leave it to others, ahead of one that they know nothing of."""
    scopes = Scopes(1)
    scope, runs = entered(scopes, b"x", "abcd")
    runs[0].begun = True
    assert scope.store(2) == []
    assert scope.store(2) == runs[1:]
    for _ in range(3):
        scope.stored_one()
        scope.let_go(runs[0])
    scope.leave(runs[0])
    assert not scope.wants()
    runs[0].done = True
    assert scope.wants()


def test_who_waits_and_has_a_row_is_given_back_with_the_claim() -> None:
    """The next owner takes rows that nobody holds; who has begun ends here, and who has none comes from Kafka again."""
    scopes = Scopes(1)
    scope, [a, z] = entered(scopes, b"x", "az")
    b, c, d = waiters("bcd")
    for run in (b, c, d):
        run.in_ledger = True
    scope.take([b, c], more=False)
    scope.enter_again(d)
    assert scope.give_back() == [b, c, d]
    assert scope.give_back() == []
    assert end(scope, a) is z
    whole = Scope("1", [])
    assert whole.enter(a)
    whole.enter_again(c)
    whole.enter_again(b)
    assert not whole.enter(z)
    assert whole.give_back() == [b, c]
    assert whole.leave(a) is z


def test_what_the_ledger_has_is_found_by_the_key() -> None:
    scopes = Scopes(7, [(key_scope_id(7, b"x"), ["before"], None, None), (key_scope_id(7, b"y"), [], 1, 9)])
    scope, [a] = entered(scopes, b"x", "a")
    assert (a.turn, scope.unfinished) == (False, ["before"])
    _, [b] = entered(scopes, b"z", "b")
    assert b.turn
    assert scope.freed({"before"}) == [scope]
    assert scope.following() is a
    assert len(scopes) == 3


def test_what_held_the_whole_partition_back_holds_back_every_key() -> None:
    """It was accepted when the consumer kept partitions in order."""
    scopes = Scopes(7, [("7", ["before"], None, None)])
    scope, [a] = entered(scopes, b"x", "a")
    assert not a.turn
    assert scopes.freed({"before"}) == [scope]
    assert scope.following() is a


def test_the_scope_of_a_key_is_another_in_each_claim_and_tells_no_key() -> None:
    ids = {key_scope_id(claim, key) for claim in (1, 2) for key in (b"customer-1", b"customer-2", b"")}
    assert len(ids) == 6
    assert not any("customer" in one for one in ids)


def test_turns_are_given_once_by_many_threads() -> None:
    scopes, order = Scopes(1), list[str]()
    scope, runs = entered(scopes, b"x", "".join(chr(200 + n) for n in range(500)))
    free = [runs[0]]
    lock = threading.Lock()

    def work() -> None:
        while len(order) < 500:
            with lock:
                run = free.pop() if free else None
            if run is not None:
                order.append(run.workflow_id)
                follower = end(scope, run)
                if follower is not None:
                    free.append(follower)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order == [run.workflow_id for run in runs]
    assert len(scopes) == 0


# ---- who is alone with his key ---------------------------------------------------------------------


def test_who_is_alone_with_his_key_has_his_turn_and_no_scope_of_his_own() -> None:
    scopes = Scopes(1)
    [a], [b] = placed(scopes, b"x", "a"), placed(scopes, b"y", "b")
    assert a.scope is b.scope is scopes.alone
    assert (a.turn, b.turn, len(scopes), scopes.all(), scopes.lines()) == (True, True, 2, [], [0, 0])
    assert a.scope.id_of(a) == key_scope_id(1, b"x")
    assert (a.scope.known_id, a.scope.waiting(), a.scope.accompany(9)) == (None, 0, [])
    assert end(a.scope, a) is None
    assert end(b.scope, b) is None
    assert (a.turn, b.turn, len(scopes)) == (False, False, 0)


def test_a_message_without_a_key_is_placed_nowhere() -> None:
    [a] = waiters("a")
    assert Scopes(1).place(a) is None


@pytest.mark.parametrize("left", [False, True], ids=["running", "not durable"])
def test_who_comes_behind_one_that_was_alone_is_behind_it(left: bool) -> None:
    """Whoever has looked the first one's scope up before, ends it there all the same."""
    scopes = Scopes(1)
    [a] = placed(scopes, b"x", "a")
    if left:
        assert scopes.alone.leave(a) is None
    [b] = placed(scopes, b"x", "b")
    assert isinstance(a.scope, KeyScope)
    assert a.scope is b.scope
    assert b.scope.enter(b) is left
    assert scopes.alone.leave(a) is (None if left else b)
    assert (a.turn, b.turn, b.before, a.after) == (False, True, a, b)
    a.done = True
    scopes.alone.let_go(a)
    assert len(scopes) == 1
    assert end(b.scope, b) is None
    assert len(scopes) == 0


def test_who_was_alone_and_is_held_back_holds_back_his_key() -> None:
    scopes = Scopes(1)
    [a] = placed(scopes, b"x", "a")
    a.done = True
    scopes.alone.hold_back(a)
    scopes.alone.let_go(a)
    assert scopes.of_the_ledger() == [a.scope]
    [b], [c] = placed(scopes, b"x", "b"), placed(scopes, b"y", "c")
    assert not b.scope.enter(b)
    assert (a.turn, b.turn, c.turn) == (False, False, True)
    assert a.scope.freed({"a"}) == [b.scope]
    assert b.scope.following() is b


def test_who_is_over_already_can_still_be_held_back() -> None:
    scopes = Scopes(1)
    [a] = placed(scopes, b"x", "a")
    scopes.alone.let_go(a)
    scopes.alone.hold_back(a)
    b, c = placed(scopes, b"x", "bc")
    assert not b.scope.enter(b)
    assert not b.scope.enter(c)
    assert a.scope.freed({"a"}) == [b.scope]
    assert b.scope.following() is b
    assert b.scope.following() is None, "b has the turn"


def test_who_was_alone_is_put_back_into_a_scope_of_his_own() -> None:
    scopes = Scopes(1)
    [a] = placed(scopes, b"x", "a")
    scope = a.scope.of(a)
    assert isinstance(scope, KeyScope)
    assert scope.of(a) is scope is a.scope
    assert scope.put_back([a]) is a
    assert end(scope, a) is None
    assert len(scopes) == 0


def test_who_waits_for_the_ledger_is_not_alone() -> None:
    scopes = Scopes(7, [(key_scope_id(7, b"x"), ["before"], None, None)])
    [a], [b] = placed(scopes, b"x", "a"), placed(scopes, b"y", "b")
    assert not a.scope.enter(a)
    assert b.scope is scopes.alone
    whole = Scopes(7, [("7", ["before"], None, None)])
    [c] = placed(whole, b"x", "c")
    assert not c.scope.enter(c)
    assert whole.freed({"before"}) == [c.scope]
    assert c.scope.following() is c


@pytest.mark.parametrize("names", ["a", "abc"])
def test_who_is_over_is_kept_by_nobody(names: str) -> None:
    """Not even by a cycle, which would leave every message to the garbage collector."""
    scopes = Scopes(1)
    runs = placed(scopes, b"x", names)
    scopes_of = [weakref.ref(run) for run in runs]
    gc.disable()
    try:
        for run in runs:
            _ = run.turn or run.scope.enter(run)
        for run in runs:
            end(run.scope, run)
            if run.after is not None:
                run.after = run.after.before = None  # as `Run.wake` does
        del run
        runs.clear()
        assert [one() for one in scopes_of] == [None] * len(names)
    finally:
        gc.enable()


class Jumpy(Waiter):
    """One at each look at whose scope another thread may go on."""

    @property
    def scope(self) -> Any:
        found = self.__dict__["scope"]
        time.sleep(0)
        return found

    @scope.setter
    def scope(self, value: Any) -> None:
        self.__dict__["scope"] = value


class Race:
    """Messages of few keys: placed by one thread, called by a second, made durable by a third, and some held back.

    The model: of a key, one at a time has its turn, in the order in which they were placed; who follows one that is not
    durable is behind it.
    """

    def __init__(self, messages: int, keys: int) -> None:
        self.scopes, self.messages, self.keys = Scopes(1), messages, keys
        self.wrong = list[str]()
        self.started: dict[bytes, Any] = {}  # by key, who has begun last
        self.begun: dict[bytes, Any] = {}  # by key, who has his turn
        self.ready, self.ended, self.held = deque[Any](), deque[Any](), deque[Any]()
        self.over = 0

    def place(self) -> None:
        """As the consumer's thread does; it also frees those that are held back."""
        draw = random.Random(1)
        for offset in range(self.messages):
            run = Jumpy("m")
            run.offset, run.key, run.workflow_id = offset, b"%d" % draw.randrange(self.keys), f"m{offset}"
            run.scope = self.scopes.place(run)
            if run.turn or run.scope.enter(run):
                self.ready.append(run)
            self.free()
        while self.over < self.messages and not self.wrong:
            self.free()

    def free(self) -> None:
        while self.held:
            run = self.held.popleft()
            for scope in run.scope.freed({run.workflow_id}):
                self.start(scope.following())

    def start(self, run: Any) -> None:
        if run is not None:
            self.ready.append(run)

    def call(self) -> None:
        draw = random.Random(2)
        while self.over < self.messages and not self.wrong:
            if not self.ready:
                continue
            run = self.ready.popleft()
            self.see(run)
            parked = draw.random() < 0.1
            if not parked:
                del self.begun[run.key]
                self.start(run.scope.leave(run))
            self.ended.append((run, parked))

    def see(self, run: Any) -> None:
        if not run.turn or run.key in self.begun:
            self.wrong.append(f"{run} runs beside {self.begun.get(run.key)}")
        before = self.started.get(run.key)
        if before is not None and before.offset >= run.offset:
            self.wrong.append(f"{run} runs after {before}")
        if before is not run.before and not (run.before is None and before.done):
            self.wrong.append(f"{run} is behind {run.before}, and {before} was before it")
        self.started[run.key] = self.begun[run.key] = run

    def settle(self) -> None:
        while self.over < self.messages and not self.wrong:
            if not self.ended:
                continue
            run, parked = self.ended.popleft()
            run.done = True
            if parked:
                del self.begun[run.key]
                run.scope.hold_back(run)
                self.held.append(run)
            run.scope.let_go(run)
            self.over += 1


def test_who_is_alone_no_more_takes_turns_whatever_the_threads_do() -> None:
    race, interval = Race(10_000, 40), sys.getswitchinterval()
    threads = [threading.Thread(target=work, daemon=True) for work in (race.place, race.call, race.settle)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert race.wrong == []
    assert race.over == race.messages, "somebody was never called"
    race.free()
    assert len(race.scopes) == 0
