"""`python -m benchmarks.pruning`: what shape of the tables lets old workflows go, and what each costs the hot path.

Four shapes of the same ledger, in turns on one server: plain tables walked in physical order (what the ledger does),
plain tables with a BRIN index on `finished_at`, with a b-tree of the succeeded ones, and tables partitioned by day. Each
is written once (the ledger's own guard and
INSERTs, in one transaction per flush), then loses its oldest quarter while flushes go on, then lives through cycles of
pruning and refilling. The figures and the decision: docs/adr/0002-pruning.md.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.databases import fresh, server_version, wal
from benchmarks.services import DATABASE, ROOT
from eventflow.database import Database, in_transaction
from eventflow.migrations import migrate
from eventflow.pruner import prune_workflows

KEEP_DAYS = 3  # rows are written with ages of 4, 3, 2, 1 and 0 days; what is older than 3.5 goes
BATCH = 1000
FLUSH = 500
RESULTS = Path(__file__).parent / "results" / "pruning.json"
Figures = dict[str, Any]

INSERT = """
insert into eventflow.workflows
  (id, name, application, status, executor, claim, "offset", timestamp, value, headers, output, created_at, finished_at)
select id, 'bill', 'default', 'succeeded', 1, 1, n, 0, value, '[]', '"done"', at, at
  from unnest(%(id)b::text[], %(n)b::bigint[], %(value)b::bytea[]) as t (id, n, value),
       (select now() - make_interval(days => %(age)b::int)) as a (at)
"""
CHECKPOINTS = """
insert into eventflow.checkpoints (workflow_id, position, seq, name, output, attempts, seconds, finished_at)
select id, '1', 1, 'charge', '"ok"', 1, 0.001, now() - make_interval(days => %(age)b::int)
  from unnest(%(id)b::text[]) as t (id)
"""
BRIN_PRUNE = """
with old as (
  select id from eventflow.workflows where finished_at < now() - %(keep)b::interval and status = 'succeeded'
   limit %(batch)b::int for update skip locked
), checkpoints as (delete from eventflow.checkpoints c using old where c.workflow_id = old.id)
delete from eventflow.workflows w using old where w.id = old.id returning w.id
"""
BTREE_PRUNE = """
with old as materialized (
  select id, finished_at from eventflow.workflows
   where status = 'succeeded' and finished_at < now() - %(keep)b::interval and finished_at >= %(since)b::timestamptz
   order by finished_at limit %(batch)b::int for update skip locked
), checkpoints as (
  delete from eventflow.checkpoints where workflow_id = any (array(select id from old))
), gone as (
  delete from eventflow.workflows where id = any (array(select id from old)) returning finished_at
)
select count(*), max(finished_at) from gone
"""
BRIN = """
create index workflows_finished on eventflow.workflows using brin (finished_at);
"""
BTREE = """
create index workflows_finished on eventflow.workflows (finished_at) where status = 'succeeded';
"""
# The primary keys must hold the partition's column: an id is unique within a day only, and no longer in the ledger.
BY_DAY = """
alter table eventflow.workflows rename to whole_workflows;
alter table eventflow.checkpoints rename to whole_checkpoints;
drop index eventflow.workflows_executor, eventflow.workflows_scope, eventflow.workflows_claim;
create table eventflow.workflows (like eventflow.whole_workflows including defaults including constraints,
  primary key (id, created_at)) partition by range (created_at);
create index workflows_executor on eventflow.workflows (executor, status) where status in ('queued', 'running', 'waiting');
create index workflows_scope on eventflow.workflows (scope, "offset")
  where scope is not null and status in ('queued', 'running', 'waiting', 'parked');
create index workflows_claim on eventflow.workflows (claim, "offset")
  where status in ('queued', 'running', 'waiting', 'parked');
create table eventflow.checkpoints (like eventflow.whole_checkpoints including defaults including constraints,
  primary key (workflow_id, position, finished_at)) partition by range (finished_at);
do $$
begin
  for age in 0..4 loop
    execute format('create table eventflow.workflows_%s partition of eventflow.workflows for values from (%L) to (%L)',
      age, now() - make_interval(days => age) - interval '12 hours', now() - make_interval(days => age) + interval '12 hours');
    execute format('create table eventflow.checkpoints_%s partition of eventflow.checkpoints for values from (%L) to (%L)',
      age, now() - make_interval(days => age) - interval '12 hours', now() - make_interval(days => age) + interval '12 hours');
  end loop;
end $$;
"""
SHAPES = {"plain, walked": "select 1", "plain, BRIN": BRIN, "plain, b-tree": BTREE, "by day": BY_DAY}


@dataclass
class Ledger:
    """One shape in a database of its own, with one executor that flushes."""

    url: str
    shape: str
    payload: bytes = b"x" * 200
    n: int = 0
    written: int = 0
    executor: int = 0
    oldest: int = 4  # days, of the partitions that are left
    since: Any = "-infinity"
    took: list[float] = field(default_factory=list[float])

    def prepare(self) -> "Ledger":
        migrate(self.url)
        with self.connect() as connection:
            connection.execute(SHAPES[self.shape].encode())
            row = connection.execute("select eventflow.birth('default', '{}', 'bench', 1, 1)").fetchone()
        self.executor = row[0] if row else 0
        return self

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return Database(self.url).connect("pruning")

    def flush(self, connection: psycopg.Connection[tuple[Any, ...]], rows: int, age: int) -> None:
        """One flush in one round trip, as the journal sends it."""
        first, self.written, self.n = self.written, self.written + rows, self.n + 1
        ids = [f"kafka:billing:orders:1:0:{first + i}" for i in range(rows)]
        values = {"id": ids, "n": list(range(first, first + rows)), "value": [self.payload] * rows, "age": age}
        with connection.pipeline():
            connection.execute("begin")
            connection.execute("select eventflow.guard(%b, 0, %b, 7, '{}', '{}')", (self.executor, self.n))
            connection.execute(INSERT.encode(), values)
            connection.execute(CHECKPOINTS.encode(), {"id": ids, "age": age})
            connection.execute("commit")

    def fill(self, rows: int, age: int) -> float:
        """Rows of one age, as fast as it goes; the seconds that it took."""
        with self.connect() as connection:
            began = time.perf_counter()
            for _ in range(rows // FLUSH):
                self.flush(connection, FLUSH, age)
            return time.perf_counter() - began

    @contextmanager
    def flushing(self, per_second: int = 100, rows: int = 50) -> Iterator[list[float]]:
        """Flushes at a steady rate beside the block; how long each took from the time that it was due."""
        stop, took = threading.Event(), list[float]()

        def run() -> None:
            with self.connect() as connection:
                due = time.perf_counter()
                while not stop.is_set():
                    self.flush(connection, rows, 0)
                    took.append(time.perf_counter() - due)
                    due += 1 / per_second
                    stop.wait(max(0.0, due - time.perf_counter()))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.3)  # its statements are prepared
        took.clear()
        try:
            yield took
        finally:
            stop.set()
            thread.join()

    def prune(self, pause: float = 0.0) -> Figures:
        """Let the oldest day go, in the shape's own way."""
        self.since, self.took = "-infinity", []
        began = time.perf_counter()
        with self.connect() as connection:
            if self.shape == "by day":
                connection.execute("begin")
                connection.execute(f"drop table eventflow.workflows_{self.oldest}".encode())
                connection.execute(f"drop table eventflow.checkpoints_{self.oldest}".encode())
                connection.execute("commit")
                self.oldest -= 1
                self.took.append(time.perf_counter() - began)
                return {"seconds": self.took[0]}
            if self.shape == "plain, walked":
                return self._walk(connection, pause)
            rows = 0
            while count := self._batch(connection):
                rows += count
                time.sleep(pause)
        return {"seconds": time.perf_counter() - began, "rows": rows, "batch_ms": 1e3 * statistics.median(self.took)}

    def _walk(self, connection: psycopg.Connection[tuple[Any, ...]], pause: float) -> Figures:
        """The ledger's own pruner, batch by batch."""
        database, keep = Database(self.url), timedelta(days=KEEP_DAYS, hours=12)
        began, rows, since = time.perf_counter(), 0, time.perf_counter()
        for count in prune_workflows(database, connection, keep):
            rows += count
            self.took.append(time.perf_counter() - since)
            time.sleep(pause)
            since = time.perf_counter()
        return {"seconds": time.perf_counter() - began, "rows": rows, "batch_ms": 1e3 * statistics.median(self.took)}

    def _batch(self, connection: psycopg.Connection[tuple[Any, ...]]) -> int:
        began = time.perf_counter()
        values: Figures = {"keep": f"{KEEP_DAYS} days 12 hours", "batch": BATCH, "since": self.since}
        count: int = in_transaction(connection, lambda c: self._pruned(c, values), "set local synchronous_commit = off")
        self.took.append(time.perf_counter() - began)
        return count

    def _pruned(self, connection: psycopg.Connection[tuple[Any, ...]], values: Figures) -> int:
        if self.shape == "plain, BRIN":
            return connection.execute(BRIN_PRUNE.encode(), values).rowcount
        row = connection.execute(BTREE_PRUNE.encode(), values).fetchone()
        assert row is not None
        self.since = row[1] or self.since
        return row[0]

    def vacuum(self) -> None:
        """What autovacuum does between two rounds."""
        with self.connect() as connection:
            connection.execute("vacuum eventflow.workflows, eventflow.checkpoints")


def written_once(ledger: Ledger, rows: int) -> Figures:
    """The rate of the hot path and its WAL, oldest rows first."""
    before, seconds = wal(ledger.url), 0.0
    for age in (4, 3, 2, 1):
        seconds += ledger.fill(rows // 4, age)
    return {"rows_per_s": rows / seconds, "wal_per_row": (wal(ledger.url) - before) / rows}


def latencies(took: list[float]) -> Figures:
    """Milliseconds."""
    ordered = sorted(took) or [0.0]
    p50, p99 = (1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99))
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": 1e3 * ordered[-1], "flushes": len(took)}


def while_pruning(ledger: Ledger, pause: float) -> Figures:
    """Flush latency without and with pruning beside it."""
    with ledger.flushing() as took:
        time.sleep(3)
        idle = latencies(took)
        took.clear()
        pruned = ledger.prune(pause)
        busy = latencies(took)
    return {"idle": idle, "pruning": busy, "pruned": pruned}


def beside_a_reader(ledger: Ledger, seconds: float = 2.0) -> Figures:
    """Flush latency while a reader's transaction is open on the table (a dump, a report) and the oldest rows go."""
    with ledger.flushing() as took, ledger.connect() as reader:
        reader.execute("begin")
        reader.execute("select 1 from eventflow.workflows limit 1")
        leave = threading.Timer(seconds, lambda: reader.execute("commit"))
        leave.start()
        ledger.prune(0.02)
        leave.join()
        time.sleep(0.3)
    return latencies(took)


def aged(ledger: Ledger, cycles: int, rows: int) -> list[float]:
    """Milliseconds per batch after each cycle of pruning, vacuum and refilling with rows that will be the next to go."""
    result: list[float] = []
    for _ in range(cycles):
        ledger.vacuum()
        ledger.fill(rows, 4)
        pruned = ledger.prune()
        result.append(1e3 * sum(ledger.took) / max(1, pruned["rows"] // BATCH))
    return result


def with_snapshot(ledger: Ledger, rows: int) -> Figures:
    """The same while another session holds one snapshot open, which keeps every dead row in its way."""
    ledger.fill(rows, 4)
    with ledger.connect() as holder:
        holder.execute("begin isolation level repeatable read")
        holder.execute("select count(*) from eventflow.executors")
        first = ledger.prune()
        ledger.fill(rows, 4)
        second = ledger.prune()
    return {"first_s": first["seconds"], "second_s": second["seconds"]}


def measured(server: str, shape: str, rows: int) -> Figures:
    """Everything about one shape."""
    with fresh(server) as url:
        ledger = Ledger(url, shape).prepare()
        figures = written_once(ledger, rows)
        with ledger.connect() as connection:
            connection.execute("analyze")
        figures["latency"] = while_pruning(ledger, 0.0)
        if shape != "by day":
            ledger.fill(rows // 20, 4)
        figures["beside_a_reader"] = beside_a_reader(ledger)
        if shape != "by day":
            ledger.fill(rows // 4, 4)
            figures["latency_paced"] = while_pruning(ledger, 0.02)
            figures["cycles_batch_ms"] = aged(ledger, 5, rows // 10)
            figures["snapshot"] = with_snapshot(ledger, rows // 10)
    return figures


@contextmanager
def postgres() -> Iterator[str]:
    """The server that the environment names for tests, else a local one."""
    import os

    if DATABASE in os.environ:
        yield os.environ[DATABASE]
        return
    from eventflow.local import Postgres

    server = Postgres(ROOT / ".eventflow" / "pruning")
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def main() -> None:
    """All shapes in turns, as often as asked; every figure is printed and written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with postgres() as server:
        found: dict[str, list[Figures]] = {shape: [] for shape in SHAPES}
        for _ in range(asked.rounds):
            for shape in SHAPES:
                found[shape].append(measured(server, shape, asked.rows))
                print(shape, json.dumps(found[shape][-1], indent=1), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            json.dumps({"postgres": server_version(server), "rows": asked.rows, "shapes": found}, indent=1)
        )


if __name__ == "__main__":
    main()
