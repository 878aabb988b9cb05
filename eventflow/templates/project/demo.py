"""`make demo`: orders through a real Kafka into a real Postgres, a worker killed in the middle, and what came of it.

On DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS where both are set, else on local services in .eventflow/ that end with it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psycopg
from confluent_kafka import Producer
from prepare import prepare
from settings import settings

ORDERS = 300
COUNT = "select count(*), count(distinct order_id) from entries where order_id between %s and %s"


@contextlib.contextmanager
def services() -> Generator[tuple[str, str]]:
    """Where Postgres and Kafka are."""
    if {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"} <= os.environ.keys():
        yield os.environ["DATABASE_URL"], os.environ["KAFKA_BOOTSTRAP_SERVERS"]
        return
    from eventflow.local import services as local

    print("starting PostgreSQL and Kafka in .eventflow/ (the first time, Kafka is fetched)", flush=True)
    with local(Path(".eventflow")) as found:
        yield found.addresses.database_url, found.addresses.kafka_bootstrap_servers


def produce(servers: str, first: int) -> None:
    """The orders, of seven customers."""
    producer = Producer({"bootstrap.servers": servers})
    for n in range(ORDERS):
        order = {"order_id": first + n, "customer": f"customer {n % 7}", "amount": n}
        producer.produce(settings.orders, json.dumps(order), key=str(n % 7))
    producer.flush()


def worker() -> "subprocess.Popen[bytes]":
    """A process that runs the program."""
    return subprocess.Popen([sys.executable, "-m", "eventflow", "run", "app"])


def main() -> int:
    """Produce, kill, wait, count."""
    with services() as (database_url, servers):
        os.environ |= {
            "DATABASE_URL": database_url,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "EVENTFLOW_LOG_LEVEL": "warning",
        }
        subprocess.run([sys.executable, "-m", "eventflow", "migrate"], check=True)
        prepare(database_url, servers)
        first = int(time.time()) * 1000
        produce(servers, first)
        print(f"{ORDERS} orders are produced", flush=True)
        running, killed = worker(), False
        entered = different = 0
        try:
            with psycopg.connect(database_url, autocommit=True) as connection:
                deadline = time.monotonic() + 90
                while entered < ORDERS and time.monotonic() < deadline:
                    entered, different = connection.execute(COUNT, (first, first + ORDERS)).fetchone() or (0, 0)
                    if entered and not killed:
                        running.kill()
                        running.wait()
                        killed = True
                        print(f"the worker is killed after {entered} of them; another one takes over", flush=True)
                        running = worker()
                    time.sleep(0.02)
        finally:
            running.terminate()
            running.wait(60)
    print(f"entered: {entered}, each once: {'yes' if entered == different == ORDERS else 'NO'}")
    return 0 if entered == different == ORDERS else 1


if __name__ == "__main__":
    sys.exit(main())
