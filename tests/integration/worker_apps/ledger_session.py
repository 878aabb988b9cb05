"""A transactional handler on a SQLAlchemy Session."""

import os

from common import TOPIC, Order
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import eventflow
from eventflow import Message


class Base(DeclarativeBase):
    """The program's tables."""


class Effect(Base):
    """A row of `effects`."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    group: Mapped[str]
    topic: Mapped[str]
    partition: Mapped[int]
    offset: Mapped[int]
    note: Mapped[str]
    pid: Mapped[int]


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None:
    session.add(
        Effect(
            group="ledger", topic=message.topic, partition=message.partition, offset=message.offset,
            note="entered", pid=os.getpid(),
        )
    )  # fmt: skip
