"""Orders that are put in line together come to what they come to one by one, in the same order."""

import random
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from eventflow.database import Database, columns
from eventflow.journal import RIDERS, packed
from eventflow.migrations import migrate
from eventflow.queues import Order
from tests.ledgers import empty_database

STATE = """select id, name, queue, arguments, queue_key, priority, deduplication_id, least(wake_at - now(), interval '1 day') as wakes, settles_by - now() as settles,
                  timeout, deadline, attributes::text, parent, placed is not null as placed, status, executor
             from eventflow.workflows order by place, id"""
BEFORE = [
    Order("old", "1", "a", given=True), Order("old", "1", "b", given=True, deduplication_id="d"),
    Order("new", "1", "c", given=True, deduplication_id="s", settle=5.0, settle_limit=50.0),
]  # fmt: skip


def one(chance: random.Random, n: int) -> Order:
    given = chance.random() < 0.5
    settle = chance.choice([None, None, None, 3.0])
    return Order(
        "new", str(n), chance.choice("abcdefgh") if given else f"new {n}", given=given, queue=chance.choice(["default", "q"]),
        key=chance.choice([None, "k", "k" * 500]), priority=chance.choice([0, 0, -5, 7]),
        wait=chance.choice([None, None, None, 0.0, 9.0]), until=chance.choice([None, None, None, 1.0, 4e9]),
        deduplication_id="s" if settle else chance.choice([None, None, None, "d", "e"]), settle=settle,
        timeout=chance.choice([None, 0.0, 5.0]), deadline=chance.choice([None, 4e9]),
        attributes=chance.choice([None, '{"x": 1}']), parent=chance.choice([None, "a"]),
    )  # fmt: skip


def put(connection: "psycopg.Connection[Any]", database: Database, orders: list[Order]) -> list[Any]:
    params = packed(columns([order.row("default") for order in orders], RIDERS["enqueue"]))
    query, values = database.statement("enqueue", params)
    return [row[1:6] for row in connection.execute(query, values).fetchall()]


def put_one(connection: "psycopg.Connection[Any]", order: Order) -> list[Any]:
    values = list(order.row("default"))
    query = """select id, added, name, status, arguments from eventflow.place(
      %s::text, %s::text, %s::text, %s::text, %s::text, %s::text, %s::int, %s::float8, to_timestamp(%s::float8), %s::text,
      %s::float8, %s::float8, %s::float8, to_timestamp(%s::float8), %s::jsonb, %s::text)"""
    return connection.execute(query, values).fetchall()


@pytest.mark.parametrize("seed", range(40))
def test_together_is_one_by_one(ledger_url: str, seed: int) -> None:
    chance, database = random.Random(seed), Database(ledger_url)
    orders = [one(chance, n) for n in range(chance.randrange(2, 12))]
    found: list[Any] = []
    with psycopg.connect(ledger_url) as connection:
        database.adopt(connection)
        for together in (True, False):
            put(connection, database, BEFORE)
            answers = (
                put(connection, database, orders) if together else [a for o in orders for a in put_one(connection, o)]
            )
            with connection.cursor(row_factory=dict_row) as cursor:
                state = cursor.execute(STATE).fetchall()
            connection.rollback()
            found.append(([a[:4] if a[1] else a for a in answers], state))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def ledger_url(postgres_url: str) -> Any:
    with empty_database(postgres_url) as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("insert into eventflow.queues (application, name) values ('default', 'q')")
        yield url
