"""eventflow: a transactional handler, its effect and the message's position in one commit."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy.orm import Session

import eventflow
from benchmarks.contestants import common
from benchmarks.contestants.entries import ENTER, ENTRIES, Entry
from benchmarks.contestants.eventflow_workflow import contest, parser
from benchmarks.contestants.ledger import Order
from eventflow import Message

tally: common.Tally


@eventflow.transaction
def enter_psycopg(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    tally.add()
    connection.execute(ENTER, (message.value.order_id, message.value.amount))


@eventflow.transaction
async def enter_async(connection: psycopg.AsyncConnection[Any], message: Message[Order]) -> None:
    tally.add()
    await connection.execute(ENTER, (message.value.order_id, message.value.amount))


@eventflow.transaction(pipeline=True)
def enter_pipeline(connection: psycopg.Connection[Any], message: Message[Order]) -> None:
    tally.add()
    connection.execute(ENTER, (message.value.order_id, message.value.amount))


@eventflow.transaction(pipeline=True)
async def enter_pipeline_async(connection: psycopg.AsyncConnection[Any], message: Message[Order]) -> None:
    tally.add()
    await connection.execute(ENTER, (message.value.order_id, message.value.amount))


@eventflow.transaction
def enter_session(session: Session, message: Message[Order]) -> None:
    tally.add()
    session.add(Entry(order_id=message.value.order_id, amount=message.value.amount))


@eventflow.transaction
def enter_batch(connection: psycopg.Connection[Any], messages: list[Message[Order]]) -> None:
    for _ in messages:
        tally.add()
    with connection.cursor() as cursor:
        cursor.executemany(ENTER, [(message.value.order_id, message.value.amount) for message in messages])


HANDLERS: dict[str, Callable[[Message[Order]], object]] = {
    "psycopg": enter_psycopg,
    "psycopg-async": enter_async,
    "pipeline": enter_pipeline,
    "pipeline-async": enter_pipeline_async,
    "session": enter_session,
}


async def main(arguments: Namespace) -> None:
    global tally
    tally = common.Tally(arguments.count)
    with psycopg.connect(arguments.dsn, autocommit=True) as connection:
        connection.execute(ENTRIES)
    topic, group, ordering = arguments.topic, arguments.group, arguments.ordering
    if arguments.kind == "psycopg-batch":
        eventflow.kafka_consumer(topic, group=group, ordering=ordering, batch=500)(enter_batch)
    else:
        eventflow.kafka_consumer(topic, group=group, ordering=ordering)(HANDLERS[arguments.kind])
    await contest(arguments).measure(tally)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--kind", choices=[*HANDLERS, "psycopg-batch"], default="psycopg")
    chosen = options.parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
