"""What users write must check under pyright strict, without a cast or an ignore."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

import psycopg
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Handle, Message, Retry, durable, sync


class Order(BaseModel):
    order_id: int
    amount: int


@eventflow.lifespan
async def resources() -> AsyncIterator[None]:
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


@eventflow.kafka_consumer("orders", group="ledger", ordering="partition")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None: ...


@eventflow.kafka_consumer("orders", group="aledger")
@eventflow.transaction(isolation="serializable")
async def aenter(session: AsyncSession, message: Message[Order]) -> None: ...


@eventflow.transaction
def book(connection: psycopg.Connection[Any], order: Order) -> int:
    return order.order_id


@eventflow.workflow
async def refund(order_id: int, *, note: str = "") -> str:
    return note


@eventflow.workflow(name="refund_sync", retries=2)
def refund_sync(order_id: int) -> int:
    return book(Order(order_id=order_id, amount=1))


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


def plain() -> None:
    with eventflow.running():
        assert_type(refund_sync(7), int)
        assert_type(sync.start(refund, 7).result(), str)
