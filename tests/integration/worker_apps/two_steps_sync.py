"""A sync handler of two steps that act outside."""

import os
import time

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, Retry

PAUSE = float(os.environ.get("PAUSE", "0"))


@eventflow.step(retries=Retry(50, delay=0.1, max_delay=0.5))
def one(message: Message[Order]) -> int:
    outside.act("billing", message, "one")
    return message.value.n


@eventflow.step(retries=Retry(50, delay=0.1, max_delay=0.5))
def two(message: Message[Order]) -> int:
    outside.act("billing", message, "two")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
def bill(message: Message[Order]) -> int:
    first = one(message)
    if PAUSE:
        time.sleep(PAUSE)
    return first + two(message)
