"""Batch handlers, with and without a transaction, async and sync, in each order.

A row per message says which batch it came with: `key|process.number.size`.
"""

import itertools
import os
import time
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow import Message, Retry

KINDS = os.environ.get("KINDS", "plain plain_sync transaction atransaction").split()
ORDERING: Any = os.environ.get("ORDERING", "none")
BATCH = int(os.environ.get("BATCH", "20"))
POLICY = Retry(int(os.environ.get("RETRIES", "1")), delay=0.1)
number = itertools.count(1)
Messages = list[Message[Order]]


def rows(group: str, messages: Messages) -> list[tuple[Any, ...]]:
    batch = f"{os.getpid()}.{next(number)}.{len(messages)}"
    return [row(group, m, f"{(m.key or b'').decode()}|{batch}") for m in messages]


def misbehave(messages: Messages) -> None:
    if any(m.value.do == "slow" for m in messages):
        time.sleep(0.2)
    bad = [m.value.n for m in messages if m.value.do == "fail"]
    if bad:
        raise ValueError(f"orders {bad} are refused")


if "plain" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="plain", batch=BATCH, ordering=ORDERING, retries=POLICY)
    async def index(messages: Messages) -> None:
        misbehave(messages)
        outside.act_all(rows("plain", messages))


if "plain_sync" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="plain_sync", batch=BATCH, ordering=ORDERING, retries=POLICY)
    def index_sync(messages: Messages) -> None:
        misbehave(messages)
        outside.act_all(rows("plain_sync", messages))


if "transaction" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="transaction", batch=BATCH, ordering=ORDERING, retries=POLICY)
    @eventflow.transaction
    def enter(connection: psycopg.Connection[Any], messages: Messages) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(INSERT, rows("transaction", messages))
        misbehave(messages)


if "atransaction" in KINDS:

    @eventflow.kafka_consumer(TOPIC, group="atransaction", batch=BATCH, ordering=ORDERING, retries=POLICY)
    @eventflow.transaction
    async def aenter(session: AsyncSession, messages: Messages) -> None:
        names = ("g", "t", "p", "o", "n", "pid")
        insert = text(
            'insert into effects ("group", topic, partition, "offset", note, pid) values (:g, :t, :p, :o, :n, :pid)'
        )
        given = [dict(zip(names, one, strict=True)) for one in rows("atransaction", messages)]
        await session.execute(insert, given)
        misbehave(messages)
