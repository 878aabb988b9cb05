"""Where Kafka and PostgreSQL are: the ones that the environment names, else local ones, started for this run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "EVENTFLOW_TEST_DATABASE_URL"
KAFKA = "EVENTFLOW_TEST_KAFKA_BOOTSTRAP_SERVERS"
NO_KAFKA = "not used"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Both addresses, and in a few words whose services they are."""

    database_url: str
    bootstrap: str
    kind: str
    kafka: str = "unknown"


@contextmanager
def services() -> Iterator[Addresses]:
    """Both services for the length of the block. Programs' own DATABASE_URL is never read."""
    if DATABASE in os.environ and KAFKA in os.environ:
        yield Addresses(os.environ[DATABASE], os.environ[KAFKA], "external")
        return
    from eventflow import local

    with local.services(ROOT / ".eventflow" / "bench", throughput=True) as running:
        addresses = running.addresses
        yield Addresses(addresses.database_url, addresses.kafka_bootstrap_servers, "local", _kafka_version())


@contextmanager
def postgres() -> Iterator[Addresses]:
    """PostgreSQL alone, for what needs no Kafka."""
    if DATABASE in os.environ:
        yield Addresses(os.environ[DATABASE], "", "external", NO_KAFKA)
        return
    from eventflow.local import Postgres

    server = Postgres(ROOT / ".eventflow" / "bench")
    server.start()
    try:
        yield Addresses(server.url, "", "local", NO_KAFKA)
    finally:
        server.stop()


def _kafka_version() -> str:
    from eventflow.local.jars import pinned

    return next((jar.version for jar in pinned() if jar.artifact == "kafka-clients"), "unknown")
