"""A database that transactions are for, and that is wrong, not ready, or away: what is said, and what goes on meanwhile."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.errors import SchemaError, SettingsError, UnavailableError
from eventflow.migrations import RESULTS, RESULTS_SCHEMA, migrate
from eventflow.registry import registry
from eventflow.settings import Settings
from tests.conformance.colours import Body, Colour, Do, both, until
from tests.conformance.conftest import App, new_database
from tests.harness import Proxy
from tests.ledgers import empty_database, other_database

INSERT = 'insert into effects ("group", note) values (%s, %s)'


@eventflow.transaction(name="book", database="other")
def there_sync(connection: "psycopg.Connection[Any]") -> str:
    connection.execute(INSERT, (durable.workflow_id(), "there"))
    return "there"


@eventflow.transaction(name="book", database="other")
async def there_async(connection: "psycopg.AsyncConnection[Any]") -> str:
    await connection.execute(INSERT, (durable.workflow_id(), "there"))
    return "there"


@eventflow.transaction(database="other")
def plainly(connection: "psycopg.Connection[Any]") -> None: ...


@both
def single(do: Do) -> Body[str]:
    return (yield there_async if do.colour == "async" else there_sync)


@both
def unhindered(do: Do) -> Body[str]:
    return (yield do.run_step(step))


def step() -> str:
    return "here"


def ask(url: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def effects(url: str, handle: Any) -> int:
    [(count,)] = ask(url, 'select count(*) from effects where "group" = %s', handle.workflow_id)
    return count


# ---- what can be wrong ------------------------------------------------------------------------------------


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module's transactions, known when the application starts, and nothing else."""
    monkeypatch.setattr(registry, "transactions", {("m", "single"): there_sync.__eventflow_transaction__})  # type: ignore[attr-defined]


@pytest.fixture
def empty(postgres_url: str) -> Iterator[tuple[str, str]]:
    """A ledger, and a database that nobody has prepared."""
    with new_database(postgres_url) as ledger, empty_database(postgres_url, "other") as url:
        yield ledger, url


def begin(ledger: str, **databases: str) -> None:
    """Enter `running()`, and leave it."""

    async def main() -> None:
        async with eventflow.running(Settings(database_url=ledger, databases=databases), consumers=False):
            pass

    asyncio.run(main())


def test_what_is_wrong_is_said_at_start(empty: tuple[str, str], declared: None) -> None:
    ledger, url = empty
    with pytest.raises(
        SettingsError,
        match=r"names no database 'other', for which the transaction 'book' is .*test_elsewhere_away.py:\d+.*it names: shop",
    ):
        begin(ledger, shop=url)
    with pytest.raises(
        SchemaError,
        match=f"database 'other': schema '{RESULTS_SCHEMA}' has no results of transactions yet; run `eventflow migrate`",
    ):
        begin(ledger, other=url)
    migrate(url, schema=RESULTS_SCHEMA, layout=RESULTS)
    begin(ledger, other=url)
    ask(url, "insert into eventflow_results.migrations values (99, 'new', 99)")
    with pytest.raises(SchemaError, match="database 'other': .*update eventflow"):
        begin(ledger, other=url)
    with pytest.raises(UnavailableError, match="database 'other': Postgres at .*nowhere.*does not exist"):
        begin(ledger, other=url.rsplit("/", 1)[0] + "/nowhere")
    with pytest.raises(SettingsError, match="EVENTFLOW_DATABASES: the database 'other': libpq cannot read it"):
        begin(ledger, other="postgresql://me:s3cret@x/y?foo=bar")


def test_a_database_that_no_code_uses_may_be_away(empty: tuple[str, str]) -> None:
    begin(empty[0], other="postgresql://nobody@127.0.0.1:1/x")


def test_a_database_that_is_not_known_is_refused_where_it_is_called(empty: tuple[str, str]) -> None:
    with eventflow.running(Settings(database_url=empty[0]), consumers=False):
        with pytest.raises(SettingsError, match="names no database 'other'"):
            plainly()


# ---- outages ------------------------------------------------------------------------------------------------


def test_a_database_that_is_away_holds_up_its_own_transactions_only(
    postgres_url: str, colour: Colour, declared: None, caplog: pytest.LogCaptureFixture
) -> None:
    """At start, and later; other work goes on, and what waits goes on when it is back."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with new_database(postgres_url) as ledger, other_database(postgres_url) as url:
        away = url.replace(f":{url.rpartition(':')[2].partition('/')[0]}/", f":{port}/")
        with caplog.at_level(logging.WARNING):
            app = App(ledger, "leaves", {"other": away})
        try:
            assert "database 'other': Postgres at" in caplog.text
            assert "its transactions wait for it" in caplog.text
            held = [app.start(single, colour) for _ in range(12)]  # more than there are threads
            assert app.run(unhindered, colour) == "here"
            proxy = Proxy(url, port=port)
            assert [handle.result(timeout=20) for handle in held] == ["there"] * 12
            assert [effects(url, handle) for handle in held] == [1] * 12
            proxy.close()
            later = [app.start(single, colour) for _ in range(12)]
            until(lambda: "trying again" in caplog.text)
            assert app.run(unhindered, colour) == "here"
            proxy = Proxy(url, port=port)
            assert [handle.result(timeout=20) for handle in later] == ["there"] * 12
            assert [effects(url, handle) for handle in later] == [1] * 12
        finally:
            app.down()
        proxy.close()


def test_a_process_leaves_while_a_database_is_away(postgres_url: str, colour: Colour, declared: None) -> None:
    """What waits for it is suspended, and held up nobody: the next process goes on with it."""
    with new_database(postgres_url) as ledger, other_database(postgres_url) as url:
        away = "postgresql://nobody@127.0.0.1:1/x"
        settings = Settings(database_url=ledger, databases={"other": away}, lease=1, beat=0.2, drain=10)
        with eventflow.running(settings, consumers=False):
            handle = sync.start(single[colour])
            begun = "select count(*) from eventflow.checkpoints"
            until(lambda: ask(ledger, begun) == [(1,)])
            left = time.monotonic()
        assert time.monotonic() - left < 5
        with eventflow.running(settings.model_copy(update={"databases": {"other": url}}), consumers=False):
            assert sync.start(single[colour], workflow_id=handle.workflow_id).result(timeout=15) == "there"
        assert effects(url, handle) == 1


for _key in [key for key in registry.transactions if key[0] == __name__]:
    del registry.transactions[_key]  # other tests of this process do not have this database
