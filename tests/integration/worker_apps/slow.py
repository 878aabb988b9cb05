"""A handler that takes its time, async or sync by `COLOUR`; not for messages that are to be done `quick`."""

import asyncio
import os
import time

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message

PAUSE = float(os.environ.get("PAUSE", "0.3"))

if os.environ.get("COLOUR") == "sync":

    @eventflow.kafka_consumer(TOPIC, group="billing")
    def bill(message: Message[Order]) -> int:
        outside.act("billing", message, "began")
        time.sleep(0 if message.value.do == "quick" else PAUSE)
        return message.value.n

else:

    @eventflow.kafka_consumer(TOPIC, group="billing")
    async def bill(message: Message[Order]) -> int:
        outside.act("billing", message, "began")
        await asyncio.sleep(0 if message.value.do == "quick" else PAUSE)
        return message.value.n
