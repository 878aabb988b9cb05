"""An async handler of two steps that act outside: the second may begin only when the first is recorded for good."""

import asyncio
import os

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, Retry

PAUSE = float(os.environ.get("PAUSE", "0"))


@eventflow.step(retries=Retry(50, delay=0.1, max_delay=0.5))
async def one(message: Message[Order]) -> int:
    outside.act("billing", message, "one")
    return message.value.n


@eventflow.step(retries=Retry(50, delay=0.1, max_delay=0.5))
async def two(message: Message[Order]) -> int:
    outside.act("billing", message, "two")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    first = await one(message)
    if PAUSE:
        await asyncio.sleep(PAUSE)
    return first + await two(message)
