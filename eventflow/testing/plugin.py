"""Fixtures for the tests of programs: a real PostgreSQL and a real Kafka, those that the environment names, else local ones.

pytest finds them where eventflow is installed. What is not asked for is not started.
"""

from collections.abc import Callable, Generator

import pytest

from eventflow.errors import EventflowError
from eventflow.testing.ledger import own_database
from eventflow.testing.services import kafka_servers, postgres_url


def _found(find: Callable[[], str]) -> str:
    """The address of a server; where there is none, the test that wants it fails in one line."""
    try:
        return find()
    except EventflowError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def eventflow_postgres() -> str:
    """The URL of a PostgreSQL on which tests may make and drop databases: `EVENTFLOW_TEST_DATABASE_URL`, else a local one."""
    return _found(postgres_url)


@pytest.fixture(scope="session")
def eventflow_kafka() -> str:
    """The bootstrap servers of a Kafka for tests: `EVENTFLOW_TEST_KAFKA_BOOTSTRAP_SERVERS`, else a local broker."""
    return _found(kafka_servers)


@pytest.fixture
def eventflow_database(eventflow_postgres: str) -> Generator[str]:
    """The URL of an empty database of the test's own, dropped after it: for its tables, and `testing.harness(...)`."""
    with own_database(eventflow_postgres) as url:
        yield url
