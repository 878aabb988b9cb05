"""A program that does not end: told to go, something in it hangs, by `HANG`."""

import ctypes
import os
import threading
import time
from collections.abc import AsyncIterator

from common import TOPIC, Order

import eventflow
from eventflow import Message, app

HANG = os.environ["HANG"]
FOR_EVER = 3600
app._OVERDUE = 1.0  # what a deployment waits longer for


@eventflow.lifespan
async def resources() -> AsyncIterator[None]:
    if HANG == "a thread":
        threading.Thread(target=lambda: time.sleep(FOR_EVER), daemon=False).start()
    yield
    if HANG == "the loop":
        time.sleep(FOR_EVER)  # noqa: ASYNC251
    elif HANG == "the interpreter":
        ctypes.PyDLL(None).sleep(FOR_EVER)  # a library that never lets go of the interpreter lock


@eventflow.kafka_consumer(TOPIC, group="billing")
async def bill(message: Message[Order]) -> int:
    return message.value.n
