"""Orders from Kafka: each is charged, entered in Postgres and answered with a receipt, once, whatever dies meanwhile.

`eventflow run app` runs what is declared here.
"""

from pydantic import BaseModel
from settings import settings
from sqlalchemy import BigInteger
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import eventflow
from eventflow import Fire, Message


class Base(DeclarativeBase): ...


class Entry(Base):
    """A row of your own; `python prepare.py` makes the table."""

    __tablename__ = "entries"
    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]


class Order(BaseModel):
    """What is read from the topic, as JSON."""

    order_id: int
    customer: str
    amount: int


class Receipt(BaseModel):
    """What is published."""

    order_id: int
    charged: int


@eventflow.step(retries=5)
async def charge(order: Order) -> int:
    """Whatever acts outside: runs until it is recorded, and never after that."""
    return order.amount + settings.fee


@eventflow.transaction
async def enter(session: AsyncSession, order: Order, charged: int) -> None:
    """The row and the record that it was written are one commit."""
    session.add(Entry(order_id=order.order_id, customer=order.customer, amount=charged))


@eventflow.kafka_consumer(settings.orders, group="PROJECT", ordering="key")
async def handle(message: Message[Order]) -> None:
    """Each message is a durable workflow; those of one key go one after another."""
    charged = await charge(message.value)
    await enter(message.value, charged)
    receipt = Receipt(order_id=message.value.order_id, charged=charged)
    await eventflow.publish(settings.receipts, receipt, key=message.key)


@eventflow.scheduled("0 2 * * *", timezone="Europe/Berlin")
async def close_day(fire: Fire) -> str:
    """Once a day, however many processes run."""
    return f"closed {fire.time:%Y-%m-%d}"
