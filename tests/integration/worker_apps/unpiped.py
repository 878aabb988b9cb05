"""A transactional handler that does what cannot be piped: a COPY, or an error that it lives with. It notes each of its calls."""

import os
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row

import eventflow
from eventflow import Message

KIND = os.environ["KIND"]


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    outside.act("calls", message, "called")
    if KIND == "copy":
        columns = 'copy effects ("group", topic, partition, "offset", note, pid) from stdin'
        with connection.cursor() as cursor, cursor.copy(columns) as copy:
            copy.write_row(row("ledger", message, "entered"))
        return
    try:
        with connection.transaction():
            connection.execute("insert into once values (1)")
    except psycopg.errors.UniqueViolation:
        connection.execute(INSERT, row("ledger", message, "entered"))
