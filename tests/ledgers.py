"""Ledgers of the tests that kill: copies of one that was migrated once, which takes a tenth of a second less than each anew."""

import atexit
import contextlib
import functools
import uuid
from collections.abc import Iterator

import psycopg

from eventflow.migrations import migrate

# What a transaction or a step does, where a second time must be seen, not refused: there is no unique constraint.
EFFECTS = """
create table if not exists effects (
  id bigserial, "group" text, topic text, partition int, "offset" bigint, note text,
  pid int, at timestamptz default clock_timestamp()
)
"""


def prepare(url: str) -> str:
    """Make a ledger of it, with a table for effects."""
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(EFFECTS.encode())
    return url


@contextlib.contextmanager
def new_ledger(postgres_url: str) -> Iterator[str]:
    """One of its own, in a database that is dropped at the end."""
    like, name = _prepared(postgres_url), f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"create database {name} template {like}".encode())
    url = _at(postgres_url, name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update eventflow.ledger set id = gen_random_uuid()")  # by which other databases know it
    yield url
    _drop(postgres_url, name)


@functools.cache
def _prepared(postgres_url: str) -> str:
    """The name of the database that the others are copied from."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
    atexit.register(_drop_if_there, postgres_url, name)
    prepare(_at(postgres_url, name))
    return name


def _at(postgres_url: str, name: str) -> str:
    return postgres_url.rsplit("/", 1)[0] + f"/{name}"


def _drop(postgres_url: str, name: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)".encode())


def _drop_if_there(postgres_url: str, name: str) -> None:
    with contextlib.suppress(psycopg.OperationalError):  # a server that the tests have started is gone by then
        _drop(postgres_url, name)
