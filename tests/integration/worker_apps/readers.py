"""What annotations admit: a model, raw bytes, a model or a tombstone."""

from common import TOPIC, Order

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="model")
async def model(message: Message[Order]) -> int:
    return len(message.value.pad)


@eventflow.kafka_consumer(TOPIC, group="raw")
async def raw(message: Message[bytes]) -> int:
    return len(message.value)


@eventflow.kafka_consumer(TOPIC, group="tombstones")
async def tombstones(message: Message[Order | None]) -> str:
    return "tombstone" if message.value is None else "order"
