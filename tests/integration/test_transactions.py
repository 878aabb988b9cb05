"""Transactions called in workflows and outside: one commit or none, as their options say; what is interrupted leaves nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Retry, sync
from eventflow.settings import Settings
from tests.harness import World

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


@pytest.fixture
def notes_url(ledger_url: str) -> Iterator[str]:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("create table notes (note text)")
    yield ledger_url


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("kind", list(STEPS))
def test_a_cancelled_transaction_leaves_nothing_behind(notes_url: str, kind: str) -> None:
    async def main() -> list[str]:
        async with eventflow.running(Settings(database_url=notes_url), consumers=False):
            return await asyncio.wait_for(interrupted(kind), 30)

    expected = [f"in time {turn}" for turn in range(6)]
    assert asyncio.run(main()) == expected
    assert rows(notes_url, "select note from notes order by 1") == [(note,) for note in expected]


# ---- in a sync workflow, and outside of workflows ----------------------------------------------

ATTEMPTS: list[str] = []


@eventflow.transaction(retries=Retry(2, delay=0.01))
def note_at_last(connection: psycopg.Connection[Any], note: str, fails: int) -> str:
    """It writes, and then fails so many times."""
    ATTEMPTS.append(note)
    connection.execute(INSERT.format(note).encode())
    if ATTEMPTS.count(note) <= fails:
        raise ValueError(f"{note} fails")
    return f"{note} noted"


@eventflow.workflow(name="noting")
def noting() -> list[str]:
    noted = [note_at_last("at once", 0), note_at_last("the third time", 2)]
    try:
        note_at_last("never", 9)
    except ValueError as error:
        noted.append(str(error))
    return noted


def test_a_transaction_in_a_sync_workflow_is_a_step(notes_url: str) -> None:
    """Its effect and its checkpoint are one commit; an attempt that fails leaves nothing, and is retried as often as said."""
    ATTEMPTS.clear()
    with eventflow.running(Settings(database_url=notes_url), consumers=False):
        handle = sync.start(noting)
        assert handle.result(timeout=20) == ["at once noted", "the third time noted", "never fails"]
        steps = [(step.position, step.name, step.attempts) for step in handle.steps()]
    assert steps == [(f"1.{n}", "note_at_last", attempts) for n, attempts in ((1, 1), (2, 3), (3, 3))]
    assert ATTEMPTS == ["at once", *["the third time"] * 3, *["never"] * 3]
    together = """select note, n.xmin = c.xmin from notes n join eventflow.checkpoints c on c.output like '%' || note || '%'
                  order by 1"""
    assert rows(notes_url, together) == [("at once", True), ("the third time", True)]
    assert rows(notes_url, "select count(*) from notes") == [(2,)]


def test_a_transaction_outside_of_workflows(notes_url: str) -> None:
    """It commits when it returns, and leaves nothing when it raises, also from a loop's thread; there is no record."""
    ATTEMPTS.clear()
    settings = Settings(database_url=notes_url)

    async def main() -> None:
        async with eventflow.running(settings, consumers=False):
            assert await note_by_session("async", 0) == "async"
            assert rows(notes_url, "select note from notes order by 1") == [("async",), ("the third time",)]

    with eventflow.running(settings, consumers=False):
        assert note_at_last("the third time", 2) == "the third time noted"
        assert rows(notes_url, "select note from notes") == [("the third time",)]
        with pytest.raises(ValueError, match="never fails"):
            note_at_last("never", 9)
    asyncio.run(main())
    assert rows(notes_url, "select count(*) from eventflow.workflows") == [(0,)]
    with pytest.raises(eventflow.EventflowError, match="running"):
        note_at_last("nowhere", 0)


# ---- isolation ---------------------------------------------------------------------------------

SHOW = "select current_setting('transaction_isolation')"
LEVELS = (None, "read committed", "repeatable read", "serializable")


def shows(level: Any) -> dict[str, Any]:
    """A transaction of each kind that tells its level."""

    @eventflow.transaction(isolation=level)
    def by_session(session: Session) -> str:
        return session.execute(text(SHOW)).scalar_one()

    @eventflow.transaction(isolation=level)
    def by_connection(connection: psycopg.Connection[Any]) -> str:
        return connection.execute(SHOW.encode()).fetchall()[0][0]

    @eventflow.transaction(isolation=level)
    async def by_async_session(session: AsyncSession) -> str:
        return (await session.execute(text(SHOW))).scalar_one()

    @eventflow.transaction(isolation=level)
    async def by_async_connection(connection: psycopg.AsyncConnection[Any]) -> str:
        return (await (await connection.execute(SHOW.encode())).fetchall())[0][0]

    return {"sync": [by_connection, by_session], "async": [by_async_connection, by_async_session]}


def test_the_isolation_level_is_the_one_asked_for(notes_url: str) -> None:
    """On each kind of connection, whatever the transaction before it on the same one had asked for."""
    settings = Settings(database_url=notes_url, transaction_lanes=1)
    kinds = {level: shows(level) for level in LEVELS}
    order = [
        (which, level) for which in (0, 1, 0) for level in LEVELS
    ]  # a connection begins in another way after a Session
    found: list[tuple[Any, str]] = []

    async def main() -> None:
        async with eventflow.running(settings, consumers=False):
            for which, level in order:
                found.append((level, await kinds[level]["async"][which]()))

    asyncio.run(main())
    with eventflow.running(settings, consumers=False):
        for which, level in order:
            found.append((level, kinds[level]["sync"][which]()))
    assert found == [(level, level or "read committed") for _, level in order] * 2


def test_a_handler_on_an_async_session(world: World) -> None:
    """Stacked under `kafka_consumer`: effect and position are one commit, also where the worker is killed, at its level."""
    world.create_topic(2)
    victim = world.start("ledger_async_session", ready=True, crash="transactions.before_commit:2")
    world.produce(100, over=0.5)
    world.wait_death(victim)
    world.start("ledger_async_session")
    world.wait_completed("ledger")
    world.check("ledger", effects=True)
    assert world.sql("select distinct note from effects") == [("repeatable read",)]
