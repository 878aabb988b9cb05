"""Four handlers of one topic in one process: async, sync, transactional, ordered."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message, Retry


@eventflow.step
async def charge(order: Order) -> int:
    return order.n + 1


@eventflow.step
def weigh(order: Order) -> int:
    return order.n + 2


@eventflow.step(retries=Retry(50, delay=0.1, max_delay=0.5))
async def note(message: Message[Order]) -> int:
    outside.act("ordered", message, "one")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    return await charge(message.value)


@eventflow.kafka_consumer(TOPIC, group="weighing")
def ship(message: Message[Order]) -> int:
    return weigh(message.value)


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, "entered"))


@eventflow.kafka_consumer(TOPIC, group="ordered", ordering="partition")
async def follow(message: Message[Order]) -> int:
    return await note(message)
