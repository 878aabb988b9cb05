"""A program all of whose values are secrets: arguments, results, errors, messages, events, streams, and what Kafka brings."""

import os
from typing import Any

import psycopg
from pydantic import BaseModel

import eventflow
from eventflow import Message, durable, sync
from tests.conformance.colours import Body, Do, both

TOPIC = os.environ.get("TOPIC", "secrets")


class Note(BaseModel):
    text: str


def make(text: str) -> str:
    return f"{text} made"


def fail(text: str) -> str:
    raise ValueError(f"{text} failed")


@both
def tells(do: Do, text: str) -> Body[str]:
    """A child."""
    yield do.set_event("said", f"{text} said")
    received = yield do.recv(str, timeout=60)
    return f"{received} back"


@both
def breaks(do: Do, text: str) -> Body[str]:
    """A child that fails."""
    yield do.sleep(0.01)
    raise ValueError(f"{text} broke")


@both
def stands_in_line(do: Do, text: str) -> Body[str]:
    yield do.sleep(0.01)
    return f"{text} served"


def enqueued(do: Do, text: str) -> Any:
    verb: Any = eventflow.enqueue if do.colour == "async" else sync.enqueue
    return lambda: verb(stands_in_line[do.colour], text)


@both
def keeps(do: Do, note: Note) -> Body[list[str]]:
    found: list[str] = [(yield do.run_step(make, note.text))]
    try:
        yield do.run_step(fail, note.text)
    except ValueError as error:
        found.append(str(error))
    yield do.write_stream("pages", f"{note.text} page")
    child = yield do.start(tells, f"{note.text} child")
    yield do.send(child.workflow_id, f"{note.text} sent")
    found.append((yield do.event(child.workflow_id, "said", str)))
    yield do.sleep(0.1)
    found.append((yield child.result))
    try:
        yield do.call(breaks, note.text)
    except ValueError as error:
        found.append(str(error))
    queued = yield enqueued(do, f"{note.text} queued")
    found.append((yield queued.result))
    found.append((yield do.recv(str, topic="outside", timeout=60)))
    return found


@eventflow.kafka_consumer(TOPIC, group="begins")
async def begins(message: Message[Note, str]) -> str:
    """Starts the workflow that the key names, and waits, so that it is accepted before it ends."""
    name = message.key.split()[0]
    await eventflow.start(keeps["sync" if name == "sync" else "async"], message.value, workflow_id=name)
    return f"{message.value.text} {await durable.recv(str)}"


@eventflow.step
async def weigh(text: str) -> str:
    return f"{text} weighed"


@eventflow.kafka_consumer(TOPIC, group="quick")
async def quick(message: Message[Note]) -> str:
    """Ends before it needs a row: its steps stand inside."""
    return await weigh(message.value.text)


@eventflow.kafka_consumer(TOPIC, group="refuses", retries=0)
def refuses(message: Message[Note]) -> None:
    raise ValueError(f"{message.value.text} refused")


@eventflow.kafka_consumer(TOPIC, group="books")
@eventflow.transaction
def books(connection: "psycopg.Connection[Any]", message: Message[Note]) -> str:
    return f"{message.value.text} booked"
