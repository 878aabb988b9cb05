"""The same as `two_steps_asleep`, in threads."""

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, sync


@eventflow.step
def act(message: Message[Order], note: str) -> int:
    outside.act("billing", message, note)
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
def bill(message: Message[Order]) -> int:
    first = act(message, "one")
    sync.sleep(0.5)
    return first + act(message, "two")
