"""Two handlers of one topic, of which one begins at its end."""

from common import TOPIC, Order

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="latest", start="latest")
async def follow(message: Message[Order]) -> int:
    return message.value.n
