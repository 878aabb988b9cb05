"""What user code may do with a Session while its group shares a transaction, and what the messages see of each other."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from eventflow.database import Database
from eventflow.ports import AsyncPort, Mode, Port, RolledBackError
from eventflow.registry import TransactionSpec
from eventflow.retry import Retry


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(default="new")


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    order_id: Mapped[int]


TABLES = """
create table orders (id int primary key, state text not null);
create table lines (id int primary key, order_id int not null references orders)
"""
Handler = Callable[[Session], Any]


def spec(flavour: Any, *, pipeline: bool = False) -> TransactionSpec:
    return TransactionSpec("t", lambda: None, "async" in flavour, flavour, 0, None, Retry(0), pipeline=pipeline)


@pytest.fixture
def url(ledger_url: str) -> Iterator[str]:
    with psycopg.connect(ledger_url) as connection:
        connection.execute(TABLES.encode())
    yield ledger_url


def group(
    url: str, *handlers: Callable[[Any], Any], of: TransactionSpec | None = None, mode: Mode = "grouped"
) -> list[Any]:
    """What these handlers return, whose messages share a transaction; with Sessions, if nothing else is said."""
    port, of = Port(Database(url)), of or spec("session")
    port.begin(of)
    try:
        results = [port.user(of, handler, mode) for handler in handlers]
        port.flush()
        port.commit()
    finally:
        port.close()
    return results


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def add(number: int) -> Handler:
    return lambda session: session.add(Order(id=number))


def test_what_many_only_add_goes_out_at_once(url: str) -> None:
    statements: list[str] = []
    port = Port(Database(url))
    session = spec("session")
    port.begin(session)
    event.listen(port._sa, "before_cursor_execute", lambda *given: statements.append(given[2]))  # pyright: ignore[reportPrivateUsage]
    for number in range(40):
        port.user(session, add(number), "grouped")
    port.flush()
    port.commit()
    port.close()
    assert len(statements) == 1
    assert rows(url, "select count(*), min(state) from orders") == [(40, "new")]


@pytest.mark.parametrize(
    "look",
    [
        lambda session: session.get(Order, 1).state,
        lambda session: session.scalars(select(Order)).one().state,
        lambda session: session.execute(text("select state from orders")).scalar_one(),
        lambda session: session.connection().exec_driver_sql("select state from orders").scalar_one(),
    ],
)
def test_a_message_finds_what_the_one_before_it_added(url: str, look: Handler) -> None:
    assert group(url, add(1), look)[1] == "new"


def test_a_message_changes_what_the_one_before_it_added(url: str) -> None:
    def change(session: Session) -> None:
        session.get_one(Order, 1).state = "paid"

    group(url, add(1), change, add(2))
    assert rows(url, "select id, state from orders order by 1") == [(1, "paid"), (2, "new")]


@pytest.mark.parametrize("how", ["close", "expunge_all", "rollback", "expire_all"])
def test_what_a_message_does_to_its_session_is_its_own_affair(url: str, how: str) -> None:
    def forget(session: Session) -> None:
        session.add(Order(id=2))
        getattr(session, how)()

    group(url, add(1), forget, add(3))
    kept = [(1,), (2,), (3,)] if how == "expire_all" else [(1,), (3,)]
    assert rows(url, "select id from orders order by 1") == kept


def test_sessions_are_not_shared(url: str) -> None:
    seen: list[Any] = []

    def keep(session: Session) -> None:
        order = Order(id=1)
        session.add(order)
        seen.append(order)

    def other(session: Session) -> bool:
        return session.get(Order, 1) is seen[0]

    assert group(url, keep, other)[1] is False


def test_classes_go_out_in_the_order_of_their_messages(url: str) -> None:
    def line(number: int) -> Handler:
        return lambda session: session.add(Line(id=number, order_id=number))

    group(url, add(1), line(1), add(2), line(2))
    assert rows(url, "select order_id from lines order by 1") == [(1,), (2,)]


def test_one_that_cannot_be_added_fails_the_group_before_it_commits(url: str) -> None:
    with pytest.raises(IntegrityError):
        group(url, add(1), add(2), add(1))
    assert rows(url, "select count(*) from orders") == [(0,)]


def test_a_rollback_after_speaking_to_the_database_is_noticed(url: str) -> None:
    def undo(session: Session) -> None:
        session.execute(text("select 1"))
        session.rollback()

    with pytest.raises(RolledBackError):
        group(url, add(1), undo)
    assert rows(url, "select count(*) from orders") == [(0,)]


def test_a_session_of_its_own_flushes_at_once(url: str) -> None:
    port = Port(Database(url))
    session = spec("session")
    port.begin(session)
    with pytest.raises(IntegrityError):
        port.user(session, lambda s: s.add_all([Order(id=1), Order(id=1)]), "alone")
    port.rollback()
    port.close()


def test_async_sessions_too(url: str) -> None:
    async def main() -> Any:
        port = AsyncPort(Database(url))
        session = spec("async session")

        def adding(number: int) -> Callable[[AsyncSession], Any]:
            async def handler(session: AsyncSession) -> None:
                session.add(Order(id=number))

            return handler

        async def look(session: AsyncSession) -> str:
            return (await session.get_one(Order, 1)).state

        await port.begin(session)
        await port.user(session, adding(1), "grouped")
        found = await port.user(session, look, "grouped")
        await port.user(session, adding(2), "grouped")
        await port.flush()
        await port.commit()
        await port.close()
        return found

    assert asyncio.run(main()) == "new"
    assert rows(url, "select id from orders order by 1") == [(1,), (2,)]


@pytest.mark.parametrize("isolation", [None, "serializable"])
def test_a_nested_transaction_commits_nothing(url: str, isolation: Any) -> None:
    """`connection.transaction()` is a savepoint in ours, and not a transaction that commits by itself."""
    port = Port(Database(url))
    mine = TransactionSpec("t", lambda: None, False, "connection", 0, isolation, Retry(0))

    def handler(connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute("insert into orders values (1, 'new')")

    for _ in range(2):
        port.begin(mine)
        port.user(mine, handler, "grouped")
        port.rollback()
    port.close()
    assert rows(url, "select count(*) from orders") == [(0,)]


def test_an_async_nested_transaction_commits_nothing(url: str) -> None:
    async def handler(connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection.transaction():
            await connection.execute("insert into orders values (1, 'new')")

    async def main() -> None:
        port, mine = AsyncPort(Database(url)), spec("async connection")
        await port.begin(mine)
        await port.user(mine, handler, "grouped")
        await port.rollback()
        await port.close()

    asyncio.run(main())
    assert rows(url, "select count(*) from orders") == [(0,)]


def test_a_nested_transaction_commits_nothing_where_a_session_was_before(url: str) -> None:
    """A lane's connection serves transactions of every kind, one after the other."""
    port, before, mine = Port(Database(url)), spec("session"), spec("connection")

    def handler(connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute("insert into orders values (1, 'new')")

    port.begin(before)
    port.user(before, lambda session: session.scalar(text("select 1")), "alone")
    port.commit()
    port.begin(mine)
    port.user(mine, handler, "alone")
    port.rollback()
    port.close()
    assert rows(url, "select count(*) from orders") == [(0,)]


def test_an_async_nested_transaction_commits_nothing_where_a_session_was_before(url: str) -> None:
    async def handler(connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection.transaction():
            await connection.execute("insert into orders values (1, 'new')")

    async def main() -> None:
        port, before, mine = AsyncPort(Database(url)), spec("async session"), spec("async connection")
        await port.begin(before)
        await port.user(before, lambda session: session.scalar(text("select 1")), "alone")
        await port.commit()
        await port.begin(mine)
        await port.user(mine, handler, "alone")
        await port.rollback()
        await port.close()

    asyncio.run(main())
    assert rows(url, "select count(*) from orders") == [(0,)]
