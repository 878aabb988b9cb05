"""Batch handlers without a transaction: who is gathered, and who fails; a real executor and journal on a fake ledger."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import eventflow
from eventflow import batches, durable
from eventflow.batches import Batch
from eventflow.errors import UsageError
from eventflow.fetched import Fetched
from eventflow.kafka import Message
from eventflow.registry import ConsumerSpec, Ordering, Spec, make_spec, message_annotation
from eventflow.retry import Retry
from eventflow.runs import Run
from eventflow.scopes import Scope, Scopes
from eventflow.telemetry import Seldom
from tests.unit.test_fetched import FakeMessage
from tests.unit.test_runs import Desk, desk, until

Messages = list[Message[int]]


def batch_spec(function: Callable[..., Any], batch: int, wait: float = 30.0, ordering: Ordering = "none") -> Spec:
    spec = make_spec(function, function.__name__, Retry(0), 5)
    spec.consumer = ConsumerSpec(
        ("t",), "g", ordering, "earliest", "topic_id", None, {}, spec, None, batch=batch, batch_wait=wait
    )
    return spec


def messages(at: Desk, spec: Spec, count: int, *, key: bytes | None = None) -> list[Run]:
    runs: list[Run] = []
    for _ in range(count):
        run = at.message(spec, at.claim.next_offset)
        run.value = str(run.offset).encode()
        if at.claim.scopes is not None:
            run.scope = at.claim.scopes.of(key)
        runs.append(run)
    return runs


def fetched(at: Desk, spec: Spec, count: int) -> list[Fetched]:
    one = Fetched(spec, at.claim, at.claim.next_offset)
    one.messages = [FakeMessage(one.first + n, b"%d" % (one.first + n)) for n in range(count)]
    one.end = at.claim.next_offset = one.first + count
    at.claim.handed += count
    return [one]


def begun_at(at: Desk) -> list[tuple[int, int]]:
    """Of each batch that begins from now on, how many runs it has, and how many messages as they were fetched."""
    begun = list[tuple[int, int]]()

    def begin(batch: Batch, *, alone: bool = False) -> None:
        begun.append((len(batch.runs), sum(map(len, batch.fetched))))

    at.executor.begin_batch = begin  # type: ignore[method-assign]
    return begun


async def test_a_call_has_a_whole_batch_or_what_came_in_time() -> None:
    async with desk() as at:
        calls = list[list[int]]()

        async def handler(messages: Messages) -> None:
            calls.append([m.value for m in messages])

        spec = batch_spec(handler, 4, 0.05)
        at.executor.dispatch(messages(at, spec, 10))
        await until(lambda: len(calls) == 2, "two are full")
        assert calls == [[0, 1, 2, 3], [4, 5, 6, 7]]
        await until(lambda: len(calls) == 3, "the rest has waited")
        assert calls[2] == [8, 9]
        await until(lambda: at.claim.finished == 10, "all are durable")


async def test_runs_begin_although_what_is_fetched_never_ends() -> None:
    async with desk() as at:

        def handler(messages: Messages) -> None: ...

        spec, begun = batch_spec(handler, 4), begun_at(at)
        at.executor.dispatch(messages(at, spec, 2))
        for _ in range(5):
            at.executor.gather(fetched(at, spec, 4))
        assert begun == [(2, 0), *[(0, 4)] * 5]
        at.executor.dispatch(messages(at, spec, 6))
        at.executor.gather(fetched(at, spec, 3))
        assert begun[6:] == [(4, 0), (2, 0)]
        assert at.executor.batches.waiting() == 3, "which fill no batch"


async def test_all_that_has_waited_begins_at_once() -> None:
    """Runs, and what was fetched: neither waits for the other's next time."""
    async with desk() as at:

        def handler(messages: Messages) -> None: ...

        spec, begun = batch_spec(handler, 4, 0.3), begun_at(at)
        at.executor.dispatch(messages(at, spec, 1))
        at.executor.gather(fetched(at, spec, 2))
        assert begun == []
        await until(lambda: begun, "they have waited")
        assert begun == [(1, 0), (0, 2)]
        assert at.executor.batches.waiting() == 0


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_the_one_at_fault_fails_alone(colour: str) -> None:
    async with desk() as at:
        done = list[int]()

        def work(messages: Messages) -> None:
            if any(m.value in {3, 6} for m in messages):
                raise ValueError("3 and 6 are refused")
            done.extend(m.value for m in messages)

        async def handler(messages: Messages) -> None:
            work(messages)

        def handler_sync(messages: Messages) -> None:
            work(messages)

        spec = batch_spec(handler if colour == "async" else handler_sync, 8)
        runs = messages(at, spec, 8)
        runs[5].value = b"no number"
        at.executor.dispatch(runs)
        await until(lambda: at.claim.finished == 8, "all are durable")
        assert done == [0, 1, 2, 4, 7]
        assert {e.run.offset for e in at.submitted if e.status == "failed"} == {3, 5, 6}


@pytest.mark.parametrize("leaks", [asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_the_one_that_ends_the_call_otherwise_than_by_an_exception_fails_alone(
    colour: str, leaks: type[BaseException]
) -> None:
    """A future that somebody else has cancelled, or a library that exits: nobody was told to end."""
    async with desk() as at:
        done = list[int]()

        async def handler(messages: Messages) -> None:
            if any(m.value == 5 for m in messages):
                if leaks is SystemExit:
                    raise SystemExit(1)
                gone = asyncio.get_running_loop().create_future()
                gone.cancel()
                await gone
            done.extend(m.value for m in messages)

        def handler_sync(messages: Messages) -> None:
            if any(m.value == 5 for m in messages):
                raise leaks
            done.extend(m.value for m in messages)

        at.executor.dispatch(messages(at, batch_spec(handler if colour == "async" else handler_sync, 8), 8))
        await until(lambda: at.claim.finished == 8, "all are durable")
        assert done == [0, 1, 2, 3, 4, 6, 7]
        assert {e.run.offset: e.status for e in at.submitted if e.status != "succeeded"} == {5: "failed"}


async def test_a_half_whose_claim_is_gone_is_not_called() -> None:
    async with desk() as at:
        calls = list[list[int]]()

        async def handler(messages: Messages) -> None:
            calls.append([m.value for m in messages])
            if len(calls) == 2:
                at.claim.lose()
            raise ValueError("all are refused")

        at.executor.dispatch(messages(at, batch_spec(handler, 4), 4))
        await until(lambda: at.claim.finished == 4, "all are let go of")
        assert calls == [[0, 1, 2, 3], [0, 1]]
        assert at.submitted == []


async def test_that_a_call_failed_and_is_split_is_said_seldom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not of each half, nor of the next batch: but one that passes in parts leaves no other trace."""
    monkeypatch.setattr(batches, "seldom", Seldom())
    async with desk() as at:
        done = list[int]()

        async def index(messages: Messages) -> None:
            if len(messages) > 1:
                raise ValueError(f"{len(messages)} are too many")
            done.extend(m.value for m in messages)

        at.executor.dispatch(messages(at, batch_spec(index, 4), 8))
        await until(lambda: at.claim.finished == 8, "all are durable")
        assert sorted(done) == list(range(8))
        assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [(
            "eventflow.batches", "WARNING",
            "index: a call with 4 messages failed, and is made with each half: ValueError: 4 are too many",
        )]  # fmt: skip


async def test_messages_of_a_scope_go_together_and_no_later_one_before_a_failure_is_durable() -> None:
    async with desk() as at:
        calls = list[list[int]]()

        async def handler(messages: Messages) -> None:
            calls.append([m.value for m in messages])
            if any(m.value == 1 for m in messages):
                raise ValueError("1 is refused")

        at.claim.scopes = Scopes(1)
        spec = batch_spec(handler, 4, 0.05, "key")
        at.lane.free.clear()
        at.executor.dispatch([*messages(at, spec, 3, key=b"a"), *messages(at, spec, 1, key=b"b")])
        await until(lambda: len(calls) == 4, "all have been tried that may be")
        assert calls == [[0, 1, 2, 3], [0, 1], [0], [3]], "1 waits until the end of 0 is durable"
        at.lane.free.set()
        await until(lambda: at.claim.finished == 4, "all are durable")
        assert calls[4:] == [[1, 2], [1], [2]]
        assert len(at.claim.scopes) == 0


async def test_a_scope_gives_a_batch_what_it_has() -> None:
    async with desk() as at:
        calls = list[list[int]]()

        async def handler(messages: Messages) -> None:
            calls.append([m.value for m in messages])

        at.claim.scope = Scope("1", [])
        at.executor.dispatch(messages(at, batch_spec(handler, 3, 0.05, "partition"), 7))
        await until(lambda: at.claim.finished == 7, "all are durable")
        assert calls == [[0, 1, 2], [3, 4, 5], [6]]


async def test_what_was_accepted_or_has_failed_before_runs_by_itself() -> None:
    async with desk() as at:
        calls = list[list[int]]()

        async def handler(messages: Messages) -> None:
            calls.append([m.value for m in messages])

        spec = batch_spec(handler, 3)
        runs = messages(at, spec, 4)
        runs[1].wary = True
        at.executor.dispatch(runs)
        await until(lambda: at.claim.finished == 4, "all are durable")
        assert sorted(calls) == [[0, 2, 3], [1]]


async def test_a_batch_has_no_id_and_calls_steps_plainly() -> None:
    async with desk() as at:
        told = list[object]()

        @eventflow.step
        async def double(n: int) -> int:
            return 2 * n

        async def handler(messages: Messages) -> None:
            told.append(await double(len(messages)))
            for what in (durable.workflow_id, durable.idempotency_key, durable.attempt):
                try:
                    what()
                except UsageError as error:
                    told.append(str(error))
            try:
                await durable.sleep(1)
            except UsageError as error:
                told.append(str(error))

        at.executor.dispatch(messages(at, batch_spec(handler, 2), 2))
        await until(lambda: at.claim.finished == 2, "all are durable")
        assert told[0] == 4
        assert len(told) == 5
        assert all("batch handler" in str(one) for one in told[1:4]), told


async def test_a_call_that_leaves_with_its_process_is_recorded_by_nobody() -> None:
    async with desk() as at:
        begun = asyncio.Event()

        async def handler(messages: Messages) -> None:
            begun.set()
            await asyncio.sleep(30)

        at.executor.dispatch(messages(at, batch_spec(handler, 2), 2))
        await begun.wait()
        await at.executor.drain(lambda: False)
        await until(lambda: at.claim.finished == 2, "both are let go of")
        assert [e.status for e in at.submitted] == ["queued", "queued"]


def test_a_batch_handler_takes_a_list_and_no_other_does() -> None:
    def one(message: Message[int]) -> None: ...
    def many(messages: Messages) -> None: ...
    def untyped(messages): ...  # type: ignore[no-untyped-def]
    def tells(messages: Messages) -> int: ...  # type: ignore[empty-body]

    assert message_annotation(many, batch=True) == Message[int]
    assert message_annotation(untyped, batch=True) == Message[Any]
    decorate: Any = eventflow.kafka_consumer
    with pytest.raises(UsageError, match=r"must take a list\[Message\[...\]\], as it has batch="):
        decorate("t", group="g", batch=3)(one)
    with pytest.raises(UsageError, match="for a list of them, say batch="):
        decorate("t", group="g")(many)
    with pytest.raises(UsageError, match="returns nothing"):
        decorate("t", group="g", batch=3)(tells)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"batch": 0}, "batch= is a number from 1"),
        ({"batch": 100_000}, "batch= is a number from 1"),
        ({"batch": 10, "batch_wait": -1}, "batch_wait="),
        ({"batch": 10, "max_in_flight": 5}, "lets no batch of 10 come together"),
    ],
)
def test_batches_that_cannot_be(options: Any, wrong: str) -> None:
    decorate: Any = eventflow.kafka_consumer
    with pytest.raises(UsageError, match=wrong):
        decorate("t", group="g", **options)
