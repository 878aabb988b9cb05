"""Real services for the tests, started when the first test asks for them."""

import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventflow.local import Kafka, Postgres
from tests import services
from tests.ledgers import empty_database, new_ledger


def pytest_configure() -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would children


def pytest_report_header() -> str:
    return services.describe(services.choose())


@pytest.fixture(scope="session")
def running_services() -> Iterator[services.Services]:
    with ExitStack() as stack:
        yield services.start(services.choose(), stack)


@pytest.fixture(scope="session")
def postgres_url(running_services: services.Services) -> str:
    return running_services.database_url


@pytest.fixture(scope="session")
def kafka_bootstrap(running_services: services.Services) -> str:
    return running_services.kafka_bootstrap_servers


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def ledger_url(postgres_url: str) -> Iterator[str]:
    with new_ledger(postgres_url) as url:
        yield url


@pytest.fixture
def make_topic(kafka_bootstrap: str) -> Callable[..., str]:
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": kafka_bootstrap})

    def make(partitions: int = 3, name: str | None = None) -> str:
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        for future in client.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result(timeout=30)
        return name

    return make


@pytest.fixture
def topic(make_topic: Callable[..., str]) -> str:
    return make_topic()


@pytest.fixture
def private_root() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="eventflow-private-", dir="/var/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def private_postgres(private_root: Path) -> Iterator[Postgres]:
    """A server of the test's own, to be killed; always local."""
    server = Postgres(private_root)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def private_kafka(private_root: Path) -> Iterator[Kafka]:
    """A broker of the test's own, to be killed; always local."""
    broker = Kafka(private_root)
    broker.start()
    yield broker
    broker.stop()
