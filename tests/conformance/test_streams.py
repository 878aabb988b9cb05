"""Streams: what a workflow appends is there once, in order, and can be read live, later, and from an offset."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import durable, sync
from eventflow.database import Database
from eventflow.errors import CodecError, UsageError, WorkflowNotFoundError
from eventflow.pruner import prune_workflows
from eventflow.settings import Settings

COLOURS = ["async", "sync"]
Run = Callable[[], Any]


class Part(BaseModel):
    n: int


@pytest.fixture
def settings(ledger_url: str) -> Settings:
    return Settings(database_url=ledger_url, suspend_after=0.05, lease=1, beat=0.2, drain=2, threads=8)


@pytest.fixture
def app(settings: Settings) -> Iterator[None]:
    with eventflow.running(settings, consumers=False):
        yield


def sql(settings: Settings, text: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def taken_over(settings: Settings) -> None:
    """What a peer does that presumes this process dead, in its order and in one transaction (R9)."""
    with psycopg.connect(settings.database_url) as peer:
        peer.execute("select from eventflow.executors where alive for update")
        peer.execute("update eventflow.executors set alive = false, died_at = now() where alive")
        peer.execute("update eventflow.workflows set executor = null where finished_at is null")


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- the workflows, in two colours -----------------------------------------------------------------

calls: list[str] = []
hold = threading.Event()


@eventflow.step(name="streams.tries", retries=eventflow.Retry(3, delay=0.01))
async def tries() -> None:
    await durable.write_stream("parts", Part(n=10 + len(calls)))
    calls.append("tries")
    if len(calls) % 2:
        raise ConnectionError("once")


@eventflow.step(name="streams.sync_tries", retries=eventflow.Retry(3, delay=0.01))
def sync_tries() -> None:
    sync.write_stream("parts", Part(n=10 + len(calls)))
    calls.append("tries")
    if len(calls) % 2:
        raise ConnectionError("once")


@eventflow.transaction(name="streams.books")
async def books(session: AsyncSession, n: int) -> None:
    await durable.write_stream("parts", Part(n=n))


@eventflow.transaction(name="streams.sync_books")
def sync_books(session: Session, n: int) -> None:
    sync.write_stream("parts", Part(n=n))


@eventflow.workflow(name="streams.writes")
async def writes() -> str:
    calls.append("writes")
    await durable.write_stream("parts", Part(n=0))
    await tries()
    await books(20)
    await durable.recv(bool)
    await durable.write_stream("other", "text")
    await durable.write_stream("parts", Part(n=30))
    await durable.close_stream("parts")
    await durable.recv(bool)
    return "done"


@eventflow.workflow(name="streams.sync_writes")
def sync_writes() -> str:
    calls.append("writes")
    sync.write_stream("parts", Part(n=0))
    sync_tries()
    sync_books(20)
    sync.recv(bool)
    sync.write_stream("other", "text")
    sync.write_stream("parts", Part(n=30))
    sync.close_stream("parts")
    sync.recv(bool)
    return "done"


@eventflow.workflow(name="streams.wide")
async def wide(width: int) -> None:
    async def branch(n: int) -> None:
        for i in range(20):
            await durable.write_stream("s", [n, i])
            if i % 7 == 0:
                await books(n)

    await asyncio.gather(*(branch(n) for n in range(width)))


@eventflow.workflow(name="streams.sync_wide")
def sync_wide(width: int) -> None:
    def branch(n: int) -> None:
        for i in range(20):
            sync.write_stream("s", [n, i])
            if i % 7 == 0:
                sync_books(n)

    sync.gather(*(partial(branch, n) for n in range(width)))


@eventflow.step(name="streams.held")
async def held() -> None:
    await asyncio.to_thread(hold.wait, 10)


@eventflow.workflow(name="streams.crashes")
async def crashes() -> None:
    calls.append("crashes")
    await durable.write_stream("s", 1)
    await durable.write_stream("s", 2)
    await held()
    await durable.write_stream("s", 3)


@eventflow.workflow(name="streams.sync_crashes")
def sync_crashes() -> None:
    calls.append("crashes")
    sync.write_stream("s", 1)
    sync.write_stream("s", 2)
    sync.run_step(held)
    sync.write_stream("s", 3)


@eventflow.workflow(name="streams.late")
async def late(from_step: bool) -> str:
    await durable.write_stream("s", 1)
    await durable.close_stream("s")
    await durable.close_stream("s")
    await durable.recv(bool)
    try:
        await (write_in_step() if from_step else durable.write_stream("s", 2))
    except UsageError as error:
        return str(error)
    return "written"


@eventflow.workflow(name="streams.sync_late")
def sync_late(from_step: bool) -> str:
    sync.write_stream("s", 1)
    sync.close_stream("s")
    sync.close_stream("s")
    sync.recv(bool)
    try:
        sync_write_in_step() if from_step else sync.write_stream("s", 2)
    except UsageError as error:
        return str(error)
    return "written"


@eventflow.step(name="streams.write_in_step")
async def write_in_step() -> None:
    await durable.write_stream("s", 2)


@eventflow.step(name="streams.sync_write_in_step")
def sync_write_in_step() -> None:
    sync.write_stream("s", 2)


@eventflow.step(name="streams.fails_once")
async def fails_once() -> None:
    calls.append("fails_once")
    if calls.count("fails_once") == 1:
        raise ConnectionError("once")


@eventflow.workflow(name="streams.again", retries=eventflow.Retry(2, delay=0.01))
async def again() -> None:
    await durable.write_stream("s", "begun")
    try:
        await asyncio.gather(fails_once(), durable.write_stream("s", "beside"))
    except ConnectionError:
        await durable.write_stream("s", "tried")
        await durable.write_stream("s", "failed")
        await durable.close_stream("s")
        await fails_once()  # so that all of that is durable
        raise
    await durable.write_stream("s", "tried")
    await durable.write_stream("s", "done")
    await durable.close_stream("s")


@eventflow.workflow(name="streams.sync_again", retries=eventflow.Retry(2, delay=0.01))
def sync_again() -> None:
    sync.write_stream("s", "begun")
    try:
        sync.gather(partial(sync.run_step, fails_once), partial(sync.write_stream, "s", "beside"))
    except ConnectionError:
        sync.write_stream("s", "tried")
        sync.write_stream("s", "failed")
        sync.close_stream("s")
        sync.run_step(fails_once)
        raise
    sync.write_stream("s", "tried")
    sync.write_stream("s", "done")
    sync.close_stream("s")


@eventflow.workflow(name="streams.anew")
async def anew(round: int) -> None:
    await durable.write_stream("s", "same")
    await durable.write_stream("s", round)
    if round:
        durable.continue_as_new(anew.bind(round - 1))


@eventflow.workflow(name="streams.sync_anew")
def sync_anew(round: int) -> None:
    sync.write_stream("s", "same")
    sync.write_stream("s", round)
    if round:
        durable.continue_as_new(sync_anew.bind(round - 1))


@eventflow.workflow(name="streams.reads")
async def reads(other: str) -> str:
    try:
        calls.append(str(eventflow.Handle[Any](other, durable_codec()).stream("s", int)))
    except UsageError as error:
        return str(error)
    return "read"


@eventflow.workflow(name="streams.no_json")
async def no_json() -> str:
    with contextlib.suppress(CodecError):
        await durable.write_stream("s", object())
        return "written"
    try:
        await durable.write_stream("s" * 501, 1)
    except UsageError as error:
        return str(error)
    return "written"


def durable_codec() -> Any:
    from eventflow.codec import codec_for

    return codec_for(Any)


WRITES = {"async": writes, "sync": sync_writes}
WIDE = {"async": wide, "sync": sync_wide}
CRASHES = {"async": crashes, "sync": sync_crashes}
LATE = {"async": late, "sync": sync_late}
AGAIN = {"async": again, "sync": sync_again}
ANEW = {"async": anew, "sync": sync_anew}


def begin(workflow: Any, *args: Any) -> sync.Handle[Any]:
    calls.clear()
    hold.clear()
    return sync.start(workflow, *args, workflow_id=f"stream {uuid.uuid4()}")


# ---- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_read_live_from_workflow_step_and_transaction_through_a_replay(app: None, colour: str) -> None:
    """A step's failed attempt has written nothing; a replay writes nothing again; closing ends the readers."""
    handle = begin(WRITES[colour])
    stream = handle.stream("parts", Part)
    assert [next(stream).n for _ in range(3)] == [0, 11, 20]
    until(lambda: handle.get().status == "waiting")
    handle.send(True)
    assert [part.n for part in stream] == [30]
    assert calls.count("writes") > 1, "it was not replayed"
    assert handle.get().status in {"running", "waiting"}
    handle.send(True)
    assert handle.result(timeout=10) == "done"
    assert [part.n for part in handle.stream("parts", Part)] == [0, 11, 20, 30]
    assert [part.n for part in handle.stream("parts", Part, offset=2)] == [20, 30]
    assert list(handle.stream("parts", Part, offset=99)) == []
    assert list(handle.stream("other", str)) == ["text"]  # never closed: the workflow's end ends it
    assert list(handle.stream("none", str)) == []


@pytest.mark.parametrize("colour", COLOURS)
async def test_read_live_by_async_code(settings: Settings, colour: str) -> None:
    calls.clear()
    async with eventflow.running(settings, consumers=False):
        handle = await eventflow.start(WRITES[colour], workflow_id="a")
        found: list[int] = []
        async for part in handle.stream("parts", Part, offset=1):
            found.append(part.n)
            if len(found) == 2:
                await handle.send(True)
        assert found == [11, 20, 30]
        await handle.send(True)
        assert await handle.result(timeout=10) == "done"


@pytest.mark.parametrize("colour", COLOURS)
def test_two_hundred_readers_see_the_same(app: None, settings: Settings, colour: str) -> None:
    handle = begin(WIDE[colour], 5)
    seen: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: seen.append(list(handle.stream("s", list[int])))) for _ in range(20)]
    for thread in threads:
        thread.start()
    handle.result(timeout=20)
    for thread in threads:
        thread.join(10)
    assert len(seen) == 20
    assert all(one == seen[0] for one in seen)
    assert len(seen[0]) == 100
    for n in range(5):
        assert [i for of, i in seen[0] if of == n] == list(range(20)), "each branch in its order"
    assert len(list(handle.stream("parts", Part))) == 15


@pytest.mark.parametrize("colour", COLOURS)
def test_a_process_that_dies_between_two_items(settings: Settings, colour: str) -> None:
    """Fenced in the middle of a step: the next executor replays, and nothing is written twice."""
    with eventflow.running(settings, consumers=False):
        handle = begin(CRASHES[colour])
        stream = handle.stream("s", int)
        assert [next(stream), next(stream)] == [1, 2]
        taken_over(settings)
        until(lambda: calls.count("crashes") > 1)
        hold.set()
        assert list(stream) == [3], "a reader goes on in the next incarnation"
        handle.result(timeout=10)
    with eventflow.running(settings, consumers=False):
        assert list(handle.stream("s", int)) == [1, 2, 3]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_new_process_goes_on(settings: Settings, colour: str) -> None:
    with eventflow.running(settings, consumers=False):
        handle = begin(WRITES[colour])
        assert next(handle.stream("parts", Part, offset=2)).n == 20
        until(lambda: handle.get().status == "waiting")
    with eventflow.running(settings, consumers=False):
        handle.send(True)
        handle.send(True)
        assert [part.n for part in handle.stream("parts", Part)] == [0, 11, 20, 30]


# ---- closing, retries, new histories -----------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("from_step", [False, True])
def test_nothing_is_written_behind_the_close(app: None, colour: str, from_step: bool) -> None:
    """Also after a replay, which is what knows of the close then."""
    handle = begin(LATE[colour], from_step)
    assert list(handle.stream("s", int)) == [1]
    until(lambda: handle.get().status == "waiting")
    handle.send(True)
    assert "is closed" in handle.result(timeout=10)
    assert list(handle.stream("s", int)) == [1]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_retry_of_the_workflow_writes_what_is_new(app: None, colour: str) -> None:
    """What it writes at the same place as before, and as it was, is the same item."""
    handle = begin(AGAIN[colour])
    handle.result(timeout=10)
    assert list(handle.stream("s", str)) == ["begun", "beside", "tried", "failed", "done"]


@pytest.mark.parametrize("colour", COLOURS)
def test_continue_as_new_goes_on_with_the_stream(app: None, colour: str) -> None:
    handle = begin(ANEW[colour], 3)
    handle.result(timeout=10)
    items = list(handle.stream("s", Any))  # type: ignore[arg-type]
    assert items == ["same", 3, "same", 2, "same", 1, "same", 0]


# ---- refusals, rights, pruning -----------------------------------------------------------------------


def test_what_cannot_be(app: None) -> None:
    handle = begin(WIDE["sync"], 1)
    handle.result(timeout=10)
    for offset in (-1, 1.5, True, 2**63):
        with pytest.raises(UsageError, match="offset"):
            handle.stream("s", int, offset=offset)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a key"):
        handle.stream("s" * 501, int)
    with pytest.raises(UsageError, match="workflow"):
        sync.write_stream("s", 1)
    with pytest.raises(UsageError, match="workflow"):
        sync.close_stream("s")
    with pytest.raises(UsageError, match="workflow"):
        sync_books(3)
    with pytest.raises(CodecError):
        list(handle.stream("s", int))
    other = sync.Handle(eventflow.Handle[int]("nobody", durable_codec()))
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        next(other.stream("s", int))
    with pytest.raises(UsageError, match="not a key"):
        handle.stream("\ud800", int)
    assert "read it in a step" in begin(reads, handle.workflow_id).result(timeout=10)
    assert "not a key" in begin(no_json).result(timeout=10)


def test_a_pruned_workflow_leaves_nothing(settings: Settings) -> None:
    with eventflow.running(settings, consumers=False):
        handle = begin(WRITES["sync"])
        handle.send(True)
        handle.send(True)
        handle.send(True)
        handle.result(timeout=10)
    database = Database(settings.database_url, "eventflow")
    with database.connect("test") as connection:
        assert sum(prune_workflows(database, connection, timedelta(0))) == 1
    for table in ("workflows", "checkpoints", "stream_items", "messages", "events", "requests"):
        assert sql(settings, f"select count(*) from eventflow.{table}") == [(0,)], table
