"""DBOS 3.4: workflows that a program calls, enqueues, or starts from a workflow; async and sync.

DBOS's step functions run at least once. What stands beside a transactional step is either of two things that a DBOS user
has today: a step that opens a transaction of its own ("session", "psycopg"; its effect may happen twice), or a datasource
("datasource"; its effect happens once). `@DBOS.transaction` left the open package with 3.0.
"""

import asyncio
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy
from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, SQLAlchemyDatasource
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.contestants import common, standalone
from benchmarks.contestants.entries import ENTER, Entry

ENDED = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"
POLLING = 0.1  # seconds between two looks into the queue; DBOS's own default is 1
bodies = standalone.Bodies()


# ---- steps -----------------------------------------------------------------------------------------


@DBOS.step()
async def double(n: int) -> int:
    bodies.add()
    return 2 * n


@DBOS.step()
def double_sync(n: int) -> int:
    bodies.add()
    return 2 * n


@DBOS.workflow()
async def one(n: int) -> int:
    return await double(n)


@DBOS.workflow()
def one_sync(n: int) -> int:
    return double_sync(n)


@DBOS.workflow()
async def three(n: int) -> int:
    return await double(await double(await double(n)))


@DBOS.workflow()
def three_sync(n: int) -> int:
    return double_sync(double_sync(double_sync(n)))


# ---- queues and children ---------------------------------------------------------------------------


async def enqueue(n: int) -> int:
    await DBOS.enqueue_workflow_async("bench", one, n)
    return 0


def enqueue_sync(n: int) -> int:
    DBOS.enqueue_workflow("bench", one_sync, n)
    return 0


@DBOS.workflow()
async def fan_out(width: int) -> int:
    children = [await DBOS.start_workflow_async(one, n) for n in range(width)]
    return sum([await child.get_result() for child in children])


@DBOS.workflow()
def fan_out_sync(width: int) -> int:
    children = [DBOS.start_workflow(one_sync, n) for n in range(width)]
    return sum(child.get_result() for child in children)


@DBOS.workflow()
async def sleeper(until: float) -> float:
    await DBOS.sleep_async(max(0.0, until - time.time()))
    bodies.add()
    return time.time()


# ---- transactions ----------------------------------------------------------------------------------


class Stores:
    """The application's own engines, a pool each as large as there are callers, and a psycopg connection per thread."""

    def __init__(self, arguments: Namespace) -> None:
        url = sqlalchemy.make_url(arguments.dsn).set(drivername="postgresql+psycopg")
        self.dsn = arguments.dsn
        self.engine = sqlalchemy.create_engine(url, pool_size=arguments.pool, max_overflow=0)
        self.async_engine = create_async_engine(url, pool_size=arguments.pool, max_overflow=0)
        self.idle: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
        self.local = threading.local()

    async def open(self, count: int) -> None:
        for _ in range(count):
            self.idle.put_nowait(await psycopg.AsyncConnection.connect(self.dsn))

    def connection(self) -> "psycopg.Connection[Any]":
        if not hasattr(self.local, "connection"):
            self.local.connection = psycopg.connect(self.dsn)
        return self.local.connection


stores: Stores


@DBOS.step()
async def enter_session(n: int) -> int:
    bodies.add()
    async with AsyncSession(stores.async_engine) as session, session.begin():
        session.add(Entry(order_id=n, amount=n))
    return n


@DBOS.step()
def enter_session_sync(n: int) -> int:
    bodies.add()
    with Session(stores.engine) as session, session.begin():
        session.add(Entry(order_id=n, amount=n))
    return n


@DBOS.step()
async def enter_psycopg(n: int) -> int:
    bodies.add()
    connection = await stores.idle.get()
    try:
        async with connection.transaction():
            await connection.execute(ENTER, (n, n))
    finally:
        stores.idle.put_nowait(connection)
    return n


@DBOS.step()
def enter_psycopg_sync(n: int) -> int:
    bodies.add()
    connection = stores.connection()
    with connection.transaction():
        connection.execute(ENTER, (n, n))
    return n


@DBOS.workflow()
async def book_session(n: int) -> int:
    return await enter_session(n)


@DBOS.workflow()
def book_session_sync(n: int) -> int:
    return enter_session_sync(n)


@DBOS.workflow()
async def book_psycopg(n: int) -> int:
    return await enter_psycopg(n)


@DBOS.workflow()
def book_psycopg_sync(n: int) -> int:
    return enter_psycopg_sync(n)


async def datasource() -> tuple[Callable[[int], Any], Callable[[int], int]]:
    """The workflows whose step is a datasource's transaction; read committed, as eventflow's are."""
    async_store = await AsyncSQLAlchemyDatasource.create(stores.dsn, engine=stores.async_engine)
    store = await asyncio.to_thread(SQLAlchemyDatasource.create, stores.dsn, engine=stores.engine)

    @async_store.transaction(isolation_level="READ COMMITTED")
    async def enter(n: int) -> int:
        bodies.add()
        async_store.sql_session().add(Entry(order_id=n, amount=n))
        return n

    @store.transaction(isolation_level="READ COMMITTED")
    def enter_sync(n: int) -> int:
        bodies.add()
        store.sql_session().add(Entry(order_id=n, amount=n))
        return n

    @DBOS.workflow(name="book_datasource")
    async def book(n: int) -> int:
        return await enter(n)

    @DBOS.workflow(name="book_datasource_sync")
    def book_sync(n: int) -> int:
        return enter_sync(n)

    return book, book_sync


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


async def sleepers(arguments: Namespace, ended: standalone.Ended) -> None:
    """Start them all, let them sleep, and wake them at a steady rate: memory, and how late each wakes."""
    figures = standalone.Figures(before=common.resident())
    begin = time.time() + arguments.lead
    handles: list[Any] = []

    async def start(n: int) -> int:
        handles.append((n, await DBOS.start_workflow_async(sleeper, begin + n / arguments.rate)))
        return 0

    began = time.perf_counter()
    await standalone.tasks(start, arguments.callers)(range(arguments.count))
    started = time.perf_counter() - began
    figures.peak = common.resident()
    left = begin - time.time()
    await ended(arguments.count)
    woken = [(begin + n / arguments.rate, await handle.get_result()) for n, handle in handles]
    last = max(at for _, at in woken)
    figures.seconds = last - min(at for _, at in woken)
    figures.report(
        arguments.count, 0, bodies, lead_left=left, started_per_second=arguments.count / started,
        delays=[at - due for due, at in woken],
    )  # fmt: skip


async def main(arguments: Namespace) -> None:
    global stores
    standalone.prepare(arguments.dsn, arguments.work)
    stores = Stores(arguments)
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": arguments.dsn,
        "application_version": "1",
        "log_level": "ERROR",
        "sys_db_pool_size": arguments.pool,
        "max_executor_threads": arguments.threads,
    }
    DBOS(config=config)
    await asyncio.to_thread(DBOS.migrate, arguments.dsn)
    calls = await datasource() if arguments.work == "datasource" else CALLS.get(arguments.work)
    if arguments.work == "psycopg":
        await stores.open(arguments.pool)
    await asyncio.to_thread(DBOS.launch)
    limit = None if arguments.unlimited else arguments.callers
    await DBOS.register_queue_async("bench", worker_concurrency=limit, polling_interval_sec=POLLING)
    ended = standalone.ended_in(arguments.dsn, ENDED, bodies)
    if calls is None:
        await sleepers(arguments, ended)
    else:
        await standalone.play(arguments, calls[arguments.colour == "sync"], ended, bodies)
    await asyncio.to_thread(DBOS.destroy)


if __name__ == "__main__":
    given = standalone.parser(__doc__)
    given.add_argument("--pool", type=int, default=20, help="connections of DBOS, and as many of the application")
    given.add_argument("--threads", type=int, default=64, help="that run what is enqueued or started")
    given.add_argument("--rate", type=int, default=200, help="sleepers that are due in each second")
    given.add_argument("--lead", type=float, default=30.0, help="seconds before the first is due")
    chosen = given.parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
