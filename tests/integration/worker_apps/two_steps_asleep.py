"""An async handler that sleeps between its two steps, longer than it may stay in memory."""

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, durable


@eventflow.step
async def act(message: Message[Order], note: str) -> int:
    outside.act("billing", message, note)
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    first = await act(message, "one")
    await durable.sleep(0.5)
    return first + await act(message, "two")
