"""`executemany` of the connections that are lent: what psycopg's own does, in far fewer round trips."""

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from eventflow.lent import AsyncLent, Lent

TABLE = "create table things (id bigint primary key, note text, amount numeric)"
INSERT = "insert into things values (%s, %s, %s)"
ALL = "select id, note, amount from things order by id"
Rows = list[tuple[Any, ...]]


class _Blocking:
    """An async connection, used as a sync one is."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.of: Any = self(AsyncLent.connect(url, autocommit=True))

    def __call__(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)

    def close(self) -> None:
        self(self.of.close())
        self._loop.close()


class Desk:
    """One connection, sync or async, and what the tests do with it."""

    def __init__(self, url: str, colour: str) -> None:
        self._async = _Blocking(url) if colour == "async" else None
        self.connection: Any = Lent.connect(url, autocommit=True) if self._async is None else self._async.of
        self.cursor: Any = self.connection.cursor()

    def done(self, what: Any) -> Any:
        return what if self._async is None else self._async(what)

    def many(self, query: str, rows: Any, **options: Any) -> Any:
        self.done(self.cursor.executemany(query, rows, **options))
        return self.cursor

    def other(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.connection.info.dsn, password=self.connection.info.password)

    def rows(self) -> Rows:
        with self.other() as other:
            return other.execute(ALL).fetchall()

    def close(self) -> None:
        if self._async is None:
            self.connection.close()
        else:
            self._async.close()


@pytest.fixture(params=["sync", "async"])
def desk(ledger_url: str, request: pytest.FixtureRequest) -> Iterator[Desk]:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute(TABLE)
    made = Desk(ledger_url, request.param)
    yield made
    made.close()


def test_all_are_there_and_counted(desk: Desk) -> None:
    rows = [(n, f"note {n}", Decimal(n) / 8) for n in range(1234)]
    with desk.other() as other:
        psycopgs = other.cursor()
        psycopgs.executemany(INSERT, rows)
        other.rollback()
    cursor = desk.many(INSERT, iter(rows))
    assert (cursor.rowcount, cursor.statusmessage) == (1234, psycopgs.statusmessage)
    assert desk.rows() == rows
    assert desk.many("update things set note = %s where id < %s", [("a", 10), ("b", 5), ("c", 0)]).rowcount == 15
    assert desk.many(INSERT, []).rowcount == 0


def test_rows_differ_in_their_types(desk: Desk) -> None:
    rows = [
        (n, text, amount) for n, (text, amount) in enumerate([("x", None), (None, 1), ("y", 2**40), (None, None)] * 300)
    ]
    desk.many("insert into things values (%b, %b, %b)", rows)
    assert desk.rows() == rows


def test_what_is_large_does_not_stand_in_its_own_way(desk: Desk) -> None:
    rows = [(n, f"{n}" * 20_000, None) for n in range(1000, 1500)]
    desk.many(INSERT, rows)
    assert desk.rows() == rows


@pytest.mark.parametrize("at", [3, 700])
def test_a_value_that_cannot_be_converted_leaves_the_connection_as_it_was(desk: Desk, at: int) -> None:
    rows: Rows = [(n, "x", None) for n in range(1000)]
    rows[at] = (at, "no\0text", None)
    with pytest.raises(psycopg.DataError, match="NUL"):
        desk.many(INSERT, rows)
    assert len(desk.rows()) == at // 500 * 500, "what went before it, in hundreds"
    assert desk.many(INSERT, [(5000, "after", None)]).rowcount == 1


def test_a_row_that_is_refused_is_the_error_and_the_rest_is_not_done(desk: Desk) -> None:
    desk.many(INSERT, [(7, "here", None)])
    with pytest.raises(psycopg.errors.UniqueViolation):
        desk.many(INSERT, [(n, "x", None) for n in range(10)])
    assert desk.rows() == [(7, "here", None)], "they go as one"
    assert desk.many(INSERT, [(8, "after", None)]).rowcount == 1
    with pytest.raises(psycopg.errors.SyntaxError):
        desk.many("insert in things values (%s, %s, %s)", [(9, "", None)] * 3)
    assert desk.many(INSERT, [(9, "after", None)]).rowcount == 1


def test_what_it_does_not_do_psycopg_does(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    returned = desk.many("insert into things values (%s) returning id", [(1,), (2,)], returning=True)
    assert desk.done(returned.fetchone()) == (1,)
    desk.connection.prepare_threshold = None
    assert desk.many(INSERT, [(3, "unprepared", None), (4, "", None)]).rowcount == 2
    assert [row[0] for row in desk.rows()] == [1, 2, 3, 4]


def test_a_cursor_that_is_closed_says_so(desk: Desk) -> None:
    desk.done(desk.cursor.close())
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        desk.many(INSERT, [(1, "", None)])


def trips(url: str, work: Callable[[psycopg.Connection[Any]], None]) -> int:
    """How often the client waits for the server meanwhile."""
    count = 0

    class Counted(Lent):
        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            def counting() -> Any:
                nonlocal count
                try:
                    value = next(gen)
                    while True:
                        count += 1
                        value = gen.send((yield value))
                except StopIteration as stop:
                    return stop.value

            return super().wait(counting(), *args, **kwargs)

    with Counted.connect(url, autocommit=True) as connection:
        work(connection)
    return count


def test_the_server_is_waited_for_once_for_some_hundred_rows(ledger_url: str) -> None:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute(TABLE)

    def work(connection: psycopg.Connection[Any]) -> None:
        connection.cursor().executemany(INSERT, [(n, "x", None) for n in range(500)])

    assert trips(ledger_url, work) < 100
