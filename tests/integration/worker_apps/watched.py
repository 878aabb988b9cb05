"""An app to be watched: messages that block the loop, take their time, or fail; a schedule, a queue, events."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from common import TOPIC, Order

import eventflow
from eventflow import Message, Retry
from eventflow.queues import Queue

mail = Queue("mail", concurrency=1)
OUT = os.environ.get("OUT", "")
GATE = os.environ.get("GATE", "")


@eventflow.lifespan
async def gate() -> AsyncIterator[None]:
    if GATE:
        logging.getLogger("watched").warning("waits at the gate")
    while GATE and await asyncio.to_thread(Path(GATE).exists):
        await asyncio.sleep(0.02)
    yield


@eventflow.step
async def work(order: Order) -> int:
    if order.do == "block":
        time.sleep(float(order.pad))
    if order.do == "slow":
        await asyncio.sleep(float(order.pad))
    if order.do == "fail":
        raise ValueError("secret")
    return order.n


@eventflow.workflow
async def letter(n: int) -> None:
    if n < 0:
        await asyncio.sleep(3600)


@eventflow.kafka_consumer(TOPIC, group="watched", retries=Retry(1, delay=0.01))
async def watch(message: Message[Order]) -> None:
    await work(message.value)
    if message.value.do == "mail":
        await eventflow.enqueue(letter, -1, queue="mail")
        await eventflow.enqueue(letter, -1, queue="mail")
    if OUT:
        await eventflow.publish(OUT, message.value.n)


@eventflow.scheduled(every=timedelta(seconds=1))
async def tick() -> None: ...
