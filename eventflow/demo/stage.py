"""What the demo sets up and takes down: a database, a topic, the orders, the workers."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from psycopg import sql
from sqlalchemy import create_engine

from eventflow.demo.app import Base
from eventflow.local import Addresses, LocalServiceError
from eventflow.local.process import spawn
from eventflow.migrations import migrate

PARTITIONS = 8
_PREFIX = "demo_"
_PATIENCE = 15.0  # for a worker that was asked to end


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold the folder: a second demo in it would share the first one's services.

    Raises:
        LocalServiceError: another demo has it, or it cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "demo.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise LocalServiceError(f"the folder {folder} cannot be used: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalServiceError(f"another demo runs in {folder}; wait for it, or choose another --folder") from None
        yield


class Worker:
    """One `eventflow run` in a process and a session of its own; it ends when the demo ends."""

    def __init__(self, title: str, environment: dict[str, str], log: Path) -> None:
        self.title, self.log = title, log
        self.killed_at: float | None = None
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "eventflow", "run", "eventflow.demo.app"]
        self._process = spawn(command, log, signal.SIGKILL, env=environment)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to say anything to anybody."""
        self._process.kill()
        self.killed_at = time.monotonic()
        self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM, where it still runs."""
        if self.status is None:
            self._process.terminate()

    def await_end(self) -> None:
        """Wait until it has drained; past all patience, kill it."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()


class Orders(threading.Thread):
    """Produces the orders, spread over some seconds, so that the kill falls in their midst."""

    def __init__(self, bootstrap_servers: str, topic: str, orders: int, spread: float) -> None:
        super().__init__(name="orders", daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "linger.ms": 10, "log_level": 0}
        )
        self._topic, self._orders, self._pace = topic, orders, spread / orders
        self._stopped = threading.Event()
        self.acknowledged = 0

    def run(self) -> None:
        began = time.monotonic()
        for number in range(self._orders):
            if number % 20 == 0:
                self._producer.poll(0)
                if self._stopped.wait(max(0.0, began + number * self._pace - time.monotonic())):
                    return
            value = json.dumps({"order_id": number, "amount": number % 97})
            self._producer.produce(
                self._topic, value.encode(), key=str(number % 1000).encode(), on_delivery=self._delivered
            )
        self._producer.flush(60)

    def _delivered(self, error: object, _: object) -> None:
        self.acknowledged += error is None

    def stop(self) -> None:
        """Produce no more."""
        self._stopped.set()
        if self.is_alive():
            self.join(5)


class Stage:
    """One run's database, topic, producer and workers, under a name of its own."""

    def __init__(self, folder: Path, addresses: Addresses, orders: int, spread: float) -> None:
        self._addresses = addresses
        self._logs = folder
        self.name = time.strftime(f"{_PREFIX}%Y%m%d_%H%M%S")
        self.url = addresses.database_url.rsplit("/", 1)[0] + f"/{self.name}"
        self.workers: list[Worker] = []
        self.orders = Orders(addresses.kafka_bootstrap_servers, self.name, orders, spread)

    def set_up(self) -> None:
        """Clear away what former runs have left, and make this one's database and topic."""
        with psycopg.connect(self._addresses.database_url, autocommit=True) as admin:
            found = admin.execute("select datname from pg_database where starts_with(datname, %s)", (_PREFIX,))
            for (old,) in found.fetchall():
                admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(old)))
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(self.name)))
        migrate(self.url)
        engine = create_engine(self.url.replace("postgresql://", "postgresql+psycopg://", 1))
        Base.metadata.create_all(engine)
        engine.dispose()
        self._make_topic()

    def _make_topic(self) -> None:
        admin: Any = AdminClient({"bootstrap.servers": self._addresses.kafka_bootstrap_servers, "log_level": 0})
        old = [name for name in admin.list_topics(timeout=20).topics if name.startswith(_PREFIX)]
        if old:
            for future in admin.delete_topics(old).values():
                future.result(timeout=20)
        for future in admin.create_topics([NewTopic(self.name, PARTITIONS, 1)]).values():
            future.result(timeout=20)

    def start_worker(self) -> Worker:
        """Start one more `eventflow run`. It gets this run's addresses, and none of the caller's own settings."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("EVENTFLOW_")}
        places = Addresses(self.url, self._addresses.kafka_bootstrap_servers).environment()
        number = len(self.workers) + 1
        worker = Worker(
            f"worker {number}", mine | places | {"DEMO_TOPIC": self.name}, self._logs / f"worker-{number}.log"
        )
        self.workers.append(worker)
        return worker

    def end_workers(self) -> None:
        """Ask all workers to end, and wait until they have."""
        for worker in self.workers:
            worker.ask_to_end()
        for worker in self.workers:
            worker.await_end()

    def kill_workers(self) -> None:
        """End at once whatever still runs."""
        self.orders.stop()
        for worker in self.workers:
            if worker.status is None:
                worker.kill()

    def produced(self) -> int:
        """How many messages Kafka holds in the topic, by its own word."""
        servers = self._addresses.kafka_bootstrap_servers
        reader = Consumer({"bootstrap.servers": servers, "group.id": self.name, "log_level": 0})
        try:
            marks: list[Any] = [
                reader.get_watermark_offsets(TopicPartition(self.name, n), timeout=10) for n in range(PARTITIONS)
            ]
        finally:
            reader.close()
        return sum(high - low for low, high in marks)
