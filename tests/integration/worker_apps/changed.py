"""Handlers whose code changes by `CODE`: their first step is `charge` in the old program, `refund` in the new one."""

import asyncio
import os
import time

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message

OLD = os.environ["CODE"] == "old"


@eventflow.step
async def charge(message: Message[Order]) -> int:
    return message.value.n


@eventflow.step
async def refund(message: Message[Order]) -> int:
    outside.act("billing", message, "refunded")
    return message.value.n


@eventflow.step
def weigh(message: Message[Order]) -> int:
    return message.value.n


@eventflow.step
def measure(message: Message[Order]) -> int:
    outside.act("weighing", message, "measured")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    if not OLD:
        return await refund(message)
    await charge(message)
    await asyncio.sleep(60)
    return 0


@eventflow.kafka_consumer(TOPIC, group="weighing")
def ship(message: Message[Order]) -> int:
    if not OLD:
        return measure(message)
    weigh(message)
    time.sleep(60)
    return 0
