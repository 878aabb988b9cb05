"""What stands still in every way there is, for `eventflow why`: messages of a key, workflows, queues."""

import asyncio
import os
from typing import Any

from common import TOPIC

import eventflow
from eventflow import Message, Retry, durable
from eventflow.errors import DeterminismError
from eventflow.queues import Queue

tight = Queue("tight", concurrency=1)
closed = Queue("closed")
keyed = Queue("keyed", concurrency_per_key=1)
POLICY = Retry(5, delay=60, jitter=0, retry_if=(ConnectionError,))


@eventflow.kafka_consumer(TOPIC, group="billing", ordering="key", retries=POLICY)
async def bill(message: Message[dict[str, str]]) -> None:
    match message.value["do"]:
        case "sleep":
            await durable.sleep(7200)
        case "fail":
            raise ValueError("the card is refused")
        case "retry":
            raise ConnectionError("the bank is away")
        case "park":
            raise DeterminismError("as if other code had recorded it")
        case _:
            pass


@eventflow.kafka_consumer(os.environ["STOPPING"], group="stopping", on_failure="stop", retries=0)
async def stops(message: Message[dict[str, str]]) -> None:
    raise ValueError("it cannot be")


@eventflow.step
async def stuck() -> None:
    await asyncio.Event().wait()


@eventflow.step(retries=POLICY)
async def call_bank() -> None:
    raise ConnectionError("the bank is away")


@eventflow.workflow
async def sleeps() -> None:
    await durable.sleep(7200)


@eventflow.workflow
async def receives(timeout: float | None) -> Any:
    return await durable.recv(str, topic="paid", timeout=timeout)


@eventflow.workflow
async def parent() -> None:
    child = await eventflow.start(sleeps)
    await child.result()


@eventflow.workflow
async def listens(target: str) -> Any:
    return await durable.event(target, "shipped", str)


@eventflow.workflow
async def waits(target: str) -> None:
    child = await eventflow.start(sleeps)
    await asyncio.gather(child.result(), durable.event(target, "shipped", str))


@eventflow.workflow
async def ends(*, well: bool) -> None:
    if not well:
        raise ValueError("it cannot be")


@eventflow.workflow
async def retries() -> None:
    await call_bank()


@eventflow.workflow
async def works() -> None:
    await stuck()
