"""Handlers that count how many of them run at once, and one that blocks for longer than Kafka lets a consumer be silent."""

import asyncio
import threading
import time

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message

INTERVAL = 3.0  # seconds
running = {"async": 0, "sync": 0}
lock = threading.Lock()


@eventflow.kafka_consumer(TOPIC, group="async", max_in_flight=5, kafka={"group.instance.id": "mine"})
async def wait(message: Message[Order]) -> None:
    running["async"] += 1
    outside.act("async", message, str(running["async"]))
    await asyncio.sleep(0.02)
    running["async"] -= 1


@eventflow.kafka_consumer(TOPIC, group="sync", max_in_flight=4)
def sleep(message: Message[Order]) -> None:
    with lock:
        running["sync"] += 1
        outside.act("sync", message, str(running["sync"]))
    time.sleep(0.06)
    with lock:
        running["sync"] -= 1


@eventflow.kafka_consumer(
    TOPIC, group="blocking", max_in_flight=1, kafka={"max.poll.interval.ms": int(INTERVAL * 1000)}
)
def block(message: Message[Order]) -> None:
    if message.value.n == 0:
        time.sleep(INTERVAL + 2)
