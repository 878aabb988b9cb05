"""The demo's own program, such as a user would write it: what `eventflow run` runs in each of its workers."""

import asyncio
import os

from pydantic import BaseModel
from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import eventflow
from eventflow import Message

TOPIC = os.environ.get("DEMO_TOPIC", "orders")


class Base(DeclarativeBase):
    """The demo's tables."""


class Entry(Base):
    """An effect. Nothing in the table keeps an order from being entered twice: that would show."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    order_id: Mapped[int]
    amount: Mapped[int]
    worker: Mapped[int]


class Order(BaseModel):
    """The value of a message."""

    order_id: int
    amount: int


@eventflow.step(retries=3)
async def charge(order: Order) -> str:
    """Stands for a call of the outside world: quick as a rule, and once in fifty times slow."""
    await asyncio.sleep(0.2 if order.order_id % 50 == 0 else 0.01)
    return f"charge-{order.order_id}"


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> str:
    """A workflow of one step."""
    return await charge(message.value)


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None:
    """A transactional handler: the entry, the result and the position are one commit."""
    session.add(Entry(order_id=message.value.order_id, amount=message.value.amount, worker=os.getpid()))
