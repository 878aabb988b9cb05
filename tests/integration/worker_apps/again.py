"""What reads a topic that is run again: each effect says in which generation it was made."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, f"g{message.generation}"))


@eventflow.step
async def follow(message: Message[Order, str]) -> None:
    outside.act("keyed", message, f"{message.key}/g{message.generation}")


@eventflow.kafka_consumer(TOPIC, group="keyed", ordering="key")
async def bill(message: Message[Order, str]) -> None:
    await follow(message)
