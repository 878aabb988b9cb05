"""A handler of all topics whose names begin alike."""

import re

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message


@eventflow.kafka_consumer(re.compile(f"{TOPIC}(-.*)?"), group="pattern")
async def handle(message: Message[Order]) -> None:
    outside.act("pattern", message, message.topic)
