"""A message that says `kill` kills its process within milliseconds; in a step, a plain handler or a transaction."""

import os
import signal
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, row

import eventflow
from eventflow import Message

RECOVERIES = int(os.environ.get("RECOVERIES", "5"))


def perhaps_die(order: Order) -> None:
    if order.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ["KIND"] == "async":

    @eventflow.kafka_consumer(TOPIC, group="billing", recoveries=RECOVERIES)
    async def handle(message: Message[Order]) -> int:
        perhaps_die(message.value)
        return message.value.n

elif os.environ["KIND"] == "sync":

    @eventflow.kafka_consumer(TOPIC, group="billing", recoveries=RECOVERIES)
    def handle(message: Message[Order]) -> int:
        perhaps_die(message.value)
        return message.value.n

else:

    @eventflow.kafka_consumer(TOPIC, group="billing", recoveries=RECOVERIES)
    @eventflow.transaction
    def handle(connection: psycopg.Connection[Any], message: Message[Order]) -> int:
        connection.execute(INSERT, row("billing", message, "entered"))
        perhaps_die(message.value)
        return message.value.n
