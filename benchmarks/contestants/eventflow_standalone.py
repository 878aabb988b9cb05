"""eventflow: workflows that a program calls, enqueues, or starts from a workflow; async and sync."""

import asyncio
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from benchmarks.contestants import common, standalone
from benchmarks.contestants.entries import ENTER, Entry
from eventflow import sync
from eventflow.migrations import migrate
from eventflow.queues import Queue
from eventflow.settings import Settings

ENDED = "select count(*) from eventflow.workflows where status = 'succeeded'"
bodies = standalone.Bodies()


# ---- steps -----------------------------------------------------------------------------------------


@eventflow.step
async def double(n: int) -> int:
    bodies.add()
    return 2 * n


@eventflow.step
def double_sync(n: int) -> int:
    bodies.add()
    return 2 * n


@eventflow.workflow
async def one(n: int) -> int:
    return await double(n)


@eventflow.workflow
def one_sync(n: int) -> int:
    return double_sync(n)


@eventflow.workflow
async def three(n: int) -> int:
    return await double(await double(await double(n)))


@eventflow.workflow
def three_sync(n: int) -> int:
    return double_sync(double_sync(double_sync(n)))


# ---- queues and children ---------------------------------------------------------------------------


async def enqueue(n: int) -> int:
    await eventflow.enqueue(one, n, queue="bench")
    return 0


def enqueue_sync(n: int) -> int:
    sync.enqueue(one_sync, n, queue="bench")
    return 0


@eventflow.workflow
async def fan_out(width: int) -> int:
    children = [await eventflow.start(one, n) for n in range(width)]
    return sum([await child.result() for child in children])


@eventflow.workflow
def fan_out_sync(width: int) -> int:
    children = [sync.start(one_sync, n) for n in range(width)]
    return sum(child.result() for child in children)


# ---- transactions ----------------------------------------------------------------------------------


@eventflow.transaction
async def enter_session(session: AsyncSession, n: int) -> int:
    bodies.add()
    session.add(Entry(order_id=n, amount=n))
    return n


@eventflow.transaction
def enter_session_sync(session: Session, n: int) -> int:
    bodies.add()
    session.add(Entry(order_id=n, amount=n))
    return n


@eventflow.transaction
async def enter_psycopg(connection: "psycopg.AsyncConnection[Any]", n: int) -> int:
    bodies.add()
    await connection.execute(ENTER, (n, n))
    return n


@eventflow.transaction
def enter_psycopg_sync(connection: "psycopg.Connection[Any]", n: int) -> int:
    bodies.add()
    connection.execute(ENTER, (n, n))
    return n


@eventflow.workflow
async def book_session(n: int) -> int:
    return await enter_session(n)


@eventflow.workflow
def book_session_sync(n: int) -> int:
    return enter_session_sync(n)


@eventflow.workflow
async def book_psycopg(n: int) -> int:
    return await enter_psycopg(n)


@eventflow.workflow
def book_psycopg_sync(n: int) -> int:
    return enter_psycopg_sync(n)


# ---- the run ---------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Callable[[int], Any], Callable[[int], int]]] = {
    "direct": (one, one_sync),
    "latency": (one, one_sync),
    "three": (three, three_sync),
    "queued": (enqueue, enqueue_sync),
    "fan-out": (fan_out, fan_out_sync),
    "session": (book_session, book_session_sync),
    "psycopg": (book_psycopg, book_psycopg_sync),
}


async def main(arguments: Namespace) -> None:
    standalone.prepare(arguments.dsn, arguments.work)
    await asyncio.to_thread(migrate, arguments.dsn)
    Queue("bench", concurrency_per_process=None if arguments.unlimited else arguments.callers)
    settings = Settings(database_url=arguments.dsn, transaction_lanes=arguments.lanes)
    call = CALLS[arguments.work][arguments.colour == "sync"]
    async with eventflow.running(settings, consumers=False):
        await standalone.play(arguments, call, standalone.ended_in(arguments.dsn, ENDED, bodies), bodies)


if __name__ == "__main__":
    given = standalone.parser(__doc__)
    given.add_argument("--lanes", type=int, default=2, help="connections for transactions, of each kind")
    chosen = given.parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
