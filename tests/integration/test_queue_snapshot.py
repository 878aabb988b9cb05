"""A snapshot that somebody holds keeps what was taken from a queue in its index: a claim does not walk over that (ADR 9)."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from eventflow.database import Connection, Database
from eventflow.migrations import migrate
from tests.harness import World

BATCHES, EACH = 200, 50


@pytest.fixture
def database(world: World) -> Database:
    migrate(world.database_url)
    return Database(world.database_url)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.connect("test") as connection:
        for n in range(BATCHES):  # a transaction each
            connection.execute(
                "select eventflow.enqueue('w', workflow_id => format('%%s %%s', %s::text, i)) from generate_series(1, %s) i",
                (f"{n:04}", EACH),
            )
        connection.execute("analyze eventflow.workflows")
        yield connection


def pages(database: Database, connection: Connection, low: str) -> int:
    """How many pages a claim of ten touches before it writes, from this transaction on."""
    asked = {
        "application": "default", "queue": "default", "executor": 7, "names": ["w"], "timeouts": "{}", "limit": 10,
        "priority": [0], "key": [""], "low": [low], "share": [10],
    }  # fmt: skip
    with connection.transaction(force_rollback=True):
        rows: list[tuple[Any, ...]] = connection.execute(
            b"explain (analyze, buffers, costs off, timing off, summary off) " + database.text("claim_queue"), asked
        ).fetchall()
    text = "\n".join(line for (line,) in rows)
    found = re.search(r"LockRows.*\n\s+Buffers: shared hit=(\d+)", text)
    assert found is not None, text
    return int(found.group(1))


def test_a_claim_goes_to_the_head_of_its_line(database: Database, connection: Connection, world: World) -> None:
    with psycopg.connect(world.database_url) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from eventflow.workflows")
        taken = (BATCHES - 2) * EACH
        connection.execute(
            """update eventflow.workflows set executor = 7, status = 'succeeded', finished_at = now(), taken = placed
                where id in (select id from eventflow.workflows order by placed, place limit %s)""",
            (taken,),
        )
        connection.execute("vacuum eventflow.workflows")
        [(head,)] = connection.execute(
            "select min(placed::text::bigint)::text from eventflow.workflows where executor = 0"
        ).fetchall()
        walked, found = pages(database, connection, "0"), pages(database, connection, head)
    assert walked > 200, "else the snapshot keeps nothing, and this test shows nothing"
    assert found < 20, f"{found} pages for ten rows"
