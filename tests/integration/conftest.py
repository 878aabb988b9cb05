"""The world of a guarantee's test: a migrated ledger of its own, a topic's name, and workers that are killed at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from eventflow.local import Kafka, Postgres
from eventflow.migrations import migrate
from tests.harness import EFFECTS, World


def prepare(url: str) -> str:
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(EFFECTS.encode())
    return url


@pytest.fixture
def world(database_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    made = World(prepare(database_url), kafka_bootstrap, tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[str, str], World]]:
    worlds: list[World] = []

    def make(database_url: str, bootstrap: str) -> World:
        worlds.append(World(prepare(database_url), bootstrap, tmp_path))
        return worlds[-1]

    yield make
    for made in worlds:
        made.close()


@pytest.fixture
def world_on_private_postgres(
    private_postgres: Postgres, kafka_bootstrap: str, tmp_path: Path
) -> Iterator[World]:
    made = World(prepare(private_postgres.url), kafka_bootstrap, tmp_path)
    yield made
    made.close()


@pytest.fixture
def world_on_private_kafka(database_url: str, private_kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    made = World(prepare(database_url), private_kafka.bootstrap_servers, tmp_path)
    yield made
    made.close()
