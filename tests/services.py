"""Which Kafka and PostgreSQL the tests run on: external, Docker, or local, in this order; never a program's own.

Some guarantees are proved with more than these, with packages of Debian. Where one is missing its tests are skipped; with
`EVENTFLOW_TEST_REQUIRE=1`, as in CI, they fail, but for what `EVENTFLOW_TEST_WAIVE` names (`pgbouncer,postgresql-15`).
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

Backend = Literal["external", "docker", "local"]
DATABASE = "EVENTFLOW_TEST_DATABASE_URL"
KAFKA = "EVENTFLOW_TEST_KAFKA_BOOTSTRAP_SERVERS"
WANTED = "EVENTFLOW_TEST_BACKEND"
REQUIRE = "EVENTFLOW_TEST_REQUIRE"
WAIVE = "EVENTFLOW_TEST_WAIVE"
PACKAGES = {"pgbouncer": Path("/usr/sbin/pgbouncer"), "postgresql-15": Path("/usr/lib/postgresql/15/bin/postgres")}


@dataclass(frozen=True)
class Services:
    database_url: str
    kafka_bootstrap_servers: str


def docker_answers() -> bool:
    """Whether a Docker daemon answers; the client's presence proves nothing."""
    try:
        import docker

        return bool(docker.from_env(timeout=3).ping())
    except Exception:
        return False


def choose() -> Backend:
    """The backend; one that is asked for by name is never replaced by another."""
    wanted = os.environ.get(WANTED)
    external = DATABASE in os.environ and KAFKA in os.environ
    if wanted not in {None, "external", "docker", "local"}:
        raise RuntimeError(f"{WANTED} is external, docker or local, not {wanted!r}")
    if wanted == "external" and not external:
        raise RuntimeError(f"{WANTED}=external needs {DATABASE} and {KAFKA}")
    if wanted == "docker" and not docker_answers():
        raise RuntimeError(f"{WANTED}=docker, and no Docker daemon answers")
    if wanted is not None:
        return wanted  # type: ignore[return-value]
    if external:
        return "external"
    return "docker" if docker_answers() else "local"


def describe(backend: Backend) -> str:
    """For the head of the test report."""
    local = backend == "local"
    servers = "Kafka: local Apache Kafka 4.3.1 · PostgreSQL: local 18" if local else f"Kafka and PostgreSQL: {backend}"
    return " · ".join([servers, *(f"{package}: {_state(package)}" for package in PACKAGES)])


def _state(package: str) -> str:
    if PACKAGES[package].exists():
        return "installed"
    return "missing, and required" if required(package) else "missing, its tests are skipped"


def required(package: str) -> bool:
    """Whether its tests fail where it is missing."""
    waived = {name.strip() for name in os.environ.get(WAIVE, "").split(",")} - {""}
    if waived - PACKAGES.keys():
        raise RuntimeError(f"{WAIVE} knows {', '.join(PACKAGES)}, not {min(waived - PACKAGES.keys())!r}")
    return os.environ.get(REQUIRE, "") not in {"", "0"} and package not in waived


def need(package: str) -> Path:
    """The package's program; without it the test is skipped, or fails where the package is required."""
    program = PACKAGES[package]
    if program.exists():
        return program
    missing = f"Debian's package {package} is not installed ({program})"
    if required(package):
        pytest.fail(f"{missing}; {WAIVE}={package} leaves what it proves unproved", pytrace=False)
    pytest.skip(missing)


def start(backend: Backend, stack: ExitStack) -> Services:
    """Start what the backend needs, for as long as the stack lives."""
    if backend == "external":
        return Services(os.environ[DATABASE], os.environ[KAFKA])
    if backend == "docker":
        return _containers(stack)
    from eventflow.local import Kafka, Postgres

    root = Path(tempfile.mkdtemp(prefix="eventflow-tests-", dir="/var/tmp"))
    root.chmod(0o755)
    stack.callback(shutil.rmtree, root, ignore_errors=True)
    # Nobody kills this broker; in a crowd of processes it is to be taken for dead, by itself, less soon than after a second.
    postgres, kafka = Postgres(root), Kafka(root, properties="broker.session.timeout.ms=9000\n")
    for server in (postgres, kafka):
        stack.callback(server.stop)
        server.start()
    return Services(postgres.url, kafka.bootstrap_servers)


def _containers(stack: ExitStack) -> Services:
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.community.postgres import PostgresContainer

    kafka = KafkaContainer().with_kraft()
    kafka.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    kafka.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    postgres = PostgresContainer("postgres:18-alpine", driver=None)
    stack.enter_context(kafka)
    stack.enter_context(postgres)
    return Services(postgres.get_connection_url(), kafka.get_bootstrap_server())
