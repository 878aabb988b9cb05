"""The world of a guarantee's test: a migrated ledger of its own, a topic's name, and workers that are killed at the end."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventflow import sync
from eventflow.local import Kafka, Postgres
from tests.harness import World
from tests.ledgers import new_ledger, prepare
from tests.services import need


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the end of what each of its workers has said."""
    report: Any = yield
    if report.when == "call" and report.failed:
        for made in getattr(item, "funcargs", {}).values():
            for worker in made.workers if isinstance(made, World) else ():
                title = f"{worker.log.name} ({worker.app}, exit {worker.process.poll()})"
                report.sections.append((title, worker.text[-3000:]))
    return report


@pytest.fixture
def client(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[sync.Client]:
    """A client of the world that knows its brokers."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", world.bootstrap_servers)
    with sync.Client(world.database_url) as opened:
        yield opened


@pytest.fixture
def world(postgres_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    with new_ledger(postgres_url) as url:
        made = World(url, kafka_bootstrap, tmp_path)
        yield made
        made.close()


@pytest.fixture
def private_world(private_postgres: Postgres, private_kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """On servers of the test's own, which it may kill."""
    made = World(prepare(private_postgres.url), private_kafka.bootstrap_servers, tmp_path)
    yield made
    made.close()


@pytest.fixture
def debian_world(kafka_bootstrap: str, private_root: Path, tmp_path: Path) -> Iterator[World]:
    """On Debian's PostgreSQL 15: an older server, without `transaction_timeout`."""
    server = Postgres(private_root, installed=need("postgresql-15").parent)
    server.start()
    made = World(prepare(server.url), kafka_bootstrap, tmp_path)
    yield made
    made.close()
    server.stop()
