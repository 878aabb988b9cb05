"""A workflow whose middle step is a transaction: its effect and its checkpoint are one commit."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message


@eventflow.step
async def charge(order: Order) -> int:
    return order.n


@eventflow.transaction
async def book(connection: psycopg.AsyncConnection[Any], message: Message[Order]) -> int:
    await connection.execute(INSERT, row("ledger", message, "booked"))
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="ledger")
async def bill(message: Message[Order]) -> int:
    before = await charge(message.value)
    booked = await book(message)
    return before + booked + await charge(message.value)
