"""What a transaction, a start or a birth comes to when its answer is late, lost or refused: in this process, on a real ledger."""

import asyncio
import functools
import logging
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
from eventflow.errors import FencedError, NotRunningError
from eventflow.incarnation import Incarnation
from eventflow.journal import Entry, Identity, Lane
from eventflow.ports import AsyncPort, Port, adrive, drive
from eventflow.recovery import Lease, birth
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.runs import Claim, Dropped, Run
from eventflow.settings import Settings
from eventflow.transactions import Transactions
from tests.fakes import new_executor, new_lease
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
def ask(ledger_url: str) -> Iterator[Ask]:
    asked = Ask(ledger_url)
    yield asked
    asked.connection.close()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
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
        self.tasks: list[asyncio.Task[Any]] = []
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
        "start_workflow", id=workflow_id, name="n", application="x", executor=executor, arguments="null", deadline=None, attributes=None, parent=None
    )  # fmt: skip


def test_a_step_is_committed_for_the_holder_of_its_workflow_only(ledger: Ledger) -> None:
    held_row(ledger, ledger.a)
    session = ledger.session()
    session.begin()
    session.run("hold_workflows", executor=ledger.a, ids=["w"])
    session.rollback()
    with refused("EF008"):
        session.run("hold_workflows", executor=ledger.b, ids=["w"])
    ledger.observer.connection.execute("update eventflow.workflows set executor = null")
    with refused("EF008"):
        session.run("hold_workflows", executor=ledger.a, ids=["w"])
    with refused("EF008"):
        session.run("hold_workflows", executor=ledger.a, ids=["no such workflow"])


def test_a_workflow_is_not_let_go_of_before_its_open_step_ends(ledger: Ledger) -> None:
    """Neither by its holder's journal nor by his death; so what a peer takes is committed or will never be."""
    held_row(ledger, ledger.a)
    step, journal = ledger.session(), ledger.session()
    release = {
        "executor": ledger.a, "id": ["w"], "status": ["queued"], "held": [False], "attempt": [1], "retries": [0],
        "recoveries": [0], "wake_in": [None], "output": [None], "error": [None], "reason": [None],
        "arguments": [None], "failed_seq": [None], "generation": [None],
    }  # fmt: skip
    step.begin()
    step.run("hold_workflows", executor=ledger.a, ids=["w"])
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


async def starts_during_the_drain() -> None:
    app: Any = slot.runtime
    await until(app._stop.is_set, "it leaves")
    await eventflow.start(greet, 1)


async def test_what_runs_at_the_end_may_still_book(ask: Ask) -> None:
    async with running(ask):
        handle = await eventflow.start(books_at_the_end)
        await asyncio.wait_for(stage.came.wait(), 15)
        asyncio.get_running_loop().call_later(0.05, stage.go.set)
        starting = asyncio.create_task(starts_during_the_drain())
    with pytest.raises(NotRunningError):
        await starting
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
async def book_beside(connection: psycopg.AsyncConnection[Any], note: str) -> str:
    await connection.execute("insert into effects (note) values (%s)", [note])
    stage.calls += 1
    if stage.calls == 1:
        stage.came.set()
        await stage.go.wait()
    return note


@eventflow.step
async def act_beside(note: str) -> str:
    stage.calls += 1
    if stage.calls == 1:
        stage.came.set()
        await stage.go.wait()
    return note


@eventflow.step
async def fails_beside() -> None:
    await stage.came.wait()
    stage.failures += 1
    if stage.failures == 1:
        raise ValueError("once")


@eventflow.step
async def last() -> str:
    return "last"


@eventflow.workflow(name="doubts gathered", retries=Retry(1, delay=0.02, jitter=0))
async def gathered(kind: str) -> str:
    beside = {"transaction": book_beside, "step": act_beside}[kind]
    task = asyncio.ensure_future(beside("beside"))
    stage.tasks.append(task)
    await asyncio.gather(task, fails_beside())
    stage.go.set()
    await asyncio.wait({stage.tasks[0]}, timeout=10)
    return await last()


@pytest.mark.parametrize("kind", ["transaction", "step"])
async def test_what_outlives_its_attempt_records_nothing_in_the_next(ask: Ask, kind: str) -> None:
    """`gather` does not end the others when one fails: they go on beside the next attempt, at the same positions."""
    async with running(ask):
        assert await asyncio.wait_for(gathered(kind), 15) == "last"
    assert [type(task.exception()) for task in stage.tasks] == [Dropped, type(None)]
    assert ask.effects() == (["beside"] if kind == "transaction" else [])
    assert ask("select status::text, attempt, recoveries from eventflow.workflows") == [("succeeded", 2, 0)]
    assert ask("select count(*), count(error) from eventflow.checkpoints") == [(3, 0)]
    assert ask("select * from eventflow.incidents") == []


async def test_what_outlives_its_attempt_and_commits_first_is_taken_for_the_next(ask: Ask, monkeypatch: Any) -> None:
    """The answer to its commit is late: the next attempt finds what stands when it records the same step."""
    commit = AsyncPort.commit

    async def late(self: AsyncPort) -> None:
        await commit(self)
        if stage.calls == 1:
            stage.came.set()
            await stage.go.wait()

    monkeypatch.setattr(AsyncPort, "commit", late)
    async with running(ask):
        assert await asyncio.wait_for(committed_first(), 15) == "last"
    assert ask.effects() == ["beside"]
    assert ask("select status::text, attempt, recoveries from eventflow.workflows") == [("succeeded", 2, 0)]
    assert ask("select count(*), count(error) from eventflow.checkpoints") == [(3, 0)]


@eventflow.transaction
async def book_second(connection: psycopg.AsyncConnection[Any], note: str) -> str:
    stage.calls += 1
    if stage.calls == 2:
        stage.go.set()
        await asyncio.wait({stage.tasks[0]}, timeout=10)
    await connection.execute("insert into effects (note) values (%s)", [note])
    return note


@eventflow.workflow(name="doubts committed first", retries=Retry(1, delay=0.02, jitter=0))
async def committed_first() -> str:
    task = asyncio.ensure_future(book_second("beside"))
    stage.tasks.append(task)
    await asyncio.gather(task, fails_beside())
    return await last()


# ---- commits whose outcome is in doubt (R3) -----------------------------------------------------------


class Committed(psycopg.OperationalError):
    sqlstate = "58030"


@eventflow.workflow(name="doubts booking")
async def booking(note: str) -> str:
    return await book(note)


async def test_an_error_that_comes_after_the_commit_runs_nothing_again(ask: Ask, monkeypatch: Any) -> None:
    commit = AsyncPort.commit

    async def failing(self: AsyncPort) -> None:
        await commit(self)
        stage.calls += 1
        if stage.calls == 1:
            raise Committed("could not fsync file")

    monkeypatch.setattr(AsyncPort, "commit", failing)
    async with running(ask):
        assert await asyncio.wait_for(booking("once"), 15) == "once"
        assert await asyncio.wait_for(booking("and another"), 15) == "and another"
    assert ask.effects() == ["and another", "once"]
    assert ask("select count(*), count(error), count(output) from eventflow.checkpoints") == [(2, 0, 2)]
    assert ask("select distinct status::text from eventflow.workflows") == [("succeeded",)]


# ---- messages of transactional handlers (R15, R18) ---------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def submit(self, entry: Entry) -> None:
        self.entries.append(entry)


class Bench:
    """Transactional handlers of one claim, driven here, one group at a time."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.database = ask, Database(ask.url)
        identity = birth(self.database, "a", {}, 2, threading.Event())
        with self.database.connect("test") as connection:
            say = functools.partial(self.database.run, connection)
            [(source, *_)] = say("register_source", {"topic": "t", "cluster_id": "c", "topic_id": "i", "policy": None})
            say(
                "insert_claims",
                {"group": "g", "source": source, "partition": [0], "position": [0], "began": ["earliest"]},
            )
            [(claim,)] = ask("select id from eventflow.claims")
            [(_, _, epoch)] = say("take_claims", {"executor": identity.executor, "in_flight": 9, "claims": [claim]})
        self.claim = Claim(claim, epoch, "g", "t", 0, source, 1, "kafka:g:t:1:0:", 0)
        self.executor = new_executor()
        self.executor.journal = self.journal = Recorder()  # type: ignore[assignment]
        self.lane = Lane(self.database, identity, 0, threading.Event())
        self.transactions = Transactions(
            self.database, self.executor, [], "a", on_lost=lambda _: None, on_fenced=lambda _: None
        )  # fmt: skip

    async def group(
        self, handler: Callable[..., Any], messages: int, retry: Retry | None = None, *, pipeline: bool = False
    ) -> None:
        """Run these messages' handler as one group."""
        colour = asyncio.iscoroutinefunction(handler)
        spec = make_spec(handler, "bench", retry or Retry(0), 0)
        flavour: Any = "async connection" if colour else "connection"
        own = TransactionSpec("bench", handler, colour, flavour, 0, None, Retry(0), pipeline=pipeline)
        spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own)
        runs = list[Run]()
        for offset in range(messages):
            run = Run(spec, f"{self.claim.id_prefix}{offset}", "a")
            run.claim, run.offset, run.first, run.value, run.timestamp = self.claim, offset, offset, b"%d" % offset, 1
            run.executor = self.executor
            runs.append(run)
        protocol = self.transactions.group(self.lane, runs)
        enough = self.executor.loop.call_later(
            8, self.transactions._stopped.set
        )  # what would go on for ever raises then
        if colour:
            port = AsyncPort(self.database)
            await adrive(protocol, port)
            await port.close()
        else:
            sync_port = Port(self.database)
            await asyncio.to_thread(drive, protocol, sync_port)
            sync_port.close()
        enough.cancel()
        self.lane.close()
        self.executor.abort()

    def ended(self) -> dict[str, int]:
        """How many ended how: in the ledger, or handed to the journal."""
        rows = dict(self.ask("select status::text, count(*) from eventflow.workflows group by 1"))
        for entry in self.journal.entries:
            rows[entry.status] = rows.get(entry.status, 0) + 1
        return rows


Numbered = eventflow.Message[int]
INSERT = "insert into effects (note) values (%s)"


async def test_a_handler_whose_connection_lies_after_the_commit_runs_once(ask: Ask, monkeypatch: Any) -> None:
    commit = Port.commit

    def failing(self: Port) -> None:
        commit(self)
        stage.calls += 1
        if stage.calls == 1:
            raise Committed("could not fsync file")

    def handler(connection: psycopg.Connection[Any], message: Numbered) -> None:
        seen.append(message.value)
        connection.execute(INSERT, [str(message.value)])

    monkeypatch.setattr(Port, "commit", failing)
    bench, seen = Bench(ask), list[int]()
    await bench.group(handler, 5)
    assert seen == [0, 1, 2, 3, 4]
    assert ask.effects() == ["0", "1", "2", "3", "4"]
    assert bench.ended() == {"succeeded": 5}
    assert bench.claim.finished == 5


ELSEWHERE = "connection failed: some other server is away"


async def test_another_databases_error_is_the_messages_own_failure(ask: Ask) -> None:
    calls = list[int]()

    async def handler(connection: psycopg.AsyncConnection[Any], message: Numbered) -> None:
        calls.append(message.value)
        if message.value == 2:
            raise psycopg.OperationalError(ELSEWHERE)
        await connection.execute(INSERT, [str(message.value)])

    bench = Bench(ask)
    await bench.group(handler, 5)
    assert ask.effects() == ["0", "1", "3", "4"]
    assert bench.ended() == {"succeeded": 4, "failed": 1}
    assert calls.count(2) == 2, "in the group, and with a savepoint of its own"


async def test_another_databases_error_is_retried_by_the_messages_policy(ask: Ask) -> None:
    def handler(connection: psycopg.Connection[Any], message: Numbered) -> None:
        raise psycopg.OperationalError(ELSEWHERE)

    bench = Bench(ask)
    await bench.group(handler, 1, Retry(2, delay=60))
    assert bench.ended() == {"queued": 1}


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_handler_that_closes_its_connection_fails_alone(ask: Ask, colour: str) -> None:
    calls = list[int]()

    def sync_handler(connection: psycopg.Connection[Any], message: Numbered) -> None:
        calls.append(message.value)
        assert len(calls) < 40, "it goes on for ever"
        connection.execute(INSERT, [str(message.value)])
        if message.value == 2:
            connection.close()

    async def async_handler(connection: psycopg.AsyncConnection[Any], message: Numbered) -> None:
        calls.append(message.value)
        assert len(calls) < 40, "it goes on for ever"
        await connection.execute(INSERT, [str(message.value)])
        if message.value == 2:
            await connection.close()
            await connection.execute("select 1")

    bench = Bench(ask)
    await bench.group(async_handler if colour == "async" else sync_handler, 4)
    assert ask.effects() == ["0", "1", "3"]
    assert bench.ended() == {"succeeded": 3, "failed": 1}
    assert calls.count(2) == 6, "in the group, and five times alone"


TRIGGER = """
create function refuse() returns trigger language plpgsql as $$
begin if new.note = '2' then raise exception 'this one is not booked'; end if; return null; end $$;
create constraint trigger refusing after insert on effects deferrable initially deferred
for each row execute function refuse()
"""


async def test_what_a_deferred_trigger_refuses_at_the_commit_is_the_messages_own_failure(ask: Ask) -> None:
    """The server is well and says no: not an outage, which would be tried for ever."""
    ask(TRIGGER)

    async def handler(connection: psycopg.AsyncConnection[Any], message: Numbered) -> None:
        await connection.execute(INSERT, [str(message.value)])

    bench = Bench(ask)
    await bench.group(handler, 4)
    assert ask.effects() == ["0", "1", "3"]
    assert bench.ended() == {"succeeded": 3, "failed": 1}


async def test_what_a_deferred_trigger_refuses_is_the_steps_own_failure(ask: Ask) -> None:
    ask(TRIGGER)
    async with running(ask):
        with pytest.raises(Exception, match="not booked"):
            await asyncio.wait_for(booking("2"), 15)
    assert ask.effects() == []


@eventflow.transaction(retries=Retry(2, delay=0, jitter=0))
async def asks_elsewhere(connection: psycopg.AsyncConnection[Any]) -> None:
    stage.calls += 1
    raise psycopg.OperationalError(ELSEWHERE)


@eventflow.workflow(name="doubts elsewhere")
async def elsewhere() -> None:
    await asks_elsewhere()


async def test_another_databases_error_is_the_steps_own_failure(ask: Ask) -> None:
    async with running(ask):
        with pytest.raises(Exception, match="some other server"):
            await asyncio.wait_for(elsewhere(), 15)
    assert stage.calls == 3, "as its policy says"
    assert ask("select status::text from eventflow.workflows") == [("failed",)]


@eventflow.transaction
async def closes(connection: psycopg.AsyncConnection[Any]) -> None:
    stage.calls += 1
    assert stage.calls < 40, "it goes on for ever"
    await connection.close()


@eventflow.workflow(name="doubts closes")
async def closing() -> None:
    await closes()


async def test_a_step_that_closes_its_connection_fails(ask: Ask) -> None:
    async with running(ask, drain=0.5):
        with pytest.raises(Exception, match="closed"):
            await asyncio.wait_for(closing(), 10)
    assert stage.calls == 5
    assert ask("select status::text from eventflow.workflows") == [("failed",)]


# ---- callers who go away (R8) ------------------------------------------------------------------------


@pytest.mark.parametrize("workflow_id", [None, "given"])
async def test_what_is_started_runs_though_its_caller_has_gone(ask: Ask, workflow_id: str | None) -> None:
    async with running(ask, lease=30):
        locker = psycopg.connect(ask.url)
        locker.execute("lock table eventflow.flushes in access exclusive mode")  # a slow ledger
        starting = asyncio.create_task(eventflow.start(greet, 1, workflow_id=workflow_id))
        await until(
            lambda: ask("select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
                        "and application_name like 'eventflow journal%%'"), "its row is on the way",
        )  # fmt: skip
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        locker.rollback()
        locker.close()
        await until(lambda: ask("select 1 from eventflow.workflows where status = 'succeeded'"), "it runs")
        executor = incarnation().executor
        await until(lambda: not executor.runs, "nothing of it is left")
        if workflow_id is not None:
            handle = await eventflow.start(greet, 1, workflow_id=workflow_id)
            assert await handle.result(timeout=10) == 1
    assert ask(WORKFLOWS) == [("succeeded", True, 1, 0)] or ask(WORKFLOWS) == [("succeeded", False, 1, 0)]


# ---- the incarnation -----------------------------------------------------------------------------------


def test_a_birth_waits_for_a_server_that_only_reads(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    """As in the middle of a fail-over: the standby answers before it may be written."""
    [(name,)] = ask("select current_database()")
    ask(f"alter database {name} set default_transaction_read_only = on")
    born = list[Identity]()

    def be_born() -> None:
        born.append(birth(Database(ask.url), "a", {}, 1, threading.Event()))

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=be_born, daemon=True)
        thread.start()
        end = time.monotonic() + 15
        while "trying again" not in caplog.text:
            assert thread.is_alive(), "it gave up"
            assert time.monotonic() < end
            time.sleep(0.005)
    ask(f"alter database {name} reset default_transaction_read_only")
    thread.join(15)
    assert [(identity.executor,) for identity in born] == ask("select id from eventflow.executors")


@eventflow.workflow(name="doubts waits")
async def waits() -> int:
    stage.came.set()
    await stage.go.wait()
    return 1


async def test_a_row_that_is_gone_ends_the_incarnation_and_not_the_process(ask: Ask) -> None:
    async with running(ask):
        first = incarnation()
        await eventflow.start(waits)
        await asyncio.wait_for(stage.came.wait(), 15)
        ask("delete from eventflow.workflows")
        stage.go.set()
        await until(lambda: first.ended.done(), "it ends")
        assert isinstance(first.ended.result(), FencedError)
        assert await asyncio.wait_for(greet(3), 15) == 3
        assert incarnation().id != first.id


PROMOTED = "create or replace function eventflow.timeline() returns text language sql as $$ select '{}' $$"


@pytest.mark.parametrize("readable", [True, False])
async def test_an_idle_executor_notices_another_timeline(ask: Ask, readable: bool) -> None:
    ask(PROMOTED.format("00000001" if readable else ""))
    lease, told = idle_lease(ask, room=lambda: 0)
    lease._one_beat()
    ask(PROMOTED.format("00000002"))
    if readable:
        with pytest.raises(FencedError, match="timeline"):
            lease._one_beat()
    else:
        lease._one_beat()  # unreadable at its birth: it goes by what was acknowledged
    lease.stop()
    assert told == []


def idle_lease(ask: Ask, room: Callable[[], int]) -> tuple[Lease, list[Any]]:
    database = Database(ask.url)
    identity = birth(database, "a", {}, 1, threading.Event())
    told = list[Any]()

    async def function() -> None: ...

    lease = new_lease(
        database, identity, "a", {"n": make_spec(function, "n", Retry(0), 5)}, beat=60, lease=60,
        adopt=lambda runs, how: told.append(runs), room=room, on_fenced=told.append,
    )  # fmt: skip
    return lease, told


def test_no_more_rows_are_taken_than_there_is_room_for(ask: Ask) -> None:
    room = 2
    lease, adopted = idle_lease(ask, room=lambda: room)
    ask("insert into eventflow.workflows (id, name, application, status, attempt, arguments) "
        "select n::text, 'n', 'a', 'running', 1, 'null' from generate_series(1, 5) n")  # fmt: skip
    with Database(ask.url).connect("test") as connection:
        assert lease._claim(connection, "claim_rows"), "there may be more"
        assert [len(claimed) for claimed in adopted] == [2]
        room = 0
        assert not lease._claim(connection, "claim_rows")
        room = 100
        assert not lease._claim(connection, "claim_rows")
        assert [len(claimed) for claimed in adopted] == [2, 3]
