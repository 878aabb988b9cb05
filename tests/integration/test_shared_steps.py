"""Transaction steps that share a commit: each is in it once, with its record; one that fails, is cancelled or waits does so alone."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import durable
from eventflow.settings import Settings

INSERT = "insert into notes (note) values ('{}')"
LOCK = "select pg_advisory_xact_lock(1)"
BROKEN, WAITS, SLOW = 17, 18, 19
COUNT = 60
ran: list[int] = []


def act(n: int, troubled: bool) -> str:
    ran.append(n)
    return LOCK if troubled and n == WAITS else INSERT.format(n)


def end(n: int, troubled: bool) -> int:
    if troubled and n == BROKEN:
        raise ValueError(f"{n} is broken")
    return n


@eventflow.transaction
async def async_session(session: AsyncSession, n: int, troubled: bool) -> int:
    await session.execute(text(act(n, troubled)))
    if troubled and n == SLOW:
        await asyncio.sleep(30)
    return end(n, troubled)


@eventflow.transaction
async def async_connection(connection: psycopg.AsyncConnection[Any], n: int, troubled: bool) -> int:
    await connection.execute(act(n, troubled).encode())
    if troubled and n == SLOW:
        await asyncio.sleep(30)
    return end(n, troubled)


@eventflow.transaction
def sync_session(session: Session, n: int, troubled: bool) -> int:
    session.execute(text(act(n, troubled)))
    return end(n, troubled)


@eventflow.transaction
def sync_connection(connection: psycopg.Connection[Any], n: int, troubled: bool) -> int:
    connection.execute(act(n, troubled).encode())
    return end(n, troubled)


@eventflow.transaction(isolation="repeatable read")
async def above(connection: psycopg.AsyncConnection[Any], n: int, troubled: bool) -> int:
    await connection.execute(act(n, troubled).encode())
    return end(n, troubled)


STEPS: dict[str, Any] = {
    "async session": async_session, "async connection": async_connection, "sync session": sync_session,
    "sync connection": sync_connection, "above": above,
}  # fmt: skip


@eventflow.workflow(name="sharing")
async def booked(kind: str, n: int, troubled: bool) -> int:
    if not (troubled and n == SLOW):
        return await STEPS[kind](n, troubled)
    try:
        async with asyncio.timeout(1):
            return await STEPS[kind](n, troubled)
    except TimeoutError:
        return -1


@eventflow.workflow(name="sharing, by run_step")
async def run(kind: str, n: int, troubled: bool) -> int:
    return await durable.run_step(STEPS[kind], n, troubled, name=f"number {n}", retries=1)


@eventflow.workflow(name="sharing, sync")
def booked_sync(kind: str, n: int, troubled: bool) -> int:
    return STEPS[kind](n, troubled)


@pytest.fixture
def url(ledger_url: str) -> Iterator[str]:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("create table notes (note text)")
    ran.clear()
    yield ledger_url


async def book(url: str, kind: str, *, troubled: bool = False, lanes: int = 1) -> list[Any]:
    """What came of so many workflows at once: results and errors."""
    settings = Settings(database_url=url, transaction_lanes=lanes)
    async with eventflow.running(settings, consumers=False):
        if kind.startswith("sync"):
            loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(COUNT)
            calls: list[Any] = [loop.run_in_executor(threads, booked_sync, kind, n, troubled) for n in range(COUNT)]
        else:
            calls = [booked(kind, n, troubled) for n in range(COUNT)]
        return await asyncio.gather(*calls, return_exceptions=True)


def noted(url: str) -> tuple[list[int], int]:
    """What is noted, and in how many commits; each note in that of its record."""
    query = """select n.note, n.xmin::text, c.xmin = n.xmin from notes n
                 left join eventflow.checkpoints c on c.output = n.note and c.error is null"""
    with psycopg.connect(url) as connection:
        rows = connection.execute(query.encode()).fetchall()
    assert all(together for _, _, together in rows)
    return sorted(int(note) for note, _, _ in rows), len({commit for _, commit, _ in rows})


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind != "above"])
def test_those_that_wait_for_a_lane_share_a_commit(url: str, kind: str) -> None:
    assert asyncio.run(book(url, kind)) == list(range(COUNT))
    notes, commits = noted(url)
    assert notes == list(range(COUNT))
    assert commits < COUNT / 2
    assert sorted(ran) == list(range(COUNT))


def test_those_that_run_step_calls_share_a_commit_whatever_their_names(url: str) -> None:
    async def main() -> list[int]:
        async with eventflow.running(Settings(database_url=url, transaction_lanes=1), consumers=False):
            return await asyncio.gather(*(run("async connection", n, False) for n in range(COUNT)))

    assert asyncio.run(main()) == list(range(COUNT))
    assert noted(url)[1] < COUNT / 2


@pytest.mark.parametrize("default", [False, True])
def test_above_read_committed_nobody_comes_into_a_snapshot(url: str, default: bool) -> None:
    """A step would not see what was committed since, its own workflow's steps included."""
    if default:
        with psycopg.connect(url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f'alter database "{name}" set default_transaction_isolation = serializable'.encode())
    assert asyncio.run(book(url, "async session" if default else "above")) == list(range(COUNT))
    assert noted(url) == (list(range(COUNT)), COUNT)


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind != "above"])
def test_who_fails_or_waits_or_is_cancelled_does_so_alone(url: str, kind: str) -> None:
    """One waits for a lock that a stranger has for as long as it takes all others to end."""
    held, ended = threading.Event(), threading.Event()

    def stranger() -> None:
        with psycopg.connect(url) as connection:
            connection.execute(LOCK.encode())
            held.set()
            while not ended.wait(0.1):
                [[count]] = connection.execute("select count(*) from notes").fetchall()
                if count >= COUNT - 3 + kind.startswith("sync"):
                    return

    holder = threading.Thread(target=stranger)
    holder.start()
    held.wait(10)
    try:
        found = asyncio.run(asyncio.wait_for(book(url, kind, troubled=True, lanes=2), 60))
    finally:
        ended.set()
        holder.join()
    slow = SLOW if kind.startswith("sync") else -1
    expected = [slow if n == SLOW else n for n in range(COUNT)]
    assert [repr(one) if isinstance(one, Exception) else one for one in found] == [
        repr(ValueError(f"{n} is broken")) if n == BROKEN else n for n in expected
    ]
    gone = {BROKEN, WAITS} if kind.startswith("sync") else {BROKEN, WAITS, SLOW}
    assert noted(url)[0] == [n for n in range(COUNT) if n not in gone]
