"""Queues: order, limits, delays, deduplication, debouncing, and what people change; API.md's `enqueue`."""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import eventflow
from eventflow import sync
from eventflow.client import Client
from eventflow.errors import (
    UsageError,
    WorkflowCancelledError,
    WorkflowExistsError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from eventflow.queues import Queue
from eventflow.registry import registry
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, names

ONE = Queue("queues one", concurrency=1)
THREE = Queue("queues three", concurrency=3)
KEYED = Queue("queues keyed", concurrency_per_key=1)
SLOW = Queue("queues slow", rate=(3, timedelta(seconds=1)))
SLOW_KEYS = Queue("queues slow keys", rate_per_key=(1, timedelta(seconds=0.6)))
MINE = Queue("queues mine", concurrency_per_process=2)
LIVE = Queue("queues live", concurrency=1)


class Gauge:
    """Who is inside at a time, by key, and the order in which they came."""

    def __init__(self) -> None:
        self.lock, self.inside, self.most, self.order = threading.Lock(), Counter[str](), Counter[str](), list[Any]()
        self.times = list[tuple[str, float]]()

    def enter(self, key: str, what: Any) -> None:
        with self.lock:
            self.inside[key] += 1
            self.most[key] = max(self.most[key], self.inside[key])
            self.most["all"] = max(self.most["all"], self.inside.total())
            self.order.append(what)
            self.times.append((key, time.monotonic()))

    def leave(self, key: str) -> None:
        with self.lock:
            self.inside[key] -= 1


gauges: dict[str, Gauge] = {}


def _pause(seconds: float) -> None:
    time.sleep(seconds)


@both
def works(do: Do, gauge: str, what: int, key: str = "", seconds: float = 0.02) -> Body[int]:
    gauges[gauge].enter(key, what)
    try:
        yield do.run_step(_pause, seconds)
    finally:
        gauges[gauge].leave(key)
    return what


@both
def fails(do: Do) -> Body[int]:
    yield do.run_step(_pause, 0)
    raise ValueError("on purpose")


@both
def forever(do: Do) -> Body[int]:
    yield do.sleep(60)
    return 1


@pytest.fixture
def gauge() -> Iterator[str]:
    name = uuid.uuid4().hex
    gauges[name] = Gauge()
    yield name
    del gauges[name]


def put(pair: Any, colour: Colour, *args: Any, **options: Any) -> sync.Handle[Any]:
    keywords = {"seconds": options.pop("seconds")} if "seconds" in options else {}
    return sync.enqueue(pair[colour].bind(*args, **keywords), **options)


def paused(queue: Queue, ledger: str) -> Any:
    """Nothing of it begins inside."""

    class Paused:
        def __enter__(self) -> None:
            with sync.Client(ledger) as client:
                client.pause_queue(queue.name)

        def __exit__(self, *_: object) -> None:
            with sync.Client(ledger) as client:
                client.resume_queue(queue.name)

    return Paused()


def test_what_is_enqueued_runs(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n) for n in range(30)]
    assert [handle.result(timeout=10) for handle in handles] == list(range(30))
    record = handles[0].get()
    assert (record.status, record.queue) == ("succeeded", "default")
    assert names(handles[0]) == ["_pause"]


def test_it_runs_at_once_where_there_is_nothing_else_to_do(app: App, colour: Colour, gauge: str) -> None:
    put(works, colour, gauge, 0).result(timeout=10)
    began = time.monotonic()
    put(works, colour, gauge, 1, seconds=0).result(timeout=10)
    assert time.monotonic() - began < 0.5


def test_many_come_in_the_order_in_which_they_were_put_there(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    with paused(ONE, ledger):
        handles = [put(works, colour, gauge, n, seconds=0, queue=ONE.name) for n in range(40)]
    for handle in handles:
        handle.result(timeout=20)
    assert gauges[gauge].order == list(range(40))
    assert gauges[gauge].most["all"] == 1


def test_the_smallest_priority_goes_first(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    with paused(ONE, ledger):
        handles = [
            put(works, colour, gauge, n, seconds=0, queue=ONE.name, priority=p) for n, p in enumerate([5, 0, -1, 5, 0])
        ]
    for handle in handles:
        handle.result(timeout=10)
    assert gauges[gauge].order == [2, 1, 4, 0, 3]


def test_keys_take_turns(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    with paused(ONE, ledger):
        handles = [put(works, colour, gauge, n, seconds=0, queue=ONE.name, key="many") for n in range(10)]
        handles += [put(works, colour, gauge, n, seconds=0, queue=ONE.name, key="few") for n in (100, 101)]
    for handle in handles:
        handle.result(timeout=10)
    assert set(gauges[gauge].order[:4]) == {0, 1, 100, 101}


def test_concurrency_is_a_limit(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n, queue=THREE.name) for n in range(24)]
    for handle in handles:
        handle.result(timeout=20)
    assert gauges[gauge].most["all"] == 3


def test_concurrency_of_a_key_is_a_limit_and_other_keys_go_on(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n, "ab"[n % 2], queue=KEYED.name, key="ab"[n % 2]) for n in range(16)]
    for handle in handles:
        handle.result(timeout=20)
    assert gauges[gauge].most == {"a": 1, "b": 1, "all": 2}


def test_concurrency_of_a_process_is_a_limit(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n, queue=MINE.name) for n in range(12)]
    for handle in handles:
        handle.result(timeout=20)
    assert gauges[gauge].most["all"] == 2


def test_one_that_waits_keeps_its_place(app: App, colour: Colour, gauge: str) -> None:
    sleeper = put(forever, colour, queue=ONE.name)
    until(lambda: sleeper.get().status == "waiting")
    behind = put(works, colour, gauge, 1, queue=ONE.name)
    with pytest.raises(WorkflowTimeoutError):
        behind.result(timeout=1)
    sleeper.terminate()
    assert behind.result(timeout=10) == 1


def test_a_rate_is_kept_over_any_stretch_of_its_time(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n, seconds=0, queue=SLOW.name) for n in range(8)]
    for handle in handles:
        handle.result(timeout=20)
    times = [at for _, at in gauges[gauge].times]
    # What begins a moment later than its claim was committed may come nearer to the next one.
    assert all(later - earlier > 0.8 for earlier, later in zip(times, times[3:], strict=False)), times


def test_a_rate_goes_on_while_something_is_delayed_for_long(app: App, colour: Colour, gauge: str) -> None:
    """The next start that the rate allows is sooner than the delayed one's time, and so is the next look."""
    far = put(works, colour, gauge, 0, delay=3600)
    handles = [put(works, colour, gauge, n, seconds=0, queue=SLOW.name) for n in range(1, 8)]
    began = time.monotonic()
    for handle in handles:
        handle.result(timeout=20)
    assert time.monotonic() - began < 6
    far.cancel()


def test_a_rate_of_a_key_is_kept(app: App, colour: Colour, gauge: str) -> None:
    handles = [put(works, colour, gauge, n, k, seconds=0, queue=SLOW_KEYS.name, key=k) for n in range(2) for k in "ab"]
    for handle in handles:
        handle.result(timeout=20)
    for key in "ab":
        first, second = (at for k, at in gauges[gauge].times if k == key)
        assert second - first > 0.45


def test_a_delay_is_waited_for(app: App, colour: Colour, gauge: str) -> None:
    began = time.monotonic()
    by_seconds = put(works, colour, gauge, 1, delay=0.7)
    by_time = put(works, colour, gauge, 2, delay=datetime.now(UTC) + timedelta(seconds=0.7))
    assert by_seconds.get().status == "queued"
    assert [by_seconds.result(timeout=10), by_time.result(timeout=10)] == [1, 2]
    assert 0.6 < time.monotonic() - began < 2.5


def test_a_delay_is_changed(app: App, colour: Colour, gauge: str) -> None:
    handle = put(works, colour, gauge, 1, delay=3600)
    handle.delay(0)
    assert handle.result(timeout=5) == 1
    with pytest.raises(WorkflowStateError, match="succeeded: delay is for workflows that are queued"):
        handle.delay(1)


def test_a_delayed_one_is_cancelled_before_its_time(app: App, colour: Colour, gauge: str) -> None:
    handle = put(works, colour, gauge, 1, delay=3600)
    handle.cancel()
    with pytest.raises(WorkflowCancelledError):
        handle.result(timeout=5)
    assert gauges[gauge].order == []


def test_one_unfinished_workflow_has_a_deduplication_id(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    key = uuid.uuid4().hex
    with paused(ONE, ledger):
        first = put(works, colour, gauge, 1, queue=ONE.name, deduplication_id=key)
        second = put(works, colour, gauge, 2, queue=ONE.name, deduplication_id=key)
        assert second.workflow_id == first.workflow_id
        with pytest.raises(WorkflowExistsError, match="deduplication id"):
            put(works, colour, gauge, 3, queue=ONE.name, deduplication_id=key, if_exists="reject")
        elsewhere = put(works, colour, gauge, 4, deduplication_id=key)
        assert elsewhere.workflow_id != first.workflow_id
    assert first.result(timeout=10) == 1
    again = put(works, colour, gauge, 5, queue=ONE.name, deduplication_id=key)
    assert again.result(timeout=10) == 5
    elsewhere.result(timeout=10)
    assert sorted(gauges[gauge].order) == [1, 4, 5]


def test_the_last_call_counts_when_no_other_has_come_for_a_while(app: App, colour: Colour, gauge: str) -> None:
    key = uuid.uuid4().hex
    handles = [put(works, colour, gauge, n, deduplication_id=key, debounce=0.5) for n in range(5)]
    assert len({handle.workflow_id for handle in handles}) == 1
    assert handles[0].result(timeout=10) == 4
    later = put(works, colour, gauge, 9, deduplication_id=key, debounce=0.1)
    assert later.workflow_id != handles[0].workflow_id
    assert later.result(timeout=10) == 9
    assert gauges[gauge].order == [4, 9]


@pytest.mark.parametrize("how", ["no time", "sent at once"])
def test_who_has_got_in_line_is_joined_by_no_later_call(
    app: App, ledger: str, colour: Colour, gauge: str, how: str
) -> None:
    key = uuid.uuid4().hex
    with paused(ONE, ledger):
        given = {"debounce": 0} if how == "no time" else {"debounce": 3600}
        first = put(works, colour, gauge, 1, queue=ONE.name, deduplication_id=key, **given)
        if how == "sent at once":
            first.delay(0)
        second = put(works, colour, gauge, 2, queue=ONE.name, deduplication_id=key, debounce=0)
        assert second.workflow_id != first.workflow_id
    assert [first.result(timeout=10), second.result(timeout=10)] == [1, 2]


def test_calls_that_never_cease_are_heard_after_the_limit(app: App, colour: Colour, gauge: str) -> None:
    key, began, n = uuid.uuid4().hex, time.monotonic(), 0
    while not gauges[gauge].order:
        put(works, colour, gauge, n, deduplication_id=key, debounce=0.6, debounce_limit=0.8)
        n += 1
        assert time.monotonic() - began < 10
    assert time.monotonic() - began > 0.7


def test_an_id_is_attached_to_or_refused(app: App, colour: Colour, gauge: str) -> None:
    mine = f"{colour} {uuid.uuid4()}"
    handle = put(works, colour, gauge, 1, workflow_id=mine)
    assert put(works, colour, gauge, 1, workflow_id=mine).result(timeout=10) == 1
    with pytest.raises(WorkflowExistsError, match="other arguments"):
        put(works, colour, gauge, 2, workflow_id=mine)
    with pytest.raises(WorkflowExistsError, match="succeeded"):
        put(works, colour, gauge, 1, workflow_id=mine, if_exists="reject")
    assert handle.result() == 1


def test_its_time_begins_when_it_does(app: App, ledger: str, colour: Colour) -> None:
    with paused(ONE, ledger):
        handle = put(forever, colour, queue=ONE.name, timeout=0.6)
        time_is_over = put(forever, colour, delay=0, timeout=0.3)  # meanwhile
        with pytest.raises(WorkflowTimeoutError):
            time_is_over.result(timeout=10)
        assert handle.get().status == "queued"
    with pytest.raises(WorkflowTimeoutError, match="did not end in the time that it had"):
        handle.result(timeout=10)


def test_one_that_failed_is_retried_through_its_line(app: App, ledger: str, colour: Colour) -> None:
    handle = put(fails, colour, queue=ONE.name)
    with pytest.raises(ValueError):
        handle.result(timeout=10)
    with paused(ONE, ledger):
        handle.retry()
        assert handle.get().status == "queued"
    with pytest.raises(ValueError):
        handle.result(timeout=10)
    assert handle.get().attempt == 2


def test_only_the_queues_that_are_chosen_are_served(app: App, colour: Colour, gauge: str) -> None:
    app.down()
    app.up(queues=[ONE.name])
    left = [put(works, colour, gauge, n, queue=name) for n, name in enumerate(("default", THREE.name))]
    for n in (2, 3):
        assert put(works, colour, gauge, n, queue=ONE.name).result(timeout=10) == n  # time enough for the others
    assert [handle.get().status for handle in left] == ["queued", "queued"]
    assert gauges[gauge].order == [2, 3]
    app.down()
    app.up()
    assert [handle.result(timeout=10) for handle in left] == [0, 1]


def test_nothing_of_a_paused_queue_begins(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    with paused(ONE, ledger):
        handle = put(works, colour, gauge, 1, queue=ONE.name)
        put(works, colour, gauge, 2).result(timeout=10)  # time enough for the other
        with sync.Client(ledger) as client:
            [queue] = [queue for queue in client.queues() if queue.name == ONE.name]
        assert (queue.paused, queue.waiting, queue.running) == (True, 1, 0)
        assert queue.changed_by is not None
        assert handle.get().status == "queued"
    assert handle.result(timeout=10) == 1


def test_what_was_put_in_line_before_it_is_resumed_counts(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    """Also the last of it: who looked a moment before the end of the pause does not begin with what he saw then."""
    with sync.Client(ledger) as client:
        for _ in range(5):
            gauges[gauge].order.clear()
            client.pause_queue(ONE.name)
            handles = [put(works, colour, gauge, n, seconds=0, queue=ONE.name) for n in (1, 2)]
            handles.append(put(works, colour, gauge, 0, seconds=0, queue=ONE.name, priority=-1))
            client.resume_queue(ONE.name)
            for handle in handles:
                handle.result(timeout=10)
            assert gauges[gauge].order == [0, 1, 2]


def test_limits_are_changed_live(app: App, ledger: str, colour: Colour, gauge: str) -> None:
    with sync.Client(ledger) as client:
        client.change_queue(LIVE.name, concurrency=4)
        for handle in [put(works, colour, gauge, n, seconds=0.1, queue=LIVE.name) for n in range(12)]:
            handle.result(timeout=20)
        assert gauges[gauge].most["all"] == 4
        client.reset_queue(LIVE.name)
        gauges[gauge].most.clear()
        for handle in [put(works, colour, gauge, n, queue=LIVE.name) for n in range(5)]:
            handle.result(timeout=20)
        assert gauges[gauge].most["all"] == 1
        with pytest.raises(UsageError, match="a queue has no 'size'"):
            client.change_queue(LIVE.name, size=4)
        with pytest.raises(UsageError, match="no queue 'nowhere'"):
            client.change_queue("nowhere", concurrency=4)


def test_limits_hold_over_processes(app: App, ledger: str, colour: Colour) -> None:
    """This process and another one, which is this test: it fills two of three places."""
    with psycopg.connect(ledger, autocommit=True) as other:
        rows = [f"other {uuid.uuid4()}" for _ in range(2)]
        for row in rows:
            other.execute(
                """insert into eventflow.workflows (id, name, application, status, executor, queue, queue_key, priority, taken)
                   values (%s, 'w', 'default', 'running', 999999, %s, '', 0, pg_current_xact_id())""",
                (row, THREE.name),
            )
        name = uuid.uuid4().hex
        gauges[name] = Gauge()
        for handle in [put(works, colour, name, n, queue=THREE.name) for n in range(6)]:
            handle.result(timeout=20)
        assert gauges[name].most["all"] == 1
        other.execute(
            "update eventflow.workflows set status = 'succeeded', finished_at = now() where id = any(%s)", (rows,)
        )
        for handle in [put(works, colour, name, n, seconds=0.1, queue=THREE.name) for n in range(9)]:
            handle.result(timeout=20)
        assert gauges[name].most["all"] == 3


# ---- in workflows, steps and transactions --------------------------------------------------------------


def _enqueue(do: Do, pair: Any, *args: Any, **options: Any) -> Any:
    verb: Any = eventflow.enqueue if do.colour == "async" else sync.enqueue
    return lambda: verb(pair[do.colour], *args, **options)


@both
def doubles(do: Do, n: int) -> Body[int]:
    trace("begins")
    yield do.run_step(_pause, 0)
    return 2 * n


@both
def hands_out(do: Do, count: int) -> Body[list[int]]:
    handles = []
    for n in range(count):
        handles.append((yield _enqueue(do, doubles, n, queue=THREE.name)))
    results: list[int] = []
    for handle in handles:
        results.append((yield handle.result))
    return results


def test_a_workflow_enqueues_once_and_waits_for_what_comes(app: App, colour: Colour) -> None:
    handle = app.start(hands_out, colour, 10)
    assert handle.result(timeout=20) == [2 * n for n in range(10)]
    assert names(handle)[:10] == [f"enqueue test_queues.doubles {colour}"] * 10


@both
def hands_out_by_key(do: Do, key: str) -> Body[list[str]]:
    first = yield _enqueue(do, doubles, 1, deduplication_id=key, delay=0.3)
    yield do.sleep(0.1)
    second = yield _enqueue(do, doubles, 2, deduplication_id=key)
    yield do.sleep(0.5)
    return [first.workflow_id, second.workflow_id]


def test_a_workflow_enqueues_under_a_deduplication_id(app: App, colour: Colour) -> None:
    handle = app.start(hands_out_by_key, colour, uuid.uuid4().hex)
    first, second = handle.result(timeout=20)
    assert first == second
    assert first.startswith(handle.workflow_id), "derived, so that a second try finds the first"


@eventflow.step
async def enqueues_in_a_step(fail: list[int]) -> str:
    handle = await eventflow.enqueue(doubles["async"], 4)
    if fail:
        fail.pop()
        raise ConnectionError("once")
    return handle.workflow_id


@eventflow.step
def enqueues_in_a_sync_step(fail: list[int]) -> str:
    handle = sync.enqueue(doubles["sync"], 4)
    if fail:
        fail.pop()
        raise ConnectionError("once")
    return handle.workflow_id


@both
def enqueues_by_a_step(do: Do) -> Body[str]:
    step = enqueues_in_a_step if do.colour == "async" else enqueues_in_a_sync_step
    return (yield do.run_step(step, [1], retries=eventflow.Retry(1, delay=0)))


def test_what_a_step_enqueues_goes_with_its_checkpoint(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(enqueues_by_a_step, colour)
    child = handle.result(timeout=10)
    until(lambda: traced(child) == ["begins"])
    with sync.Client(ledger) as client:
        assert [w.workflow_id for w in client.workflows(parent=handle.workflow_id)] == [child]


# ---- clients ---------------------------------------------------------------------------------------------


def test_a_client_enqueues_by_name_or_function(app: App, ledger: str, colour: Colour) -> None:
    name = doubles[colour].name
    with sync.Client(ledger) as client:
        assert client.enqueue(name, 4, result=int).result(timeout=10) == 8
        assert client.enqueue(name, kwargs={"n": 5}).result(timeout=10) == 10
        assert client.enqueue(doubles[colour], 6).result(timeout=10) == 12
        found = [w.workflow_id for w in client.workflows(queue="default", name=name)]
        assert len(found) >= 3

    async def main() -> None:
        async with Client(ledger) as client:
            handles = await asyncio.gather(*(client.enqueue(name, n, result=int) for n in range(50)))
            assert [await handle.result(timeout=10) for handle in handles] == [2 * n for n in range(50)]

    asyncio.run(main())


def test_in_the_callers_transaction(app: App, ledger: str, colour: Colour) -> None:
    sqlalchemy_url = ledger.replace("postgresql://", "postgresql+psycopg://")
    kept, dropped = f"{colour} {uuid.uuid4()}", f"{colour} {uuid.uuid4()}"

    def there(workflow_id: str) -> bool:
        with psycopg.connect(ledger) as look:
            return (
                look.execute("select 1 from eventflow.workflows where id = %s", (workflow_id,)).fetchone() is not None
            )

    engine = create_engine(sqlalchemy_url)
    with sync.Client(ledger) as client:
        with Session(engine) as session:
            handle = client.enqueue(doubles[colour], 1, workflow_id=kept, session=session)
            assert not there(kept)
            session.commit()
            assert handle.result(timeout=10) == 2
        with Session(engine) as session:
            sync.enqueue(doubles[colour], 1, workflow_id=dropped, session=session)
            session.rollback()
        assert not there(dropped)
        with psycopg.connect(ledger, row_factory=psycopg.rows.dict_row) as connection:
            handle = client.enqueue(doubles[colour], 3, session=connection)
            connection.commit()
            assert handle.result(timeout=10) == 6
        with psycopg.connect(ledger) as connection, pytest.raises(UsageError, match="no queue 'nowhere'"):
            client.enqueue(doubles[colour], 3, queue="nowhere", session=connection)
        with pytest.raises(UsageError, match="session is a SQLAlchemy Session"):
            client.enqueue(doubles[colour], 3, session="x")  # type: ignore[call-overload]
    engine.dispose()

    async def main() -> None:
        async_engine = create_async_engine(sqlalchemy_url)
        async with Client(ledger) as client:
            async with AsyncSession(async_engine) as session, session.begin():
                handle = await client.enqueue(doubles[colour], 5, session=session)
            assert await handle.result(timeout=10) == 10
            async with await psycopg.AsyncConnection.connect(ledger) as connection:
                handle = await client.enqueue(doubles[colour], 6, session=connection)
            assert await handle.result(timeout=10) == 12
        await async_engine.dispose()

    asyncio.run(main())


def test_from_sql(app: App, ledger: str, colour: Colour) -> None:
    name = doubles[colour].name
    with psycopg.connect(ledger, autocommit=True) as connection:

        def call(text: str, *args: object) -> str:
            [(found,)] = connection.execute(text.encode(), args).fetchall()
            return found

        workflow_id = call("select eventflow.enqueue(%s, '[21]')", name)
        with sync.Client(ledger) as client:
            assert client.handle(workflow_id, int).result(timeout=10) == 42
            mine = f"{colour} {uuid.uuid4()}"
            text = "select eventflow.enqueue(%s, kwargs => '{\"n\": 2}', workflow_id => %s, priority => 3, delay => '0.1 s')"
            assert call(text, name, mine) == call(text, name, mine) == mine
            assert client.handle(mine, int).result(timeout=10) == 4
        with pytest.raises(psycopg.Error, match="exists") as refused:
            call("select eventflow.enqueue(%s, '[3]', workflow_id => %s)", name, mine)
        assert refused.value.sqlstate == "EF011"
        with pytest.raises(psycopg.Error, match="no queue"):
            call("select eventflow.enqueue(%s, queue => 'nowhere')", name)
        with pytest.raises(psycopg.Error, match="not a workflow id"):
            call("select eventflow.enqueue(%s, workflow_id => 'kafka:x')", name)
        with pytest.raises(psycopg.Error, match="JSON array"):
            call("select eventflow.enqueue(%s, '{}')", name)


def test_an_id_that_an_open_transaction_has_holds_up_no_other(
    app: App, ledger: str, colour: Colour, gauge: str
) -> None:
    mine = f"{colour} {uuid.uuid4()}"
    with psycopg.connect(ledger) as stranger:
        stranger.execute("select eventflow.enqueue('works', workflow_id => %s)", (mine,))
        waiting = threading.Thread(target=lambda: put(works, colour, gauge, 1, workflow_id=mine))
        waiting.start()
        began = time.monotonic()
        put(works, colour, gauge, 2).result(timeout=10)
        assert time.monotonic() - began < 5, "a lock is waited for two seconds, and then behind the others"
        stranger.rollback()
    waiting.join(10)
    assert not waiting.is_alive()
    until(lambda: sorted(gauges[gauge].order) == [1, 2])


# ---- mistakes ----------------------------------------------------------------------------------------------


def test_mistakes_have_their_errors(app: App, colour: Colour, gauge: str) -> None:
    def refused(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(UsageError, match=match):
            put(works, colour, gauge, 1, *args, **options)

    refused("there is no queue 'nowhere'", queue="nowhere")
    refused("a priority is a whole number", priority=1.5)
    refused("a priority is a whole number", priority=2**31)
    refused("not a key: ''", key="")
    refused("not a deduplication id", deduplication_id="x" * 501)
    refused("delay must be a finite number", delay=-1)
    refused("until a time with a zone", delay=datetime(2030, 1, 1))
    refused("debounce goes by a deduplication_id", debounce=1)
    refused("debounce goes by a deduplication_id", debounce=1, deduplication_id="x", delay=1)
    refused("debounce_limit is a limit of debounce", debounce_limit=1)
    refused("if_exists is 'attach' or 'reject'", if_exists="perhaps")
    refused("kafka:", workflow_id="kafka:x")
    refused("too many positional arguments|missing|takes", "k", 0.1, 7, 8)
    handle = put(works, colour, gauge, 1, delay=3600)
    with pytest.raises(UsageError, match="delay takes seconds from now, or a time"):
        handle.delay(None)  # type: ignore[arg-type]
    handle.cancel()
    with pytest.raises(UsageError, match="enqueue takes a function decorated with @workflow"):
        sync.enqueue(_pause, 1)  # type: ignore[call-overload]


def test_queues_that_cannot_be_are_refused() -> None:
    for match, options in {
        "concurrency is a number from 1, not 0": {"concurrency": 0},
        "concurrency_per_key is a number from 1": {"concurrency_per_key": True},
        "rate is how many and in which time": {"rate": 5},
        "rate: its time is none": {"rate": (5, timedelta(0))},
    }.items():
        with pytest.raises(UsageError, match=match):
            Queue("queues wrong", **options)
    with pytest.raises(UsageError, match="two queues are named 'queues one'"):
        Queue(ONE.name, concurrency=2)
    assert "queues wrong" not in registry.queues
    Queue(ONE.name, concurrency=1)  # its source was imported twice


@both
def enqueues_wrongly(do: Do) -> Body[str]:
    try:
        yield _enqueue(do, doubles, 1, queue="nowhere")
    except UsageError as error:
        return str(error)
    return ""


def test_a_workflow_is_told_of_a_queue_that_is_not_there(app: App, colour: Colour) -> None:
    assert "there is no queue 'nowhere': define it, in this program too" in app.run(enqueues_wrongly, colour)


def test_arguments_that_do_not_fit_fail_their_workflow_alone(app: App, ledger: str, colour: Colour) -> None:
    with sync.Client(ledger) as client:
        wrong = client.enqueue(doubles[colour].name, "seven", result=int)
        with pytest.raises(Exception, match="arguments of"):
            wrong.result(timeout=10)
        assert client.enqueue(doubles[colour].name, 7, result=int).result(timeout=10) == 14


def test_a_name_that_nobody_knows_waits_and_is_told(app: App, ledger: str, caplog: pytest.LogCaptureFixture) -> None:
    with sync.Client(ledger) as client:
        handle = client.enqueue("nobody knows this", 1)
        app.down()
        app.up()  # it looks at all that stands in line
        until(lambda: "'nobody knows this' wait for a process that knows this name" in caplog.text)
        assert handle.get().status == "queued"
        handle.cancel()
