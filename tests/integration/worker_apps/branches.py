"""A handler of branches that end in random order, by `gather` and by `TaskGroup`; each call of a step leaves its trace.

A trace is `{branch}.{number} {idempotency key}`. The call that `HOLD` names hangs.
"""

import asyncio
import os
import random

from common import TOPIC, Order, outside

import eventflow
from eventflow import Message, durable

BRANCHES, STEPS = 4, 3
HOLD = os.environ.get("HOLD")


@eventflow.step
async def act(message: Message[Order], branch: str, number: int) -> str:
    await asyncio.sleep(60 if HOLD == f"{branch}.{number}" else random.random() * 0.1)
    outside.act("billing", message, f"{branch}.{number} {durable.idempotency_key()}")
    return f"{branch}.{number}"


async def branch(message: Message[Order], name: str) -> list[str]:
    return [await act(message, name, number) for number in range(STEPS)]


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> list[list[str]]:
    gathered = await asyncio.gather(*(branch(message, f"gather {n}") for n in range(BRANCHES)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(message, f"group {n}")) for n in range(BRANCHES)]
    return [*gathered, *(task.result() for task in tasks)]
