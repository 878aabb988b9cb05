"""An async handler of one step: the plain case."""

from common import TOPIC, Order

import eventflow
from eventflow import Message


@eventflow.step
async def charge(order: Order) -> int:
    return order.n + 1


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    return await charge(message.value)
