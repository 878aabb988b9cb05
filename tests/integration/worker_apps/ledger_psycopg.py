"""A transactional handler on psycopg: effect and position in one commit."""

import os
from typing import Any, cast

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message

ON_INCIDENT = cast("Any", os.environ.get("ON_INCIDENT", "stop"))


@eventflow.kafka_consumer(TOPIC.split(","), group="ledger", on_incident=ON_INCIDENT)
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    connection.execute(INSERT, row("ledger", message, "entered"))
