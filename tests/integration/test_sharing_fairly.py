"""What a transaction step comes to is the same whether or not others' work is in its transaction."""

import asyncio
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from pydantic_core import core_schema
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import eventflow
from eventflow import durable
from eventflow.settings import Settings

COUNT = 30
tenant = ContextVar("tenant", default="nobody")


class Base(DeclarativeBase): ...


class Note(Base):
    __tablename__ = "notes"
    n: Mapped[int] = mapped_column(primary_key=True)
    workflow: Mapped[str] = mapped_column(default=lambda: durable.workflow_id())
    tenant: Mapped[str] = mapped_column(default=lambda: tenant.get())


class Numbered(Base):
    """One that is stored as JSON, too, as SQLModel's are."""

    __tablename__ = "numbered"
    note: Mapped[str]
    n: Mapped[int] = mapped_column(primary_key=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> core_schema.CoreSchema:
        told = core_schema.plain_serializer_function_ser_schema(lambda one: {"n": one.n, "note": one.note})
        return core_schema.no_info_plain_validator_function(lambda told: cls(**told), serialization=told)


@eventflow.transaction
async def notes(session: AsyncSession, n: int) -> None:
    session.add(Note(n=n))


@eventflow.workflow(name="noting for a tenant")
async def noting(n: int) -> None:
    tenant.set(f"tenant {n}")
    await notes(n)


@eventflow.transaction
async def numbers(session: AsyncSession, note: str) -> Numbered:
    one = Numbered(note=note)
    session.add(one)
    return one


@eventflow.workflow
async def numbering(n: int) -> Numbered:
    return await numbers(str(n))


@eventflow.transaction
async def ends_it(connection: psycopg.AsyncConnection[Any], n: int) -> None:
    await connection.execute("insert into plain (n) values (%s)", [n])
    if n == 7:
        await connection.execute("rollback")


@eventflow.transaction
async def ends_session(session: AsyncSession, n: int) -> None:
    await session.execute(text(f"insert into plain (n) values ({n})"))
    if n == 7:
        await session.execute(text("rollback"))


@eventflow.transaction
async def begins_anew(session: AsyncSession, n: int) -> None:
    """What it does itself cannot be told from a transaction that was never ended; the others' work can."""
    if n == 7:
        await session.execute(text("rollback"))
    await session.execute(text(f"insert into plain (n) values ({n})"))


ENDING: dict[str, Any] = {"connection": ends_it, "session": ends_session, "anew": begins_anew}


@eventflow.workflow
async def ending(n: int, kind: str) -> None:
    await ENDING[kind](n)


@eventflow.transaction
async def chooses(connection: psycopg.AsyncConnection[Any], n: int) -> str:
    if n % 3 == 0:
        await connection.execute("set transaction isolation level repeatable read")
    [found] = await (await connection.execute("show transaction_isolation")).fetchall()
    return str(found[0])


@eventflow.workflow
async def choosing(n: int) -> str:
    return await chooses(n)


@eventflow.transaction
async def counts(connection: psycopg.AsyncConnection[Any], to: str) -> int:
    [(n,)] = await (await connection.execute("update counter set n = n + 1 returning n")).fetchall()
    await durable.send(to, n)
    return n


@eventflow.workflow
async def counting(to: str) -> int:
    return await counts(to)


@eventflow.workflow
async def hears(count: int) -> list[int]:
    return [await durable.recv(int) for _ in range(count)]


@pytest.fixture
def url(ledger_url: str) -> str:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("create table notes (n int primary key, workflow text, tenant text)")
        connection.execute("create table numbered (n serial primary key, note text)")
        connection.execute("create table plain (n int)")
        connection.execute("create table counter (n int)")
        connection.execute("insert into counter values (0)")
    return ledger_url


def sql(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


async def together(url: str, function: Any, *args: Any) -> list[Any]:
    async with eventflow.running(Settings(database_url=url, transaction_lanes=1), consumers=False):
        return await asyncio.gather(*(function(n, *args) for n in range(COUNT)), return_exceptions=True)


def commits(url: str, table: str) -> int:
    return len(sql(url, f"select distinct xmin::text from {table}"))


def test_what_the_users_code_says_of_a_new_row_is_asked_in_its_own_call(url: str) -> None:
    assert asyncio.run(together(url, noting)) == [None] * COUNT
    found = sql(url, "select n, tenant from notes order by n")
    assert found == [(n, f"tenant {n}") for n in range(COUNT)]
    mine = """select count(*) from notes o join eventflow.workflows w
               on w.id = o.workflow and (w.arguments::jsonb -> 'args' ->> 0)::int = o.n"""
    assert sql(url, mine) == [(COUNT,)]
    assert commits(url, "notes") < COUNT / 2


def test_what_is_returned_of_a_new_row_is_whole(url: str) -> None:
    found = asyncio.run(together(url, numbering))
    inserted = sorted(sql(url, "select n, note from numbered"))
    assert sorted((one.n, one.note) for one in found) == inserted
    recorded = "select (output::jsonb ->> 'n')::int, output::jsonb ->> 'note' from eventflow.checkpoints order by 1"
    assert sql(url, recorded) == inserted
    assert commits(url, "numbered") < COUNT / 2


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_who_ends_the_transaction_by_statement_fails_alone(url: str, kind: str) -> None:
    found = asyncio.run(together(url, ending, kind))
    assert [n for n, one in enumerate(found) if one is not None] == [7]
    assert [n for (n,) in sql(url, "select n from plain order by n")] == [n for n in range(COUNT) if n != 7]


def test_who_ends_the_transaction_and_goes_on_loses_nothing_of_the_others(url: str) -> None:
    assert asyncio.run(together(url, ending, "anew")) == [None] * COUNT
    assert [n for (n,) in sql(url, "select n from plain order by n")] == list(range(COUNT))


def test_nobody_comes_into_a_snapshot_that_the_first_has_chosen(url: str) -> None:
    found = asyncio.run(together(url, choosing))
    assert found == ["read committed" if n % 3 else "repeatable read" for n in range(COUNT)]


def test_what_is_sent_has_the_order_of_the_functions(url: str) -> None:
    async def main() -> list[int]:
        async with eventflow.running(Settings(database_url=url, transaction_lanes=1), consumers=False):
            listener = await eventflow.start(hears, COUNT)
            await asyncio.gather(*(counting(listener.workflow_id) for _ in range(COUNT)))
            return await listener.result()

    assert asyncio.run(main()) == list(range(1, COUNT + 1))
