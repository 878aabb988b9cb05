"""The caller's own transaction: a workflow that is put in line there exists when the caller commits, and not otherwise.

A SQLAlchemy Session or connection, of whichever driver, or a psycopg connection; sync or async. On the ledger's database.
"""

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from eventflow.errors import UsageError

Borrowed = Session | Connection | psycopg.Connection[Any]
AsyncBorrowed = AsyncSession | AsyncConnection | psycopg.AsyncConnection[Any]


def execute(session: Any, query: bytes, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The query's rows, in the caller's transaction.

    Raises:
        UsageError: this is nothing that blocking code executes on.
        psycopg.Error: what the server says.

    """
    if isinstance(session, psycopg.Connection):
        with session.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(query, params).fetchall()
    if isinstance(session, Session | Connection):
        with _as_psycopg():
            return [tuple(row) for row in session.execute(_clause(query), dict(params))]
    raise UsageError(f"session is a SQLAlchemy Session or Connection or a psycopg Connection, not {session!r}")


async def aexecute(session: Any, query: bytes, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The same for async code."""
    if isinstance(session, psycopg.AsyncConnection):
        async with session.cursor(row_factory=tuple_row) as cursor:
            return await (await cursor.execute(query, params)).fetchall()
    if isinstance(session, AsyncSession | AsyncConnection):
        with _as_psycopg():
            return [tuple(row) for row in await session.execute(_clause(query), dict(params))]
    raise UsageError(
        f"session is a SQLAlchemy AsyncSession or AsyncConnection or a psycopg AsyncConnection, not {session!r}"
    )


def _clause(query: bytes) -> TextClause:
    """The query with SQLAlchemy's placeholders, which every driver knows."""
    return text(re.sub(r"%\((\w+)\)b::(\w+(?:\[\])?)", r"cast(:\1 as \2)", query.decode()))


class _as_psycopg:  # noqa: N801  # used as a function
    """SQLAlchemy's errors as what they wrap."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.Error):
            raise error.orig from error
