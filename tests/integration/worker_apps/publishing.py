"""Handlers of every kind that publish what they get: each event once, whatever dies."""

import os
import time
from pathlib import Path
from typing import Any

from common import TOPIC, Order
from sqlalchemy import text
from sqlalchemy.orm import Session

import eventflow
from eventflow import Message, slots, sync

OUT = os.environ["OUT"]


@eventflow.step
async def announce(message: Message[Order]) -> int:
    await eventflow.publish(OUT, {"by": "step", "n": message.value.n}, key=f"step-{message.value.n % 7}")
    return message.value.n


@eventflow.kafka_consumer(TOPIC, group="flow", ordering="partition")
async def flow(message: Message[Order]) -> None:
    n = await announce(message)
    await eventflow.publish(OUT, {"by": "flow", "n": n}, key=f"flow-{message.partition}")


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction
def enter(session: Session, message: Message[Order]) -> None:
    session.execute(text("select 1"))
    sync.publish(OUT, {"by": "ledger", "n": message.value.n})


class Losing(slots.Producer):
    """librdkafka, one of whose calls may wait for ever, as for a coordinator that it has forgotten (its issue 5511), or raise."""

    left = int(os.environ.get("LOSES", "0"))
    raises = int(os.environ.get("RAISES", "0"))

    def begin_transaction(self) -> None:
        Losing.raises -= 1
        if Losing.raises == 0:
            raise RuntimeError("of the test")
        super().begin_transaction()

    def commit_transaction(self, *args: Any, **options: Any) -> None:
        Losing.left -= 1
        if Losing.left == 0:
            while not Path(os.environ["FOUND"]).exists():
                time.sleep(0.05)
        super().commit_transaction(*args, **options)


slots.Producer = Losing
