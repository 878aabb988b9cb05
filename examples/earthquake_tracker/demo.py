"""`python demo.py`: six looks at a feed in twelve seconds, two workers, of which one is killed; each revision is entered once.

On the servers of DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS, else on local ones that it starts (the extra `local`).
Exit status 0: the tables hold what the feed said.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from app import TABLES, TOPIC, parse
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from eventflow.migrations import migrate

HERE = Path(__file__).parent
EVERY = float(os.environ.get("EARTHQUAKES_EVERY", "2"))
LOOKS: list[Any] = json.loads((HERE / "feed.json").read_text())
EXPECTED = {(quake.id, quake.updated): quake for look in LOOKS for quake in parse(look)}


@contextmanager
def servers() -> Generator[dict[str, str]]:
    """The addresses of PostgreSQL and Kafka, as variables."""
    addresses = {name: os.environ.get(name) for name in ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS")}
    if any(addresses.values()):
        yield {name: value for name, value in addresses.items() if value}
        return
    from eventflow.local import services

    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as local:
        yield local.addresses.environment()


def prepare(variables: dict[str, str]) -> None:
    """Apply the ledger's migrations, and make the tables and the topic."""
    migrate(variables["DATABASE_URL"])
    with psycopg.connect(variables["DATABASE_URL"]) as connection:
        connection.execute(TABLES.encode())
    admin: Any = AdminClient({"bootstrap.servers": variables["KAFKA_BOOTSTRAP_SERVERS"]})
    try:
        admin.create_topics([NewTopic(TOPIC, 3, 1)])[TOPIC].result(30)
    except KafkaException as error:
        if "already exists" not in str(error):
            raise


def worker(variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A process that runs the program, as `eventflow run app.py` does in a shell."""
    fast = {
        "EVENTFLOW_LEASE": "1", "EVENTFLOW_BEAT": "0.2", "EVENTFLOW_LOG_LEVEL": "error",  # a death is noticed between two looks
        "EVENTFLOW_KAFKA": json.dumps({"session.timeout.ms": 6000}),
        "EARTHQUAKES_EVERY": str(EVERY),
    }  # fmt: skip
    command = [sys.executable, "-m", "eventflow", "run", "app.py"]
    return subprocess.Popen(command, cwd=HERE, env={**os.environ, **variables, **fast})


def right(connection: "psycopg.Connection[Any]") -> bool:
    """Whether each revision was entered once, and each earthquake is as it was revised last."""
    revisions = connection.execute("select id, updated from revisions").fetchall()
    newest = {quake.id: quake.magnitude for _, quake in sorted(EXPECTED.items())}  # of each, the last revision is last
    found = dict(connection.execute("select id, magnitude from earthquakes").fetchall())
    return sorted(revisions) == sorted(EXPECTED) and found == newest


def main() -> int:
    """Run, kill, and compare."""
    with servers() as variables:
        prepare(variables)
        workers = [worker(variables), worker(variables)]
        with psycopg.connect(variables["DATABASE_URL"], autocommit=True) as connection:
            seen, deadline = 0, time.monotonic() + 90 + 6 * EVERY
            try:
                while seen < len(EXPECTED) and time.monotonic() < deadline:
                    tables = "(select count(*) from revisions), (select count(*) from earthquakes)"
                    [(revisions, earthquakes)] = connection.execute(f"select {tables}".encode()).fetchall()
                    if revisions != seen:
                        seen = revisions
                        print(f"{earthquakes} earthquakes after {seen} revisions", flush=True)
                    if seen >= len(EXPECTED) // 3 and len(workers) == 2:
                        workers.pop(0).kill()
                        print("a worker is killed; the other one takes over", flush=True)
                    time.sleep(0.1)
                for magnitude, place in connection.execute("select magnitude, place from earthquakes order by at"):
                    print(f"{magnitude:4.1f}  {place}")
            finally:
                for one in workers:
                    one.terminate()
                for one in workers:
                    one.wait(30)
            well = right(connection)
    print(f"{seen} revisions, each once, the newest last" if well else "the tables are NOT what the feed said")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
