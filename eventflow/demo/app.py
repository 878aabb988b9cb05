"""The demo's own program: what `eventflow run` runs in each of its workers."""

import asyncio
import os

from pydantic import BaseModel
from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import eventflow
from eventflow import Message

TOPIC = os.environ.get("EVENTFLOW_DEMO_TOPIC", "orders")


class Base(DeclarativeBase):
    """The demo's tables."""


class Entry(Base):
    """An effect. Nothing in the table keeps an order from being entered twice: that would show."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    order_id: Mapped[int]
    amount: Mapped[int]
    executor: Mapped[int]


class Order(BaseModel):
    """The value of a message."""

    order_id: int
    amount: int


@eventflow.step(retries=3)
async def charge(order: Order) -> str:
    """Stands for a call of the outside world."""
    await asyncio.sleep(0.005)
    return f"charge-{order.order_id}"


@eventflow.kafka_consumer(TOPIC, group="billing", max_in_flight=100)
async def bill(message: Message[Order]) -> str:
    """A workflow of one step."""
    return await charge(message.value)


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None:
    """A transactional handler: the entry, the result and the position are one commit."""
    session.add(Entry(order_id=message.value.order_id, amount=message.value.amount, executor=os.getpid()))
