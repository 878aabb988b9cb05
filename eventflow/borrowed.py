"""The caller's own transaction: a workflow that is put in line there exists when the caller commits, and not otherwise.

A SQLAlchemy Session or connection, of whichever driver, or a psycopg connection; sync or async. On the ledger's database.
"""

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row

from eventflow.errors import UsageError, first_line

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    Borrowed = Session | Connection | psycopg.Connection[Any]
    AsyncBorrowed = AsyncSession | AsyncConnection | psycopg.AsyncConnection[Any]
else:
    Borrowed = AsyncBorrowed = Any


Found = tuple[list[str], list[tuple[Any, ...]]]


def execute(session: Any, query: bytes, params: Mapping[str, Any]) -> Found:
    """The names of the query's columns, and its rows, in the caller's transaction.

    Raises:
        UsageError: this is nothing that blocking code executes on.
        Exception: what the driver raises; `said` tells what the server said.

    """
    if isinstance(session, psycopg.Connection):
        with session.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(query, params).fetchall()
            return [column.name for column in cursor.description or ()], rows
    if _is_sqlalchemy(session, "Session", "Connection"):
        found = session.execute(_clause(query), dict(params))
        return list(found.keys()), [tuple(row) for row in found]
    raise UsageError(f"session is a SQLAlchemy Session or Connection or a psycopg Connection, not {session!r}")


async def aexecute(session: Any, query: bytes, params: Mapping[str, Any]) -> Found:
    """The same for async code."""
    if isinstance(session, psycopg.AsyncConnection):
        async with session.cursor(row_factory=tuple_row) as cursor:
            rows = await (await cursor.execute(query, params)).fetchall()
            return [column.name for column in cursor.description or ()], rows
    if _is_sqlalchemy(session, "AsyncSession", "AsyncConnection"):
        found = await session.execute(_clause(query), dict(params))
        return list(found.keys()), [tuple(row) for row in found]
    raise UsageError(
        f"session is a SQLAlchemy AsyncSession or AsyncConnection or a psycopg AsyncConnection, not {session!r}"
    )


def _is_sqlalchemy(session: Any, *names: str) -> bool:
    """Whether it is one of SQLAlchemy's classes of these names; loads nothing: who has one has loaded them."""
    modules = [sys.modules.get(name) for name in ("sqlalchemy", "sqlalchemy.orm", "sqlalchemy.ext.asyncio")]
    return isinstance(session, tuple(vars(m)[name] for m in modules if m for name in names if name in vars(m)))


def _clause(query: bytes) -> "TextClause":
    """The query with SQLAlchemy's placeholders, which every driver knows."""
    from sqlalchemy import text

    return text(re.sub(r"%\((\w+)\)b::(\w+(?:\[\])?)", r"cast(:\1 as \2)", query.decode()))


def said(error: Exception) -> tuple[str, str]:
    """The server's SQLSTATE and message, as psycopg, psycopg2, asyncpg or pg8000 tell them; "" where it is none of these."""
    raw: Any = getattr(error, "orig", None) or error  # SQLAlchemy wraps it
    fields: Any = raw.args[0] if raw.args else None
    if isinstance(fields, dict):  # pg8000
        return str(fields.get("C", "")), str(fields.get("M", ""))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    state = getattr(raw, "sqlstate", None) or getattr(raw, "pgcode", None) or ""
    message = getattr(getattr(raw, "diag", None), "message_primary", None)
    return state, message or first_line(raw).rpartition(">: ")[2]
