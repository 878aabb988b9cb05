"""Refused at import: two handlers for the same topic and group."""

from common import TOPIC, Order

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(TOPIC, group="billing")
async def first(message: Message[Order]) -> None: ...


@eventflow.kafka_consumer(TOPIC, group="billing")
async def second(message: Message[Order]) -> None: ...
