"""Kafka handlers that are transactions on another database: each message's effect is there once, in whatever moment one dies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.harness import World, few
from tests.integration.test_pooler import pgbouncer
from tests.ledgers import other_database

GROUPS = ("ledger", "aledger")


@pytest.fixture
def other(postgres_url: str) -> Iterator[str]:
    with other_database(postgres_url) as url:
        yield url


def check(world: World, other: str) -> None:
    """Every message has succeeded once for each group, and left one effect there."""
    wanted = {(p, o) for p, end in world.ends().items() for o in range(end)}
    with psycopg.connect(other) as connection:
        for group in GROUPS:
            world.check(group)
            query = 'select partition, "offset" from effects where "group" = %s'
            rows: list[Any] = connection.execute(query, [group]).fetchall()
            assert sorted(rows) == sorted(wanted), group
    world.check_no_incidents()


@pytest.mark.crash
@pytest.mark.parametrize(
    "point",
    few(["elsewhere.before_commit", "elsewhere.after_commit", "journal.before_commit"], "elsewhere.after_commit"),
)
def test_a_handler_elsewhere_is_killed(world: World, other: str, point: str) -> None:
    world.create_topic(2)
    mine = {"EVENTFLOW_DATABASES": json.dumps({"other": other})}
    victim = world.start("ledger_elsewhere", ready=True, crash=f"{point}:20", **mine)
    world.produce(100, over=0.5)
    world.wait_death(victim)
    world.start("ledger_elsewhere", **mine)
    for group in GROUPS:
        world.wait_completed(group)
    check(world, other)


def test_behind_pgbouncer(world: World, other: str, private_root: Path) -> None:
    """In transaction mode, both databases; a worker is killed in the middle."""
    world.create_topic(2)
    with pgbouncer(world.database_url, private_root, world) as pooled:
        mine = {
            "DATABASE_URL": pooled, "EVENTFLOW_PREPARED_STATEMENTS": "false",
            "EVENTFLOW_DATABASES": json.dumps({"other": pooled.rsplit("/", 1)[0] + "/" + other.rsplit("/", 1)[1]}),
        }  # fmt: skip
        victim = world.start("ledger_elsewhere", ready=True, crash="elsewhere.before_commit:30", **mine)
        world.produce(100, over=0.5)
        world.wait_death(victim)
        world.start("ledger_elsewhere", **mine)
        for group in GROUPS:
            world.wait_completed(group)
        check(world, other)
