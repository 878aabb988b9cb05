"""The connections and Sessions that transactions lend to user code, and what the transaction protocol asks of them.

A `Port` is a connection of the ledger's database with SQLAlchemy's view of it, sync or async; `drive` and `adrive` run the
protocol's generator on one. When the transaction commits is not for user code to decide.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from eventflow.apart import apart
from eventflow.context import runtime
from eventflow.database import Database, Sent
from eventflow.errors import EventflowError
from eventflow.lent import AsyncCursor, AsyncLent, Cursor, Lent
from eventflow.registry import TransactionSpec

if TYPE_CHECKING:
    from eventflow.sessions import AsyncSessions, Sessions

Ask = tuple[Any, ...]
Protocol = Generator[Ask, Any, Any]


class RolledBackError(EventflowError):
    """The user's code rolled the shared transaction back."""


# By itself; among others; the same, and its statements may be kept back; among others, with a savepoint.
Mode = Literal["alone", "grouped", "piped", "savepoint"]
# A statement failed on it; no transaction is open on it any more; it is gone, by whomever's doing.
Condition = Literal["whole", "failed", "over", "broken"]


_CONDITIONS: dict[int, Condition] = {
    psycopg.pq.TransactionStatus.INERROR: "failed",
    psycopg.pq.TransactionStatus.IDLE: "over",
}


def _condition(raw: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | None") -> Condition:
    if raw is not None and raw.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
        return "whole"
    if raw is None or raw.closed or raw.broken:
        return "broken"
    return _CONDITIONS.get(raw.info.transaction_status, "whole")


def _still_there(raw: Any) -> None:
    """User code that has closed its connection, or ended its transaction, has failed, although it returned."""
    condition = _condition(raw)
    if condition == "broken":
        raise psycopg.OperationalError("the connection was closed, or lost, while user code had it")
    if condition == "over":
        raise RolledBackError("a statement of user code ended the transaction, which commits by itself")


_ASK = b"show transaction_isolation"


def _begin(spec: TransactionSpec) -> bytes:
    return b"begin isolation level " + spec.isolation.encode() if spec.isolation else b"begin; " + _ASK


def _begun(spec: TransactionSpec) -> bytes:
    """What makes psycopg begin before user code gets the connection: else its `transaction()` would be the outermost."""
    return b"set transaction isolation level " + spec.isolation.encode() if spec.isolation else _ASK


def _sees_all(spec: TransactionSpec, cursor: "psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]") -> bool:
    """Whether each statement sees what is committed by then: READ COMMITTED, by argument or as the server answers."""
    if spec.isolation is not None:
        return spec.isolation == "read committed"
    cursor.nextset()
    answer = cursor.pgresult
    return answer is not None and answer.get_value(0, 0) == b"read committed"


class Port:
    """What the protocol asks for, on a sync connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sa: Any = None
        self.raw: Any = None

    @functools.cached_property
    def _sessions(self) -> "Sessions":
        from eventflow.sessions import Sessions

        return Sessions(self._connect)

    def _connect(self) -> Lent:
        try:
            connection = Lent.connect(self._database.url, **self._database.options("transaction"))
        except (psycopg.OperationalError, OSError) as error:  # OSError: as in `Database.connect`
            raise self._database.unavailable(error) from error
        self._database.adopt(connection)
        return connection

    def begin(self, spec: TransactionSpec) -> bool:
        """Begin a transaction; whether each of its statements sees all that is committed by then."""
        if self.raw is None or self.raw.closed:
            self.close()
            if "session" in spec.flavour:
                self._sa = self._sessions.connect()
                self._sa.rollback()
                self.raw = self._sa.connection.driver_connection
            else:
                self.raw = self._connect()
                self.raw.autocommit = True  # `begin` is said once and by us, so that `connection.transaction()` nests
        if self._sa is None and "session" in spec.flavour:
            self.close()
            return self.begin(spec)
        if self._sa is not None:
            self._sa.begin()
            self._sessions.begin(self._sa)
            cursor = self.raw.execute(_begun(spec))
        else:
            if spec.pipeline:
                self.raw.cursor_factory = Cursor
            self.raw.forget()
            cursor = self.raw.execute(_begin(spec), prepare=False)  # these are two statements
        return _sees_all(spec, cursor)

    def user(self, spec: TransactionSpec, call: Callable[[Any], Any], mode: Mode) -> Any:
        if spec.flavour == "connection":
            self.raw.lent, self.raw.keeps = True, mode == "piped"
            try:
                result = call(self.raw)
            except Exception:
                self.raw.check()  # what came of it may look like the message's own
                raise
            finally:
                self.raw.lent = self.raw.keeps = False
            self.raw.check()
        else:
            session = self._sessions.open(self._sa, mode)
            try:
                result = call(session)
                if not (mode == "grouped" and self._sessions.take(session, result)):
                    session.flush()
                if mode == "savepoint":
                    session.commit()
            finally:
                session.close()
            if not self._sa.in_transaction():
                raise RolledBackError("the handler rolled its transaction back")
        _still_there(self.raw)  # before the next one's effects are committed by themselves
        return result

    def flush(self) -> None:
        """Send what grouped messages have only added, or what was kept back of them."""
        if self._sa is not None:
            self._sessions.flush()
            _still_there(self.raw)  # a flush may call user code
        else:
            self.raw.send()

    def execute(self, statement: bytes, params: dict[str, Any] | None = None) -> list[Any]:
        cursor = self.raw.execute(statement, params, binary=True)
        return cursor.fetchall() if cursor.description else []

    def batch(self, statements: Sent) -> None:
        with self.raw.pipeline():
            for statement, params in statements:
                self.raw.execute(statement, params)

    def commit(self) -> None:
        tag = self.raw.execute(b"commit").statusmessage
        self._end()
        if tag != "COMMIT":
            raise RolledBackError(f"COMMIT answered {tag}")

    def condition(self) -> Condition:
        """How the connection is."""
        return _condition(self.raw)

    def rollback(self) -> None:
        if self.raw is None or self.raw.closed:
            return
        try:
            self.raw.rollback()
            self._end()
        except psycopg.Error:
            self.raw.close()

    def _end(self) -> None:
        if self._sa is not None and self._sa.in_transaction():
            self._sa.get_transaction().close()

    def close(self) -> None:
        if self.raw is not None:
            self.raw.close()
        if self._sa is not None:
            self._sa.invalidate()
            self._sa.close()
        self._sa = self.raw = None


class AsyncPort:
    """What the protocol asks for, on an async connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sa: Any = None
        self.raw: Any = None

    @functools.cached_property
    def _sessions(self) -> "AsyncSessions":
        from eventflow.sessions import AsyncSessions

        return AsyncSessions(self._connect)

    async def _connect(self) -> AsyncLent:
        try:
            connection = await AsyncLent.connect(self._database.url, **self._database.options("transaction"))
        except (psycopg.OperationalError, OSError) as error:  # OSError: as in `Database.connect`
            raise self._database.unavailable(error) from error
        self._database.adopt(connection)
        return connection

    async def begin(self, spec: TransactionSpec) -> bool:
        """The same as of `Port`."""
        if self.raw is None or self.raw.closed:
            await self.close()
            if "session" in spec.flavour:
                self._sa = await self._sessions.connect()
                self.raw = (await self._sa.get_raw_connection()).driver_connection
            else:
                self.raw = await self._connect()
                await self.raw.set_autocommit(True)  # as in `Port`
        if self._sa is None and "session" in spec.flavour:
            await self.close()
            return await self.begin(spec)
        if self._sa is not None:
            if not self._sa.in_transaction():
                await self._sa.begin()
            self._sessions.begin(self._sa)
            cursor = await self.raw.execute(_begun(spec))
        else:
            if spec.pipeline:
                self.raw.cursor_factory = AsyncCursor
            self.raw.forget()
            cursor = await self.raw.execute(_begin(spec), prepare=False)
        return _sees_all(spec, cursor)

    async def user(self, spec: TransactionSpec, call: Callable[[Any], Any], mode: Mode) -> Any:
        if spec.flavour == "async connection":
            self.raw.lent, self.raw.keeps = True, mode == "piped"
            try:
                result = await call(self.raw)
            except Exception:
                self.raw.check()  # what came of it may look like the message's own
                raise
            finally:
                self.raw.lent = self.raw.keeps = False
            self.raw.check()
        else:
            session = self._sessions.open(self._sa, mode)
            try:
                result = await call(session)
                if not (mode == "grouped" and self._sessions.take(session, result)):
                    await session.flush()
                if mode == "savepoint":
                    await session.commit()
            finally:
                await session.close()
            if not self._sa.in_transaction():
                raise RolledBackError("the handler rolled its transaction back")
        _still_there(self.raw)  # before the next one's effects are committed by themselves
        return result

    async def flush(self) -> None:
        """The same as of `Port`."""
        if self._sa is not None:
            await self._sessions.flush(self._sa)
            _still_there(self.raw)
        else:
            await self.raw.send()

    async def execute(self, statement: bytes, params: dict[str, Any] | None = None) -> list[Any]:
        cursor = await self.raw.execute(statement, params, binary=True)
        return await cursor.fetchall() if cursor.description else []

    async def batch(self, statements: Sent) -> None:
        async with self.raw.pipeline():
            for statement, params in statements:
                await self.raw.execute(statement, params)

    async def commit(self) -> None:
        tag = (await self.raw.execute(b"commit")).statusmessage
        await self._end()
        if tag != "COMMIT":
            raise RolledBackError(f"COMMIT answered {tag}")

    def condition(self) -> Condition:
        """How the connection is."""
        return _condition(self.raw)

    async def rollback(self) -> None:
        if self.raw is None or self.raw.closed:
            return
        try:
            await self.raw.rollback()
            await self._end()
        except psycopg.Error:
            await self.raw.close()

    async def _end(self) -> None:
        if self._sa is not None and self._sa.in_transaction():
            await self._sa.get_transaction().close()

    async def close(self) -> None:
        if self.raw is not None:
            await self.raw.close()
        if self._sa is not None:
            await self._sa.invalidate()
            await self._sa.close()
        self._sa = self.raw = None


class ThreadPort:
    """A sync port for the async driver: what it is asked for, user code included, runs in one of the user's threads."""

    def __init__(self, database: Database) -> None:
        self._port = Port(database)

    def __getattr__(self, method: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return functools.partial(self._call, method)

    async def _call(self, method: str, *args: Any) -> Any:
        return await runtime("a transaction").in_thread(functools.partial(getattr(self._port, method), *args))

    def end(self) -> None:
        """Close the connection, from here; nobody uses it any more."""
        self._port.close()

    async def user(self, *args: Any) -> Any:
        """To its end, for a thread cannot be interrupted; cancelled meanwhile, what it did is rolled back."""
        task, interrupted = await _to_its_end(self._call("user", *args))
        if interrupted is not None:
            task.exception()  # looked at: nobody else will
            raise interrupted
        return task.result()


def drive(protocol: Protocol, port: Any) -> Any:
    """The sync driver."""
    send: Callable[[Any], Ask] = protocol.send
    outcome: Any = None
    try:
        while True:
            method, *args = send(outcome)
            send = protocol.send
            try:
                outcome = method(*args) if callable(method) else getattr(port, method)(*args)
            except BaseException as error:
                send, outcome = protocol.throw, error
    except StopIteration as stop:
        return stop.value


_INTERRUPTIBLE = {
    "user",
    "take",
    "barrier",
    "pause",
    "outlast",
}  # what may be cancelled: user code, and waits for something else


async def adrive(protocol: Protocol, port: Any) -> Any:
    """The async driver. User code can be cancelled; what the protocol does with the transaction ends first (R3)."""
    send: Callable[[Any], Ask] = protocol.send
    outcome: Any = None
    cancelled: asyncio.CancelledError | None = None
    try:
        while True:
            method, *args = send(outcome)
            send = protocol.send
            try:
                if method in _INTERRUPTIBLE:
                    if cancelled is not None:
                        raise cancelled
                    outcome = await getattr(port, method)(*args)
                else:
                    work = apart(method, *args) if callable(method) else getattr(port, method)(*args)
                    if isawaitable(work):
                        task, interrupted = await _to_its_end(work)
                        cancelled, work = cancelled or interrupted, task.result()
                    outcome = work
            except BaseException as error:
                send, outcome = protocol.throw, error
    except StopIteration as stop:
        if cancelled is not None:
            raise cancelled from None
        return stop.value


async def _to_its_end(
    work: Awaitable[Any],
) -> tuple["asyncio.Future[Any]", asyncio.CancelledError | None]:
    """The task that has ended, and the cancellation that came meanwhile."""
    task, interrupted = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interrupted = error
    return task, interrupted
