"""A handler's step tells how far it is, and starts a workflow with its record; HANG makes it stand still at page 3."""

import os
import time

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, durable, sync


@eventflow.workflow
def audit(n: int) -> int:
    return n


@eventflow.step
def load(message: Message[Order]) -> int:
    begins = durable.details(int) or 0
    outside.act("progress", message, f"from {begins}")
    sync.start(audit, message.value.n)
    for page in range(begins, 6):
        durable.heartbeat(page + 1)
        if page == 2 and "HANG" in os.environ:
            time.sleep(600)
    return 6


@eventflow.kafka_consumer(TOPIC, group="progress")
def take(message: Message[Order]) -> int:
    return load(message)
