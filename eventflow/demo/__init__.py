"""`eventflow demo`: two workers, one SIGKILL, and the proof, read from Postgres and from what the handlers wrote."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from eventflow.local import Addresses
from eventflow.migrations import migrate

PARTITIONS = 8
LIMIT = 110.0  # seconds after set-up
HANDLERS = ("bill", "enter")


@dataclass
class Worker:
    """One `eventflow run`."""

    title: str
    process: "subprocess.Popen[bytes]"
    killed_at: float | None = None


@dataclass
class State:
    """What the demo has seen so far."""

    workflows: int = 0
    entries: int = 0
    per_second: float = 0.0
    held: dict[int, int] = field(default_factory=dict[int, int])
    done: dict[int, int] = field(default_factory=dict[int, int])
    news: list[str] = field(default_factory=list[str])
    takeover: float | None = None


def run_demo(addresses: Addresses, orders: int) -> int:
    """Run the demo on these services; 0 only where everything agrees."""
    console = Console()
    name = f"demo_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(addresses.database_url, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
    try:
        url = addresses.database_url.rsplit("/", 1)[0] + f"/{name}"
        return Demo(console, url, addresses.kafka_bootstrap_servers, name, orders).run()
    finally:
        with psycopg.connect(addresses.database_url, autocommit=True) as admin:
            admin.execute(f"drop database if exists {name} with (force)".encode())


class Demo:
    """One run, from the empty topic to the proof."""

    def __init__(self, console: Console, url: str, bootstrap: str, topic: str, orders: int) -> None:
        self._console, self._url, self._bootstrap, self._topic, self._orders = console, url, bootstrap, topic, orders
        self._state = State()
        self._workers: list[Worker] = []
        self._logs = Path(tempfile.mkdtemp(prefix="eventflow-demo-"))
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        )
        self._tasks = {
            "bill": self._bar.add_task("workflows completed", total=orders, rate=""),
            "enter": self._bar.add_task("effects written", total=orders, rate=""),
        }

    def run(self) -> int:
        self._prepare()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with Live(self._screen(), console=self._console, refresh_per_second=8) as live:
                self._play(live)
            return self._prove()
        except KeyboardInterrupt:
            self._console.print("stopped")
            return 130
        finally:
            self._stop_workers()

    def _prepare(self) -> None:
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        from eventflow.demo.app import Base

        self._console.print("[bold]eventflow[/bold]: a real PostgreSQL, a real Apache Kafka, two workers, one SIGKILL")
        migrate(self._url)
        from sqlalchemy import create_engine

        engine = create_engine(self._url.replace("postgresql://", "postgresql+psycopg://", 1))
        Base.metadata.create_all(engine)
        engine.dispose()
        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        for future in admin.create_topics([NewTopic(self._topic, PARTITIONS, 1)]).values():
            future.result(timeout=20)
        self._console.print(f"topic [cyan]{self._topic}[/cyan]: {PARTITIONS} partitions, {self._orders:,} orders")

    def _produce(self) -> None:
        from confluent_kafka import Producer

        producer = Producer(
            {"bootstrap.servers": self._bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 500_000}
        )
        for number in range(self._orders):
            value = json.dumps({"order_id": number, "amount": number % 97})
            producer.produce(self._topic, value.encode(), key=str(number % 1000).encode())
            if number % 1000 == 0:
                producer.poll(0)
        producer.flush(60)

    def _start_worker(self) -> Worker:
        title = f"worker {len(self._workers) + 1}"
        environment = os.environ | {
            "DATABASE_URL": self._url, "KAFKA_BOOTSTRAP_SERVERS": self._bootstrap, "EVENTFLOW_DEMO_TOPIC": self._topic,
            "EVENTFLOW_LOG_LEVEL": "info",
        }  # fmt: skip
        with (self._logs / f"{title.replace(' ', '-')}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eventflow", "run", "eventflow.demo.app"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        worker = Worker(title, process)
        self._workers.append(worker)
        self._say(f"{title} started (process {process.pid})")
        return worker

    def _say(self, text: str) -> None:
        self._state.news.append(text)
        if not self._console.is_terminal:
            print(text, flush=True)

    def _play(self, live: Live) -> None:
        producer = threading.Thread(target=self._produce, daemon=True)
        producer.start()
        first, _ = self._start_worker(), self._start_worker()
        started = time.monotonic()
        last = (started, 0)
        with psycopg.connect(self._url, autocommit=True) as connection:
            while time.monotonic() - started < LIMIT:
                self._look(connection, first)
                now = time.monotonic()
                if now - last[0] >= 1:
                    total = self._state.workflows + self._state.entries
                    self._state.per_second = (total - last[1]) / (now - last[0])
                    last = (now, total)
                live.update(self._screen())
                if first.killed_at is None and self._state.workflows >= self._orders * 2 // 5:
                    self._kill(first)
                if self._finished() and self._state.takeover is not None:
                    return
                dead = [w for w in self._workers if w.killed_at is None and w.process.poll() is not None]
                if dead:
                    self._say(f"{dead[0].title} ended with status {dead[0].process.returncode}; see {self._logs}")
                    return
                time.sleep(0.1)

    def _kill(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        worker.killed_at = time.monotonic()
        self._say(f"SIGKILL to {worker.title} at {self._state.workflows:,} workflows")
        self._start_worker()

    def _look(self, connection: psycopg.Connection[Any], first: Worker) -> None:
        state = self._state
        counts = dict(
            connection.execute(
                b"select name, count(*) from eventflow.workflows where status = 'succeeded' group by name"
            ).fetchall()
        )
        state.workflows, state.entries = counts.get("bill", 0), counts.get("enter", 0)
        state.held = dict(
            connection.execute(
                b"select e.pid, count(c.id) from eventflow.executors e left join eventflow.claims c on c.owner = e.id "
                b"where e.alive group by e.pid"
            ).fetchall()
        )
        state.done = dict(connection.execute(b"select executor, count(*) from entries group by executor").fetchall())
        if first.killed_at is not None and state.takeover is None:
            living = connection.execute(
                b"select (select count(*) from eventflow.executors where alive and pid = %s), "
                b"(select count(*) from eventflow.claims c join eventflow.executors e on e.id = c.owner and e.alive)",
                (first.process.pid,),
            ).fetchone()
            if living == (0, PARTITIONS * len(HANDLERS)):
                state.takeover = time.monotonic() - first.killed_at
                self._say(f"taken over {state.takeover:.1f} s after the kill: every partition has a living owner")

    def _finished(self) -> bool:
        return self._state.workflows >= self._orders and self._state.entries >= self._orders

    def _screen(self) -> Group:
        state = self._state
        self._bar.update(self._tasks["bill"], completed=state.workflows, rate=f"{state.per_second:,.0f} messages/s")
        self._bar.update(self._tasks["enter"], completed=state.entries)
        table = Table(box=None, pad_edge=False)
        for column in ("worker", "process", "state", "partitions held", "effects written"):
            table.add_column(column)
        for worker in self._workers:
            pid = worker.process.pid
            alive = worker.process.poll() is None
            table.add_row(
                worker.title, str(pid), "[green]running" if alive else "[red]killed",
                str(state.held.get(pid, 0)), f"{state.done.get(pid, 0):,}",
            )  # fmt: skip
        return Group(self._bar, table, *[f"[dim]·[/dim] {text}" for text in state.news[-8:]])

    def _prove(self) -> int:
        self._stop_workers()
        with psycopg.connect(self._url, autocommit=True) as connection:
            numbers = _count(connection)
        lost = (self._orders - numbers["distinct_workflows"]) + (self._orders - numbers["distinct_entries"])
        duplicates = (numbers["workflows"] - numbers["distinct_workflows"]) + (
            numbers["entries"] - numbers["distinct_entries"]
        )
        table = Table(title="the proof, from Postgres", title_justify="left")
        table.add_column("")
        table.add_column("", justify="right")
        rows = {
            "messages produced": self._orders, "workflows completed": numbers["workflows"],
            "effects written": numbers["entries"], "duplicates": duplicates, "lost": lost,
        }  # fmt: skip
        for title, number in rows.items():
            table.add_row(title, f"{number:,}")
        takeover = self._state.takeover
        table.add_row("takeover after SIGKILL", "none seen" if takeover is None else f"{takeover:.1f} s")
        self._console.print(table)
        exact = duplicates == 0 and lost == 0 and takeover is not None
        self._console.print("[bold green]exact[/bold green]" if exact else "[bold red]NOT exact[/bold red]")
        if not exact:
            self._console.print(f"the workers' logs are in {self._logs}")
        return 0 if exact else 1

    def _stop_workers(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(25)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _count(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """What the ledger and the handlers' own table say, message by message."""
    workflows = connection.execute(
        b"select count(*), count(distinct convert_from(value, 'UTF8')::json ->> 'order_id') from eventflow.workflows "
        b"where name = 'bill' and status = 'succeeded'"
    ).fetchone()
    entries = connection.execute(b"select count(*), count(distinct order_id) from entries").fetchone()
    assert workflows is not None
    assert entries is not None
    return {
        "workflows": workflows[0], "distinct_workflows": workflows[1],
        "entries": entries[0], "distinct_entries": entries[1],
    }  # fmt: skip
