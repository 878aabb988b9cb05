"""Rows that carry an executor's id and that it is not running: it starts them, and nothing that it runs or has ended (R10b)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventflow.database import Connection, Database
from eventflow.journal import Identity
from eventflow.migrations import migrate
from eventflow.registry import make_spec
from eventflow.retry import Retry
from eventflow.runs import Run
from tests.fakes import new_lease
from tests.harness import World


class Holder:
    """An executor with one row in the ledger, and what it knows of it."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.database = Database(url)
        self.connection: Connection = self.database.connect("test")
        born = {
            "application": "x", "names": "{}", "host": "h", "pid": 1, "lanes": 1, "version": None, "queues": None, "schedules": None,
        }  # fmt: skip
        [(self.executor, timeline)] = self.run("birth", **born)
        self.running, self.started = set[str](), list[Run]()
        spec = make_spec(lambda: None, "known", Retry(0), 0)
        self.lease: Any = new_lease(
            self.database, Identity(self.executor, timeline, [0]), "x", {"known": spec},
            adopt=lambda runs, how: self.started.extend(runs), running=self.running.__contains__,
        )  # fmt: skip
        self.start("w")

    def run(self, name: str, /, **params: object) -> list[tuple[Any, ...]]:
        return self.database.run(self.connection, name, params)

    def start(self, workflow_id: str, name: str = "known") -> None:
        self.run(
            "start_workflow",
            id=workflow_id,
            name=name,
            application="x",
            executor=self.executor,
            arguments="{}",
            deadline=None,
            attributes=None,
            parent=None,
        )

    def end(self) -> None:
        self.connection.execute(
            "update eventflow.workflows set status = 'succeeded', output = '1', finished_at = now()"
        )

    def reconcile(self, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        """`meanwhile`: what happens between the two looks."""
        self.lease._find_strays(self.connection)
        meanwhile()
        self.lease._start_strays(self.connection)
        return [run.workflow_id for run in self.started]


@pytest.fixture
def holder(ledger_url: str) -> Iterator[Holder]:
    made = Holder(ledger_url)
    yield made
    made.connection.close()


def test_what_carries_our_id_and_does_not_run_is_started(holder: Holder) -> None:
    assert holder.reconcile() == ["w"]
    assert holder.started[0].in_ledger


def test_what_runs_is_not_started_again(holder: Holder) -> None:
    holder.running.add("w")
    assert holder.reconcile() == []


def test_what_is_just_ending_is_not_started_again(holder: Holder) -> None:
    """Seen once, and recorded a moment later."""
    assert holder.reconcile(meanwhile=holder.end) == []


def test_what_is_just_beginning_is_not_started_again(holder: Holder) -> None:
    """Its row is there before it is known to run."""
    assert holder.reconcile(meanwhile=lambda: holder.running.add("w")) == []


def test_what_came_in_between_is_not_started_again(holder: Holder) -> None:
    """Only what stood still from the first look to the second is a stray."""
    assert holder.reconcile(meanwhile=lambda: holder.start("later")) == ["w"]


@pytest.mark.parametrize("began", ["early", "late"])
def test_what_ends_right_after_the_second_look_is_not_started_again(holder: Holder, began: str) -> None:
    """Its end becomes durable between the ledger's answer and the question whether it runs."""
    run, looks = holder.run, list[str]()

    class Slow:
        """A database whose second answer takes its time."""

        def run(self, _: Connection, name: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
            rows = run(name, **params)
            looks.append(name)
            if looks.count("own_rows") == 2:
                holder.end()
                holder.running.discard("w")
            return rows

    holder.lease._database = Slow()
    holder.start("stray")
    if began == "early":
        holder.running.add("w")
    assert holder.reconcile(meanwhile=lambda: holder.running.add("w")) == ["stray"]


def test_what_we_have_no_code_for_or_others_hold_is_not_started(holder: Holder) -> None:
    holder.end()
    holder.start("unknown", "unknown")
    holder.start("other")
    [(other, _)] = holder.run(
        "birth", application="x", names="{}", host="h", pid=2, lanes=1, version=None, queues=None, schedules=None
    )
    holder.connection.execute("update eventflow.workflows set executor = %s where id = 'other'", [other])
    assert holder.reconcile() == []


def test_nothing_is_started_while_the_process_stops(holder: Holder) -> None:
    assert holder.reconcile(meanwhile=holder.lease.leave) == []


def test_a_worker_starts_a_row_that_it_holds_and_does_not_run(world: World) -> None:
    """As if the answer to its claim had been lost: nobody else may take the row, since its holder lives."""
    world.create_topic(1)
    worker = world.start("one_step", ready=True, EVENTFLOW_BEAT="0.05")
    executor = world.executor(worker)
    assert executor is not None
    world.produce(1)
    world.wait_completed("billing")
    world.sql(
        """insert into eventflow.workflows
             (id, name, application, status, executor, claim, "offset", timestamp, value, attempt, retries, recoveries)
           select regexp_replace(id, '0$', '77'), name, application, 'queued', %s, claim, 77, timestamp, value, 1, 0, 0
             from eventflow.workflows""",
        executor,
    )
    done = "select count(*) from eventflow.workflows where id like '%%:77' and status = 'succeeded'"
    world.wait(lambda: world.one(done) == 1, "the row is run")
    assert "1 rows carried our id" in worker.text
    assert world.executor(worker) == executor
