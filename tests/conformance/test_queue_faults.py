"""What once stopped a queue, lost an entry or passed a limit: each as a person or a program may do it."""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import sync
from eventflow.client import Client
from eventflow.errors import WorkflowCancelledError, WorkflowExistsError
from eventflow.queues import Queue
from tests.conformance.colours import Body, Colour, Do, both, until
from tests.conformance.conftest import App

LINE = Queue("faults line", concurrency=1)
SIDE = Queue("faults side")
seen: list[int] = []


@both
def notes(do: Do, n: int) -> Body[int]:
    seen.append(n)
    yield do.run_step(lambda: None, name="nothing")
    return n


@pytest.fixture(autouse=True)
def fresh() -> None:
    seen.clear()


@pytest.fixture
def client(app: App, ledger: str) -> Iterator[sync.Client]:
    with sync.Client(ledger) as client:
        client.pause_queue(LINE.name)
        yield client
        client.resume_queue(LINE.name)
        for queue in (LINE, SIDE):
            until(
                lambda queue=queue: (
                    not any(w.status == "queued" for w in client.workflows(queue=queue.name, status="queued"))
                )
            )


def put(colour: Colour, n: int, queue: Queue = LINE, **options: Any) -> sync.Handle[int]:
    return sync.enqueue(notes[colour], n, queue=queue.name, **options)


def sql(url: str, text: str, *args: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), args or None)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_one_that_is_cancelled_in_line_or_before_stops_no_other(client: sync.Client, colour: Colour, how: str) -> None:
    first, second, later = put(colour, 1), put(colour, 2), put(colour, 3, SIDE, delay=0.2)
    getattr(first, how)()
    getattr(later, how)()
    [line] = [queue for queue in client.queues() if queue.name == LINE.name]
    assert line.waiting == 1
    client.resume_queue(LINE.name)
    assert second.result(timeout=10) == 2
    assert put(colour, 4, SIDE, delay=0.4).result(timeout=10) == 4
    for handle in (first, later):
        with pytest.raises(WorkflowCancelledError):
            handle.result(timeout=5)
    assert seen == [2, 4]


def test_a_delay_to_the_end_of_all_time(client: sync.Client, colour: Colour) -> None:
    far = put(colour, 1, SIDE, delay=datetime(9999, 12, 31, tzinfo=UTC))
    assert put(colour, 2, SIDE, delay=0.3).result(timeout=10) == 2
    assert far.get().status == "queued"
    far.cancel()


def test_what_sql_must_not_say(client: sync.Client, ledger: str, colour: Colour) -> None:
    name = notes[colour].name
    for wrong in ("queue => null", "if_exists => null", "args => null", "kwargs => null", "timeout => interval '1000000 years'",
                  "run_at => 'infinity'", "key => repeat('x', 501)", "deduplication_id => repeat('x', 501)", "args => '{}'"):  # fmt: skip
        with pytest.raises(psycopg.Error) as refused:
            sql(ledger, f"select eventflow.enqueue(%s, {wrong})", name)
        assert refused.value.sqlstate == "22023", wrong
    for wrong in ("null, null", "null, 'infinity'"):
        with pytest.raises(psycopg.Error) as refused:
            sql(ledger, f"select eventflow.delay('{{}}', 'me', {wrong})")
        assert refused.value.sqlstate == "22023", wrong
    [(found,)] = sql(ledger, "select eventflow.enqueue(%s, '[5]', priority => null)", name)
    assert client.handle(found, int).result(timeout=10) == 5


@eventflow.transaction
async def places(connection: "psycopg.AsyncConnection[Any]", fails: bool) -> str:
    await connection.execute("select 1")
    handle = await eventflow.enqueue(notes["async"], 7)
    if fails:
        raise ValueError(handle.workflow_id)
    return handle.workflow_id


@eventflow.transaction
def places_sync(connection: "psycopg.Connection[Any]", fails: bool) -> str:
    connection.execute("select 1")
    handle = sync.enqueue(notes["sync"], 7)
    if fails:
        raise ValueError(handle.workflow_id)
    return handle.workflow_id


@both
def calls_places(do: Do) -> Body[str]:
    return (yield do.run_step(places if do.colour == "async" else places_sync, False))


def test_what_a_transaction_enqueues_commits_with_it(
    client: sync.Client, app: App, ledger: str, colour: Colour
) -> None:
    """In a workflow, and outside one."""
    assert client.handle(app.run(calls_places, colour), int).result(timeout=10) == 7
    if colour == "sync":
        assert client.handle(places_sync(False), int).result(timeout=10) == 7
        with pytest.raises(ValueError) as failed:
            places_sync(True)
        assert sql(ledger, "select 1 from eventflow.workflows where id = %s", str(failed.value)) == []


@both
def hands_out(do: Do, count: int) -> Body[list[str]]:
    verb: Any = eventflow.enqueue if do.colour == "async" else sync.enqueue
    ids: list[str] = []
    for n in range(count):
        ids.append((yield lambda n=n: verb(notes[do.colour], n, queue=LINE.name)).workflow_id)
    return ids


def test_a_workflows_orders_stand_in_line_as_they_were_made(client: sync.Client, app: App, colour: Colour) -> None:
    ids = app.run(hands_out, colour, 15)
    client.resume_queue(LINE.name)
    for workflow_id in ids:
        client.handle(workflow_id, int).result(timeout=10)
    assert seen == list(range(15))


def test_orders_made_at_once_stand_in_line_as_they_were_made(client: sync.Client, ledger: str, colour: Colour) -> None:
    async def main() -> None:
        async with Client(ledger) as there:
            made = [there.enqueue(notes[colour], n, queue=LINE.name) for n in range(20)]
            made += [
                there.enqueue(notes[colour], n, queue=LINE.name, deduplication_id="last", debounce=0.1)
                for n in range(100, 110)
            ]
            handles = await asyncio.gather(*made)
            await there.resume_queue(LINE.name)
            for handle in handles:
                await handle.result(timeout=20)

    asyncio.run(main())
    assert seen == [*range(20), 109]


def test_a_leader_does_not_wait_for_others_nor_they_for_him(client: sync.Client, ledger: str, colour: Colour) -> None:
    """A stranger's transaction holds an id that one of them wants."""
    mine = f"{colour} {uuid.uuid4()}"
    with psycopg.connect(ledger) as stranger:
        stranger.execute("select eventflow.enqueue('w', workflow_id => %s)", (mine,))

        async def main() -> float:
            async with Client(ledger) as there:
                held = asyncio.ensure_future(there.enqueue(notes[colour], 1, queue=SIDE.name, workflow_id=mine))
                began = time.monotonic()
                for n in range(5):
                    await asyncio.gather(*(there.enqueue(notes[colour], n, queue=SIDE.name) for _ in range(3)))
                took = time.monotonic() - began
                assert not held.done()
                stranger.rollback()
                await held
                return took

        assert asyncio.run(main()) < 1.5


def test_callers_may_hold_all_threads_of_the_loop(app: App, ledger: str) -> None:
    """As `asyncio.to_thread(client.enqueue, ...)` does, with as many calls as the pool has threads."""

    async def main() -> list[str]:
        count = min(32, (os.cpu_count() or 1) + 4) + 2
        async with Client(ledger) as there:
            loop = asyncio.get_running_loop()

            def call(n: int) -> str:
                return asyncio.run_coroutine_threadsafe(there.enqueue(notes["async"], n), loop).result(10).workflow_id

            return await asyncio.gather(*(asyncio.to_thread(call, n) for n in range(count)))

    assert len(set(asyncio.run(main()))) > 6


def test_a_thread_that_cannot_be_had_leaves_nobody_waiting(
    app: App, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Client(ledger) as there:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", _cannot_start)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await there.enqueue(notes["async"], 1)
            await asyncio.wait_for(there.enqueue(notes["async"], 2), 5)

    asyncio.run(main())


def _cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_fork_stands_in_its_queues_line(client: sync.Client, colour: Colour) -> None:
    handle = put(colour, 1, priority=2, key="k")
    fork = handle.fork()
    put(colour, 9, SIDE).result(timeout=10)  # time enough for it to begin
    record = fork.get()
    assert (record.status, record.queue) == ("queued", LINE.name)
    client.resume_queue(LINE.name)
    assert fork.result(timeout=10) == 1


def test_a_parked_one_keeps_its_deduplication_id(client: sync.Client, ledger: str, colour: Colour) -> None:
    key = uuid.uuid4().hex
    first = put(colour, 1, deduplication_id=key)
    sql(ledger, "update eventflow.workflows set status = 'parked', executor = null, placed = null, reason = 'x' where id = %s",
        first.workflow_id)  # fmt: skip
    first.resume()
    assert put(colour, 2, deduplication_id=key).workflow_id == first.workflow_id


def test_a_deduplication_id_of_another_workflow(client: sync.Client, colour: Colour) -> None:
    key = uuid.uuid4().hex
    put(colour, 1, deduplication_id=key)
    with pytest.raises(WorkflowExistsError, match=f"'{key}' is that of"):
        sync.enqueue(hands_out[colour], 1, queue=LINE.name, deduplication_id=key)


def test_a_head_that_a_person_holds_is_found_again(client: sync.Client, ledger: str, colour: Colour) -> None:
    handle = put(colour, 1)
    with psycopg.connect(ledger) as person:
        person.execute("select 1 from eventflow.workflows where id = %s for update", (handle.workflow_id,))
        client.resume_queue(LINE.name)
        put(colour, 2, SIDE).result(timeout=10)
        put(colour, 3, SIDE, delay=0.5).result(timeout=10)  # looked at, and passed by
        assert handle.get().status == "queued"
        person.rollback()
    began = time.monotonic()
    assert handle.result(timeout=10) == 1
    assert time.monotonic() - began < 3


def test_the_limit_of_a_debounce_may_be_the_shorter_one(app: App, colour: Colour) -> None:
    began = time.monotonic()
    put(colour, 1, SIDE, deduplication_id=uuid.uuid4().hex, debounce=30, debounce_limit=0.5).result(timeout=10)
    assert time.monotonic() - began < 5
