"""A transactional handler on psycopg: effect and position in one commit."""

from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, "entered"))
