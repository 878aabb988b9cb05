"""Handlers that are transactions on another database: the effect is there, the position in the ledger."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow import Message

BY_NAME = text(
    'insert into effects ("group", topic, partition, "offset", note, pid) values (:g, :topic, :partition, :offset, :note, :pid)'
)


@eventflow.kafka_consumer(TOPIC, group="ledger", ordering="partition")
@eventflow.transaction(database="other", isolation="repeatable read")
def enter(connection: "psycopg.Connection[Any]", message: Message[Order]) -> int:
    connection.execute(INSERT, row("ledger", message, "entered"))
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="aledger")
@eventflow.transaction(database="other")
async def aenter(session: AsyncSession, message: Message[Order]) -> int:
    values = dict(
        zip(("g", "topic", "partition", "offset", "note", "pid"), row("aledger", message, "entered"), strict=True)
    )
    await session.execute(BY_NAME, values)
    return message.value.n
