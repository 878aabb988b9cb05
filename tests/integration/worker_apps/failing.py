"""Handlers that fail: always, for a while, with an error no database can hold; in order and not, with and without steps."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message, Retry
from eventflow.errors import DeterminismError, UsageError

POLICY = Retry(2, delay=0.05)


@eventflow.step
async def check(message: Message[Order]) -> str:
    outside.act("billing", message, "tried")
    match message.value.do:
        case "fail":
            raise ValueError(f"order {message.value.n} is refused")
        case "nul error":
            raise ValueError("a NUL \0 in the text of an error")
        case "nul result":
            return "a NUL \0 in a result"
        case "usage":
            raise UsageError("a programmer's mistake")
        case "poison":
            return "poison"
        case _:
            return message.value.pad


@eventflow.kafka_consumer(TOPIC, group="billing", retries=POLICY)
async def bill(message: Message[Order]) -> str:
    return await check(message)


@eventflow.kafka_consumer(TOPIC, group="ordered", ordering="partition", retries=POLICY)
async def follow(message: Message[Order]) -> int:
    if message.value.do == "fail":
        raise ValueError(f"order {message.value.n} is refused")
    if message.value.do == "park":
        raise DeterminismError("as if other code had recorded it")
    outside.act("ordered", message, "followed")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="ledger", retries=POLICY)
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, "entered"))
    if message.value.do == "fail":
        raise ValueError(f"order {message.value.n} is refused")
    if message.value.do == "check":
        connection.execute("select 1 / 0")
