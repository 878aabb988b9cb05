"""Handlers that fail until a person has mended what is wrong: async, sync and transactional, each behind a step that acts once."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Literal, cast

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message, Retry
from eventflow.kafka import Failure

POLICY = Retry(
    int(os.environ.get("RETRIES", "1")),
    delay=float(os.environ.get("DELAY", "0.05")),
    jitter=0,
    retry_if=lambda error: not isinstance(error, HopelessError),
)
ORDERING = cast("Literal['none', 'key', 'partition']", os.environ.get("ORDERING", "none"))
DEAD = os.environ.get("DEAD")
PAUSE = float(os.environ.get("PAUSE", "0"))
ON_FAILURE = cast("Failure", os.environ.get("ON_FAILURE", "dead_letter"))


class RefusedError(Exception):
    """What these handlers fail with."""


class HopelessError(Exception):
    """Not worth another attempt, by the policy."""


def mended() -> bool:
    with psycopg.connect(os.environ["EFFECTS_URL"], autocommit=True) as connection:
        return bool(connection.execute("select 1 from effects where note = 'mended'").fetchone())


def check(message: Message[Order]) -> None:
    if message.value.do == "hopeless" and not mended():
        raise HopelessError
    if message.value.do == "fail" and not mended():
        raise RefusedError(f"order {message.value.n} is refused")


@eventflow.step
async def acharge(message: Message[Order]) -> int:
    outside.act("async", message, "charged")
    return message.value.n


@contextlib.contextmanager
def traced(group: str, message: Message[Order]) -> Iterator[None]:
    """Where a test asks for it: when a run of this message's handler begins and ends."""
    if PAUSE:
        outside.act(group, message, "begun")
    try:
        yield
    finally:
        if PAUSE:
            outside.act(group, message, "ended")


@eventflow.kafka_consumer(
    TOPIC, group="async", retries=POLICY, ordering=ORDERING, on_failure=ON_FAILURE, dead_letter_topic=DEAD
)
async def abill(message: Message[Order]) -> int:
    with traced("async", message):
        charged = await acharge(message)
        await asyncio.sleep(PAUSE)
        check(message)
    outside.act("async", message, f"booked {message.value.pad}".strip())
    return charged


@eventflow.step
def charge(message: Message[Order]) -> int:
    outside.act("sync", message, "charged")
    return message.value.n


@eventflow.kafka_consumer(
    TOPIC, group="sync", retries=POLICY, ordering=ORDERING, on_failure=ON_FAILURE, dead_letter_topic=DEAD
)
def bill(message: Message[Order]) -> int:
    with traced("sync", message):
        charged = charge(message)
        time.sleep(PAUSE)
        check(message)
    outside.act("sync", message, f"booked {message.value.pad}".strip())
    return charged


@eventflow.kafka_consumer(
    TOPIC, group="ledger", retries=POLICY, ordering=ORDERING, on_failure=ON_FAILURE, dead_letter_topic=DEAD
)
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, f"booked {message.value.pad}".strip()))
    check(message)
