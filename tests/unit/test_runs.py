"""What becomes of runs whose attempt is over, and what is kept of them: a real executor and journal on a fake ledger."""

import asyncio
import gc
import logging
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import eventflow
from eventflow import durable, suspects
from eventflow.codec import error_line
from eventflow.errors import CodecError
from eventflow.executor import Executor
from eventflow.ids import new_id
from eventflow.journal import RIDERS, ClaimsLostError, Entry, Journal, flush_statements
from eventflow.kafka import Message
from eventflow.records import Checkpoint, Rider
from eventflow.registry import ConsumerSpec, Spec, make_spec
from eventflow.replay import History
from eventflow.retry import Retry
from eventflow.runs import Claim, Run
from eventflow.scopes import Scope
from tests.fakes import new_executor


class FakeLane:
    """The journal's lane; a flush waits while it is held, and raises what it is told to."""

    executor = 7

    def __init__(self) -> None:
        self.sent: list[dict[str, dict[str, Any]]] = []
        self.free = threading.Event()
        self.free.set()
        self.refusals: list[Exception] = []

    def commit(self, statements: list[tuple[str, dict[str, Any]]], claims: object) -> None:
        self.free.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        self.sent.append(dict(statements))

    def close(self) -> None: ...


class Lanes:
    """Of transactional handlers, of which there are none."""

    active = 0

    def put(self, runs: list[Run], *, alone: bool = False) -> None: ...
    def open(self, value: bool) -> None: ...


class Desk:
    def __init__(self, executor: Executor, lane: FakeLane, journal: Journal) -> None:
        self.executor, self.lane, self.journal = executor, lane, journal
        self.submitted: list[Entry] = []
        self.claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
        submit = journal.submit

        def noting(entry: Entry) -> None:
            self.submitted.append(entry)
            submit(entry)

        journal.submit = noting  # type: ignore[method-assign]

    def message(self, spec: Spec, offset: int = 0) -> Run:
        run = Run(spec, f"id:{offset}", "a")
        run.claim, run.offset, run.first, run.value = self.claim, offset, offset, b"{}"
        run.scope = self.claim.scope
        self.claim.handed += 1
        self.claim.next_offset = offset + 1
        return run

    def row(self, spec: Spec, offset: int = 0) -> Run:
        """As the ledger gives it back."""
        run = Run(spec, f"kafka:g:t:1:0:{offset}", "a")
        run.in_ledger, run.value = True, b"{}"
        return run


@asynccontextmanager
async def desk(*, accept_after: float = 10.0, threads: int = 1) -> AsyncIterator[Desk]:
    executor, lane = new_executor(accept_after=accept_after, threads=threads), FakeLane()
    fenced: list[Exception] = []
    journal = Journal(
        lane, "a",  # type: ignore[arg-type]
        on_durable=executor.durable, on_dropped=executor.dropped, on_lost=lambda _: None,
        on_fenced=fenced.append, on_incident=lambda *_: None,
    )  # fmt: skip
    executor.journal, executor.transactions = journal, Lanes()
    executor.on_told = lambda *_: None
    journal.start()
    try:
        yield Desk(executor, lane, journal)
    finally:
        executor.abort()
        lane.free.set()
        assert journal.close(5)
        assert fenced == []


def handler_spec(function: Callable[..., Any], retry: Retry | None = None) -> Spec:
    spec = make_spec(function, function.__name__, retry or Retry(0), 5)
    spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, None)
    return spec


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.001)


# ---- runs that are dropped (R6, R10) -----------------------------------------------------------------


async def test_what_ended_and_was_refused_is_forgotten() -> None:
    """Its row may come back from the partition's new owner: who remembers the run would never start it."""
    async with desk(accept_after=0.0) as at:
        go = asyncio.Event()

        async def handler(message: Message[Any]) -> None:
            await go.wait()

        at.lane.free.clear()
        run = at.message(handler_spec(handler))
        at.executor.dispatch([run])
        await until(lambda: run.submitted == 1, "it is accepted")
        assert at.executor.runs == {"id:0": run}
        go.set()
        await until(lambda: run.ended, "it ends")
        at.lane.refusals.append(ClaimsLostError([1]))
        at.lane.free.set()
        await until(lambda: at.claim.finished, "the flush is refused")
        assert at.executor.runs == {}


@pytest.mark.parametrize("recovered", [False, True])
async def test_a_row_is_taken_although_a_dropped_run_of_it_has_not_unwound(recovered: bool) -> None:
    async with desk() as at:

        async def handler(message: Message[Any]) -> int:
            return 1

        spec = handler_spec(handler)
        known, back = at.row(spec), at.row(spec)
        at.executor.runs[known.workflow_id] = known
        known.dropped = True
        assert not at.executor.holds(known.workflow_id), "R10b takes it for running"
        at.executor.adopt([back], "recovered" if recovered else "queued")
        await until(lambda: back.ended and back.over(), "it runs")
        assert at.lane.sent[-1]["update_workflows"]["status"].values == ["succeeded"]


async def test_a_run_that_is_dropped_while_it_waits_for_a_retry_makes_room() -> None:
    async with desk() as at:

        async def handler(message: Message[Any]) -> None:
            raise ValueError("once more")

        at.claim.scope = Scope("1", [])
        run = at.message(handler_spec(handler, Retry(3, delay=0.01, jitter=0)))
        at.lane.refusals.append(ClaimsLostError([1]))
        at.executor.dispatch([run])
        await until(lambda: at.claim.finished == 1, "it takes no more room")
        assert run.ended
        assert at.executor.runs == {}
        assert at.claim.scope.enter(at.message(handler_spec(handler))), "whoever comes next may start"


def test_one_that_is_parked_while_the_ledger_is_asked_still_holds_its_scope_back() -> None:
    scope = Scope("1", ["before"])
    asked = set(scope.unfinished)
    scope.unfinished.append("parked meanwhile")
    assert not scope.finished(asked)
    assert scope.unfinished == ["parked meanwhile"]


# ---- what one flush carries (R15) ---------------------------------------------------------------------


class Flushes:
    """An executor and a journal that flushes when it is told to, and messages of a partition that parks what fails."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.executor, self.lane = new_executor(), FakeLane()
        self.lost: list[Claim] = []
        self.journal = Journal(
            self.lane, "a",  # type: ignore[arg-type]
            on_durable=self.executor.durable, on_dropped=self.executor.dropped, on_lost=self.lost.extend,
            on_fenced=print, on_incident=print,
        )  # fmt: skip
        self.executor.journal, self.executor.transactions = self.journal, Lanes()
        self.claim, self.scope = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0), Scope("1", [])
        spec = handler_spec(handler)
        assert spec.consumer is not None
        spec.consumer.on_failure = "park_key"
        self.runs = [self.message(spec, offset) for offset in range(3)]

    def message(self, spec: Spec, offset: int) -> Run:
        run = Run(spec, f"id:{offset}", "a")
        run.claim, run.offset, run.first, run.value, run.scope = self.claim, offset, offset, b"{}", self.scope
        self.claim.handed += 1
        return run

    def flush(self, refusals: int = 0) -> None:
        self.lane.refusals = [CodecError("a value that cannot be encrypted") for _ in range(refusals)]
        self.journal._flush(*self.journal._take())


@pytest.mark.parametrize("accepted", [False, True])
async def test_what_began_behind_a_refused_success_is_decided_anew(accepted: bool) -> None:
    """Its row is parked: had they run for good, they would stand before it. Without rows, the claim is taken again."""
    ran: list[int] = []

    async def handler(message: Message[Any]) -> None:
        ran.append(message.offset)

    at = Flushes(handler)
    for run in at.runs:
        run.in_ledger = accepted and run is not at.runs[0]
    at.executor.dispatch(at.runs)
    await until(lambda: len(ran) == 3, "all have run")
    at.flush(refusals=2)
    assert [sent["insert_workflows"]["id"].values for sent in at.lane.sent] == [["id:0"]]
    assert at.lane.sent[0]["insert_workflows"]["status"].values == ["parked"]
    assert (at.scope.unfinished, at.scope.waiting()) == (["id:0"], 0)
    assert (at.claim.lost, at.lost) == ((False, []) if accepted else (True, [at.claim]))
    assert [run.dropped for run in at.runs] == [True, True, True]
    assert at.claim.in_flight() == 0
    assert at.executor.runs == {}, "their rows can be taken"
    at.executor.abort()


@pytest.mark.parametrize("ended", [False, True])
async def test_what_waits_behind_a_refused_failure_goes_on_waiting(ended: bool) -> None:
    ran, go = list[int](), asyncio.Event()

    async def handler(message: Message[Any]) -> None:
        ran.append(message.offset)
        await go.wait()
        raise ValueError("for good")

    at = Flushes(handler)
    at.executor.dispatch(at.runs)
    await until(lambda: ran == [0], "it runs")
    if ended:
        go.set()
        await until(lambda: at.runs[0].ended, "it has failed")
    else:
        at.executor.accept(at.runs[0])
    at.flush(refusals=1)
    assert at.lane.sent[0]["insert_workflows"]["status"].values == ["parked"]
    go.set()
    await until(lambda: at.claim.finished == 1 and not at.executor.busy(), "it has unwound")
    assert (ran, at.scope.unfinished, at.scope.waiting()) == ([0], ["id:0"], 2)
    at.scope.unfinished.clear()  # the consumer finds it final in the ledger
    at.executor.unblock(at.scope)
    await until(lambda: ran == [0, 1], "the next one runs")
    at.executor.abort()


async def test_no_child_begins_that_a_retry_in_the_same_flush_has_dropped() -> None:
    def handler(message: Message[Any]) -> None: ...

    def child() -> None: ...

    at = Flushes(handler)
    run, spec = at.runs[0], make_spec(child, "child", Retry(0), 0)
    run.in_ledger, at.executor._startable[spec.name] = True, spec
    progress, failed, again = (
        Entry(run, []),
        Entry(run, [Checkpoint("1.1", 1, "s", None, "{}")]),
        Entry(run, [], "queued"),
    )
    progress.riders = [run.history.keep_details("id:0", "1.1", "s", "1")]
    failed.riders = [Rider("insert_children", ("id:0>1.2", spec.name, "a", 7, "id:0", "{}", None, None), 2)]
    again.drop(1, "1.1")
    for entry in (progress, failed, again):
        at.executor.hand(run, entry)
    at.flush()
    assert set(at.lane.sent[0]) == {"update_workflows", "delete_checkpoints"}
    assert set(at.executor.runs) == {"id:0"}
    at.executor.abort()


# ---- the drain (R8a) ---------------------------------------------------------------------------------


async def test_what_still_runs_is_not_let_go_of_by_the_drain() -> None:
    """Alive it could still commit, and a peer would run it beside: it is let go of when the executor has died."""
    async with desk(accept_after=0.0) as at:
        began, go = threading.Event(), threading.Event()

        def handler(message: Message[Any]) -> None:
            began.set()
            go.wait()

        run = at.message(handler_spec(handler))
        at.executor.dispatch([run])
        await until(lambda: began.is_set() and run.over() is False and run.durable == 1, "it runs and is accepted")
        await at.executor.drain(lambda: False)
        assert [entry.status for entry in at.submitted] == ["running"]
        go.set()
        await until(run.over, "it ends")
        assert [entry.status for entry in at.submitted] == ["running", "succeeded"]


async def test_a_retry_does_not_outlive_the_drain() -> None:
    """Let go of, it is another's: nothing more is recorded for it, and no timer starts it again."""
    async with desk() as at:
        began, go = asyncio.Event(), asyncio.Event()

        async def handler(message: Message[Any]) -> None:
            began.set()
            await go.wait()
            raise ValueError("during the drain")

        run = at.message(handler_spec(handler, Retry(3, delay=5, jitter=0)))
        at.executor.dispatch([run])
        await began.wait()
        draining = asyncio.create_task(at.executor.drain(lambda: True))
        await asyncio.sleep(0)
        go.set()
        await draining
        assert [(e.status, e.held) for e in at.submitted] == [("queued", True), ("queued", False)]
        assert at.executor.outcomes.call_off_all() == []
        at.executor.outcomes._again(run)  # as a timer that came first would
        await until(run.over, "its release is durable")
        assert len(at.submitted) == 2
        assert not run.dropped


async def test_what_unwinds_after_its_release_does_not_take_it_back() -> None:
    async with desk() as at:
        began, go = asyncio.Event(), asyncio.Event()

        async def handler(message: Message[Any]) -> None:
            began.set()
            await go.wait()

        at.lane.free.clear()
        run = at.message(handler_spec(handler))
        at.executor.dispatch([run])
        await began.wait()
        at.executor.outcomes.release(run)
        go.set()
        await until(lambda: not at.executor._active, "it unwinds")
        at.lane.free.set()
        await until(run.over, "its release is durable")
        assert not run.dropped
        assert [flush["insert_workflows"]["held"] for flush in at.lane.sent] == [[False]]


# ---- what is kept ------------------------------------------------------------------------------------


async def test_no_finished_run_is_kept_by_a_later_one_of_its_scope() -> None:
    async with desk() as at:

        async def handler(message: Message[Any]) -> int:
            return 1

        spec = handler_spec(handler)
        at.claim.scope = Scope("1", [])
        for first in range(0, 2000, 500):
            at.executor.dispatch([at.message(spec, first + n) for n in range(500)])
            await until(lambda: at.claim.in_flight() == 0, "all are handled")
        at.submitted.clear()
        at.journal._arrived = []
        gc.collect()
        assert sum(isinstance(one, Run) and one.claim is at.claim for one in gc.get_objects()) <= 3


BIG = 1_000_000


@pytest.mark.parametrize(
    "field", ["checkpoints", "failed steps", "arguments", "error", "key", "value", "headers", "output"]
)
async def test_a_batch_counts_whatever_it_sends(field: str) -> None:
    async with desk() as at:

        async def handler(message: Message[Any]) -> None: ...

        spec, big = handler_spec(handler), "x" * BIG
        at.lane.free.clear()
        journal = Journal(
            at.lane, "a",  # type: ignore[arg-type]
            on_durable=lambda *_: None, on_dropped=list, on_lost=list, on_fenced=print, on_incident=print,
        )  # fmt: skip
        for offset in range(40):
            run = at.message(spec, offset)
            entry = Entry(run, [], "succeeded", output=big if field == "output" else "1")
            if field == "checkpoints":
                entry.checkpoints = [Checkpoint(f"1.{n}", n, "s", big[: BIG // 4], None) for n in range(4)]
            elif field == "failed steps":
                entry.checkpoints = [Checkpoint("1.1", 1, "s", None, big)]
            elif field == "error":
                entry.error = big
            elif field == "headers":
                run.headers = [("h", b"x" * (BIG * 3 // 4))]
            elif field == "arguments":
                run.arguments = big
            elif field in {"key", "value"}:
                setattr(run, field, big.encode())
            journal.submit(entry)
        taken, _ = journal._take()
        assert 16 <= len(taken) <= 17


# ---- suspects (R13) ----------------------------------------------------------------------------------


async def test_between_two_suspects_others_get_their_turn() -> None:
    """As long as the one had all for itself: a hundred of them hold nobody up for more than half of the time."""
    async with desk(threads=4) as at:
        seen: list[tuple[str, float]] = []

        async def suspect(message: Message[Any]) -> None:
            seen.append(("suspect", time.monotonic()))
            await asyncio.sleep(0.05)

        async def fresh(message: Message[Any]) -> None:
            seen.append(("fresh", time.monotonic()))

        at.lane.free.clear()
        slow = handler_spec(suspect)
        at.executor.adopt([at.row(slow, n) for n in range(3)], "recovered")
        await until(lambda: at.executor._gate, "the first suspect is about to run alone")
        assert at.executor.suspects(), "rows are taken while suspects wait"
        at.executor.dispatch([at.message(handler_spec(fresh))])
        at.lane.free.set()
        await until(lambda: len(seen) == 4, "all have run")
        assert [who for who, _ in seen] == ["suspect", "fresh", "suspect", "suspect"]
        assert seen[2][1] - seen[0][1] >= 0.1, "it ran for 0.05 s, then the others had as much"
        await until(lambda: not at.executor._gate and not at.executor.runs, "all is over")
        assert at.executor.room() == 3000
        at.executor.runs.update((str(n), at.row(slow, n)) for n in range(2990))
        assert at.executor.room() == 10
        at.executor.runs.update((str(n), at.row(slow, n)) for n in range(3100))
        assert at.executor.room() == 0


async def test_a_suspect_that_is_ended_while_it_waits_for_its_turn_is_left_alone() -> None:
    """To record that it runs again would be refused (EF004), and end this executor."""
    async with desk(threads=4) as at:
        ran: list[int] = []

        async def suspect(message: Message[Any]) -> None:
            ran.append(message.offset)
            await asyncio.sleep(0.1)

        rows = [at.row(handler_spec(suspect), n) for n in range(3)]
        at.executor.adopt(rows, "recovered")
        await until(lambda: len(ran) == 1, "the first one runs alone")
        at.executor.interrupts.terminate(rows[1], "terminated by the test")
        submitted = rows[1].submitted
        await until(lambda: not at.executor._gate and len(ran) == 2 and not at.executor.runs, "all is over")
        assert rows[1].submitted == submitted
        assert len(set(ran)) == 2


# ---- errors that cannot be printed -------------------------------------------------------------------


@eventflow.workflow
async def stands() -> None:
    await durable.recv(str)


async def test_nothing_is_held_up_by_what_only_waits() -> None:
    """One workflow that waits in memory would cost each suspect a second, and all others as much."""
    async with desk() as at:
        waiting = Run(stands.spec, "w", "a")
        waiting.arguments, waiting.in_ledger = stands.encode((), {}), True
        at.executor.dispatch([waiting])
        await until(at.executor.waits.standing, "it waits")
        at.executor._clock = lambda: 0.0  # the time given is never over
        await asyncio.wait_for(at.executor.silence(1.0), 10)
        waiting.acting = 1
        silence = asyncio.create_task(at.executor.silence(1.0))
        await asyncio.wait({silence}, timeout=0.02)
        assert not silence.done(), "another branch of it acts"
        waiting.acting = 0
        await asyncio.wait_for(silence, 10)


async def test_behind_a_suspect_that_cannot_be_started_others_have_their_turns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with desk(threads=4) as at:

        async def handler(message: Message[Any]) -> None: ...

        bad, good = (at.row(handler_spec(handler), n) for n in range(2))
        start = at.executor.start_alone

        def flaky(run: Run) -> None:
            if run is bad:
                raise RuntimeError("can't start new thread")
            start(run)

        at.executor.start_alone = flaky  # type: ignore[method-assign]
        at.executor.adopt([bad, good], "recovered")
        await until(lambda: good.over() and bad.over(), "the one is let go of, the other has run")
        ends = {entry.run: (entry.status, entry.held) for entry in at.submitted if entry.status != "running"}
        assert ends == {bad: ("queued", False), good: ("succeeded", True)}
        assert "cannot run alone" in caplog.text


async def test_a_suspect_is_watched_while_it_runs_alone_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "_ALONE", 0.0)
    polls: list[asyncio.Future[None]] = []
    async with desk() as at:
        go = asyncio.Event()

        async def handler(message: Message[Any]) -> None:
            await go.wait()

        gate: Any = at.executor._suspects
        poll = gate._poll_end

        def noting(run: Run, ended: asyncio.Future[None]) -> None:
            polls.append(ended)
            poll(run, ended)

        monkeypatch.setattr(gate, "_poll_end", noting)
        run = at.row(handler_spec(handler))
        at.executor.adopt([run], "recovered")
        await until(lambda: not gate.under_way(), "its time alone is over")
        assert not run.ended
        assert polls[-1].done(), "the one that is due is the last"
        monkeypatch.setattr(at.executor.loop, "call_later", None)
        poll(run, polls[-1])
        monkeypatch.undo()
        go.set()
        await until(run.over, "it ends")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise AttributeError("and this as well")


async def test_an_error_that_cannot_be_printed_is_a_failure_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    assert "Unprintable" in error_line(Unprintable())
    assert error_line(ValueError("")) == "ValueError"
    assert error_line(ValueError("one\ntwo")) == "one"
    async with desk() as at:

        async def handler(message: Message[Any]) -> None:
            raise Unprintable

        async def other(message: Message[Any]) -> None: ...

        with caplog.at_level(logging.WARNING):
            at.executor.dispatch(
                [at.message(handler_spec(handler, Retry(1, delay=0))), at.message(handler_spec(other), 1)]
            )
            await until(lambda: at.claim.in_flight() == 0, "both have ended")
        statuses = [entry.status for entry in at.submitted]
        assert sorted(statuses) == ["failed", "queued", "running", "succeeded"]
        assert "Unprintable" in caplog.text


@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("outcome", ["failed", "finish"])
async def test_a_run_whose_outcome_raises_fails_with_that(
    colour: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its message would be in flight, and its runner or thread with it, for as long as the process lives."""

    def broken(*_: Any) -> None:
        raise LookupError("not foreseen")

    async def handler(message: Message[Any]) -> None:
        sync_handler(message)

    def sync_handler(message: Message[Any]) -> None:
        if outcome == "failed":
            raise ValueError("its own")

    async with desk() as at:
        monkeypatch.setattr(at.executor.outcomes, outcome, broken)
        run = at.message(handler_spec(handler if colour == "async" else sync_handler))
        at.executor.dispatch([run])
        await until(lambda: at.claim.in_flight() == 0, "it has ended")
        assert isinstance(run.outcome, LookupError)
        assert [entry.status for entry in at.submitted] == ["failed"]
        await until(lambda: not at.executor.busy(), "nothing is left of it")


def test_ids_are_random_uuids_that_no_fork_shares() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 4 for one in ids)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() != new_id()


@pytest.mark.parametrize(
    ("query", "kept"),
    [(None, 0), ("insert_outbox", 0), ("insert_events", 1), ("insert_children", 1), ("insert_messages", 1)],
)
def test_a_message_that_others_know_keeps_its_row(query: str | None, kept: int) -> None:
    """Also where rows of what succeeds at once are not kept (R19, docs/adr/0018)."""

    def handler(message: Message[Any]) -> None: ...

    run = Run(handler_spec(handler), "kafka:g:t:1:0:0", "a")
    run.claim, run.offset, run.first = Claim(1, 1, "g", "t", 0, 1, 1, "kafka:g:t:1:0:", 0), 0, 0
    entry = Entry(run, [], "succeeded", output="null")
    if query is not None:
        entry.riders = [Rider(query, tuple(["x"] * len(RIDERS[query])))]
    for keeps in (True, False):
        statements, claims = flush_statements(1, "a", [entry], [], keeps=keeps)
        names = [name for name, _ in statements]
        assert names.count("insert_succeeded") == (1 if keeps else kept)
        assert names.count("insert_deltas") == len(claims) == 1


async def test_one_that_is_terminated_while_its_thread_runs_is_counted_once() -> None:
    """It is over when that is durable; its thread comes back later, and finds nothing to let go of."""
    async with desk(accept_after=0.0) as at:
        entered, go = threading.Event(), threading.Event()

        def handler(message: Message[dict[str, int]]) -> None:
            entered.set()
            go.wait()

        run = at.message(handler_spec(handler))
        at.executor.dispatch([run])
        await until(lambda: entered.is_set() and run.durable == 1, "it runs, and is accepted")
        at.executor.interrupts.request([(run.workflow_id, "terminate", "me", 1)])
        await until(lambda: at.claim.in_flight() == 0, "it is over")
        go.set()
        await until(lambda: not at.executor._in_threads, "its thread has come back")
        assert (at.claim.in_flight(), run.dropped) == (0, True)


@eventflow.workflow
async def heeds() -> None:
    try:
        await durable.recv(str)
    except asyncio.CancelledError:
        heeded.append("told")
        raise


heeded = list[str]()


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_one_that_has_been_recovered_is_told_to_end(how: str) -> None:
    """It runs by itself, in no runner."""
    heeded.clear()
    async with desk() as at:
        run = Run(heeds.spec, "w", "a")
        run.arguments, run.in_ledger = heeds.encode((), {}), True
        at.executor.adopt([run], "recovered")
        await until(lambda: at.executor.waits.standing() == 1, "it waits")
        at.executor.interrupts.request([("w", how, "somebody", 1)])
        await until(run.over, "it has ended")
        assert [entry.status for entry in at.submitted if entry.run is run][-1] == "cancelled"
        await until(lambda: heeded == ["told"], "its function has unwound")


async def acted() -> None:
    heeded.append("acted")


@eventflow.workflow
async def cleans_up(branches: int) -> None:
    """What comes before the `try` was done by a former attempt."""
    replays.set()
    await asyncio.gather(*(durable.run_step(acted) for _ in range(branches)))
    try:
        await durable.recv(str)
    except asyncio.CancelledError:
        heeded.append("cleaned up")
        raise


replays = asyncio.Event()


def has_recorded(*positions: str) -> Run:
    run = Run(cleans_up.spec, "w", "a")
    run.arguments, run.in_ledger = cleans_up.encode((2,), {}), True
    run.history = History({place: Checkpoint(place, n, "acted", "null", None) for n, place in enumerate(positions, 1)})
    return run


@pytest.mark.parametrize("early", [True, False])
async def test_who_replays_is_told_to_end_where_the_former_attempt_stood(early: bool) -> None:
    """Ahead of that, in the `gather` of what is recorded, it could not clean up yet."""
    heeded.clear()
    replays.clear()
    async with desk() as at:
        run = has_recorded("2.1", "3.1")
        at.executor.adopt([run], "recovered")
        if not early:
            await replays.wait()
            assert run.history.ahead == {"2.1", "3.1"}
        at.executor.interrupts.request([("w", "cancel", "somebody", 1)])
        await until(run.over, "it has ended")
        assert (heeded, at.submitted[-1].status) == (["cleaned up"], "cancelled")


@eventflow.workflow
async def cleans_up_behind_a_gather() -> None:
    async def branch(n: int) -> None:
        await durable.run_step(acted)
        if n:
            ask_to_end[0]()  # all that is recorded has begun; who gathers has not gone on yet

    await asyncio.gather(branch(0), branch(1))
    try:
        await durable.recv(str)
    except asyncio.CancelledError:
        heeded.append("cleaned up")
        raise


ask_to_end = list[Callable[[], None]]()


async def test_who_replays_is_told_to_end_only_when_what_follows_what_is_recorded_has_begun() -> None:
    heeded.clear()
    async with desk() as at:
        ask_to_end[:] = [lambda: at.executor.interrupts.request([("w", "cancel", "somebody", 1)])]
        run = has_recorded("2.1", "3.1")
        run.spec, run.name = cleans_up_behind_a_gather.spec, cleans_up_behind_a_gather.spec.name
        run.arguments = cleans_up_behind_a_gather.encode((), {})
        at.executor.adopt([run], "recovered")
        await until(run.over, "it has ended")
        assert (heeded, at.submitted[-1].status) == (["cleaned up"], "cancelled")


async def test_who_leaves_memory_is_told_to_end_when_he_comes_back() -> None:
    """What he would be told now is not recorded, and he would sleep on."""
    async with desk() as at:
        run = Run(heeds.spec, "w", "a")
        run.arguments, run.in_ledger = heeds.encode((), {}), True
        at.executor.adopt([run], "recovered")
        await until(lambda: at.executor.waits.standing() == 1, "it waits")
        at.executor.waits.suspend(run)
        assert run.life is not None
        run.life.unread = False  # nothing has come
        at.executor.interrupts.request([("w", "cancel", "somebody", 1)])
        await until(lambda: at.submitted and at.submitted[-1].status == "waiting", "it has left memory")
        assert at.submitted[-1].wake_in == 0.0


async def test_a_replay_that_never_comes_to_what_is_recorded_is_told_to_end_all_the_same() -> None:
    heeded.clear()
    async with desk() as at:
        at.executor.adopt([has_recorded("2.1", "3.1", "4.1")], "recovered")
        at.executor.interrupts.request([("w", "cancel", "somebody", 1)])
        await until(lambda: at.submitted and at.submitted[-1].status == "cancelled", "it has ended")
        assert heeded == ["cleaned up"]
