"""An app to be watched: messages that block the loop, take their time, or fail; a schedule, a queue, events."""

import asyncio
import os
import time
from datetime import timedelta

from common import TOPIC, Order

import eventflow
from eventflow import Message, Retry
from eventflow.queues import Queue

mail = Queue("mail", concurrency=1)
OUT = os.environ.get("OUT", "")


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
