"""What the policy lets go, and what it never touches."""

import os
import time
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from eventflow.database import Database
from eventflow.idempotency import new_ticket
from eventflow.migrations import RESULTS, RESULTS_SCHEMA, migrate
from eventflow.pruner import Pruner, prune_ledger, prune_results, prune_workflows
from tests.harness import World

ROWS = """
insert into eventflow.workflows (id, name, application, status, executor, finished_at)
select status || n, 'w', 'default', status::eventflow.status, 1,
       case when status in ('succeeded', 'failed', 'cancelled') then now() - make_interval(days => n % 2) end
  from generate_series(1, 5000) n, unnest('{succeeded,failed,cancelled,running,parked}'::text[]) status
"""
CHECKPOINTS = """
insert into eventflow.checkpoints (workflow_id, position, seq, name, attempts, seconds)
select id, '1.1', 1, 'step', 1, 0 from eventflow.workflows
"""


@pytest.fixture
def database(ledger_url: str) -> Database:
    return Database(ledger_url)


def counted(connection: psycopg.Connection[Any], table: str) -> int:
    row = connection.execute(f"select count(*) from eventflow.{table}".encode()).fetchone()
    assert row is not None
    return row[0]


def test_only_old_succeeded_workflows_go(database: Database) -> None:
    with database.connect("test") as connection:
        connection.execute(ROWS.encode())
        connection.execute(CHECKPOINTS.encode())
        assert sum(prune_workflows(database, connection, timedelta(hours=12))) == 2500
        assert counted(connection, "workflows") == counted(connection, "checkpoints") == 22_500
        left = connection.execute("select count(*) from eventflow.workflows where status = 'succeeded'").fetchone()
        assert left == (2500,)
        assert sum(prune_workflows(database, connection, timedelta(hours=12))) == 0


LETTERS = """
with source as (
  insert into eventflow.sources (topic, incarnation, cluster_id, topic_id) values ('t', 1, 'c', 'i') returning id
), claim as (
  insert into eventflow.claims ("group", source, partition, owner, accepted, in_flight, verified, began)
  select 'g', id, 0, 0, '{(,100)}', 1, 0, 'earliest' from source returning id
), made as (
  insert into eventflow.workflows (id, name, application, status, claim, "offset", finished_at)
  select status || ' letter ' || n, 'w', 'default', status::eventflow.status, claim.id, n,
         case when status <> 'parked' then now() - make_interval(days => n) end
    from claim, generate_series(0, 1) n, unnest('{succeeded,failed,cancelled,parked}'::text[]) status returning id
), failed as (
  insert into eventflow.failures (workflow_id, attempt, type, error) select id, 1, 'x', '{}' from made
)
insert into eventflow.edits (workflow_id, who) select id, 'me' from made
"""


def test_dead_letters_go_by_their_own_policy_only(database: Database) -> None:
    """What is no message's stays, however old; so does what is parked."""
    with database.connect("test") as connection:
        connection.execute(ROWS.encode())
        connection.execute(LETTERS.encode())
        assert sum(prune_workflows(database, connection, None, timedelta(hours=12))) == 2
        left = connection.execute("select id from eventflow.workflows where claim is not null order by 1").fetchall()
        states = [("cancelled letter 0",), ("failed letter 0",), ("parked letter 0",), ("parked letter 1",)]
        assert left == [*states, ("succeeded letter 0",), ("succeeded letter 1",)]
        assert sum(prune_workflows(database, connection, timedelta(hours=12), None)) == 2501
        left = connection.execute("select id from eventflow.workflows where claim is not null order by 1").fetchall()
        assert left == [*states, ("succeeded letter 0",)]
        assert counted(connection, "failures") == counted(connection, "edits") == 5


def test_one_process_prunes_at_a_time(database: Database) -> None:
    with database.connect("test") as connection, database.connect("other") as other:
        connection.execute(ROWS.encode())
        other.execute("begin")
        database.run(other, "lock_pruning", {"name": "eventflow.prune eventflow"})
        assert list(prune_workflows(database, connection, timedelta(hours=12))) == []
        other.execute("commit")
        assert sum(prune_workflows(database, connection, timedelta(hours=12))) == 2500


def test_the_newest_flush_number_stays(database: Database) -> None:
    with database.connect("test") as connection:
        birth = {
            "application": "a", "names": "{}", "host": "h", "pid": 1, "lanes": 2, "version": None, "queues": None, "schedules": None,
        }  # fmt: skip
        [(executor, _)] = database.run(connection, "birth", birth)
        connection.execute(
            "insert into eventflow.flushes select %s, 0, n, 0 from generate_series(1, 100) n", (executor,)
        )
        prune_ledger(database, connection)
        rows = connection.execute("select lane, n from eventflow.flushes order by 1").fetchall()
        assert rows == [(0, 100), (1, 0)]


def test_a_dead_executor_goes_when_nothing_refers_to_it(database: Database) -> None:
    with database.connect("test") as connection:
        birth = {
            "application": "a", "names": "{}", "host": "h", "pid": 1, "lanes": 2, "version": None, "queues": None, "schedules": None,
        }  # fmt: skip
        ids = [database.run(connection, "birth", birth)[0][0] for _ in range(4)]
        dead, young, holds, alive = ids
        connection.execute(
            "update eventflow.executors set alive = false, died_at = now() - interval '2 days' where id = any(%s)",
            ([dead, holds],),
        )
        connection.execute("update eventflow.executors set alive = false, died_at = now() where id = %s", (young,))
        connection.execute(
            "insert into eventflow.workflows (id, name, application, status, executor) values ('p', 'w', 'a', 'parked', %s)",
            (holds,),
        )
        prune_ledger(database, connection)
        assert connection.execute("select id from eventflow.executors order by id").fetchall() == [
            (young,), (holds,), (alive,),
        ]  # fmt: skip
        for table in ("beats", "flushes"):
            assert (
                connection.execute(
                    f"select executor from eventflow.{table} where executor = {dead}".encode()
                ).fetchall()
                == []
            )


def test_a_worker_prunes_by_its_setting(world: World) -> None:
    world.create_topic(2)
    world.start(ready=True, EVENTFLOW_KEEP="5")
    world.produce(500)
    world.wait_completed("billing")
    world.wait(lambda: world.one("select count(*) from eventflow.workflows") == 0, "they have gone")
    world.check_no_incidents()


# ---- results in other databases -------------------------------------------------------------------------

RESULT = """
insert into eventflow_results.results (ticket, ledger, seconds, attempts, workflow_id, position, name, output, finished_at)
values (%s, %s, 0, 1, %s, '1.1', 'book', '1', now() - make_interval(hours => %s))
"""
RECORDED = "insert into eventflow.checkpoints (workflow_id, position, seq, name, attempts, seconds) values (%s, %s, 1, 'book', 1, 0)"


def test_only_results_that_nobody_can_ask_for_go(database: Database) -> None:
    """Of this ledger, a day old, and known to it, or dropped there."""
    migrate(database.url, schema=RESULTS_SCHEMA, layout=RESULTS)
    other = Database(database.url, RESULTS_SCHEMA, name="shop")
    with database.connect("test") as connection, other.connect("test") as there:
        [(ledger,)] = database.run(connection, "ledger_id")

        def add(workflow_id: str, hours: int, *recorded: str, ledger: UUID = ledger) -> None:
            ticket = new_ticket(int((time.time() - hours * 3600) * 1000), os.urandom(10))
            there.execute(RESULT, (ticket, ledger, workflow_id, hours))
            for position in recorded:
                connection.execute(RECORDED, (workflow_id, position))

        add("in flight", 30, "1.1~t1")
        add("settled twice, in flight", 30, "1.1~t1", "1.1~t2")
        add("young", 23, "1.1~t1", "1.1")
        add("another ledger's", 30, ledger=uuid4())
        stays = {"in flight", "settled twice, in flight", "young", "another ledger's"}
        for n in range(1500):  # more than a batch
            add(f"recorded {n}", 30, "1.1~t1", "1.1")
        add("dropped", 30)
        assert sum(prune_results(database, connection, other, there, ledger)) == 1501
        left = there.execute("select workflow_id from eventflow_results.results").fetchall()
        assert {workflow_id for (workflow_id,) in left} == stays
        assert sum(prune_results(database, connection, other, there, ledger)) == 0


def test_a_process_prunes_other_databases_soon_after_its_start(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is away is passed over."""
    migrate(database.url, schema=RESULTS_SCHEMA, layout=RESULTS)
    others = {
        "away": Database("postgresql://nobody@127.0.0.1:1/x", RESULTS_SCHEMA, name="away"),
        "shop": Database(database.url, RESULTS_SCHEMA, name="shop"),
    }
    monkeypatch.setattr("eventflow.pruner._EVERY", 0.05)
    with database.connect("test") as connection:
        [(ledger,)] = database.run(connection, "ledger_id")
        ticket = new_ticket(int((time.time() - 30 * 3600) * 1000), os.urandom(10))
        connection.execute(RESULT, (ticket, ledger, "dropped", 30))
        pruner = Pruner(database, None, others, ledger)
        pruner.start()
        deadline = time.monotonic() + 10
        while connection.execute("select 1 from eventflow_results.results").fetchall():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pruner.stop()
