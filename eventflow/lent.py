"""Connections that are lent to user code: when they commit is not its to decide; and what is kept back on them (ADR 19).

While one `keeps`, an INSERT, UPDATE, DELETE or MERGE is made ready at its own line, with its parameters as they are there, and
kept back. What is kept goes out in one round trip, in order, before anything else that the connection does (all of which
comes by its `wait`), and before anybody looks at the result of one of them. A failure that was seen meanwhile spoils the
transaction, whoever has caught it.
"""

# pyright: reportPrivateUsage=false
# Statements are made ready, queued and answered by what psycopg's own pipeline does it with.

import functools
import re
from collections.abc import AsyncIterator, Generator
from typing import Any, Self, TypeVar, cast
from weakref import ReferenceType, ref

import psycopg
from psycopg._cursor_base import BaseCursor
from psycopg._queries import PostgresQuery
from psycopg.generators import send

import eventflow.many as many
from eventflow.errors import EventflowError, UsageError

T = TypeVar("T")
Waits = Generator[Any, Any, T]
_MOST, _HEAVIEST = 500, 256 * 1024  # statements that are kept back, and bytes of their parameters
_PLAIN = (str, bytes)
_OPEN = psycopg.pq.TransactionStatus.INTRANS
_LONGEST = 4096  # characters of a statement; longer ones are seldom told twice, and are not remembered
_WRITES = re.compile(
    r"\s*(?:insert|update|delete|merge)\b(?!.*(?:;(?!\s*\Z)|\breturning\b))", re.IGNORECASE | re.DOTALL
)


class LookedAtError(EventflowError):
    """Async code has looked, where it cannot wait, at the result of a statement that was kept back."""


class _Text:
    """What is known of a statement's text.

    Attributes:
        waits: it is sent at its own line, for its answer is needed, or may be.

    """

    __slots__ = ("waits",)

    def __init__(self, waits: bool) -> None:
        self.waits = waits


@functools.lru_cache(1000)
def _text(query: str | bytes) -> _Text:
    return _Text(_WRITES.match(query if isinstance(query, str) else query.decode("latin-1")) is None)


def _waits(query: object) -> bool:
    """Whether a statement of this text, or of whatever this is, is sent at its own line."""
    return type(query) not in _PLAIN or len(cast("str", query)) > _LONGEST or _text(cast("str", query)).waits


class _Kept:
    """What both connections know of the statements that are kept back, and of what came of them."""

    _cursors: type[BaseCursor[Any, Any]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cursor_factory: Any = self._cursors
        self.lent = False
        self.keeps = False
        self.forget()

    def forget(self) -> None:
        """A transaction begins, or is over."""
        self._kept: list[tuple[PostgresQuery, ReferenceType[_Keeping]]] = []
        self._weight = 0
        self._has_kept = False
        self._spoilt: Exception | None = None

    def check(self) -> None:
        """Raise what has spoilt the transaction, if anything has."""
        if self._spoilt is not None:
            raise self._spoilt

    def keep(self, cursor: "_Keeping", query: PostgresQuery) -> None:
        """Keep back a statement of this cursor."""
        self._kept.append((query, ref(cursor)))
        self._weight += sum(len(one) for one in query.params or () if one is not None)
        self._has_kept = True

    def keeps_much(self) -> bool:
        """Whether more had better not be kept."""
        return len(self._kept) >= _MOST or self._weight >= _HEAVIEST

    def _take(self) -> Waits[None]:
        """What sends all that is kept."""
        kept, self._kept, self._weight = self._kept, [], 0
        return _send(cast("Any", self), kept)

    def _spoil(self, error: BaseException) -> None:
        if self._spoilt is None:
            interrupted = not isinstance(error, Exception)
            self._spoilt = EventflowError(f"interrupted in its transaction: {error!r}") if interrupted else error

    def _note(self, error: psycopg.Error) -> None:
        """An error of what waited for its answer; the server's may be by what was kept back before."""
        if self._has_kept and error.sqlstate is not None:
            self._spoil(error)


def _send(connection: Any, kept: "list[tuple[PostgresQuery, ReferenceType[_Keeping]]]") -> Waits[None]:
    """Send these in one go, and give each its answer; raise the first error among them."""
    nobody: BaseCursor[Any, Any] = BaseCursor(connection)  # has the answers that nobody can look at any more
    nobody._execmany_returning, nobody._rowcount = False, 0
    with many.piped(connection) as pipeline:
        for query, cursor in kept:
            yield from (_whose(cursor(), query) or nobody)._maybe_prepare_gen(query)
            many.hand_over(pipeline)
        yield from connection._prepared.maintain_gen(connection)
        many.hand_over(pipeline)
        pipeline.pgconn.pipeline_sync()
        pipeline.result_queue.append(None)
        yield from send(pipeline.pgconn)
        yield from pipeline._fetch_gen(flush=False)


def _whose(cursor: "_Keeping | None", query: PostgresQuery) -> "BaseCursor[Any, Any] | None":
    """The cursor, where its result is still that of this statement."""
    if cursor is None or cursor._mine is not query:
        return None
    cursor._mine = None
    return cursor


class _Keeping(BaseCursor[Any, Any]):
    """A cursor whose statement may be kept back.

    Attributes:
        _mine: the one that is.

    """

    _mine: PostgresQuery | None = None

    def _keep(self, query: Any, params: Any) -> bool:
        """Keep back a statement, where it can be: in a transaction that is well, and in which nothing else is under way."""
        connection = self._conn
        if connection._pipeline is not None or connection.pgconn.transaction_status != _OPEN:
            return False
        self._mine = None
        for _ in self._start_query(query):  # waits for nothing: the transaction has begun
            return False
        made = self._convert_query(query, params)
        if made.params is not None:
            made.params = [one if one is None or type(one) is bytes else bytes(one) for one in made.params]
        self._last_query = query
        self._mine = made
        connection.keep(self, made)
        return True

    def __repr__(self) -> str:
        return (
            super().__repr__() if self._mine is None else f"<{type(self).__qualname__} [kept back] at 0x{id(self):x}>"
        )

    def _look(self) -> None:
        """Somebody looks at the result."""
        raise NotImplementedError

    def _close(self) -> None:
        self._mine = None  # nobody can look at it any more
        super()._close()

    def _set_pgresult(self, result: Any) -> None:
        _PGRESULT.__set__(self, result)

    def _get_pgresult(self) -> Any:
        self._look()
        return _PGRESULT.__get__(self)

    pgresult: Any = property(_get_pgresult, _set_pgresult)

    @property
    def rowcount(self) -> int:
        self._look()
        return self._rowcount

    @property
    def statusmessage(self) -> str | None:
        self._look()
        return super().statusmessage


_PGRESULT: Any = BaseCursor.__dict__["pgresult"]


class Cursor(_Keeping, many.Cursor):
    """A lent connection's."""

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Any:
        lent = cast("Lent", self._conn)
        if not (
            lent.keeps and prepare is None and binary is None and not _waits(query)
            and lent.lock.acquire(blocking=False)
        ):  # fmt: skip
            return super().execute(query, params, prepare=prepare, binary=binary)
        try:
            kept = self._keep(query, params)
        finally:
            lent.lock.release()
        if not kept:
            return super().execute(query, params)
        if lent.keeps_much():
            lent.send()
        return self

    def _look(self) -> None:
        if self._mine is not None:
            cast("Lent", self._conn).send()

    def set_result(self, index: int) -> Any:
        self._look()
        return super().set_result(index)


class AsyncCursor(_Keeping, many.AsyncCursor):
    """That of a lent async one."""

    async def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Any:
        lent = cast("AsyncLent", self._conn)
        if not (
            lent.keeps and prepare is None and binary is None and not _waits(query)
            and not lent.lock.locked() and self._keep(query, params)
        ):  # fmt: skip
            return await super().execute(query, params, prepare=prepare, binary=binary)
        if lent.keeps_much():
            await lent.send()
        return self

    def _look(self) -> None:
        """A property cannot wait for the server: the messages run again, and this statement waits from now on."""
        if self._mine is not None:
            _text(cast("Any", self._last_query)).waits = True
            raise cast("AsyncLent", self._conn).looked_at()

    async def _fetch_pipeline(self) -> None:
        if self._mine is not None:
            await cast("AsyncLent", self._conn).send()
        await super()._fetch_pipeline()

    async def set_result(self, index: int) -> Any:
        await self._fetch_pipeline()
        return await super().set_result(index)

    async def results(self) -> AsyncIterator[Self]:
        await self._fetch_pipeline()
        async for one in super().results():
            yield one


class Lent(_Kept, psycopg.Connection[Any]):
    """A connection lent to user code."""

    _cursors = many.Cursor

    def commit(self) -> None:
        if self.lent:
            raise UsageError("the transaction commits by itself; raise an exception to roll it back")
        super().commit()

    def rollback(self) -> None:
        if self.lent:
            raise UsageError("raise an exception to roll the transaction back")
        self.forget()
        super().rollback()

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        if self._kept:
            self._send()
        try:
            return super().wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            self._note(error)
            raise

    def send(self) -> None:
        """Send what is kept, and wait for the answers."""
        with self.lock:
            if self._kept:
                self._send()

    def _send(self) -> None:
        sending = self._take()
        try:
            super().wait(sending)
        except BaseException as error:
            self._spoil(error)
            raise
        finally:
            sending.close()


class AsyncLent(_Kept, psycopg.AsyncConnection[Any]):
    """The same for async code."""

    _cursors = many.AsyncCursor

    async def commit(self) -> None:
        if self.lent:
            raise UsageError("the transaction commits by itself; raise an exception to roll it back")
        await super().commit()

    async def rollback(self) -> None:
        if self.lent:
            raise UsageError("raise an exception to roll the transaction back")
        self.forget()
        await super().rollback()

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        if self._kept:
            await self._send()
        try:
            return await super().wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            self._note(error)
            raise

    async def send(self) -> None:
        """Send what is kept, and wait for the answers."""
        async with self.lock:
            if self._kept:
                await self._send()

    def looked_at(self) -> LookedAtError:
        """What comes of looking at a result where nobody can wait for it."""
        error = LookedAtError("the result of a statement that was kept back; its messages run again, and wait for it")
        self._spoil(error)
        return error

    async def _send(self) -> None:
        sending = self._take()
        try:
            await super().wait(sending)
        except BaseException as error:
            self._spoil(error)
            raise
        finally:
            sending.close()
