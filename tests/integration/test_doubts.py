"""What a transaction, a start or a birth comes to when its answer is late, lost or refused: in this process, on a real ledger."""

import asyncio
import functools
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import Retry
from eventflow.context import slot
from eventflow.database import Database
from eventflow.errors import FencedError
from eventflow.executor import Dropped, Executor
from eventflow.incarnation import Incarnation
from eventflow.journal import Entry, Identity, Lane
from eventflow.migrations import migrate
from eventflow.ports import AsyncPort, Port, adrive, drive
from eventflow.recovery import Lease, birth
from eventflow.registry import ConsumerSpec, Spec, TransactionSpec, make_spec
from eventflow.replay import Branch
from eventflow.runs import Claim, Run
from eventflow.settings import Settings
from eventflow.transactions import Transactions
from tests.integration.test_guards import Ledger, refused

WORKFLOWS = "select status::text, executor is null, attempt, recoveries from eventflow.workflows order by 1"


class Ask:
    """Questions to the test's database, in a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)

    def __call__(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def effects(self) -> list[str]:
        return [note for (note,) in self("select note from effects order by 1")]


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    migrate(database_url)
    asked = Ask(database_url)
    asked("create table effects (note text)")
    yield asked
    asked.connection.close()


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    made = Ledger(database_url)
    yield made
    for session in made.sessions:
        session.connection.close()


@asynccontextmanager
async def running(ask: Ask, **settings: Any) -> AsyncIterator[None]:
    given = Settings(database_url=ask.url, **{"lease": 1.0, "beat": 0.2, "drain": 5.0} | settings)
    async with eventflow.running(given, consumers=False):
        yield


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


class Stage:
    """What the workflows of one test wait for, and what they have done."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.seen: list[BaseException] = []
        self.go = asyncio.Event()
        self.came = asyncio.Event()
        self.thread_go = threading.Event()
        self.thread_came = threading.Event()


stage: Stage


@pytest.fixture(autouse=True)
def new_stage() -> None:
    global stage
    stage = Stage()


@eventflow.workflow(name="doubts greet")
async def greet(n: int) -> int:
    return n


@eventflow.transaction
async def book(connection: psycopg.AsyncConnection[Any], note: str) -> str:
    await connection.execute("insert into effects (note) values (%s)", [note])
    return note


@eventflow.transaction
def book_sync(connection: psycopg.Connection[Any], note: str) -> str:
    connection.execute("insert into effects (note) values (%s)", [note])
    stage.thread_came.set()
    assert stage.thread_go.wait(15)
    return note


@eventflow.step
async def fails_once() -> None:
    if not stage.failures:
        stage.failures += 1
        stage.go.set()
        raise ValueError("once")


# ---- a workflow that was let go of while its transaction was open (R8) --------------------------------


def held_row(ledger: Ledger, executor: int, workflow_id: str = "w") -> None:
    ledger.observer.run(
        "start_workflow", id=workflow_id, name="n", application="x", executor=executor, arguments="null"
    )  # fmt: skip


def test_a_step_is_committed_for_the_holder_of_its_workflow_only(ledger: Ledger) -> None:
    held_row(ledger, ledger.a)
    session = ledger.session()
    session.begin()
    session.run("hold_workflow", executor=ledger.a, workflow_id="w")
    session.rollback()
    with refused("EF008"):
        session.run("hold_workflow", executor=ledger.b, workflow_id="w")
    ledger.observer.connection.execute("update eventflow.workflows set executor = null")
    with refused("EF008"):
        session.run("hold_workflow", executor=ledger.a, workflow_id="w")
    with refused("EF008"):
        session.run("hold_workflow", executor=ledger.a, workflow_id="no such workflow")


def test_a_workflow_is_not_let_go_of_before_its_open_step_ends(ledger: Ledger) -> None:
    """Neither by its holder's journal nor by his death; so what a peer takes is committed or will never be."""
    held_row(ledger, ledger.a)
    step, journal = ledger.session(), ledger.session()
    release = {
        "executor": ledger.a, "id": ["w"], "status": ["queued"], "held": [False], "attempt": [1], "retries": [0],
        "recoveries": [0], "wake_in": [None], "output": [None], "error": [None], "reason": [None],
    }  # fmt: skip
    step.begin()
    step.run("hold_workflow", executor=ledger.a, workflow_id="w")
    waiting = ledger.blocked(journal, lambda: journal.run("update_workflows", **release))
    step.commit()
    waiting.join(10)
    assert ledger.observer.connection.execute(WORKFLOWS.encode()).fetchall() == [("queued", True, 1, 0)]


def test_a_clean_end_charges_nobody(ledger: Ledger) -> None:
    """What was running at the end of a drain is queued again: it did not kill its process, and does not run alone (R13)."""
    held_row(ledger, ledger.a)
    held_row(ledger, ledger.b, "of another")
    ledger.observer.run("die", executor=ledger.a)
    rows = ledger.observer.connection.execute(
        "select id, status::text, executor from eventflow.workflows order by id"
    ).fetchall()
    assert rows == [("of another", "running", ledger.b), ("w", "queued", None)]


@eventflow.transaction
async def late(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("insert into effects (note) values ('late')")
    stage.came.set()
    await stage.go.wait()


@eventflow.workflow(name="doubts late")
async def calls_late() -> None:
    try:
        await late()
    except BaseException as error:
        stage.seen.append(error)
        raise


async def test_a_step_whose_workflow_is_anothers_by_now_commits_nothing(ask: Ask) -> None:
    async with running(ask):
        handle = await eventflow.start(calls_late)
        executor = incarnation().executor
        run = executor.runs[handle.workflow_id]
        await asyncio.wait_for(stage.came.wait(), 15)
        ask("update eventflow.workflows set executor = null, status = 'queued', wake_at = now() + interval '1 day'")
        stage.go.set()
        await until(lambda: run.ended, "it unwinds")
        assert [type(error) for error in stage.seen] == [Dropped]
        assert run.workflow_id not in executor.runs
        assert ask.effects() == []
        assert ask("select count(*) from eventflow.checkpoints") == [(0,)]
        assert ask(WORKFLOWS) == [("queued", True, 1, 0)]
        assert await greet(1) == 1
        assert incarnation().executor is executor, "it went on"


def incarnation() -> Incarnation:
    app: Any = slot.runtime
    return app._incarnation


@eventflow.workflow(name="doubts sync booking")
def sync_booking() -> str:
    return book_sync("sync")


async def test_a_step_that_outlives_the_drain_is_its_own_or_its_takers(ask: Ask, monkeypatch: Any) -> None:
    """Between the end of the drain's budget and the executor's death, a peer that looks finds nothing to take (R8)."""
    taken = list[Any]()
    stop = Transactions.stop

    def meanwhile(self: Transactions) -> None:
        """The drain is over; what it let go of is made durable, a peer looks, then the step commits."""
        flushed = threading.Event()
        now.journal.mark(flushed.set)
        assert flushed.wait(10)
        taken.extend(ask("update eventflow.workflows set executor = executor where executor is null returning id"))
        stage.thread_go.set()
        stop(self)

    monkeypatch.setattr(Transactions, "stop", meanwhile)
    async with running(ask, drain=0.0):
        handle = await eventflow.start(sync_booking)
        await until(stage.thread_came.is_set, "the step is under way")
        now = incarnation()
        monkeypatch.setattr(now, "_die", functools.partial(die_after, ask, now._die))
    assert taken == []
    assert ask.effects() == ["sync"]
    assert ask("select workflow_id, output from eventflow.checkpoints") == [(handle.workflow_id, '"sync"')]
    assert ask(WORKFLOWS) == [("queued", True, 1, 0)]


def die_after(ask: Ask, die: Callable[[], None]) -> None:
    """The worst moment: after the step's commit, of which this process may not have heard."""
    end = time.monotonic() + 10
    while not ask.effects():
        assert time.monotonic() < end
        time.sleep(0.005)
    die()


@eventflow.workflow(name="doubts books at the end")
async def books_at_the_end() -> str:
    stage.came.set()
    await stage.go.wait()
    return await book("at the end")


async def test_what_runs_at_the_end_may_still_book(ask: Ask) -> None:
    async with running(ask):
        handle = await eventflow.start(books_at_the_end)
        await asyncio.wait_for(stage.came.wait(), 15)
        asyncio.get_running_loop().call_later(0.05, stage.go.set)
    assert ask.effects() == ["at the end"]
    assert ask("select status::text, error from eventflow.workflows") == [("succeeded", None)]
    assert handle.workflow_id


# ---- branches side by side ----------------------------------------------------------------------------


@eventflow.workflow(name="doubts both", retries=Retry(3, delay=0.05, jitter=0))
async def both() -> None:
    booked = asyncio.create_task(book("both"))
    await stage.came.wait()
    try:
        await fails_once()
    finally:
        await booked


@pytest.mark.parametrize("when", ["before its record is sent", "after its commit"])
async def test_a_failure_does_not_drop_what_a_branch_beside_it_booked(ask: Ask, monkeypatch: Any, when: str) -> None:
    """Where in its history a transaction stands is settled when it begins, as with every step beside it (2.3.7)."""
    method = "batch" if when.startswith("before") else "commit"
    original = getattr(AsyncPort, method)

    async def slow(self: AsyncPort, *args: Any) -> None:
        if method == "batch":
            stage.came.set()
            await stage.go.wait()
            await original(self, *args)
        else:
            await original(self, *args)
            stage.came.set()
            await stage.go.wait()

    monkeypatch.setattr(AsyncPort, method, slow)
    async with running(ask):
        await asyncio.wait_for(both(), 15)
    assert ask.effects() == ["both"]
    assert ask("select status::text, attempt, error from eventflow.workflows") == [("succeeded", 2, None)]
    assert ask("select count(*), count(error), count(distinct seq) from eventflow.checkpoints") == [(2, 0, 2)]


@eventflow.transaction
async def book_slowly(connection: psycopg.AsyncConnection[Any], note: str) -> str:
    await connection.execute("insert into effects (note) values (%s)", [note])
    if stage.calls == 0:
        stage.calls += 1
        stage.came.set()
        await stage.go.wait()
    return note


@eventflow.step
async def fails_first() -> None:
    await stage.came.wait()
    stage.failures += 1
    if stage.failures == 1:
        raise ValueError("once")
    stage.go.set()


@eventflow.workflow(name="doubts gathered", retries=Retry(3, delay=0.05, jitter=0))
async def gathered() -> None:
    await asyncio.gather(book_slowly("gathered"), fails_first())


async def test_a_branch_that_outlives_its_attempt_books_once(ask: Ask) -> None:
    async with running(ask):
        await asyncio.wait_for(gathered(), 15)
    assert ask.effects() == ["gathered"]
    assert ask("select status::text, error from eventflow.workflows") == [("succeeded", None)]
