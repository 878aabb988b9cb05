"""What users write must check under pyright strict, without a cast or an ignore."""

import logging
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type

import psycopg
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Fire, Handle, Message, Retry, durable, health, sync, testing
from eventflow.client import Client
from eventflow.encryption import AesGcm
from eventflow.kafka import Deserializer, Headers, by_header
from eventflow.logs import Ids
from eventflow.payloads import PayloadCodec
from eventflow.queues import Queue, QueueRecord
from eventflow.records import DeadLetter, Overview, Reason, Redelivery, WorkflowDetails, WorkflowRecord
from eventflow.schedules import ScheduleRecord
from eventflow.schema_registry import Avro, JsonSchema, SchemaRegistry
from eventflow.settings import Settings
from eventflow.workflows import Workflow, register

mail = Queue("mail", concurrency=3, rate=(100, timedelta(minutes=1)))


class Order(BaseModel):
    order_id: int
    amount: int


@eventflow.lifespan
async def resources() -> AsyncIterator[None]:
    yield


@eventflow.lifespan
def threads() -> Iterator[None]:
    yield


@eventflow.step(retries=Retry(5, retry_if=(ConnectionError,)))
async def charge(order: Order) -> str:
    return durable.idempotency_key()


@eventflow.step
def score(order: Order) -> float:
    return 0.5


@eventflow.kafka_consumer("orders", group="billing")
async def bill(message: Message[Order]) -> str:
    risk = await durable.run_step(score, message.value)
    assert_type(risk, float)
    return await charge(message.value)


@eventflow.kafka_consumer("orders", group="tomb")
def tomb(message: Message[Order | None, int]) -> str:
    assert_type(message.key, int)
    return message.headers.text("x") or ""


class Squashed:
    def __call__(self, data: bytes, *, topic: str, headers: Headers, type: Any) -> object:
        return zlib.decompress(data)


squashed: Deserializer = Squashed()
elsewhere = SchemaRegistry("https://registry", {"basic.auth.user.info": "app:secret"})


@eventflow.kafka_consumer(
    "orders", group="avro", deserializer=Avro(), key_deserializer=Avro(key=True, registry=elsewhere)
)
async def avro(message: Message[Order | None, int]) -> None:
    assert_type(message.value, Order | None)


@eventflow.kafka_consumer("orders", group="squashed", deserializer=squashed)
async def squash(message: Message[bytes]) -> None: ...


@eventflow.kafka_consumer(
    "events", group="typed", deserializer=by_header("type", {"o": Order}, deserializer=JsonSchema())
)
def typed(message: Message[Order | int]) -> None: ...


@eventflow.kafka_consumer("orders", group="ledger", ordering="partition")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("orders", group="aledger")
@eventflow.transaction(isolation="serializable")
async def aenter(session: AsyncSession, message: Message[Order]) -> None: ...


@eventflow.kafka_consumer(["orders", "returns"], group="copy", kafka={"fetch.min.bytes": 1}, max_in_flight=100)
@eventflow.transaction
async def copy(connection: psycopg.AsyncConnection[tuple[object, ...]], message: Message[bytes]) -> None: ...


@eventflow.kafka_consumer("orders", group="bykey", ordering="key")
async def follow(message: Message[Order, str]) -> None: ...


@eventflow.kafka_consumer(
    "orders", group="bulk", batch=500, batch_wait=timedelta(milliseconds=50), ordering="partition"
)
@eventflow.transaction
def bulk(session: Session, messages: list[Message[Order]]) -> None: ...


@eventflow.kafka_consumer("orders", group="abulk", batch=5000)
@eventflow.transaction(isolation="repeatable read")
async def abulk(connection: psycopg.AsyncConnection[tuple[object, ...]], messages: list[Message[Order]]) -> None: ...


@eventflow.kafka_consumer("orders", group="index", batch=100, ordering="key")
async def index(messages: list[Message[Order | None, str]]) -> None:
    assert_type(messages[0].key, str)


@eventflow.transaction
def book(connection: psycopg.Connection[Any], order: Order) -> int:
    return order.order_id


@eventflow.transaction(pipeline=True)
def enter_many(connection: psycopg.Connection[Any], message: Message[Order]) -> None: ...


@eventflow.transaction(database="shop")
async def sell(session: AsyncSession, order: Order) -> int:
    return order.order_id


class Shop:
    """Transactions as methods: self, then the connection, which callers leave out."""

    @eventflow.transaction
    def reserve(self, session: Session, sku: str, *, count: int = 1) -> int:
        return count

    @eventflow.transaction(isolation="serializable", retries=Retry(3, delay=timedelta(seconds=1)), database="shop")
    async def areserve(self, session: AsyncSession, sku: str) -> int:
        return 1


async def shop() -> None:
    assert_type(book(Order(order_id=1, amount=1)), int)
    assert_type(await sell(Order(order_id=1, amount=1)), int)
    assert_type(Shop().reserve("a", count=2), int)
    assert_type(await Shop().areserve("a"), int)


def messages() -> None:
    assert_type(Message(3), Message[int, bytes | None])
    assert_type(Message(3, "k"), Message[int, str])
    assert_type(Message(3, topic="orders", offset=7).offset, int)


@eventflow.workflow
async def refund(order_id: int, *, note: str = "") -> str:
    return note


@eventflow.workflow(name="refund_sync", retries=2)
def refund_sync(order_id: int) -> int:
    return book(Order(order_id=order_id, amount=1))


class Billing:
    @eventflow.workflow
    async def refund(self, order_id: int, amount: Decimal = Decimal(0)) -> str:
        return f"{order_id} {amount}"

    @eventflow.workflow(name="tick")
    def tick(self) -> int:
        return 1


billing = register(Billing(), name="billing")


async def methods() -> None:
    assert_type(billing, Billing)
    assert_type(await billing.refund(3, Decimal(2)), str)
    assert_type(await eventflow.start(billing.refund, 3), Handle[str])
    assert_type(await eventflow.start(billing.refund.bind(3, amount=Decimal(1))), Handle[str])
    assert_type(billing.tick(), int)
    assert_type(await eventflow.start(billing.tick), Handle[int])
    assert_type(sync.start(billing.refund, 3, workflow_id="r").result(), str)


async def streams() -> None:
    await durable.write_stream("orders", Order(order_id=1, amount=2))
    await durable.close_stream("orders")
    async for order in (await eventflow.start(refund, 7)).stream("orders", Order, offset=3):
        assert_type(order, Order)


def sync_streams() -> None:
    sync.write_stream("orders", 1)
    sync.close_stream("orders")
    assert_type(list(sync.start(refund, 7).stream("numbers", int)), list[int])


async def program() -> None:
    async with eventflow.running(consumers=False):
        handle = await eventflow.start(refund, 7, workflow_id="refund:7")
        assert_type(handle, Handle[str])
        assert_type(await handle.result(timeout=3), str)
        assert_type(await refund(7, note="x"), str)
        assert_type((await (await eventflow.start(refund_sync, 7)).result()), int)
        bound = await eventflow.start(refund.bind(7, note="n"))
        assert_type(bound, Handle[str])
        print((await handle.get()).status, await handle.steps())


async def checkout(session: AsyncSession, connection: "psycopg.AsyncConnection[object]") -> None:
    async with Client("postgresql://app@db/shop") as client:
        by_name = await client.enqueue("refund", 7, Decimal(3), result=str, workflow_id="refund:7", session=session)
        assert_type(by_name, Handle[str])
        assert_type(await client.enqueue("refund", 7, session=connection), Handle[object])
        assert_type(await client.enqueue(refund, 7, session=session), Handle[str])
        assert_type(await client.enqueue(refund_sync, 7, queue=mail.name, priority=-1), Handle[int])
        assert_type(await eventflow.enqueue(refund, 7, queue="mail", key="k", delay=timedelta(hours=1)), Handle[str])
        assert_type(await eventflow.enqueue(billing.tick, deduplication_id="t", debounce=5), Handle[int])
        assert_type(await client.queues(), list[QueueRecord])
        assert_type(await client.workflow("refund:7"), WorkflowDetails)
        assert_type(await client.why("refund:7"), list[Reason])
        assert_type(await client.overview(), Overview)
        async for record in client.workflows(name="refund", newest_first=True):
            assert_type(record, WorkflowRecord)
        await client.change_queue("mail", concurrency=3)
        async for letter in client.dead_letters(consumer="bill", error_type="TimeoutError", status="failed"):
            assert_type(letter, DeadLetter)
            details = await client.dead_letter(letter.workflow_id)
            assert_type(details.message.value, bytes | None)
            assert_type(await client.redeliver([letter.workflow_id]), int)
            await client.redeliver_edited(letter.workflow_id, value=b"{}", headers={"who": "ada"})
            assert_type(await client.drop([letter.workflow_id], "a duplicate"), int)
        assert_type(await client.redeliver_all(rate=10, topic="orders"), Redelivery)


def plain_checkout(session: Session) -> None:
    assert_type(sync.enqueue(refund, 7, session=session), sync.Handle[str])
    assert_type(sync.enqueue(billing.refund, 3, queue="mail").result(), str)
    with sync.Client() as client:
        assert_type(client.enqueue("refund_sync", 7, result=int).result(), int)
        assert_type(client.enqueue(refund_sync, 7).result(), int)


class Squeezed:
    secrets = ()

    def encode(self, payload: bytes) -> tuple[str, bytes]:
        return "zlib", zlib.compress(payload)

    def decode(self, label: str, stored: bytes) -> bytes:
        return zlib.decompress(stored)


@eventflow.step
async def reads_pages() -> int:
    durable.heartbeat({"page": 7})
    durable.heartbeat()
    assert_type(durable.details(dict[str, int]), dict[str, int] | None)
    assert_type(await eventflow.start(refund, 7), Handle[str])
    return durable.details(int) or 0


async def codecs() -> None:
    own: PayloadCodec = Squeezed()
    async with Client(payload_codec=own) as client, Client(payload_codec=AesGcm({"a": bytes(32)})):
        assert_type(await client.handle("refund:7", str).result(), str)
    settings = Settings(database_url="postgresql://db/shop", payload_codec=own)
    with sync.Client(payload_codec=Squeezed()), eventflow.running(settings):
        pass


async def run_again() -> None:
    async with Client() as client:
        begun = await client.reprocess("billing", "orders", since=datetime.now(UTC), rate=200)
        assert_type(begun.partitions[0].past, int)
        await client.pause_consumer("billing", "orders", 3, reason="odd keys")
        assert_type((await client.lag("billing"))[0].seconds, float | None)
        assert_type(await client.stop_reprocessing(begun.id or 0), bool)
    with sync.Client() as blocking:
        assert_type(blocking.reprocess("billing", "orders", offsets={0: 7}, instead=True).done, int)


async def tested() -> None:
    async with testing.harness(suspend=False) as flow:
        testing.fail_once(charge, ConnectionError("x"), times=2)
        workflow_id = await flow.deliver("orders", Order(order_id=1, amount=2), key="1", group="billing")
        await flow.advance(timedelta(seconds=1))
        await flow.settle()
        assert_type((await flow.workflow(workflow_id)).attempt, int)
        [event] = await flow.published("receipts")
        assert_type(event.decode(Order), Order)
        [letter] = await flow.dead_letters()
        assert_type(letter.message, Message[bytes])


def plain() -> None:
    with eventflow.running():
        assert_type(refund_sync(7), int)
        assert_type(sync.start(refund, 7).result(), str)


# ---- schedules -----------------------------------------------------------------------------------


@eventflow.scheduled("0 2 * * *", timezone="Europe/Berlin")
async def close_day(fire: Fire) -> None: ...


@eventflow.scheduled(every=timedelta(minutes=5), overlap="skip")
def poll() -> int: ...


@eventflow.scheduled("0 6 * * MON", name="weekly", jitter=60, catch_up=timedelta(days=1))
@eventflow.workflow(retries=2, timeout=600)
async def weekly(fire: Fire) -> str:
    return f"{fire.schedule} {fire.time:%A} {fire.previous} {fire.cause}"


async def schedules(client: Client, moment: datetime) -> None:
    assert_type(await close_day(Fire("close_day", moment)), None)
    assert_type(poll, Workflow[[], int])
    assert_type(await weekly(Fire("weekly", moment)), str)
    assert_type(await client.schedules(), list[ScheduleRecord])
    assert_type(await client.upcoming("poll", count=3), list[datetime])
    await client.create_schedule("report ada", weekly, cron="0 6 * * *", timezone="Europe/Berlin", end=moment)
    await client.create_schedule(
        "by name", "report", "Ada", every=timedelta(days=1), kwargs={"copy": True}, replace=True
    )
    assert_type(await client.trigger_schedule("poll", result=int), Handle[int])
    assert_type(await client.backfill_schedule("weekly", moment, moment), list[datetime])
    await client.pause_schedule("poll", "closed")
    await client.resume_schedule("poll")


def schedules_sync(client: sync.Client) -> None:
    assert_type(client.trigger_schedule("poll", result=int), sync.Handle[int])
    assert_type(client.schedule("poll").next_fire, datetime | None)
    client.delete_schedule("poll")


def watched(handler: logging.Handler) -> bool:
    handler.addFilter(Ids())
    assert_type(health.ready(), health.Check)
    assert_type(health.live().reasons, tuple[str, ...])
    assert_type(health.metrics(), bytes)
    return health.started().ok
