"""The world of a guarantee's test: a migrated ledger of its own, a topic's name, and workers that are killed at the end."""

from collections.abc import Iterator
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
def private_world(private_postgres: Postgres, private_kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """On servers of the test's own, which it may kill."""
    made = World(prepare(private_postgres.url), private_kafka.bootstrap_servers, tmp_path)
    yield made
    made.close()
