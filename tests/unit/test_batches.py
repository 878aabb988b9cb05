"""Batch handlers without a transaction: who is gathered, and who fails; a real executor and journal on a fake ledger."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import eventflow
from eventflow import durable
from eventflow.errors import UsageError
from eventflow.kafka import Message
from eventflow.registry import ConsumerSpec, Ordering, Spec, make_spec, message_annotation
from eventflow.retry import Retry
from eventflow.runs import Run
from eventflow.scopes import Scope, Scopes
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
