"""What the executor hands to whom, and when."""

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import eventflow
from eventflow import durable
from eventflow.errors import DeterminismError
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Dropped, Run
from eventflow.scopes import Scope, Scopes
from tests.fakes import new_executor


class Recorder:
    """A journal that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.marked = threading.Event()

    def submit(self, entry: Any) -> None:
        self.entries.append(entry)

    def mark(self, reached: Callable[[], None]) -> None:
        self.entries.append(reached)
        self.marked.set()


def transactional(claim: Claim, offset: int) -> Run:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, f"transactional {offset}", Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0))
    spec.consumer = ConsumerSpec(("t",), "g", "partition", "earliest", "topic_id", None, {}, spec, own)
    run = Run(spec, f"id:{offset}", "a")
    run.claim, run.offset, run.scope = claim, offset, claim.scope
    return run


def ordered_claim() -> Claim:
    claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
    claim.scope = Scope("1", [])
    return claim


class Lanes:
    """Transactions that begin at once, and never end."""

    active = 0

    def __init__(self) -> None:
        self.launched: list[Run] = []
        self.alone: list[Run] = []
        self.opened = True

    def put(self, runs: list[Run], *, alone: bool = False) -> None:
        (self.alone if alone else self.launched).extend(runs)

    def open(self, value: bool) -> None:
        self.opened = value


def test_a_transaction_waits_until_the_failure_before_it_in_its_scope_is_durable() -> None:
    """Committed earlier, its effect would stand before its predecessor's, which a crash lets run again (R12)."""

    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        claim, launched = ordered_claim(), lanes.launched
        first, second = transactional(claim, 0), transactional(claim, 1)
        executor.dispatch([first, second])
        assert launched == [first]
        executor.outcomes.failed(first, ValueError("for good"))
        assert launched == [first], "the failure is not durable yet"
        executor.durable(journal.entries, 0.0)
        assert launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_who_waited_for_others_that_become_durable_together_is_launched_together() -> None:
    async def main() -> None:
        executor = new_executor()
        journal, lanes, puts = Recorder(), Lanes(), list[list[Run]]()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        lanes.put = lambda runs, *, alone=False: puts.append(runs)  # type: ignore[method-assign,misc]
        firsts, seconds = zip(*(pair(ordered_claim()) for _ in range(3)), strict=True)
        executor.dispatch([*firsts, *seconds])
        for run in firsts:
            executor.outcomes.finish(run, "null", None)
        executor.durable(journal.entries, 0.0)
        assert puts == [list(firsts), list(seconds)]
        executor.abort()

    asyncio.run(main())


def pair(claim: Claim) -> tuple[Run, Run]:
    return transactional(claim, 0), transactional(claim, 1)


@pytest.mark.parametrize("nth", range(1, 6))
def test_who_is_to_wait_for_another_that_becomes_durable_meanwhile_is_launched_once(
    nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after any of the looks at whether it is."""
    look, looks, journal = Run.over, list[Run](), Recorder()

    def over(run: Run) -> bool:
        known = look(run)
        looks.append(run)
        if len(looks) == nth:
            run.executor.durable(journal.entries, 0.0)
        return known

    async def main() -> None:
        executor, lanes = new_executor(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        first, second = pair(ordered_claim())
        executor.dispatch([first, second])
        monkeypatch.setattr(Run, "over", over)
        executor.outcomes.finish(first, "null", None)
        if not first.durable:
            executor.durable(journal.entries, 0.0)
        assert lanes.launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_who_waits_for_another_to_be_durable_is_launched_once_whenever_that_becomes_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread gives turns while another learns what is durable; each may go on after any look at whether it is."""
    look, draw = Run.over, random.Random(1)

    def over(run: Run) -> bool:
        known = look(run)
        if draw.random() < 0.5:
            time.sleep(0)
        return known

    monkeypatch.setattr(Run, "over", over)

    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        firsts, seconds = zip(*(pair(ordered_claim()) for _ in range(2000)), strict=True)
        executor.dispatch([*firsts, *seconds])
        assert lanes.launched == list(firsts)

        def settle() -> None:
            for n in range(len(firsts)):
                while len(journal.entries) <= n:
                    pass
                executor.durable(journal.entries[n : n + 1], 0.0)

        thread, interval = threading.Thread(target=settle, daemon=True), sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            thread.start()
            for run in firsts:
                executor.outcomes.finish(run, "null", None)
            thread.join(30)
        finally:
            sys.setswitchinterval(interval)
        launched = Counter(lanes.launched)
        assert [run for run in seconds if launched[run] != 1] == []
        assert all(run.before is None for run in seconds), "who has ended is not kept by who follows"
        executor.abort()

    asyncio.run(main())


def test_who_was_alone_when_he_came_has_his_turn_although_others_of_his_key_have_come() -> None:
    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
        claim.scopes = Scopes(1)
        runs = [*pair(claim), transactional(claim, 2)]
        for run, key in zip(runs, (b"x", b"x", b"y"), strict=True):
            run.key = key
            run.scope = claim.scopes.place(run)
        executor.dispatch(runs)
        assert lanes.launched == [runs[0], runs[2]]
        executor.settled([runs[0], runs[2]])
        assert lanes.launched == [runs[0], runs[2], runs[1]]
        executor.settled([runs[1]])
        assert len(claim.scopes) == 0
        executor.abort()

    asyncio.run(main())


def test_a_dropped_end_takes_no_more_room() -> None:
    async def main() -> None:
        executor = new_executor()
        journal = Recorder()
        executor.journal, executor.transactions = journal, Lanes()  # type: ignore[assignment]
        claim = ordered_claim()
        run = transactional(claim, 0)
        executor.dispatch([run])
        executor.outcomes.failed(run, ValueError("for good"))
        executor.dropped(journal.entries)
        executor.dropped(journal.entries)
        assert claim.finished == 1
        executor.abort()

    asyncio.run(main())


@pytest.mark.parametrize("ordering", ["none", "partition"])
def test_what_was_terminated_is_counted_once_although_it_unwinds_later(ordering: Any) -> None:
    async def main() -> None:
        go = threading.Event()
        at = Line(lambda _: go.wait(10), 1)
        at.executor.on_told = lambda *_: None
        [run] = at.runs
        if ordering == "none":
            run.scope = None
        at.claim.handed = 1
        at.executor.dispatch([run])
        await until(lambda: run.begun)
        at.executor.accept(run)
        at.executor.interrupts.terminate(run, "terminated by the test")
        at.commit()
        assert at.claim.finished == 1
        go.set()
        await until(lambda: not at.executor._in_threads)
        assert (at.claim.finished, run.counted) == (1, True)
        at.executor.abort()

    asyncio.run(main())


@pytest.mark.parametrize("first", ["message", "timeout"])
def test_a_message_that_comes_with_the_end_of_its_time_is_received_by_the_next_wait(first: str) -> None:
    """In one turn of the loop, whichever is first in it."""
    got, limits, asked = list[str](), list[asyncio.Timeout](), list[Any]()

    async def receives() -> None:
        try:
            async with asyncio.timeout(60) as limit:
                limits.append(limit)
                got.append(await durable.recv(str))
        except TimeoutError:
            got.append("timeout")
        got.append(await durable.recv(str))

    async def main() -> None:
        executor: Any = new_executor()
        executor.journal, executor.transactions = Recorder(), Lanes()
        executor.waits._ask = lambda source, answer: asked.append(answer)
        run = Run(make_spec(receives, "receives", Retry(0), 0), "w", "a")
        run.arguments, run.in_ledger = '{"args":[],"kwargs":{}}', True
        executor.dispatch([run])
        await until(lambda: asked)
        answer = asked.pop()
        ends = [lambda: answer([(7, '"hello"')]), lambda: limits[0].reschedule(0)]
        for end in ends if first == "message" else reversed(ends):
            end()
        await until(lambda: asked)
        asked.pop()([(7, '"hello"')])
        await until(lambda: len(got) == 2)
        assert got == ["timeout", "hello"]
        executor.abort()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_dropped_end_that_is_not_final_leaves_its_turn() -> None:
    """Its claim is lost: who waits behind it has to learn that his attempt is over, too."""

    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        first, second = pair(ordered_claim())
        executor.dispatch([first, second])
        executor.outcomes.failed(first, DeterminismError("other code"))
        executor.dropped(journal.entries)
        assert lanes.launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_a_parked_message_holds_its_scope_until_it_is_decided_on() -> None:
    """Parked is not final: what follows waits, in this process as after a restart (R11)."""

    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        claim = ordered_claim()
        first, second = transactional(claim, 0), transactional(claim, 1)
        executor.dispatch([first, second])
        executor.outcomes.failed(first, DeterminismError("other code"))
        executor.durable(journal.entries, 0.0)
        assert lanes.launched == [first]
        assert claim.scope is not None
        assert claim.scope.unfinished == ["id:0"]
        claim.scope.unfinished.clear()  # the consumer finds it final in the ledger
        executor.unblock(claim.scope)
        assert lanes.launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_while_a_suspect_runs_no_other_transaction_may_begin() -> None:
    """A message whose process died runs again with nothing beside it, so that the count finds the killer (R13)."""

    async def main() -> None:
        executor = new_executor()
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        suspect = transactional(ordered_claim(), 0)
        suspect.claim = suspect.scope = None
        suspect.spec.recoveries, suspect.in_ledger = 5, True
        executor.adopt([suspect], "recovered")
        while not journal.entries:
            await asyncio.sleep(0)
        assert (lanes.opened, lanes.alone) == (False, [])
        executor.durable(journal.entries, 0.0)
        while not lanes.alone:
            await asyncio.sleep(0)
        assert (lanes.opened, lanes.alone) == (False, [suspect])
        suspect.ended = True
        while not lanes.opened:
            await asyncio.sleep(0.001)
        executor.abort()

    asyncio.run(main())


# ---- order within a scope (R11) --------------------------------------------------------------------


class Line:
    """An executor, and messages of one partition whose order is kept; each runs the function given."""

    def __init__(self, function: Callable[[Any], Any], count: int = 3, accept_after: float = 10) -> None:
        self.executor: Any = new_executor(accept_after=accept_after, threads=2)
        self.journal = Recorder()
        self.executor.journal = self.journal
        self.executor.transactions = Lanes()
        self.claim = ordered_claim()
        self.scope: Any = self.claim.scope
        spec = make_spec(function, "scoped", Retry(0), 0)
        spec.consumer = ConsumerSpec(("t",), "g", "partition", "earliest", "topic_id", None, {}, spec, None)
        self.runs = [self.run(spec, offset) for offset in range(count)]

    def run(self, spec: Any, offset: int) -> Run:
        run = Run(spec, f"id:{offset}", "a")
        run.claim, run.offset, run.scope, run.value, run.timestamp = self.claim, offset, self.scope, b"%d" % offset, 1
        return run

    def launched(self) -> list[Run]:
        """From now on nothing runs; here is what would."""
        launched: list[Run] = []
        self.executor._launch = launched.extend
        return launched

    def commit(self) -> None:
        """The journal commits what it was given."""
        entries, self.journal.entries = self.journal.entries, []
        self.executor.durable(entries, 0.0)


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def turns(count: int = 20) -> None:
    """Let the loop do all that it can do."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@on_loop
async def test_a_message_begins_when_the_one_before_it_has_ended() -> None:
    begun, ends = list[int](), [asyncio.Event() for _ in range(3)]

    async def handler(message: eventflow.Message[int]) -> None:
        begun.append(message.value)
        await ends[message.value].wait()

    line = Line(handler)
    line.executor.dispatch(line.runs)
    for n in range(3):
        await until(lambda n=n: len(begun) > n)
        await turns()
        assert begun == list(range(n + 1))
        ends[n].set()
    await until(lambda: line.runs[2].ended)
    line.executor.abort()


@on_loop
async def test_the_next_message_begins_although_the_one_before_it_was_dropped() -> None:
    line = Line(lambda message: None)
    launched = line.launched()
    line.executor.dispatch(line.runs)
    line.executor.abandon(line.runs[0])
    assert launched == line.runs[:2]
    line.executor.abort()


@on_loop
async def test_nothing_begins_behind_what_a_former_owner_left_unfinished() -> None:
    line = Line(lambda message: None)
    line.scope.unfinished = ["left"]
    launched = line.launched()
    line.executor.dispatch(line.runs)
    line.executor.unblock(line.scope)
    assert launched == []
    line.scope.unfinished = []
    line.executor.unblock(line.scope)
    line.executor.unblock(line.scope)
    assert launched == line.runs[:1], "the first begins, and what holds the others back is the first"
    line.executor.abort()


@on_loop
async def test_nothing_begins_of_a_claim_that_was_lost() -> None:
    begun = list[int]()

    async def handler(message: eventflow.Message[int]) -> None:
        begun.append(message.value)

    line = Line(handler)
    line.claim.lose()
    line.executor.dispatch(line.runs)
    await until(lambda: all(run.ended for run in line.runs))
    assert (begun, line.journal.entries) == ([], [])
    line.executor.abort()


@on_loop
async def test_no_message_begins_before_those_in_line_while_the_one_before_them_ends() -> None:
    """A thread fetches the third message at the very moment at which the first ends and the second is in line."""
    line = Line(lambda message: None)
    executor, (first, second, third) = line.executor, line.runs
    launched, unblock = line.launched(), executor.unblock

    def overtaken(scope: Scope) -> None:
        executor.unblock = unblock
        executor.dispatch([third])
        unblock(scope)

    executor.dispatch([first, second])
    executor.unblock = overtaken
    executor.outcomes.finish(first, "null", None)
    assert launched == [first, second]
    executor.abort()


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_step_waits_until_the_end_of_the_message_before_it_is_durable(colour: str) -> None:
    """The function is called early; what acts waits, and goes on as soon as it may (R12)."""
    called, acted = list[int](), list[int]()

    @eventflow.step
    async def act(n: int) -> None:
        acted.append(n)

    @eventflow.step
    def act_sync(n: int) -> None:
        acted.append(n)

    async def handler(message: eventflow.Message[int]) -> None:
        called.append(message.value)
        if message.value:
            await act(message.value)

    def handler_sync(message: eventflow.Message[int]) -> None:
        called.append(message.value)
        if message.value:
            act_sync(message.value)

    @on_loop
    async def main() -> None:
        line = Line(handler if colour == "async" else handler_sync, 2)
        first, second = line.runs
        line.executor.dispatch(line.runs)
        await until(lambda: second.waiters)
        assert (called, acted) == ([0, 1], [])
        line.commit()
        await until(lambda: second.ended)
        assert acted == [1]
        assert first.after is second.before is None, "who has ended is not kept by who follows"
        line.executor.abort()

    main()


# ---- attempts whose claim was lost (R6, R12) -------------------------------------------------------


@on_loop
async def test_an_attempt_whose_claim_was_lost_acts_no_more() -> None:
    """Not even in the next attempt of a step; its partition's new owner runs it anew."""
    acted = list[int]()
    line: Line

    @eventflow.step(retries=eventflow.Retry(1, delay=0.001))
    async def act(n: int) -> None:
        acted.append(n)
        line.claim.lost = True
        raise ValueError("again")

    async def handler(message: eventflow.Message[int]) -> None:
        await act(message.value)

    line = Line(handler, 1)
    [run] = line.runs
    line.executor.dispatch(line.runs)
    await until(lambda: run.ended)
    assert (acted, run.dropped, line.journal.entries) == ([0], True, [])
    line.executor.abort()


@on_loop
async def test_an_attempt_in_the_ledger_goes_on_although_its_claim_was_lost() -> None:
    """Its row is this executor's: nobody else runs it."""
    line = Line(lambda message: None, 1)
    [run] = line.runs
    line.claim.lost = True
    with pytest.raises(Dropped):
        line.executor.check(run)
    run.in_ledger = True
    line.executor.check(run)
    line.executor.abort()


# ---- what is accepted before a claim is let go of (R8) ---------------------------------------------


@on_loop
async def test_what_has_begun_is_accepted_and_durable_before_its_claim_is_let_go_of() -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def handler(message: eventflow.Message[int]) -> None:
        begun.set()
        await end.wait()

    line = Line(handler, 1)
    [run] = line.runs
    line.executor.dispatch(line.runs)
    line.claim.handed = 1
    await begun.wait()
    accepting = threading.Thread(target=line.executor.accept_claims, args=({line.claim}, 10), daemon=True)
    accepting.start()
    await asyncio.to_thread(line.journal.marked.wait, 10)
    [accepted, reached] = line.journal.entries
    assert (accepted.run, accepted.status) == (run, "running")
    assert accepting.is_alive(), "it is not durable yet"
    reached()
    await asyncio.to_thread(accepting.join, 10)
    assert not accepting.is_alive()
    end.set()
    await until(lambda: run.ended)
    line.executor.abort()


async def test_what_threads_post_is_done_in_order_by_few_wake_ups_although_one_of_them_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor, loop, done, wakes = new_executor(), asyncio.get_running_loop(), list[int](), list[object]()
    raised = list[Any]()
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    wake = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        wakes.append(args)
        return wake(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

    def post() -> None:
        for n in range(100):
            executor.on_loop(fail if n == 40 else done.append, n)

    def fail(n: int) -> None:
        raise ValueError(n)

    thread = threading.Thread(target=post)
    thread.start()
    thread.join()  # the loop looks when all of it is there
    ended = asyncio.Event()
    await asyncio.to_thread(executor.on_loop, ended.set)
    await asyncio.wait_for(ended.wait(), 5)
    assert done == [n for n in range(100) if n != 40]
    assert [str(error) for error in raised] == ["40"]
    assert len([args for args in wakes if args[0] == executor._see_to_posted]) <= 2
    executor.abort()
