"""Transactional steps whose user code is interrupted: what was rolled back leaves nothing, and the next ones are not blamed."""

import asyncio
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow.migrations import migrate
from eventflow.settings import Settings

INSERT = "insert into notes (note) values ('{}')"


@eventflow.transaction
async def note_by_session(session: AsyncSession, note: str, pause: float) -> str:
    await session.execute(text(INSERT.format(note)))
    await asyncio.sleep(pause)
    return note


@eventflow.transaction
async def note_by_connection(connection: psycopg.AsyncConnection[Any], note: str, pause: float) -> str:
    await connection.execute(INSERT.format(note).encode())
    await connection.execute("select pg_sleep(%s)", [pause])
    return note


STEPS = {"session": note_by_session, "connection": note_by_connection}


@eventflow.workflow(name="interrupted")
async def interrupted(kind: str) -> list[str]:
    noted: list[str] = []
    for turn in range(6):  # more than there are connections
        try:
            async with asyncio.timeout(0.1):
                await STEPS[kind](f"late {turn}", 30)
        except TimeoutError:
            noted.append(await STEPS[kind](f"in time {turn}", 0))
    return noted


@pytest.mark.parametrize("kind", list(STEPS))
def test_a_cancelled_transaction_leaves_nothing_behind(database_url: str, kind: str) -> None:
    migrate(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create table notes (note text)")

    async def main() -> list[str]:
        async with eventflow.running(Settings(database_url=database_url), consumers=False):
            return await asyncio.wait_for(interrupted(kind), 30)

    expected = [f"in time {turn}" for turn in range(6)]
    assert asyncio.run(main()) == expected
    with psycopg.connect(database_url) as connection:
        assert [row[0] for row in connection.execute("select note from notes order by 1")] == expected
