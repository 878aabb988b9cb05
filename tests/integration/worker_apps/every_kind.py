"""One of each kind that a process can serve: a consumer, a queue, a schedule."""

from datetime import timedelta

from common import TOPIC, Order

import eventflow
from eventflow import Message
from eventflow.queues import Queue

mail = Queue("mail")


@eventflow.workflow
async def letter() -> None: ...


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    return message.value.n


@eventflow.scheduled(every=timedelta(seconds=1))
async def tick() -> None: ...
