"""`@transaction(pipeline=True)`: what is kept back of the messages of a group, what brings it out, and who sees what of it (ADR 19)."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from eventflow.database import Database
from eventflow.lent import LookedAtError
from eventflow.ports import AsyncPort, Port, RolledBackError
from eventflow.registry import TransactionSpec
from tests.integration import test_ports
from tests.integration.test_doubts import Ask, Bench, Numbered, until

TABLES = """
create table orders (id int primary key, state text not null default 'new');
create table notes (note text)
"""
Connection = psycopg.Connection[Any]
Handler = Callable[[Connection], Any]
AsyncHandler = Callable[[psycopg.AsyncConnection[Any]], Any]
ADD = "insert into orders (id) values (%s)"
PAY = "update orders set state = 'paid' where id = %s"
COUNT = "select count(*) from orders"


def spec(flavour: Any) -> TransactionSpec:
    return test_ports.spec(flavour, pipeline=True)


@pytest.fixture
def url(ledger_url: str) -> Iterator[str]:
    with psycopg.connect(ledger_url) as connection:
        connection.execute(TABLES.encode())
    yield ledger_url


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each time that a connection has waited for the server."""
    waited: list[None] = []
    wait, await_ = psycopg.Connection.wait, psycopg.AsyncConnection.wait

    def waits(connection: Any, *given: Any, **options: Any) -> Any:
        waited.append(None)
        return wait(connection, *given, **options)

    async def awaits(connection: Any, *given: Any, **options: Any) -> Any:
        waited.append(None)
        return await await_(connection, *given, **options)

    monkeypatch.setattr(psycopg.Connection, "wait", waits)
    monkeypatch.setattr(psycopg.AsyncConnection, "wait", awaits)
    return waited


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def group(url: str, *handlers: Handler) -> list[Any]:
    """What these handlers return, whose messages share a transaction, and whose statements may be kept back."""
    return test_ports.group(url, *handlers, of=spec("connection"), mode="piped")


def async_group(url: str, *handlers: AsyncHandler) -> list[Any]:
    async def run() -> list[Any]:
        port, pipelined = AsyncPort(Database(url)), spec("async connection")
        await port.begin(pipelined)
        try:
            results = [await port.user(pipelined, handler, "piped") for handler in handlers]
            await port.flush()
            await port.commit()
        finally:
            await port.close()
        return results

    return asyncio.run(run())


def add(*numbers: int) -> Handler:
    def handler(connection: Connection) -> None:
        for number in numbers:
            connection.execute(ADD, (number,))

    return handler


def aadd(*numbers: int) -> AsyncHandler:
    async def handler(connection: psycopg.AsyncConnection[Any]) -> None:
        for number in numbers:
            await connection.execute(ADD, (number,))

    return handler


def ids(url: str) -> list[int]:
    return [number for (number,) in rows(url, "select id from orders order by 1")]


# ---- what is kept back, and what brings it out ----------------------------------------------------


def test_what_many_only_write_goes_out_at_once(url: str, trips: list[None]) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    trips.clear()
    for number in range(60):
        port.user(pipelined, add(number), "piped")
    assert not trips
    port.flush()
    assert len(trips) == 1
    port.commit()
    port.close()
    assert ids(url) == list(range(60))


def test_what_many_async_ones_only_write_goes_out_at_once(url: str, trips: list[None]) -> None:
    async def run() -> None:
        port, pipelined = AsyncPort(Database(url)), spec("async connection")
        await port.begin(pipelined)
        trips.clear()
        for number in range(60):
            await port.user(pipelined, aadd(number), "piped")
        assert not trips
        await port.flush()
        assert len(trips) == 1
        await port.commit()
        await port.close()

    asyncio.run(run())
    assert ids(url) == list(range(60))


@pytest.mark.parametrize("mode", ["alone", "grouped", "savepoint"])
def test_whose_errors_are_to_come_at_their_own_line_waits(url: str, mode: Any) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    with pytest.raises(psycopg.errors.UniqueViolation):
        port.user(pipelined, add(1, 1), mode)
    port.close()


def by_client_cursor(connection: Connection) -> int:
    return psycopg.ClientCursor(connection).execute(COUNT).fetchall()[0][0]


def by_a_factory(connection: Connection) -> int:
    connection.cursor_factory = psycopg.ClientCursor
    return connection.execute(COUNT).fetchall()[0][0]


def by_copy(connection: Connection) -> int:
    with connection.cursor() as cursor, cursor.copy("copy orders to stdout") as copy:
        return len(list(copy.rows()))


def by_a_named_cursor(connection: Connection) -> int:
    with connection.cursor("some") as cursor:
        return len(cursor.execute("select * from orders").fetchall())


def by_stream(connection: Connection) -> int:
    return len(list(connection.cursor().stream("select * from orders")))


def by_pipeline(connection: Connection) -> int:
    with connection.pipeline():
        seen = connection.execute("update orders set state = 'seen'")
        count = connection.execute(COUNT).fetchall()[0][0]
        assert seen.rowcount == count
    return count


def by_many(connection: Connection) -> int:
    cursor = connection.cursor()
    cursor.executemany(PAY, [(1,), (2,), (3,)])
    return cursor.rowcount


def by_savepoint(connection: Connection) -> int:
    with connection.transaction():
        return connection.execute(COUNT).fetchall()[0][0]


def by_returning(connection: Connection) -> int:
    return len(connection.execute("update orders set state = 'seen' returning id").fetchall())


def by_composed(connection: Connection) -> int:
    return connection.execute(sql.SQL("update {} set state = 'seen'").format(sql.Identifier("orders"))).rowcount


def by_two_statements(connection: Connection) -> int:
    cursor = connection.execute("update orders set state = 'seen'; select * from orders")
    assert cursor.nextset()
    return len(cursor.fetchall())


def by_the_binary_format(connection: Connection) -> int:
    return connection.execute(COUNT, binary=True).fetchall()[0][0]


LOOKS: list[Handler] = [
    by_client_cursor, by_a_factory, by_copy, by_a_named_cursor, by_stream, by_pipeline, by_many, by_savepoint, by_returning,
    by_composed, by_two_statements, by_the_binary_format,
]  # fmt: skip


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
def test_whatever_else_the_connection_does_comes_behind(url: str, look: Handler) -> None:
    def both(connection: Connection) -> int:
        connection.execute(ADD, (3,))
        return look(connection)

    assert group(url, add(1), add(2), both, add(4)) == [None, None, 3, None]
    assert ids(url) == [1, 2, 3, 4]


def test_async_whatever_else_the_connection_does_comes_behind(url: str) -> None:
    async def reads(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute(ADD, (2,))
        return (await (await connection.execute(COUNT)).fetchall())[0][0]

    async def copies(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute(ADD, (3,))
        async with connection.cursor() as cursor, cursor.copy("copy orders to stdout") as copy:
            return len([row async for row in copy.rows()])

    async def nests(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute(ADD, (4,))
        async with connection.transaction():
            return (await (await psycopg.AsyncClientCursor(connection).execute(COUNT)).fetchall())[0][0]

    async def pipes(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute(ADD, (5,))
        async with connection.pipeline():
            return (await (await connection.execute(COUNT)).fetchall())[0][0]

    assert async_group(url, aadd(1), reads, copies, nests, pipes, aadd(6)) == [None, 2, 3, 4, 5, None]
    assert ids(url) == [1, 2, 3, 4, 5, 6]


def test_a_savepoint_takes_back_what_was_kept_since(url: str) -> None:
    def undone(connection: Connection) -> None:
        with connection.transaction() as inner:
            connection.execute(ADD, (2,))
            raise psycopg.Rollback(inner)

    group(url, add(1), undone, add(3))
    assert ids(url) == [1, 3]


def test_order_holds_among_different_statements(url: str) -> None:
    def changes(connection: Connection) -> None:
        connection.execute(ADD, (1,))
        connection.execute("insert into notes select 'first ' || state from orders")
        connection.execute(PAY, (1,))
        connection.execute("insert into notes select 'then ' || state from orders")
        connection.execute("delete from orders where id = %(id)s", {"id": 1})
        connection.execute(b"insert into orders values (1, 'again')")

    group(url, changes)
    assert rows(url, "select note from notes") == [("first new",), ("then paid",)]
    assert rows(url, "select * from orders") == [(1, "again")]


def test_a_message_that_writes_much_keeps_a_part_of_it(url: str, trips: list[None]) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    trips.clear()
    port.user(pipelined, add(*range(1_200)), "piped")
    assert len(trips) == 2
    trips.clear()
    port.user(
        pipelined, lambda c: [c.execute("insert into notes values (%s)", ("x" * 100_000,)) for _ in range(3)], "piped"
    )
    assert len(trips) == 1
    port.flush()
    port.commit()
    port.close()
    assert rows(url, "select (select count(*) from orders), (select count(*) from notes)") == [(1_200, 3)]


# ---- results --------------------------------------------------------------------------------------


def test_a_result_is_there_for_who_looks_at_it(url: str) -> None:
    def upsert(connection: Connection) -> None:
        if connection.execute(PAY, (1,)).rowcount == 0:
            connection.execute("insert into orders values (1, 'none')")

    group(url, upsert, upsert)
    assert rows(url, "select * from orders") == [(1, "paid")]


LOOKED: dict[str, tuple[Callable[[psycopg.Cursor[Any]], Any], Any]] = {
    "rowcount": (lambda cursor: cursor.rowcount, 1),
    "statusmessage": (lambda cursor: cursor.statusmessage, "INSERT 0 1"),
    "pgresult": (lambda cursor: cursor.pgresult and cursor.pgresult.command_tuples, 1),
    "description": (lambda cursor: cursor.description, None),
    "rownumber": (lambda cursor: cursor.rownumber, None),
    "nextset": (lambda cursor: cursor.nextset(), None),
    "results": (lambda cursor: len(list(cursor.results())), 1),
    "set_result": (lambda cursor: cursor.set_result(0) is cursor, True),
}


@pytest.mark.parametrize("how", LOOKED)
def test_each_way_to_look_at_a_result(url: str, how: str) -> None:
    look, expected = LOOKED[how]

    def handler(connection: Connection) -> Any:
        cursor = connection.execute(ADD, (2,))
        connection.execute("insert into orders values (3), (4)")
        return look(cursor)

    assert group(url, add(1), handler) == [None, expected]
    assert ids(url) == [1, 2, 3, 4]


FETCHES: dict[str, Callable[[psycopg.Cursor[Any]], Any]] = {
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(),
    "fetchall": lambda cursor: cursor.fetchall(),
    "next": next,
    "scroll": lambda cursor: cursor.scroll(1),
}


@pytest.mark.parametrize("how", FETCHES)
def test_there_is_nothing_to_fetch_as_ever(url: str, how: str) -> None:
    def handler(connection: Connection) -> None:
        cursor = connection.execute(ADD, (2,))
        with pytest.raises(psycopg.ProgrammingError, match="INSERT 0 1"):
            FETCHES[how](cursor)

    group(url, add(1), handler)
    assert ids(url) == [1, 2]


def test_a_cursor_of_several_statements_has_the_last_ones_result(url: str) -> None:
    def handler(connection: Connection) -> tuple[int, str | None]:
        cursor = connection.cursor()
        cursor.execute(ADD, (1,))
        cursor.execute("insert into orders values (2), (3)")
        cursor.execute("update orders set state = 'seen'")
        return cursor.rowcount, cursor.statusmessage

    assert group(url, handler) == [(3, "UPDATE 3")]


def test_a_closed_cursor_sends_nothing_and_has_no_result(url: str, trips: list[None]) -> None:
    def handler(connection: Connection) -> None:
        trips.clear()
        with connection.cursor() as cursor:
            cursor.execute(ADD, (1,))
        assert not trips
        connection.execute(COUNT)
        assert (cursor.rowcount, cursor.statusmessage, cursor.pgresult) == (-1, None, None)
        with pytest.raises(psycopg.InterfaceError, match="the cursor is closed"):
            cursor.execute(ADD, (2,))

    group(url, handler)
    assert ids(url) == [1]


def test_async_results_that_can_be_awaited_are(url: str) -> None:
    async def handler(connection: psycopg.AsyncConnection[Any]) -> int:
        cursor = await connection.execute(ADD, (1,))
        with pytest.raises(psycopg.ProgrammingError, match="INSERT 0 1"):
            await cursor.fetchone()
        return cursor.rowcount

    async def by_results(connection: psycopg.AsyncConnection[Any]) -> list[int]:
        cursor = await connection.execute(ADD, (2,))
        return [one.rowcount async for one in cursor.results()]

    async def by_set_result(connection: psycopg.AsyncConnection[Any]) -> int:
        cursor = await connection.execute(ADD, (3,))
        return (await cursor.set_result(0)).rowcount

    assert async_group(url, handler, by_results, by_set_result) == [1, [1], 1]


def test_an_async_result_that_nobody_could_wait_for_makes_its_statement_wait_from_then_on(url: str) -> None:
    update = "update orders set state = 'looked' where id = %s"

    async def handler(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute(ADD, (7,))
        cursor = await connection.execute(update, (7,))
        assert "kept back" in repr(cursor) or cursor.rowcount == 1
        return cursor.rowcount

    async def hides_it(connection: psycopg.AsyncConnection[Any]) -> int:
        try:
            return await handler(connection)
        except LookedAtError:
            return 0

    with pytest.raises(LookedAtError):
        async_group(url, hides_it)
    assert ids(url) == []
    assert async_group(url, handler) == [1]


# ---- parameters -----------------------------------------------------------------------------------


class Verbatim(psycopg.adapt.Dumper):
    """What it is given, as it is: others can still change it."""

    format, oid = psycopg.pq.Format.BINARY, psycopg.adapters.types["bytea"].oid

    def dump(self, obj: bytearray) -> bytearray:
        return obj


def test_parameters_are_those_of_the_call(url: str) -> None:
    def handler(connection: Connection) -> None:
        listed, named, raw = [1], {"id": 2}, bytearray(b"before")
        connection.adapters.register_dumper(bytearray, Verbatim)
        connection.execute(ADD, listed)
        connection.execute("insert into orders (id) values (%(id)s)", named)
        connection.execute("insert into notes values (encode(%s, 'escape'))", (raw,))
        listed[0], named["id"], raw[:] = 8, 9, b"behind"

    group(url, handler)
    assert ids(url) == [1, 2]
    assert rows(url, "select note from notes") == [("before",)]


def test_what_cannot_be_sent_fails_at_its_own_line(url: str) -> None:
    def handler(connection: Connection) -> None:
        with pytest.raises(psycopg.DataError):
            connection.execute("insert into notes values (%s)", ("a\0b",))
        with pytest.raises(psycopg.ProgrammingError):
            connection.execute("insert into notes values (%s)", (object(),))
        with pytest.raises(psycopg.ProgrammingError):
            connection.execute("insert into notes values (%s)", (1, 2))

    group(url, add(1), handler, add(2))
    assert ids(url) == [1, 2]


def test_adapters_are_those_of_the_call(url: str) -> None:
    class Shouting(psycopg.types.string.StrDumper):
        def dump(self, obj: str) -> bytes:
            return obj.upper().encode()

    def handler(connection: Connection) -> None:
        note = "insert into notes values (%s)"
        connection.execute(note, ("one",))
        connection.adapters.register_dumper(str, Shouting)
        connection.execute(note, ("two",))
        cursor = connection.cursor()
        cursor.execute(note, ("three",))
        cursor.adapters.register_dumper(str, psycopg.types.string.StrDumper)

    group(url, handler)
    assert rows(url, "select note from notes") == [("one",), ("TWO",), ("THREE",)]


# ---- failures -------------------------------------------------------------------------------------


def test_an_error_comes_at_the_end(url: str) -> None:
    def hopes(connection: Connection) -> None:
        try:
            connection.execute(ADD, (1,))
        except psycopg.errors.UniqueViolation:
            raise AssertionError("not at its own line") from None

    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    for handler in (add(1), hopes, add(2)):
        port.user(pipelined, handler, "piped")
    with pytest.raises(psycopg.errors.UniqueViolation):
        port.flush()
    port.rollback()
    port.begin(pipelined)  # of that failure nothing is left
    port.user(pipelined, add(3), "piped")
    port.flush()
    port.commit()
    port.close()
    assert ids(url) == [3]


def test_an_error_that_another_message_has_caught_and_healed_fails_the_group(url: str) -> None:
    def marks(connection: Connection) -> None:
        connection.execute("savepoint mine")
        connection.execute(ADD, (1,))

    def heals(connection: Connection) -> None:
        try:
            connection.execute(COUNT)
        except psycopg.errors.UniqueViolation:
            connection.execute("rollback to savepoint mine")

    with pytest.raises(psycopg.errors.UniqueViolation):
        group(url, add(1), marks, heals)
    assert ids(url) == []


def test_an_error_that_its_own_message_has_caught_fails_the_group(url: str) -> None:
    def twice(connection: Connection) -> None:
        for _ in range(2):
            try:
                with connection.transaction():
                    connection.execute(ADD, (1,))
            except psycopg.errors.UniqueViolation:
                connection.execute("insert into notes values ('was there')")

    with pytest.raises(psycopg.errors.UniqueViolation):
        group(url, twice)
    assert ids(url) == []


def test_an_error_of_what_stands_behind_fails_the_group_whoever_has_caught_it(url: str) -> None:
    """A deferred constraint, say, that something kept back has broken."""

    def catches(connection: Connection) -> None:
        try:
            with connection.transaction():
                connection.execute("select 1 / 0")
        except psycopg.errors.DivisionByZero:
            pass

    assert group(url, catches) == [None], "nothing was kept before it"
    with pytest.raises(psycopg.errors.DivisionByZero):
        group(url, add(1), catches)


def test_async_an_error_that_was_caught_fails_the_group(url: str) -> None:
    async def marks(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("savepoint mine")
        await connection.execute(ADD, (1,))

    async def heals(connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            await connection.execute(COUNT)
        except psycopg.errors.UniqueViolation:
            await connection.execute("rollback to savepoint mine")

    with pytest.raises(psycopg.errors.UniqueViolation):
        async_group(url, aadd(1), marks, heals)
    assert ids(url) == []


def test_what_is_rolled_back_is_not_sent_before(url: str, trips: list[None]) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    port.user(pipelined, add(1), "piped")
    trips.clear()
    port.rollback()
    assert len(trips) == 1
    port.begin(pipelined)
    port.flush()
    port.commit()
    port.close()
    assert ids(url) == []


def test_behind_a_commit_of_the_handlers_own_nothing_is_kept(url: str, trips: list[None]) -> None:
    port, pipelined = Port(Database(url)), spec("connection")

    def commits(connection: Connection) -> None:
        connection.execute(ADD, (2,))
        connection.execute("commit")
        trips.clear()
        connection.execute(ADD, (3,))
        assert len(trips) == 1

    port.begin(pipelined)
    port.user(pipelined, add(1), "piped")
    with pytest.raises(RolledBackError, match="ended the transaction"):
        port.user(pipelined, commits, "piped")
    port.close()


def test_in_a_transaction_that_has_failed_nothing_is_kept(url: str) -> None:
    def goes_on(connection: Connection) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute(ADD, (1,))

    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    port.user(pipelined, goes_on, "piped")
    assert port.condition() == "failed"
    port.close()


def test_who_closes_the_connection_has_failed(url: str) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    port.user(pipelined, add(1), "piped")
    with pytest.raises(psycopg.OperationalError, match="the connection was closed"):
        port.user(pipelined, lambda connection: connection.close(), "piped")
    port.rollback()
    port.begin(pipelined)
    port.user(pipelined, add(2), "piped")
    port.flush()
    port.commit()
    port.close()
    assert ids(url) == [2]


def test_a_server_that_ends_the_connection_while_it_is_told(url: str) -> None:
    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    port.user(pipelined, add(1), "piped")
    rows(url, f"select pg_terminate_backend({port.raw.info.backend_pid}, 5000)")
    with pytest.raises(psycopg.OperationalError):
        port.flush()
    assert port.condition() == "broken"
    port.close()


def test_a_connection_that_was_told_a_part_of_it_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> None:
        raise MemoryError

    port, pipelined = Port(Database(url)), spec("connection")
    port.begin(pipelined)
    port.user(pipelined, add(1, 2), "piped")
    with monkeypatch.context() as patched:
        patched.setattr("eventflow.lent.send", fails)
        with pytest.raises(MemoryError):
            port.flush()
    assert port.condition() == "broken"
    port.begin(pipelined)
    port.user(pipelined, add(3), "piped")
    port.flush()
    port.commit()
    port.close()
    assert ids(url) == [3]


def test_who_is_cancelled_while_what_is_kept_goes_out_leaves_nothing(url: str) -> None:
    rows(url, "insert into orders values (1) returning id")

    async def run() -> None:
        async def waits(connection: psycopg.AsyncConnection[Any]) -> None:
            await connection.execute(PAY, (1,))
            try:
                await connection.execute(COUNT)
            except asyncio.CancelledError:
                pass

        port, pipelined = AsyncPort(Database(url)), spec("async connection")
        await port.begin(pipelined)
        pid = port.raw.info.backend_pid
        blocked = f"select wait_event_type = 'Lock' from pg_stat_activity where pid = {pid}"
        with psycopg.connect(url) as other:
            other.execute("select * from orders for update")
            task = asyncio.ensure_future(port.user(pipelined, waits, "piped"))
            await until(lambda: rows(url, blocked) == [(True,)], "it waits for the row")
            task.cancel()
            with pytest.raises(Exception, match="interrupted"):
                await task
            await port.rollback()
        await port.begin(pipelined)
        await port.user(pipelined, aadd(2), "piped")
        await port.flush()
        await port.commit()
        await port.close()

    asyncio.run(run())
    assert rows(url, "select * from orders order by 1") == [(1, "new"), (2, "new")]


# ---- groups of messages ---------------------------------------------------------------------------

EFFECT = "insert into effects (note) values (%s)"


@pytest.fixture
def ask(ledger_url: str) -> Iterator[Ask]:
    asked = Ask(ledger_url)
    asked("alter table effects add unique (note)")
    yield asked
    asked.connection.close()


async def test_a_message_that_violates_a_constraint_fails_alone_and_at_its_own_line(ask: Ask) -> None:
    calls, caught = list[int](), list[int]()

    def handler(connection: Connection, message: Numbered) -> None:
        calls.append(message.value)
        try:
            connection.execute(EFFECT, (str(message.value // 2 * 2 if message.value < 4 else message.value),))
        except psycopg.errors.UniqueViolation:
            caught.append(message.value)
            raise

    bench = Bench(ask)
    await bench.group(handler, 6, pipeline=True)
    assert ask.effects() == ["0", "2", "4", "5"]
    assert bench.ended() == {"succeeded": 4, "failed": 2}
    assert calls == [0, 1, 2, 3, 4, 5] * 2
    assert caught == [1, 3]


async def test_who_catches_its_own_violation_does_so_in_the_second_run(ask: Ask) -> None:
    """With a savepoint of its own, and waiting for each answer, as without the option."""
    seen = list[str]()

    async def handler(connection: psycopg.AsyncConnection[Any], message: Numbered) -> None:
        try:
            async with connection.transaction():
                await connection.execute(EFFECT, ("one",))
            seen.append(f"{message.value} entered")
        except psycopg.errors.UniqueViolation:
            seen.append(f"{message.value} was there")
            await connection.execute(EFFECT, (f"again {message.value}",))

    bench = Bench(ask)
    await bench.group(handler, 3, pipeline=True)
    assert ask.effects() == ["again 1", "again 2", "one"]
    assert bench.ended() == {"succeeded": 3}
    assert seen[-3:] == ["0 entered", "1 was there", "2 was there"]


async def test_a_message_by_itself_finds_its_errors_where_they_are(ask: Ask) -> None:
    caught = list[int]()

    def handler(connection: Connection, message: Numbered) -> None:
        try:
            with connection.transaction():
                connection.execute(EFFECT, ("one",))
        except psycopg.errors.UniqueViolation:
            caught.append(message.value)

    ask(EFFECT, "one")
    bench = Bench(ask)
    await bench.group(handler, 1, pipeline=True)
    assert (bench.ended(), caught) == ({"succeeded": 1}, [0])


async def test_an_async_handler_that_looks_at_what_was_kept_runs_again(ask: Ask) -> None:
    calls = list[int]()
    update = "update effects set note = note || '!' where note = %s"

    async def handler(connection: psycopg.AsyncConnection[Any], message: Numbered) -> None:
        calls.append(message.value)
        if (await connection.execute(update, ("one",))).rowcount == 0:
            await connection.execute(EFFECT, ("one",))

    bench = Bench(ask)
    await bench.group(handler, 2, pipeline=True)
    assert ask.effects() == ["one!"]
    assert (bench.ended(), calls) == ({"succeeded": 2}, [0, 0, 1])
