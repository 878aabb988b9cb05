"""Mistakes that pyright must report: a line here that it lets pass makes its `ignore` needless, which is an error."""

# pyright: reportUntypedFunctionDecorator=false
# (what follows from a decorator that was refused)

from datetime import timedelta

import psycopg
from pydantic import BaseModel
from sqlalchemy.orm import Session

import eventflow
from eventflow import Message, Retry, durable, sync
from eventflow.schema_registry import Avro


class Order(BaseModel):
    order_id: int


# ---- handlers ------------------------------------------------------------------------------------


@eventflow.kafka_consumer("x", group="no message")  # pyright: ignore[reportArgumentType]
async def takes_a_value(order: Order) -> None: ...


@eventflow.kafka_consumer("x", group="two")  # pyright: ignore[reportArgumentType]
async def takes_two(message: Message[Order], other: Order) -> None: ...


@eventflow.kafka_consumer("x")  # pyright: ignore[reportCallIssue]
async def without_a_group(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("x", group="y", ordering="offset")  # pyright: ignore[reportArgumentType]
async def in_no_such_order(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("x", group="y", on_failure="skip")  # pyright: ignore[reportArgumentType]
async def passes_over_what_fails(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("x", group="y", start=0)  # pyright: ignore[reportArgumentType]
async def begins_at_an_offset(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("x", group="y", kafka={"fetch.min.bytes": None})  # pyright: ignore[reportArgumentType]
async def with_no_property(message: Message[Order]) -> None: ...


def reads_text(data: bytes, *, topic: str) -> str:
    return data.decode()


@eventflow.kafka_consumer("x", group="y", deserializer=reads_text)  # pyright: ignore[reportArgumentType]
async def reads_too_little(message: Message[str]) -> None: ...


@eventflow.kafka_consumer("x", group="y", deserializer=Avro)  # pyright: ignore[reportArgumentType]
async def reads_by_a_class(message: Message[str]) -> None: ...


@eventflow.kafka_consumer("x", group="y", batch=10)  # pyright: ignore[reportArgumentType]
async def takes_one_of_a_batch(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("x", group="y")  # pyright: ignore[reportArgumentType]
async def takes_a_batch(messages: list[Message[Order]]) -> None: ...


@eventflow.kafka_consumer("x", group="y", batch_wait=1)  # pyright: ignore[reportCallIssue]
async def waits_for_no_batch(message: Message[Order]) -> None: ...


@eventflow.lifespan  # pyright: ignore[reportArgumentType]
async def never_yields() -> None: ...


# ---- transactions --------------------------------------------------------------------------------


@eventflow.transaction  # pyright: ignore[reportCallIssue, reportArgumentType]
def without_a_session(order: Order) -> int:
    return order.order_id


@eventflow.transaction(isolation="serializable")  # pyright: ignore[reportCallIssue, reportArgumentType]
def without_a_session_either(order: Order) -> int:
    return order.order_id


@eventflow.transaction(isolation="dirty")  # pyright: ignore[reportArgumentType]
def isolated_as_nothing(session: Session) -> None: ...


@eventflow.transaction(pipeline=True)  # pyright: ignore[reportArgumentType]
def kept_back_in_a_session(session: Session) -> None: ...


@eventflow.transaction(database="shop", pipeline=True)  # pyright: ignore[reportArgumentType]
def kept_back_elsewhere(connection: psycopg.Connection[tuple[int]]) -> None: ...


@eventflow.transaction(database=3)  # pyright: ignore[reportArgumentType]
def on_the_third_database(session: Session) -> None: ...


@eventflow.transaction
def book(session: Session, order: Order) -> int:
    return order.order_id


class Shop:
    @eventflow.transaction  # pyright: ignore[reportCallIssue, reportArgumentType]
    def reserve(self, sku: str, session: Session) -> None: ...

    @eventflow.transaction
    def sell(self, session: Session, sku: str) -> None: ...


def calls(session: Session, connection: psycopg.Connection[object]) -> None:
    book(session, Order(order_id=1))  # pyright: ignore[reportCallIssue]
    book("1")  # pyright: ignore[reportArgumentType]
    Shop().sell(session, "a")  # pyright: ignore[reportCallIssue]
    Shop().sell()  # pyright: ignore[reportCallIssue]


# ---- workflows and steps -------------------------------------------------------------------------


@eventflow.step
async def charge(order_id: int, amount: int) -> str:
    return f"{order_id} {amount}"


@eventflow.workflow
async def refund(order_id: int, *, note: str = "") -> str:
    return note


@eventflow.workflow
async def needs_note(order_id: int, *, note: str) -> int:
    return order_id


@eventflow.step(retries="3")  # pyright: ignore[reportArgumentType]
def tried_as_text() -> None: ...


@eventflow.workflow(timeout="3")  # pyright: ignore[reportArgumentType]
def in_time() -> None: ...


async def program() -> None:
    await eventflow.start(refund, "7")  # pyright: ignore[reportCallIssue, reportArgumentType]
    await eventflow.start(refund)  # pyright: ignore[reportCallIssue, reportArgumentType]
    await eventflow.start(charge, 7, 1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    await eventflow.start(needs_note, 7)  # pyright: ignore[reportCallIssue, reportArgumentType]
    await eventflow.start(refund, 7, if_exists="replace")  # pyright: ignore[reportCallIssue, reportArgumentType]
    await refund("7")  # pyright: ignore[reportArgumentType]
    await refund(7, text="x")  # pyright: ignore[reportCallIssue]
    refund.bind("7")  # pyright: ignore[reportArgumentType]
    needs_note.bind(7)  # pyright: ignore[reportCallIssue]
    await charge(7)  # pyright: ignore[reportCallIssue]
    await durable.run_step(charge, "7", 1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    handle = await eventflow.start(refund, 7)
    number: int = await handle.result()  # pyright: ignore[reportAssignmentType]
    print(number)
    refund(7)  # pyright: ignore[reportUnusedCoroutine]
    await eventflow.running()  # pyright: ignore[reportGeneralTypeIssues]
    sync.start(refund, "7")  # pyright: ignore[reportCallIssue, reportArgumentType]
    sync.enqueue(refund, "7")  # pyright: ignore[reportCallIssue, reportArgumentType]
    sync.enqueue(refund, 7, if_exists="perhaps")  # pyright: ignore[reportCallIssue, reportArgumentType]


class Billing:
    @eventflow.workflow
    async def refund(self, order_id: int) -> str:
        return str(order_id)


async def methods() -> None:
    await Billing().refund("7")  # pyright: ignore[reportArgumentType]
    await eventflow.start(Billing().refund, "7")  # pyright: ignore[reportCallIssue, reportArgumentType]
    await eventflow.start(Billing.refund, 7)  # pyright: ignore[reportCallIssue, reportArgumentType]
    Billing.refund(7)  # pyright: ignore[reportCallIssue]


# ---- values --------------------------------------------------------------------------------------


def values(message: Message[Order]) -> None:
    message.offset = 3  # pyright: ignore[reportAttributeAccessIssue]
    message.topic = "x"  # pyright: ignore[reportAttributeAccessIssue]
    message.value = Order(order_id=1)  # pyright: ignore[reportAttributeAccessIssue]
    text: str = message.key  # pyright: ignore[reportAssignmentType]
    print(text)
    Retry(3, 1.0)  # pyright: ignore[reportCallIssue]
    Retry(3, delay="1s")  # pyright: ignore[reportArgumentType]
    Retry(3, delay=timedelta(seconds=1)).retries = 4  # pyright: ignore[reportAttributeAccessIssue]


# ---- schedules -----------------------------------------------------------------------------------


@eventflow.scheduled(every=timedelta(minutes=5))  # pyright: ignore[reportArgumentType, reportCallIssue]
def takes_a_number(x: int) -> int: ...


@eventflow.scheduled(every=300)  # pyright: ignore[reportArgumentType]
def every_number() -> None: ...


@eventflow.scheduled("0 2 * * *", overlap="sometimes")  # pyright: ignore[reportArgumentType]
def overlaps_as_nothing() -> None: ...
