"""Transactions on another database, in this process: what runs again and what does not, doubt, conflicts, outages, bad input."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Retry, durable, sync
from eventflow.app import App as Application
from eventflow.context import slot
from eventflow.errors import (
    UsageError,
    WorkflowParkedError,
)
from eventflow.ports import AsyncPort, Port
from eventflow.registry import registry
from eventflow.settings import Settings
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, names, new_database
from tests.ledgers import other_database

broken: set[str] = set()
urls: dict[bool, str] = {}  # of the database elsewhere, and of the one here
INSERT = 'insert into effects ("group", note) values (%s, %s)'
anywhere = pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])


# ---- transactions, of each colour, here (in the ledger's database) and elsewhere -------------------------------------


def act(note: str) -> tuple[str, str]:
    trace(note)
    return durable.workflow_id(), note


def check(note: str) -> str:
    if note in broken:
        raise ValueError(note)
    return note


@eventflow.transaction(name="book", database="other")
def there_sync(connection: "psycopg.Connection[Any]", note: str) -> str:
    connection.execute(INSERT, act(note))
    return check(note)


@eventflow.transaction(name="book", database="other")
async def there_async(connection: "psycopg.AsyncConnection[Any]", note: str) -> str:
    await connection.execute(INSERT, act(note))
    return check(note)


@eventflow.transaction(name="book")
def here_sync(connection: "psycopg.Connection[Any]", note: str) -> str:
    connection.execute(INSERT, act(note))
    return check(note)


@eventflow.transaction(name="book")
async def here_async(connection: "psycopg.AsyncConnection[Any]", note: str) -> str:
    await connection.execute(INSERT, act(note))
    return check(note)


BOOK = {
    ("async", True): there_async,
    ("sync", True): there_sync,
    ("async", False): here_async,
    ("sync", False): here_sync,
}


def book(do: Do, note: str, *, elsewhere: bool = True) -> Callable[[], Any]:
    return lambda: BOOK[do.colour, elsewhere](note)


def step(note: str) -> str:
    trace(note)
    return check(note)


@both
def three(do: Do) -> Body[list[str]]:
    first = yield book(do, "first")
    second = yield book(do, "second")
    return [first, second, (yield do.run_step(step, "third"))]


@both(retries=Retry(3, delay=0.01))
def persistent(do: Do) -> Body[list[str]]:
    done = [(yield book(do, "kept"))]
    if len([note for note in traced(durable.workflow_id()) if note == "last"]) < 2:
        broken.add("last")
    else:
        broken.discard("last")
    return [*done, (yield book(do, "last"))]


@both
def generations(do: Do, n: int) -> Body[int]:
    yield book(do, f"generation {n}")
    if n == 3:
        return n
    durable.continue_as_new(generations[do.colour].bind(n + 1))


@both
def beside(do: Do, elsewhere: bool, begins: str) -> Body[None]:
    """Two branches: a step that fails, and a transaction that begins before it does, or after; both are recorded."""

    def failing() -> Body[None]:
        try:
            yield do.run_step(fails, elsewhere, begins)
        except ConnectionError:
            yield do.sleep(0.6)
            raise

    def booking() -> Body[None]:
        if begins == "after":
            yield do.sleep(0.2)
        yield book(do, "beside", elsewhere=elsewhere)

    yield do.gather(failing(), booking())


def fails(elsewhere: bool, begins: str) -> None:
    if begins not in broken:
        return
    if begins == "before":
        me = durable.workflow_id()
        until(lambda: ask(urls[elsewhere], 'select note from effects where "group" = %s', me))
    raise ConnectionError(begins)


@pytest.fixture(scope="module")
def other(postgres_url: str) -> Iterator[str]:
    with other_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module", params=["leaves"])
def app(postgres_url: str, other: str, request: pytest.FixtureRequest) -> Iterator[App]:
    with new_database(postgres_url) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('create table effects ("group" text, note text)')
        made = App(url, request.param, {"other": other})
        urls.update({True: other, False: url})
        yield made
        made.down()


@pytest.fixture(autouse=True)
def all_well() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


def ask(url: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def effects(url: str, handle: Any) -> Counter[str]:
    """How often each is there."""
    return Counter(note for (note,) in ask(url, 'select note from effects where "group" = %s', handle.workflow_id))


def fail(handle: sync.Handle[Any], kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind):
        handle.result(timeout=15)


# ---- what runs again --------------------------------------------------------------------------------


def test_a_transaction_elsewhere_is_a_step(app: App, other: str, colour: Colour) -> None:
    handle = app.start(three, colour)
    assert handle.result(timeout=15) == ["first", "second", "third"]
    assert effects(other, handle) == {"first": 1, "second": 1}
    assert [(s.position, s.name, s.attempts, s.error) for s in handle.steps()] == [
        ("1.1", "book", 1, None), ("1.2", "book", 1, None), ("1.3", "step", 1, None),
    ]  # fmt: skip
    rows = ask(other, "select position, name, output from eventflow_results.results where workflow_id = %s order by ticket",
               handle.workflow_id)  # fmt: skip
    assert rows == [("1.1", "book", '"first"'), ("1.2", "book", '"second"')]


def test_retry_runs_a_failed_transaction_again_and_no_other(app: App, other: str, colour: Colour) -> None:
    broken.add("second")
    handle = app.start(three, colour)
    fail(handle)
    assert effects(other, handle) == {"first": 1}
    broken.clear()
    broken.add("third")
    handle.retry()
    fail(handle)
    assert effects(other, handle) == {"first": 1, "second": 1}
    broken.clear()
    handle.retry()
    assert handle.result(timeout=15) == ["first", "second", "third"]
    assert effects(other, handle) == {"first": 1, "second": 1}
    assert Counter(traced(handle.workflow_id)) == {"first": 1, "second": 2, "third": 2}


def test_a_policy_runs_a_failed_transaction_again_and_no_other(app: App, other: str, colour: Colour) -> None:
    handle = app.start(persistent, colour)
    assert handle.result(timeout=15) == ["kept", "last"]
    assert effects(other, handle) == {"kept": 1, "last": 1}
    assert Counter(traced(handle.workflow_id)) == {"kept": 1, "last": 3}


@pytest.mark.parametrize("begins", ["before", "after"])
@anywhere
def test_what_is_dropped_runs_again_elsewhere_as_here(app: App, colour: Colour, elsewhere: bool, begins: str) -> None:
    """A retry drops what began after the failure, and keeps what began before it, on whichever database."""
    broken.add(begins)
    handle = app.start(beside, colour, elsewhere, begins)
    fail(handle, ConnectionError)
    assert effects(urls[elsewhere], handle) == {"beside": 1}
    broken.clear()
    handle.retry()
    handle.result(timeout=15)
    assert effects(urls[elsewhere], handle) == {"beside": 1 if begins == "before" else 2}


def test_restart_runs_it_again(app: App, other: str, colour: Colour) -> None:
    handle = app.start(three, colour)
    handle.result(timeout=15)
    handle.restart()
    until(lambda: effects(other, handle) == {"first": 2, "second": 2})
    assert handle.result(timeout=15) == ["first", "second", "third"]


def test_fork_takes_results_over_and_runs_the_rest(app: App, other: str, colour: Colour) -> None:
    handle = app.start(three, colour)
    handle.result(timeout=15)
    forked = handle.fork("1.2")
    assert forked.result(timeout=15) == ["first", "second", "third"]
    assert (effects(other, forked), effects(other, handle)) == ({"second": 1}, {"first": 1, "second": 1})
    again = handle.fork()
    assert again.result(timeout=15) == ["first", "second", "third"]
    assert effects(other, again) == {"first": 1, "second": 1}


def test_a_fork_cannot_void_its_sources_ticket(app: App, other: str, colour: Colour) -> None:
    """It has begun beside what the fork takes over, and the source may still commit it."""
    handle = app.start(three, colour)
    handle.result(timeout=15)
    [(ticket,)] = ask(urls[False], "select output from eventflow.checkpoints where workflow_id = %s and position = '1.1~t1'",
                      handle.workflow_id)  # fmt: skip
    ask(
        urls[False], "delete from eventflow.checkpoints where workflow_id = %s and position = '1.1'", handle.workflow_id
    )
    forked = handle.fork("1.2")
    assert forked.result(timeout=15) == ["first", "second", "third"]
    assert effects(other, forked) == {"first": 1, "second": 1}
    rows = ask(
        other, "select workflow_id, output from eventflow_results.results where ticket = %s", json.loads(ticket)[1]
    )
    assert set(rows) == {(handle.workflow_id, '"first"'), (forked.workflow_id, None)}


def test_continue_as_new_begins_anew(app: App, other: str, colour: Colour) -> None:
    handle = app.start(generations, colour, 1)
    assert handle.result(timeout=15) == 3
    assert effects(other, handle) == {f"generation {n}": 1 for n in (1, 2, 3)}


def test_the_same_id_again_is_another_workflow(app: App, other: str, colour: Colour) -> None:
    handle = app.start(three, colour)
    handle.result(timeout=15)
    handle.delete()
    again = app.start(three, colour, workflow_id=handle.workflow_id)
    assert again.result(timeout=15) == ["first", "second", "third"]
    assert effects(other, again) == {"first": 2, "second": 2}


# ---- what is sent inside -------------------------------------------------------------------------------


@eventflow.workflow(name="test_elsewhere.enqueued")
async def enqueued(number: int) -> int:
    return number


@eventflow.transaction(database="other")
async def tells_async(connection: "psycopg.AsyncConnection[Any]", fails: int) -> int:
    await durable.send(durable.workflow_id(), "hello", topic="told")
    await durable.set_event("told", 7)
    await durable.write_stream("told", "a line")
    await eventflow.enqueue(enqueued, 7)
    await eventflow.start(enqueued, 8)
    trace("told")
    if len(traced(durable.workflow_id())) <= fails:
        raise ValueError("again")
    return fails


@eventflow.transaction(database="other")
def tells_sync(connection: "psycopg.Connection[Any]", fails: int) -> int:
    sync.send(durable.workflow_id(), "hello", topic="told")
    sync.set_event("told", 7)
    sync.write_stream("told", "a line")
    sync.enqueue(enqueued, 7)
    sync.start(enqueued, 8)
    trace("told")
    if len(traced(durable.workflow_id())) <= fails:
        raise ValueError("again")
    return fails


@both
def teller(do: Do) -> Body[str]:
    function = tells_async if do.colour == "async" else tells_sync
    yield do.run_step(function, 2, retries=Retry(2, delay=0.01))
    return (yield do.recv(str, topic="told", timeout=10))


def test_what_it_sends_goes_with_the_attempt_that_succeeds(app: App, colour: Colour) -> None:
    handle = app.start(teller, colour)
    assert handle.result(timeout=15) == "hello"
    assert handle.event("told", int, timeout=5) == 7
    assert list(handle.stream("told", str)) == ["a line"]
    query = "select count(*) from eventflow.messages where workflow_id = %s"
    assert ask(urls[False], query, handle.workflow_id) == [(1,)]
    children = "select output from eventflow.workflows where parent = %s order by output"
    until(lambda: ask(urls[False], children, handle.workflow_id) == [("7",), ("8",)])


def test_outside_a_workflow_what_is_sent_commits_here_and_cannot_elsewhere(app: App, other: str) -> None:
    with pytest.raises(UsageError, match="'tells_outside' is called outside a workflow: what it sends"):
        tells_outside()
    sent = "select payload from eventflow.messages where workflow_id = 'someone'"
    broken.add("fails")
    with pytest.raises(ValueError, match="fails"):
        tells_outside_here("fails")
    assert ask(urls[False], sent) == []
    tells_outside_here("well")
    assert ask(urls[False], sent) == [('"well"',)]
    assert ask(other, "select count(*) from effects where \"group\" = 'outside'") == [(0,)]


@eventflow.transaction(database="other")
def tells_outside(connection: "psycopg.Connection[Any]") -> None:
    connection.execute(INSERT, ("outside", "note"))
    sync.send("someone", "hello")


@eventflow.transaction
def tells_outside_here(connection: "psycopg.Connection[Any]", note: str) -> None:
    sync.send("someone", note)
    check(note)


@eventflow.transaction(database="other")
def plainly(session: Session, note: str) -> str:
    session.execute(text("insert into effects (note) values (:note)"), {"note": note})
    return check(note)


def test_outside_a_workflow_it_commits_when_it_returns(app: App, other: str) -> None:
    assert plainly("plain") == "plain"
    broken.add("fails")
    with pytest.raises(ValueError, match="fails"):
        plainly("fails")
    assert ask(other, "select note from effects where note in ('plain', 'fails')") == [("plain",)]


@eventflow.transaction(database="other")
async def plainly_async(session: AsyncSession, note: str) -> str:
    await session.execute(text("insert into effects (note) values (:note)"), {"note": note})
    return check(note)


def test_outside_a_workflow_it_commits_when_it_was_awaited(app: App, other: str) -> None:
    async def main() -> None:
        async with eventflow.running(Settings(**app.usual), consumers=False):
            assert await plainly_async("awaited") == "awaited"
            with pytest.raises(ValueError, match="fails"):
                await plainly_async("fails")

    broken.add("fails")
    app.down()
    try:
        asyncio.run(main())
    finally:
        app.up()
    assert ask(other, "select note from effects where note in ('awaited', 'fails')") == [("awaited",)]


# ---- levels and conflicts -------------------------------------------------------------------------------


def new_counters(url: str) -> None:
    ask(url, "drop table if exists counters")
    ask(url, "create table counters (id int primary key, n int)")
    ask(url, "insert into counters values (1, 0), (2, 0)")


SHOW = "select current_setting('transaction_isolation')"


def shows(level: Any) -> list[Any]:
    @eventflow.transaction(isolation=level, database="other")
    def by_session(session: Session) -> str:
        return session.execute(text(SHOW)).scalar_one()

    @eventflow.transaction(isolation=level, database="other")
    def by_connection(connection: "psycopg.Connection[Any]") -> str:
        return connection.execute(SHOW.encode()).fetchall()[0][0]

    @eventflow.transaction(isolation=level, database="other")
    async def by_async_session(session: AsyncSession) -> str:
        return (await session.execute(text(SHOW))).scalar_one()

    @eventflow.transaction(isolation=level, database="other")
    async def by_async_connection(connection: "psycopg.AsyncConnection[Any]") -> str:
        return (await (await connection.execute(SHOW.encode())).fetchall())[0][0]

    return [by_session, by_connection, by_async_session, by_async_connection]


LEVELS = (None, "repeatable read", "serializable")
SHOWS = {level: shows(level) for level in LEVELS}


@both
def levels(do: Do) -> Body[list[str]]:
    """On connections that are used by one kind after another."""
    found: list[str] = []
    for kind in (0, 1, 0):
        for level in LEVELS:
            found.append((yield SHOWS[level][kind + 2 * (do.colour == "async")]))
    return found


def test_the_isolation_level_is_the_one_asked_for(app: App, colour: Colour) -> None:
    assert app.run(levels, colour) == [level or "read committed" for level in LEVELS] * 3


def conflicting(database: str | None) -> dict[Colour, tuple[Any, Any]]:
    """By colour: one that conflicts with what is committed meanwhile, and one that locks what the other one wants."""

    @eventflow.transaction(name="raise", isolation="serializable", database=database)
    def raise_sync(connection: "psycopg.Connection[Any]", url: str) -> int:
        return (
            _raise(connection.execute("select n from counters where id = 1").fetchall(), url)
            or connection.execute("update counters set n = n + 1 where id = 1 returning n").fetchall()[0][0]
        )

    @eventflow.transaction(name="raise", isolation="serializable", database=database)
    async def raise_async(connection: "psycopg.AsyncConnection[Any]", url: str) -> int:
        _raise(await (await connection.execute("select n from counters where id = 1")).fetchall(), url)
        return (await (await connection.execute("update counters set n = n + 1 where id = 1 returning n")).fetchall())[
            0
        ][0]

    @eventflow.transaction(name="lock", database=database)
    def lock_sync(connection: "psycopg.Connection[Any]", mine: int, theirs: int) -> None:
        connection.execute("update counters set n = n + 1 where id = %s", [mine])
        _meet()
        connection.execute("update counters set n = n + 1 where id = %s", [theirs])

    @eventflow.transaction(name="lock", database=database)
    async def lock_async(connection: "psycopg.AsyncConnection[Any]", mine: int, theirs: int) -> None:
        await connection.execute("update counters set n = n + 1 where id = %s", [mine])
        await asyncio.to_thread(_meet)
        await connection.execute("update counters set n = n + 1 where id = %s", [theirs])

    return {"sync": (raise_sync, lock_sync), "async": (raise_async, lock_async)}


CONFLICTING = {False: conflicting(None), True: conflicting("other")}


def _raise(seen: list[Any], url: str) -> None:
    """Another one changes what was read, the first two times."""
    trace("read")
    if len(traced(durable.workflow_id())) <= 2:
        ask(url, "update counters set n = n + 10 where id = 1")


@both
def raising(do: Do, elsewhere: bool) -> Body[int]:
    return (yield lambda: CONFLICTING[elsewhere][do.colour][0](urls[elsewhere]))


@anywhere
def test_a_serialization_failure_is_retried(app: App, colour: Colour, elsewhere: bool) -> None:
    """Without a policy; elsewhere under the same ticket: what it conflicts with is somebody else's."""
    new_counters(urls[elsewhere])
    handle = app.start(raising, colour, elsewhere)
    assert handle.result(timeout=15) == 21
    assert len(traced(handle.workflow_id)) == 3
    assert ask(urls[elsewhere], "select n from counters where id = 1") == [(21,)]
    assert [s.attempts for s in handle.steps()] == [3]
    tickets = "select count(*) from eventflow.checkpoints where workflow_id = %s and position like '%%~t%%'"
    assert ask(urls[False], tickets, handle.workflow_id) == [(int(elsewhere),)]


_arrived: list[str] = []


def _meet() -> None:
    """The first time, both have locked what the other wants."""
    _arrived.append(durable.workflow_id())
    if len(_arrived) <= 2:
        until(lambda: len(_arrived) >= 2)


@both
def locking(do: Do, elsewhere: bool, mine: int, theirs: int) -> Body[None]:
    yield lambda: CONFLICTING[elsewhere][do.colour][1](mine, theirs)


@anywhere
def test_a_deadlock_is_retried(app: App, colour: Colour, elsewhere: bool) -> None:
    _arrived.clear()
    new_counters(urls[elsewhere])
    handles = [app.start(locking, colour, elsewhere, 1, 2), app.start(locking, colour, elsewhere, 2, 1)]
    for handle in handles:
        handle.result(timeout=15)
    assert ask(urls[elsewhere], "select n from counters") == [(2,), (2,)]
    assert len(_arrived) == 3


@both
def once(do: Do, elsewhere: bool) -> Body[str]:
    return (yield book(do, "once", elsewhere=elsewhere))


@anywhere
def test_a_limit_that_is_reached_meanwhile_is_no_failure_of_its(
    app: App, colour: Colour, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is rolled back, and when the workflow is resumed under another limit, it runs."""
    incarnation = cast("Application", slot.runtime)._incarnation
    assert incarnation is not None
    with monkeypatch.context() as patched:
        patched.setattr(incarnation.executor, "_long", 1)
        patched.setattr(incarnation.executor, "_longest", 1)
        handle = app.start(once, colour, elsewhere)
        with pytest.raises(WorkflowParkedError, match="the limit"):
            handle.result(timeout=15)
        assert effects(urls[elsewhere], handle) == {}
    handle.resume()
    assert handle.result(timeout=15) == "once"
    assert effects(urls[elsewhere], handle) == {"once": 1}


# ---- order ----------------------------------------------------------------------------------------------

_gate = {"reached": threading.Event(), "open": threading.Event()}


def pass_gate() -> None:
    _gate["reached"].set()
    assert _gate["open"].wait(10)


@both
def gated(do: Do) -> Body[str]:
    yield do.run_step(pass_gate)
    return (yield book(do, "behind the gate"))


def test_it_does_not_begin_before_its_ticket_is_durable(app: App, other: str, colour: Colour) -> None:
    """Nobody would find what it has committed."""
    for event in _gate.values():
        event.clear()
    handle = app.start(gated, colour)
    assert _gate["reached"].wait(10)
    with psycopg.connect(urls[False]) as holder:
        holder.execute("select 1 from eventflow.executors for update")  # no flush can begin
        _gate["open"].set()
        blocked = """select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                     and application_name like 'eventflow journal%'"""
        until(lambda: ask(urls[False], blocked) != [(0,)])
        time.sleep(0.3)  # long enough to have begun, and ended
        assert traced(handle.workflow_id) == []
    assert handle.result(timeout=15) == "behind the gate"
    assert effects(other, handle) == {"behind the gate": 1}


# ---- doubt ----------------------------------------------------------------------------------------------


@both
def single(do: Do) -> Body[str]:
    return (yield book(do, "single"))


class LostCommit:
    """The answer to the next COMMIT is lost: it did not arrive, or did, or arrives while the ticket is being settled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, url: str, how: str) -> None:
        self._url, self._how, self.lost = url, how, 0
        self._orphan: threading.Thread | None = None
        commit, commit_async = Port.commit, AsyncPort.commit

        def lossy(port: Port) -> None:
            if self.lost:
                commit(port)
                return
            self.lost += 1
            if how == "after":
                commit(port)
            self._lose(port)

        async def lossy_async(port: AsyncPort) -> None:
            if self.lost:
                await commit_async(port)
                return
            self.lost += 1
            if how == "after":
                await commit_async(port)
            self._lose(port)

        monkeypatch.setattr(Port, "commit", lossy)
        monkeypatch.setattr(AsyncPort, "commit", lossy_async)

    def _lose(self, port: Any) -> None:
        connection, port.raw = port.raw, None
        if self._how == "late":
            self._orphan = threading.Thread(target=self._arrive, args=(connection.pgconn,))
            self._orphan.start()
        else:
            connection.pgconn.finish()
        raise psycopg.OperationalError("the answer was lost")

    def _arrive(self, pgconn: Any) -> None:
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        until(lambda: ask(self._url, waits) == [(1,)])
        pgconn.exec_(b"commit")
        pgconn.finish()

    def join(self) -> None:
        if self._orphan is not None:
            self._orphan.join(10)


@pytest.mark.parametrize("how", ["after", "late", "never"])
def test_the_answer_to_the_commit_is_lost(
    app: App, other: str, colour: Colour, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ticket tells; only what is not committed runs again, under another one."""
    lost = LostCommit(monkeypatch, other, how)
    handle = app.start(single, colour)
    assert handle.result(timeout=15) == "single"
    lost.join()
    assert (lost.lost, effects(other, handle)) == (1, {"single": 1})
    assert traced(handle.workflow_id) == ["single"] * (2 if how == "never" else 1)
    rows = ask(other, "select output is null from eventflow_results.results where workflow_id = %s order by ticket",
               handle.workflow_id)  # fmt: skip
    assert rows == ([(True,), (False,)] if how == "never" else [(False,)])


@eventflow.workflow(name="test_elsewhere.patiently")
async def patiently() -> str:
    try:
        return await slow()
    except asyncio.CancelledError:
        trace("cancelled")
        raise


@eventflow.transaction(database="other")
async def slow(session: AsyncSession) -> str:
    row = {"group": durable.workflow_id(), "note": "slow"}
    await session.execute(text('insert into effects ("group", note) values (:group, :note)'), row)
    trace("slow")
    await asyncio.sleep(30)
    return "slow"


def test_a_cancelled_transaction_leaves_nothing_behind(app: App, other: str) -> None:
    for _ in range(4):  # more than there are connections
        handle = sync.start(patiently)
        until(lambda h=handle: "slow" in traced(h.workflow_id))
        handle.cancel()
        fail(handle, eventflow.EventflowError)
        assert traced(handle.workflow_id) == ["slow", "cancelled"]
        assert effects(other, handle) == {}
    assert app.run(single, "async") == "single"


@both
def rests_beside(do: Do, elsewhere: bool) -> Body[str]:
    """One branch sleeps for long, the other one's transaction takes its time."""

    def sleeping() -> Body[str]:
        yield do.sleep(1.5)
        return "slept"

    def working() -> Body[str]:
        key = (do.colour, elsewhere)
        return (yield lambda: WORK[key](0.5))

    return " ".join((yield do.gather(sleeping(), working())))


@eventflow.transaction
async def work_async(connection: "psycopg.AsyncConnection[Any]", seconds: float) -> str:
    trace("worked")
    await asyncio.sleep(seconds)
    return "worked"


@eventflow.transaction
def work_sync(connection: "psycopg.Connection[Any]", seconds: float) -> str:
    trace("worked")
    time.sleep(seconds)
    return "worked"


@eventflow.transaction(database="other")
async def work_there_async(connection: "psycopg.AsyncConnection[Any]", seconds: float) -> str:
    trace("worked")
    await asyncio.sleep(seconds)
    return "worked"


@eventflow.transaction(database="other")
def work_there_sync(connection: "psycopg.Connection[Any]", seconds: float) -> str:
    trace("worked")
    time.sleep(seconds)
    return "worked"


WORK: dict[tuple[str, bool], Any] = {
    ("async", False): work_async, ("sync", False): work_sync,
    ("async", True): work_there_async, ("sync", True): work_there_sync,
}  # fmt: skip


@anywhere
def test_a_workflow_stays_while_its_transaction_is_under_way(app: App, colour: Colour, elsewhere: bool) -> None:
    """Else it would be rolled back, and run again when the sleeper wakes."""
    handle = app.start(rests_beside, colour, elsewhere)
    assert handle.result(timeout=15) == "slept worked"
    assert traced(handle.workflow_id) == ["worked"]


def test_who_was_frozen_for_long_commits_nothing(app: App, other: str, colour: Colour) -> None:
    """Its rows may be pruned by now: it is refused there, and begins anew."""
    incarnation = cast("Application", slot.runtime)._incarnation
    assert incarnation is not None
    place = incarnation._elsewhere["other"]
    place._heard = lambda: time.time() - 13 * 3600
    handle = app.start(single, colour)
    assert handle.result(timeout=15) == "single"
    assert effects(other, handle) == {"single": 1}
    assert traced(handle.workflow_id) == ["single"] * 2
    now = cast("Application", slot.runtime)._incarnation
    assert now is not None
    assert now.id != incarnation.id


# ---- other code -----------------------------------------------------------------------------------------


@both
def changes(do: Do) -> Body[str]:
    if "moved" in broken:
        return (yield book(do, "moved", elsewhere=False))
    if "another" in broken:
        return (yield do.run_step(step, "another"))
    return (yield book(do, "single"))


@pytest.mark.parametrize("change", ["moved", "another"])
def test_other_code_where_a_transaction_has_begun_is_parked(app: App, other: str, colour: Colour, change: str) -> None:
    """It may be committed there; the code that comes now would not know."""
    broken.add(change)
    workflow_id = f"{colour} {change}"
    insert = """insert into eventflow.workflows (id, name, application, status, arguments)
                values (%s, %s, 'default', 'queued', '{"args":[],"kwargs":{}}')"""
    begun = """insert into eventflow.checkpoints (workflow_id, position, seq, name, output, attempts, seconds)
               values (%s, '1.1~t1', 1, 'book', '["other", "01a21bcb-c6b1-7aa9-bb21-615e8f748e08"]', 1, 0)"""
    with psycopg.connect(urls[False]) as connection:
        connection.execute(begun.encode(), [workflow_id])
        connection.execute(insert.encode(), [workflow_id, changes[colour].name])
    handle = sync.start(changes[colour], workflow_id=workflow_id)
    with pytest.raises(
        WorkflowParkedError, match="'book' had begun in the database 'other', and may be committed there"
    ):
        handle.result(timeout=15)
    broken.clear()
    handle.resume()
    assert handle.result(timeout=15) == "single"
    assert effects(other, handle) == {"single": 1}


def test_names_do_not_show_tickets(app: App, colour: Colour) -> None:
    handle = app.start(three, colour)
    handle.result(timeout=15)
    assert names(handle) == ["book", "book", "step"]


for _key in [key for key in registry.transactions if key[0] == __name__]:
    del registry.transactions[_key]  # other tests of this process do not have this database
