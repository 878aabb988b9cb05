"""What people do to workflows that nobody holds, and how they find them: resume, retry, restart, fork, delete, list."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
import pytest

import eventflow
from eventflow import Handle, Message, Retry, sync
from eventflow.client import Client
from eventflow.context import runtime
from eventflow.errors import (
    Cancelled,
    NotRunningError,
    UsageError,
    WorkflowCancelledError,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowParkedError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from eventflow.migrations import migrate
from eventflow.settings import Settings
from tests.conformance.colours import Body, Colour, Do, Pair, both

done: list[str] = []
broken: set[str] = set()


@eventflow.step
async def act(name: str) -> str:
    done.append(name)
    if name in broken:
        raise ValueError(name)
    return name


@both(name="management.steps")
def steps(do: Do, first: str, second: str, third: str) -> Body[list[str]]:
    found: list[str] = []
    for name in (first, second, third):
        found.append((yield do.run_step(act, name)))
    return found


@both(name="management.plain")
def plain(do: Do, x: int) -> Body[int]:
    yield do.run_step(act, "before")
    if "plain" in broken:
        raise RuntimeError("no step's")
    return x


@both(name="management.caught")
def caught(do: Do) -> Body[str]:
    try:
        yield do.run_step(act, "caught")
    except ValueError:
        yield do.run_step(act, "after")
    return (yield do.run_step(act, "last"))


@both(name="management.changing")
def changing(do: Do) -> Body[str]:
    if "changed" in broken:
        yield do.run_step(other)
    else:
        yield do.run_step(act, "old")
    yield do.sleep(0.5)
    return "slept"


async def other() -> None: ...


@both(name="management.sleeper")
def sleeper(do: Do) -> Body[str]:
    yield do.run_step(act, "before")
    try:
        answer = yield do.recv(str)
    except (asyncio.CancelledError, Cancelled):
        yield do.run_step(act, "clean up")
        raise
    return (yield do.run_step(act, answer))


@both(name="management.listener")
def listener(do: Do) -> Body[list[str]]:
    yield do.set_event("ready", True)
    got = [(yield do.recv(str)), (yield do.recv(str))]
    if "listener" in broken:
        raise RuntimeError
    return got


@both(name="management.beside")
def beside(do: Do) -> Body[str]:
    """One branch receives when the step of the other one has been tried, which fails behind that."""
    event: Any = asyncio.Event if do.colour == "async" else threading.Event
    tried, received = event(), event()

    def receive() -> Body[str]:
        yield tried.wait
        answer = yield do.recv(str)
        yield do.run_step(act, "late")
        received.set()
        return answer

    def slow() -> Body[None]:
        try:
            yield do.run_step(act, "slow")
        finally:
            tried.set()
            yield received.wait

    return (yield do.gather(receive(), slow()))[0]


@both(name="management.patient")
def patient(do: Do) -> Body[str]:
    return (yield do.run_step(act, "patient", retries=Retry(1, delay=0.1, factor=100, jitter=0)))


@both(name="management.parent")
def parent(do: Do) -> Body[str]:
    child = yield do.start(plain, 1)
    yield child.result
    return child.workflow_id


@both(name="management.busy")
def busy(do: Do) -> Body[None]:
    yield do.run_step(forever)


async def forever() -> None:
    await asyncio.Event().wait()


class Person:
    """Does what people do by the handles of one colour, and has workflows of it."""

    def __init__(self, colour: Colour) -> None:
        self.colour: Colour = colour

    async def __call__(self, handle: Handle[Any], operation: str, *args: Any, **kwargs: Any) -> Any:
        """An operation of a handle, awaited or blocking."""
        if self.colour == "async":
            return await getattr(handle, operation)(*args, **kwargs)
        result = await asyncio.to_thread(getattr(sync.Handle(handle), operation), *args, **kwargs)
        return result._handle if isinstance(result, sync.Handle) else result

    async def start(self, pair: Pair, *args: Any, **options: Any) -> Handle[Any]:
        return await eventflow.start(pair[self.colour], *args, **options)


@pytest.fixture
def do(colour: Colour) -> Person:
    return Person(colour)


@pytest.fixture
async def app(ledger_url: str) -> AsyncIterator[str]:
    done.clear()
    broken.clear()
    settings = Settings(database_url=ledger_url, beat=0.1, lease=3, suspend_after=0.05, drain=0.5)
    async with eventflow.running(settings, consumers=False):
        yield ledger_url


@pytest.fixture
async def client(app: str) -> AsyncIterator[Client]:
    async with Client(app) as client:
        yield client


def query(url: str, text: str, *args: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), args)
        return cursor.fetchall() if cursor.description else []


async def until(handle: Handle[Any], *statuses: str) -> None:
    for _ in range(500):
        if (await handle.get()).status in statuses:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{await handle.get()}")


async def asleep(handle: Handle[Any], url: str) -> None:
    await until(handle, "waiting")
    assert query(url, "select executor from eventflow.workflows where id = %s", handle.workflow_id) == [(None,)]


async def fails(handle: Handle[Any]) -> None:
    with pytest.raises(Exception):
        await handle.result(timeout=10)
    await until(handle, "failed")


async def make(status: str, url: str, do: Person) -> Handle[Any]:
    """A workflow in this state."""
    if status == "succeeded":
        handle: Handle[Any] = await do.start(plain, 1)
        await handle.result(timeout=10)
    elif status == "failed":
        broken.add("plain")
        handle = await do.start(plain, 1)
        await fails(handle)
        broken.discard("plain")
    elif status == "cancelled":
        handle = await do.start(sleeper)
        await asleep(handle, url)
        await handle.terminate()
    elif status == "parked":
        handle = await do.start(changing)
        await asleep(handle, url)
        broken.add("changed")
        await until(handle, "parked")
        broken.discard("changed")
    elif status == "waiting":
        handle = await do.start(sleeper)
        await asleep(handle, url)
    else:
        handle = await do.start(busy)
        await until(handle, "running")
    await until(handle, status)
    return handle


# ---- states ------------------------------------------------------------------------------------------

ALLOWED = {
    "resume": {"parked", "cancelled"},
    "retry": {"failed"},
    "restart": {"succeeded", "failed", "cancelled"},
    "delete": {"succeeded", "failed", "cancelled", "parked"},
    "fork": {"succeeded", "failed", "cancelled", "parked", "waiting"},
}


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "parked", "waiting", "running"])
async def test_each_operation_from_each_state(app: str, do: Person, status: str) -> None:
    for operation, allowed in ALLOWED.items():
        if operation == "fork" and status == "parked":
            continue  # see below: each of these needs a parked one of its own
        handle = await make(status, app, do)
        before = await handle.get()
        if status in allowed:
            await do(handle, operation)
            [(kind, who, settled)] = query(
                app, "select kind, who, settled from eventflow.requests where workflow_id = %s and kind = %s",
                handle.workflow_id, operation,
            )  # fmt: skip
            assert kind == operation
            assert "process" in who
            assert settled
        else:
            with pytest.raises(WorkflowStateError, match=f"is {status}.*{operation}"):
                await do(handle, operation)
            assert await handle.get() == before
            done_to_it = "select 1 from eventflow.requests where workflow_id = %s and kind = %s"
            assert query(app, done_to_it, handle.workflow_id, operation) == []


async def test_of_no_workflow(app: str, client: Client, do: Person) -> None:
    handle = client.handle("nobody", str)
    for operation in ALLOWED:
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await do(handle, operation)


async def test_outside_running(database_url: str) -> None:
    for operation in ALLOWED:
        with pytest.raises(NotRunningError):
            await getattr(Handle[Any]("x", None), operation)()  # type: ignore[arg-type]


# ---- resume ------------------------------------------------------------------------------------------


async def test_a_parked_workflow_goes_on(app: str, do: Person) -> None:
    handle = await make("parked", app, do)
    with pytest.raises(WorkflowParkedError):
        await handle.result()
    query(app, "update eventflow.workflows set recoveries = 4")
    await do(handle, "resume")
    assert await handle.result(timeout=10) == "slept"
    assert done == ["old"], "what it had recorded is not run again"
    assert (await handle.get()).reason is None
    assert query(app, "select recoveries from eventflow.workflows") == [(0,)]


async def test_a_cancelled_workflow_goes_on_where_it_was_told(app: str, do: Person) -> None:
    """The clean-up that it recorded is no part of what it goes on from; and the old request to cancel is settled."""
    handle = await do.start(sleeper)
    await asleep(handle, app)
    await handle.cancel()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(timeout=10)
    assert done == ["before", "clean up"]
    await do(handle, "resume")
    await asleep(handle, app)
    await do(handle, "send", "answer")
    assert await handle.result(timeout=10) == "answer"
    assert done == ["before", "clean up", "answer"]
    await asyncio.sleep(0.3)
    assert (await handle.get()).status == "succeeded"
    kinds = query(app, "select kind, settled from eventflow.requests order by id")
    assert kinds == [("cancel", True), ("resume", True)]


# ---- retry -------------------------------------------------------------------------------------------


async def test_retry_drops_from_the_failed_step_on(app: str, do: Person) -> None:
    broken.add("b")
    handle = await do.start(steps, "a", "b", "c")
    await fails(handle)
    assert [(s.name, s.error) for s in await handle.steps()] == [("act", None), ("act", "ValueError: b")]
    broken.clear()
    await do(handle, "retry")
    assert await handle.result(timeout=10) == ["a", "b", "c"]
    assert done == ["a", "b", "b", "c"]
    record = await handle.get()
    assert (record.status, record.attempt) == ("succeeded", 2)
    assert [s.error for s in await handle.steps()] == [None, None, None]
    assert query(app, "select failed_seq, error from eventflow.workflows") == [(None, None)]


async def test_retry_again_and_again(app: str, do: Person) -> None:
    broken.add("c")
    handle = await do.start(steps, "a", "b", "c")
    for _ in range(3):
        await fails(handle)
        await do(handle, "retry")
        await asyncio.sleep(0.2)
    broken.clear()
    await fails(handle)
    await do(handle, "retry")
    assert await handle.result(timeout=10) == ["a", "b", "c"]
    assert done == ["a", "b", *"ccccc"]


async def test_a_failure_that_was_caught_stays(app: str, do: Person) -> None:
    broken.update({"caught", "last"})
    handle = await do.start(caught)
    await fails(handle)
    broken.clear()
    await do(handle, "retry")
    assert await handle.result(timeout=10) == "last"
    assert done == ["caught", "after", "last", "last"]


async def test_a_message_received_beside_the_failed_step_is_received_again(app: str, do: Person) -> None:
    """On another branch, after it: its receipt is dropped, so it must not be lost."""
    broken.add("slow")
    handle = await do.start(beside)
    await handle.send("hello")
    await fails(handle)
    assert [s.name for s in await handle.steps()] == ["act", "recv", "act"]
    broken.clear()
    await do(handle, "retry")
    assert await handle.result(timeout=10) == "hello"
    assert done == ["slow", "late", "slow", "late"]


async def test_the_failed_step_has_all_its_retries_again(app: str, do: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that were recorded, because waits between them may be long, are dropped with it."""
    executor = cast("Any", runtime("a test"))._incarnation.executor
    monkeypatch.setattr(executor, "pace", executor.pace._replace(long=0.01))
    broken.add("patient")
    handle = await do.start(patient)
    await fails(handle)
    assert done == ["patient"] * 2
    assert len(await handle.steps()) == 2
    await do(handle, "retry")
    await asyncio.sleep(0.2)
    await fails(handle)
    assert done == ["patient"] * 4
    broken.clear()
    await do(handle, "retry")
    assert await handle.result(timeout=10) == "patient"


async def test_a_deadline_that_is_over_no_longer_holds(app: str, do: Person) -> None:
    handle = await do.start(sleeper, timeout=0.5)
    with pytest.raises(WorkflowTimeoutError):
        await handle.result(timeout=10)
    await until(handle, "failed")
    assert done == ["before", "clean up"]
    await do(handle, "retry")
    await asleep(handle, app)
    await handle.send("answer")
    assert await handle.result(timeout=10) == "answer"
    assert done == ["before", "clean up", "answer"]


async def test_operations_that_meet(app: str, client: Client) -> None:
    """Of many at once on one workflow that nobody holds, one is done; the others find it in another state."""
    broken.add("plain")
    handles = [await eventflow.start(plain["async"], n) for n in range(10)]
    for handle in handles:
        await fails(handle)
    broken.clear()

    async def tried(work: Awaitable[Any]) -> bool:
        try:
            await work
        except (WorkflowStateError, WorkflowNotFoundError):
            return False
        return True

    for handle in handles:
        meeting = [handle.retry(), handle.retry(), client.retry([handle.workflow_id]), handle.retry()]
        assert sum(await asyncio.gather(*map(tried, meeting))) == 1
    for n, handle in enumerate(handles):
        assert await handle.result(timeout=10) == n
    assert done == ["before"] * 10
    ids = [handle.workflow_id for handle in handles]
    deleted = await asyncio.gather(tried(client.delete(ids)), tried(client.delete(ids[::-1])))
    assert sorted(deleted) == [False, True]


async def test_where_no_step_failed_all_checkpoints_stay(app: str, do: Person) -> None:
    handle = await make("failed", app, do)
    await do(handle, "retry")
    assert await handle.result(timeout=10) == 1
    assert done == ["before"]


async def test_a_message_is_retried_from_its_failed_step(
    database_url: str, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    from confluent_kafka import Producer

    done.clear()
    broken.clear()
    broken.add("two")
    topic = make_topic(1, "management-messages")
    migrate(database_url)
    producer = Producer({"bootstrap.servers": kafka_bootstrap})
    producer.produce(topic, b"payload")
    producer.flush()
    settings = Settings(database_url=database_url, kafka_bootstrap_servers=kafka_bootstrap, beat=0.1, lease=3, drain=1)
    async with eventflow.running(settings, consumers=["management.message"]), Client(database_url) as client:
        records: list[Any] = []
        for _ in range(500):
            records = [r async for r in client.workflows(status="failed")]
            if records:
                break
            await asyncio.sleep(0.05)
        [record] = records
        handle = client.handle(record.workflow_id, str)
        with pytest.raises(WorkflowStateError, match="can be restarted, not forked"):
            await handle.fork()
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=10) == "payload"
        assert done == ["one", "two", "two"]
        await handle.restart()
        await until(handle, "queued", "running", "succeeded")
        assert await handle.result(timeout=10) == "payload"
        assert done == ["one", "two", "two", "one", "two"]


@eventflow.kafka_consumer("management-messages", group="management", name="management.message", retries=0)
async def message(message: Message[bytes]) -> str:
    await act("one")
    await act("two")
    return message.value.decode()


# ---- restart -----------------------------------------------------------------------------------------


async def test_restart_from_the_beginning(app: str, do: Person) -> None:
    handle = await do.start(steps, "a", "b", "c", attributes={"of": "me"})
    await handle.result(timeout=10)
    created = (await handle.get()).created_at
    await do(handle, "restart")
    assert await handle.result(timeout=10) == ["a", "b", "c"]
    assert done == list("abcabc")
    record = await handle.get()
    assert (record.attempt, record.created_at, record.attributes) == (2, created, {"of": "me"})
    assert len(await handle.steps()) == 3


async def test_a_restarted_workflow_gets_its_messages_again(app: str, do: Person) -> None:
    broken.add("listener")
    handle = await do.start(listener)
    await handle.send("one")
    await handle.send("two")
    await fails(handle)
    assert await handle.event("ready", bool, timeout=1)
    broken.clear()
    await do(handle, "restart")
    assert await handle.result(timeout=10) == ["one", "two"]


async def test_many_or_none(app: str, client: Client) -> None:
    """Where one of them is in another state, nothing is done to any."""
    ended = [await make("succeeded", app, Person("async")) for _ in range(3)]
    waiting = await make("waiting", app, Person("async"))
    ids = [handle.workflow_id for handle in ended]
    with pytest.raises(WorkflowStateError, match="is waiting: restart is for workflows that are succeeded or failed"):
        await client.restart([*ids, waiting.workflow_id])
    assert [(await handle.get()).status for handle in ended] == ["succeeded"] * 3
    assert await client.restart([*ids, ids[0]]) == 3
    for handle in ended:
        await until(handle, "succeeded")
        await handle.result(timeout=10)
    assert await client.cancel([waiting.workflow_id]) == 1
    await until(waiting, "cancelled")
    assert await client.resume([waiting.workflow_id]) == 1
    await until(waiting, "waiting")
    assert await client.terminate([waiting.workflow_id]) == 1
    assert await client.delete([*ids, waiting.workflow_id]) == 4
    assert [r async for r in client.workflows()] == []
    assert await client.retry([]) == 0
    with pytest.raises(UsageError, match="list of workflow ids"):
        await client.retry("one")


# ---- fork --------------------------------------------------------------------------------------------


async def test_fork_from_a_step(app: str, do: Person) -> None:
    handle = await do.start(steps, "a", "b", "c")
    await handle.result(timeout=10)
    second = (await handle.steps())[1]
    fork = await do(handle, "fork", second.position)
    assert await fork.result(timeout=10) == ["a", "b", "c"]
    assert done == [*"abc", *"bc"], "what stands before the step was copied"
    assert (await fork.get()).parent is None
    assert (await handle.get()).attempt == 1
    named = await do(handle, "fork", workflow_id="the fork")
    assert named.workflow_id == "the fork"
    assert await named.result(timeout=10) == ["a", "b", "c"]
    assert done == [*"abc", *"bc", *"abc"], "without a step, from the beginning"


async def test_forks_that_cannot_be(app: str, do: Person) -> None:
    handle = await make("succeeded", app, do)
    with pytest.raises(WorkflowExistsError, match="is taken"):
        await do(handle, "fork", workflow_id=handle.workflow_id)
    with pytest.raises(UsageError, match="nothing at position '9.9'"):
        await do(handle, "fork", "9.9")
    with pytest.raises(UsageError):
        await do(handle, "fork", workflow_id="a>b")
    assert query(app, "select count(*) from eventflow.workflows") == [(1,)]


async def test_fork_of_a_parked_workflow(app: str, do: Person) -> None:
    handle = await make("parked", app, do)
    assert await (await do(handle, "fork")).result(timeout=10) == "slept"


# ---- delete ------------------------------------------------------------------------------------------


async def test_delete_leaves_nothing_but_who_did_it(app: str, do: Person) -> None:
    broken.add("listener")
    handle = await do.start(listener, workflow_id="l")
    await handle.send("one")
    await handle.send("two")
    await fails(handle)
    await do(handle, "delete")
    with pytest.raises(WorkflowNotFoundError):
        await handle.result(timeout=1)
    for table in ("checkpoints", "messages", "events", "watches", "signals"):
        assert query(app, f"select * from eventflow.{table} where workflow_id = 'l'") == [], table
    assert query(app, "select kind from eventflow.requests where workflow_id = 'l'") == [("delete",)]
    broken.clear()
    again = await do.start(plain, 3, workflow_id="l")
    assert await again.result(timeout=10) == 3


# ---- the list ----------------------------------------------------------------------------------------


async def test_filters(app: str, client: Client) -> None:
    early = datetime.now(UTC) - timedelta(minutes=5)
    first = await eventflow.start(plain["async"], 1, workflow_id="order:1", attributes={"tenant": "a", "n": 1})
    await first.result(timeout=10)
    second = await eventflow.start(parent["async"], workflow_id="order:2", attributes={"tenant": "b"})
    child = await second.result(timeout=10)
    third = await make("failed", app, Person("async"))
    between = (await second.get()).created_at

    async def ids(**filters: Any) -> list[str]:
        found = [w.workflow_id async for w in client.workflows(**filters)]
        with_sync = await asyncio.to_thread(listed, filters)
        assert with_sync == found
        return found

    def listed(filters: dict[str, Any]) -> list[str]:
        with sync.Client(app) as blocking:
            return [w.workflow_id for w in blocking.workflows(**filters)]

    assert await ids() == ["order:1", "order:2", child, third.workflow_id]
    assert await ids(status="failed") == [third.workflow_id]
    assert await ids(status="parked") == []
    assert await ids(name="management.parent async") == ["order:2"]
    assert await ids(prefix="order:") == ["order:1", "order:2", *([child] if child.startswith("order:") else [])]
    assert await ids(attributes={"tenant": "a"}) == ["order:1"]
    assert await ids(attributes={"n": 2}) == []
    assert await ids(parent="order:2") == [child]
    assert await ids(created_after=between) == [child, third.workflow_id]
    assert await ids(created_before=between) == ["order:1"]
    assert await ids(created_before=early) == []
    assert await ids(name="management.plain async", status="succeeded", prefix="order:1") == ["order:1"]
    [record] = [w async for w in client.workflows(parent="order:2")]
    assert record == await client.handle(child, int).get()
    assert record.parent == "order:2"
    assert record.finished_at is not None
    [record] = [w async for w in client.workflows(attributes={"tenant": "a"})]
    assert record.attributes == {"tenant": "a", "n": 1}


@pytest.mark.parametrize(
    "filters", [{"status": "done"}, {"created_after": datetime(2026, 1, 1)}, {"prefix": "\0"}, {"name": 7}]
)
async def test_filters_that_cannot_be(app: str, client: Client, filters: Any) -> None:
    with pytest.raises(UsageError):
        client.workflows(**filters)


async def test_pages_are_stable(app: str, client: Client) -> None:
    """Over 1,200 rows, many of one moment, while others come and go."""
    query(
        app,
        "insert into eventflow.workflows (id, name, application, status, arguments, created_at, finished_at) "
        "select 'w' || i, 'n', 'elsewhere', 'succeeded', '[]', timestamptz '2026-01-01' + i / 400 * interval '1 us', now() "
        "from generate_series(0, 1199) i",
    )
    seen: list[Any] = []
    async for record in client.workflows(prefix="w"):
        seen.append(record)
        if len(seen) == 10:
            query(app, "delete from eventflow.workflows where id in ('w0', 'w799')")
            query(
                app,
                "insert into eventflow.workflows (id, name, application, status, created_at) "
                "values ('w-late', 'n', 'elsewhere', 'queued', '2026-02-01')",
            )
    assert [(r.created_at, r.workflow_id) for r in seen] == sorted((r.created_at, r.workflow_id) for r in seen)
    assert {r.workflow_id for r in seen} == {f"w{i}" for i in range(1200)} - {"w799"} | {"w-late"}
    assert len(seen) == 1200


# ---- a client alone ----------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from eventflow import sync
from eventflow.client import Client
from eventflow.errors import WorkflowTimeoutError

async def main(url):
    async with Client(url) as client:
        handle = client.handle("listener", list[str])
        assert await handle.event("ready", bool, timeout=10) is True
        try:
            await handle.result(timeout=0.1)
        except WorkflowTimeoutError:
            pass
        await handle.send("one", idempotency_key="1")
        await handle.send("one", idempotency_key="1")

def blocking(url):
    with sync.Client(url) as client:
        handle = client.handle("listener", list[str])
        handle.send("two")
        print(handle.result(timeout=10), handle.get().status, len(handle.steps()))
        handle.restart()
        print(handle.result(timeout=10), handle.event("ready", bool))
        handle.fork(workflow_id="fork")
        client.handle("fork", object).cancel()
        print(client.cancel(["fork", "listener"]) <= 1)
        handle.delete()
        print([w.workflow_id for w in client.workflows(prefix="l")])

asyncio.run(main(sys.argv[1]))
blocking(sys.argv[1])
"""


async def test_a_client_in_a_process_without_the_code(app: str) -> None:
    await eventflow.start(listener["async"], workflow_id="listener")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(PROGRAM), app],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['one', 'two'] succeeded 3", "['one', 'two'] True", "True", "[]"]


async def test_a_client_that_is_not_entered(app: str) -> None:
    with pytest.raises(UsageError, match="enter the client"):
        Client(app).handle("x", str)
    async with Client(app) as client:
        with pytest.raises(UsageError, match="entered already"):
            await client.__aenter__()
        with pytest.raises(UsageError):
            client.handle("", str)


async def test_a_client_whose_connections_were_cut(app: str, client: Client) -> None:
    handle = client.handle((await make("succeeded", app, Person("async"))).workflow_id, int)
    assert await handle.result() == 1
    query(app, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'eventflow read'")
    assert await handle.result() == 1
