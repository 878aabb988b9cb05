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

from eventflow.codec import error_line
from eventflow.executor import Executor
from eventflow.ids import new_id
from eventflow.journal import RIDERS, ClaimsLostError, Entry, Journal, flush_statements
from eventflow.kafka import Message
from eventflow.records import Checkpoint, Rider
from eventflow.registry import ConsumerSpec, Spec, make_spec
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
        assert at.executor.room() == 0, "rows are taken while suspects wait"
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
