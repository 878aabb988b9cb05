"""A sync handler of one step, in a thread."""

from common import TOPIC, Order

import eventflow
from eventflow import Message


@eventflow.step
def charge(order: Order) -> int:
    return order.n + 1


@eventflow.kafka_consumer(TOPIC, group="billing")
def bill(message: Message[Order]) -> int:
    return charge(message.value)
