"""In the order of keys, in three kinds: with steps, async and sync, and as a transaction. `do` says what becomes of a message.

Effects are noted as `key|what`; what acts outside does so twice, around a wait for `slow` ones.
"""

import asyncio
import os
import time
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message, Retry, durable
from eventflow.errors import DeterminismError

KINDS = os.environ.get("KINDS", "async sync transaction").split()
SLOW = float(os.environ.get("SLOW", "0.2"))
PARKS = os.environ.get("PARKS", "yes") == "yes"
ORDERING: Any = os.environ.get("ORDERING", "key")
POLICY = Retry(2, delay=0.1)
BORNE = Retry(50, delay=0.1, max_delay=0.5)


def note(message: Message[Order], what: str) -> str:
    return f"{(message.key or b'').decode()}|{what}"


def misbehave(message: Message[Order]) -> None:
    if message.value.do == "fail":
        raise ValueError(f"order {message.value.n} is refused")
    if message.value.do == "park" and PARKS:
        raise DeterminismError("as if other code had recorded it")


@eventflow.step(retries=BORNE)
async def act(message: Message[Order], what: str) -> None:
    outside.act("async", message, note(message, what))


@eventflow.step(retries=BORNE)
def act_sync(message: Message[Order], what: str) -> None:
    outside.act("sync", message, note(message, what))


if "async" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="async", ordering=ORDERING, retries=POLICY)
    async def follow(message: Message[Order]) -> None:
        misbehave(message)
        await act(message, "one")
        if message.value.do == "slow":
            await asyncio.sleep(SLOW)
        elif message.value.do == "asleep":
            await durable.sleep(1)
        await act(message, "two")


if "sync" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="sync", ordering="key", retries=POLICY)
    def follow_sync(message: Message[Order]) -> None:
        misbehave(message)
        act_sync(message, "one")
        if message.value.do == "slow":
            time.sleep(SLOW)
        act_sync(message, "two")


if "transaction" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="transaction", ordering="key", retries=POLICY)
    @eventflow.transaction
    def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
        misbehave(message)
        if message.value.do == "slow":
            time.sleep(SLOW)
        connection.execute(INSERT, row("transaction", message, note(message, "entered")))
