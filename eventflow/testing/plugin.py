"""Fixtures for the tests of programs: a real PostgreSQL and a real Kafka, those that the environment names, else local ones.

pytest finds them where eventflow is installed. What is not asked for is not started.
"""

import uuid
from collections.abc import Generator
from urllib.parse import urlsplit, urlunsplit

import pytest

from eventflow.database import Database
from eventflow.errors import EventflowError
from eventflow.testing.services import kafka_servers, postgres_url


@pytest.fixture(scope="session")
def eventflow_postgres() -> str:
    """The URL of a PostgreSQL on which tests may make and drop databases: `EVENTFLOW_TEST_DATABASE_URL`, else a local one."""
    try:
        return postgres_url()
    except EventflowError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def eventflow_kafka() -> str:
    """The bootstrap servers of a Kafka for tests: `EVENTFLOW_TEST_KAFKA_BOOTSTRAP_SERVERS`, else a local broker."""
    try:
        return kafka_servers()
    except EventflowError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def eventflow_database(eventflow_postgres: str) -> Generator[str]:
    """The URL of an empty database of the test's own, dropped after it: for its tables, and `testing.harness(...)`."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = Database(eventflow_postgres)
    with server.connect("testing") as admin:
        admin.execute(f"create database {name}".encode())
    yield urlunsplit(urlsplit(eventflow_postgres)._replace(path=f"/{name}"))
    with server.connect("testing") as admin:
        admin.execute(f"drop database {name} with (force)".encode())
