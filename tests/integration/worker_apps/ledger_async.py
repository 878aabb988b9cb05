"""A transactional handler on psycopg's async connection."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
async def enter(connection: psycopg.AsyncConnection[Any], message: Message[Order]) -> None:
    await connection.execute(INSERT, row("ledger", message, "entered"))
