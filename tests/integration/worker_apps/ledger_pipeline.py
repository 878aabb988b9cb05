"""A transactional handler whose statements are kept back (ADR 19): one of them looks at its result, and one is behind a savepoint."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction(pipeline=True)
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    entry = row("ledger", message, "entered")
    if message.offset % 10 == 5:
        with connection.transaction():
            assert connection.execute(INSERT, entry).rowcount == 1
    else:
        connection.execute(INSERT, entry)
