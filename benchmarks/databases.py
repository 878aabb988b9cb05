"""A fresh database for every run, and the two figures that PostgreSQL itself keeps about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from psycopg import sql


def named(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@contextmanager
def fresh(url: str) -> Iterator[str]:
    """A new, empty database for the length of the block; a checkpoint first, so that none is owed by others."""
    name = f"bench_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        connection.execute("checkpoint")
    try:
        yield named(url, name)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
            connection.execute(drop)


def wal(url: str) -> int:
    """The server's write-ahead log position, in bytes."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
    return row[0] if row else 0


def transactions(server: str, database_url: str) -> int:
    """How many transactions a database has ended; asked from another database, so that asking adds none."""
    name = urlsplit(database_url).path.lstrip("/")
    with psycopg.connect(server, autocommit=True) as connection:
        row = connection.execute(
            "select xact_commit + xact_rollback from pg_stat_database where datname = %s", [name]
        ).fetchone()
    return row[0] if row else 0


def server_version(url: str) -> str:
    """PostgreSQL's own version."""
    with psycopg.connect(url) as connection:
        row = connection.execute("show server_version").fetchone()
    return str(row[0]) if row else "?"
