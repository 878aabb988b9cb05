"""The servers that tests of a program run on: those that the environment names, else local ones from pip alone.

Never the program's own: `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` are not read here. A local one starts when it is first
asked for, in a folder of its own, and ends with the process.
"""

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from eventflow.errors import SettingsError, first_line
from eventflow.local import Kafka, LocalServiceError, Postgres

DATABASE = "EVENTFLOW_TEST_DATABASE_URL"
KAFKA = "EVENTFLOW_TEST_KAFKA_BOOTSTRAP_SERVERS"


def postgres_url() -> str:
    """A PostgreSQL on which tests may make and drop databases. Blocks; from a thread that lives as long as it is wanted.

    Raises:
        SettingsError: none is named, and the extra `local` is not installed.

    """
    return os.environ.get(DATABASE) or _local_postgres()


def kafka_servers() -> str:
    """A Kafka on which tests may make topics; the same for brokers."""
    return os.environ.get(KAFKA) or _local_kafka()


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="eventflow-pytest-", dir="/var/tmp"))  # where a server's account may go
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _start(server: Postgres | Kafka, what: str, variable: str) -> None:
    try:
        server.start()
    except LocalServiceError as error:
        raise SettingsError(f"there is no {what} for the tests: {first_line(error)}; or set {variable}") from error
    atexit.register(server.stop)


@lru_cache(maxsize=1)
def _local_postgres() -> str:
    server = Postgres(_folder())
    _start(server, "PostgreSQL", DATABASE)
    return server.url


@lru_cache(maxsize=1)
def _local_kafka() -> str:
    broker = Kafka(_folder())
    _start(broker, "Kafka", KAFKA)
    return broker.bootstrap_servers
