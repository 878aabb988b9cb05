"""The answer to a commit is lost (R3): the number that was in doubt is settled before anything else is said.

On a real server, and the loss exactly where it is meant: before the flush was sent, after it was committed, or while a
server that nobody listens to has yet to commit it. Effects are rows without a unique constraint.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow.database import Connection, Database, sql
from eventflow.errors import FencedError
from eventflow.journal import ClaimsLostError, Identity, Lane, RefusedError
from eventflow.migrations import migrate
from eventflow.ports import AsyncPort, Port, adrive, drive
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.replay import Branch
from eventflow.retry import Retry
from eventflow.runs import Claim, Run
from eventflow.seats import AsyncSeat, Place, Places, Seat
from eventflow.transactions import Transactions

EFFECT = ("insert_incident", {"kind": "effect", "subject": "s", "detail": "d"})  # counted when it comes again
LOST = "the answer was lost"


class Ledger:
    """A ledger with two executors; the first has a lane and a claim."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.database = Database(url)
        self.observer: Connection = self.database.connect("test")
        self.a, self.b = self.birth(), self.birth()
        [(self.source, *_)] = self.run("register_source", topic="t", cluster_id="c", topic_id="i", policy=None)
        self.run("insert_claims", group="g", source=self.source, partition=[0], position=[0], began=["earliest"])
        [(claim_id,)] = self.observer.execute("select id from eventflow.claims").fetchall()
        self.claim = Claim(claim_id, self.take(claim_id, self.a), "g", "t", 0, self.source, 1, "id:", 0)
        self.lane: Any = self.new_lane()

    def run(self, name: str, /, **params: object) -> list[tuple[Any, ...]]:
        return self.database.run(self.observer, name, params)

    def birth(self) -> int:
        [(executor, self.timeline)] = self.run(
            "birth", application="x", names="{}", host="h", pid=1, lanes=1, version=None, queues=None, schedules=None
        )
        return executor

    def take(self, claim_id: int, executor: int) -> int:
        [(_, _, epoch)] = self.run("take_claims", executor=executor, in_flight=10, claims=[claim_id])
        return epoch

    def new_lane(self) -> Lane:
        return Lane(self.database, Identity(self.a, self.timeline, [0]), 0, threading.Event())

    def lose_claim(self) -> None:
        self.take(self.claim.id, self.b)

    def effects(self) -> int:
        [(count,)] = self.observer.execute("select coalesce(sum(times), 0) from eventflow.incidents").fetchall()
        return count

    def numbers(self) -> list[int]:
        rows = self.observer.execute("select n from eventflow.flushes where executor = %s order by n", [self.a])
        return [n for (n,) in rows.fetchall()]

    def wait_blocked(self, blocked: int) -> None:
        """Wait until this backend waits for another's lock."""
        query = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        until = threading.Event()
        for _ in range(1000):
            if self.observer.execute(query, [blocked]).fetchall():
                return
            until.wait(0.01)
        raise AssertionError("it did not wait")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
    yield made
    made.lane.close()
    made.observer.close()


Send = Callable[[dict[str, Any], list[Any]], None]


def script(lane: Any, *acts: Callable[[Send, dict[str, Any], list[Any]], None]) -> list[int]:
    """The lane's next sends go as these say, and all later ones as they should; the nonces sent."""
    waiting, send, nonces = list(acts), lane._send, list[int]()

    def scripted(guard: dict[str, Any], statements: list[Any]) -> None:
        nonces.append(guard["nonce"])
        if waiting:
            waiting.pop(0)(send, guard, statements)
        else:
            send(guard, statements)

    lane._send = scripted
    return nonces


def lost_before(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
    raise psycopg.OperationalError(LOST)


def lost_after(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
    send(guard, statements)
    raise psycopg.OperationalError(LOST)


def sent(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
    send(guard, statements)


# ---- a flush of a lane -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [lost_before, lost_after])
def test_a_flush_whose_answer_was_lost_is_committed_once(ledger: Ledger, loss: Any) -> None:
    """It goes out again under its number and its nonce: what had been committed is recognised, and not written again."""
    nonces = script(ledger.lane, loss)
    ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n, ledger.numbers()) == (1, 1, [0, 1])
    assert len(nonces) == 2
    assert len(set(nonces)) == 1
    ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n) == (2, 2)


def test_a_number_that_another_sender_committed_ends_the_executor(ledger: Ledger) -> None:
    """The nonce tells whose it was; taken for ours, what it should have carried would be lost."""
    ledger.new_lane().commit([], ())
    with pytest.raises(FencedError, match="another sender"):
        ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n) == (0, 0)


def test_a_refusal_after_a_lost_answer_closes_the_number_first(ledger: Ledger) -> None:
    """Else what was sent first, and is still on its way, commits what was told to be refused."""
    flush: list[dict[str, Any]] = []

    def on_its_way(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
        flush.append(guard)
        ledger.lose_claim()
        raise psycopg.OperationalError(LOST)

    script(ledger.lane, on_its_way)
    with pytest.raises(ClaimsLostError):
        ledger.lane.commit([EFFECT], [ledger.claim])
    assert (ledger.effects(), ledger.lane.n, ledger.numbers()) == (0, 1, [0, 1])
    with pytest.raises(psycopg.errors.UniqueViolation):
        ledger.run("guard", **flush[0] | {"claims": [], "epochs": []})
    ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n) == (1, 2)


def refused(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
    send(
        guard,
        [
            *statements,
            (
                sql("insert_deltas"),
                {"claims": [1], "epochs": [1], "ranges": ["no range"], "leader_epochs": [-1], "epochs_to": [0]},
            ),
        ],
    )


def test_a_refusal_without_a_lost_answer_leaves_the_number_free(ledger: Ledger) -> None:
    script(ledger.lane, refused)
    with pytest.raises(RefusedError):
        ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n, ledger.numbers()) == (0, 0, [0])


def test_a_refusal_does_not_hide_that_the_lost_answer_was_a_commit(ledger: Ledger) -> None:
    """What was sent first commits after the second was refused: that is what happened, and no refusal is told."""

    def refused_then_first_arrives(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
        try:
            refused(send, guard, statements)
        finally:
            late: Any = ledger.new_lane()
            late._send(guard, statements)
            late.close()

    script(ledger.lane, lost_before, refused_then_first_arrives)
    ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n, ledger.numbers()) == (1, 1, [0, 1])


def test_the_answer_to_the_closing_of_a_number_may_be_lost_too(ledger: Ledger) -> None:
    """Its nonce tells that it was the empty flush which closed the number, and not the one in doubt."""
    script(ledger.lane, lost_before, refused, lost_after)
    with pytest.raises(RefusedError):
        ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n, ledger.numbers()) == (0, 1, [0, 1])


def test_the_server_goes_away_while_the_nonce_is_asked_for(ledger: Ledger) -> None:
    def after_it_is_gone(send: Send, guard: dict[str, Any], statements: list[Any]) -> None:
        try:
            send(guard, statements)
        finally:
            pid = ledger.lane.connection().info.backend_pid
            ledger.observer.execute("select pg_terminate_backend(%s, 10000)", [pid])

    script(ledger.lane, lost_after, after_it_is_gone)
    ledger.lane.commit([EFFECT], ())
    assert (ledger.effects(), ledger.lane.n) == (1, 1)


# ---- a transaction of the user's -------------------------------------------------------------------


class Settled:
    """An executor that keeps what it is told of."""

    def __init__(self) -> None:
        self.tracing = None
        self.outcomes = self
        self.done, self.wrong = list[Run](), list[BaseException]()

    def tell(self, riders: Any) -> None:
        assert not list(riders)

    def settled(self, runs: list[Run]) -> None:
        self.done += runs

    def failed(self, run: Run, error: BaseException) -> None:
        self.wrong.append(error)

    def check(self, run: Run, attempt: int | None = None) -> None: ...
    def accept(self, run: Run) -> None: ...
    def barrier_sync(self, run: Run) -> None: ...
    async def barrier(self, run: Run) -> None: ...


class Desk:
    """Transactions of the ledger's first executor, each commit of which goes as the test says."""

    def __init__(self, ledger: Ledger, colour: str) -> None:
        self.ledger, self.lane, self.sync = ledger, ledger.lane, colour == "sync"
        self.calls = 0
        self.failing = 0
        self.executor = Settled()
        self.transactions: Any = Transactions(
            ledger.database, self.executor, [], "x", on_lost=lambda _: None, on_fenced=lambda _: None,  # type: ignore[arg-type]
        )  # fmt: skip
        self.port: Any = (Port if self.sync else AsyncPort)(ledger.database)
        self.watched = self.lane.connection().info.backend_pid
        self.orphans: list[threading.Thread] = []

    def act(self, *_: Any) -> str:
        self.calls += 1
        if self.failing and self.calls % self.failing == 0:
            raise ValueError("for good")
        return "insert into eventflow.incidents (kind, subject, detail) values ('effect', 's', 'd') on conflict (kind, subject) where settled_at is null do update set times = incidents.times + 1"

    def message(self, offset: int) -> Run:
        desk = self

        def handler(connection: psycopg.Connection[Any], message: eventflow.Message[int]) -> None:
            connection.execute(desk.act().encode())

        async def handler_async(connection: psycopg.AsyncConnection[Any], message: eventflow.Message[int]) -> None:
            await connection.execute(desk.act().encode())

        function: Any = handler if self.sync else handler_async
        spec = make_spec(function, "handler", Retry(0), 1)
        spec.consumer = ConsumerSpec(
            ("t",), "g", "none", "earliest", "topic_id", None, {}, spec, self.spec(function, 0)
        )
        run = Run(spec, f"id:{offset}", "x")
        run.claim, run.offset, run.first = self.ledger.claim, offset, offset
        run.value, run.timestamp = b"1", 1
        return run

    def spec(self, function: Any, leading: int) -> TransactionSpec:
        flavour: Any = "connection" if self.sync else "async connection"
        return TransactionSpec("t", function, not self.sync, flavour, leading, None, Retry(0))

    def drive(self, protocol: Any) -> Any:
        if self.sync:
            return drive(protocol, self.port)
        return asyncio.run(self._adrive(protocol))

    async def _adrive(self, protocol: Any) -> Any:
        try:
            return await adrive(protocol, self.port)
        finally:
            await self.port.close()

    def handle(self, *runs: Run) -> None:
        self.drive(self.transactions.group(self.lane, list(runs)))

    def step(self, branch: Branch) -> Any:
        def book(connection: psycopg.Connection[Any]) -> int:
            connection.execute(self.act().encode())
            return self.calls

        async def book_async(connection: psycopg.AsyncConnection[Any]) -> int:
            await connection.execute(self.act().encode())
            return self.calls

        spec = self.spec(book if self.sync else book_async, 0)
        places = Places([Place(self.lane, self.port)])

        def protocol(seat: Any) -> Any:
            return self.transactions._step(seat, spec, branch, branch.next_position(), (), {})

        async def seated() -> Any:
            seat = AsyncSeat(places, spec)
            try:
                return await adrive(protocol(seat), seat)
            finally:
                await self.port.close()

        if not self.sync:
            return asyncio.run(seated())
        seat = Seat(places, spec)
        return drive(protocol(seat), seat)

    def lose(self, how: str) -> None:
        """The next commit's answer is lost: the commit did not arrive, or did, or arrives while the number is closed."""
        port, commit = self.port, self.port.commit

        def orphan(connection: Any) -> None:
            try:
                self.ledger.wait_blocked(self.watched)
            finally:
                _finish(connection, b"commit" if how == "late" else b"rollback")

        def abandon() -> None:
            connection, port.raw = port.raw, None
            self.orphans.append(threading.Thread(target=orphan, args=(connection,)))
            self.orphans[-1].start()

        def lossy() -> None:
            port.commit = commit
            if how == "after":
                commit()
            else:
                abandon()
            raise psycopg.OperationalError(LOST)

        async def lossy_async() -> None:
            port.commit = commit
            if how == "after":
                await commit()
            else:
                abandon()
            raise psycopg.OperationalError(LOST)

        port.commit = lossy if self.sync else lossy_async

    def join(self) -> None:
        for thread in self.orphans:
            thread.join(20)


def _finish(connection: Any, how: bytes) -> None:
    """From any thread, sync or async: nobody else uses this connection any more."""
    connection.pgconn.exec_(how)
    connection.pgconn.finish()


@pytest.mark.parametrize("how", ["after", "late", "never"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_transaction_whose_answer_was_lost_is_done_once(ledger: Ledger, colour: str, how: str) -> None:
    """Its number is closed before it runs again; closing waits for a server that has yet to commit."""
    desk = Desk(ledger, colour)
    desk.lose(how)
    first, second = desk.message(0), desk.message(1)
    desk.handle(first)
    desk.join()
    assert (desk.executor.done, desk.executor.wrong) == ([first], [])
    assert desk.calls == (2 if how == "never" else 1)
    assert ledger.numbers() == ([0, 1, 2] if how == "never" else [0, 1])
    desk.handle(second)
    assert (desk.executor.done, desk.executor.wrong, ledger.effects()) == ([first, second], [], 2)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_message_that_failed_in_a_group_whose_answer_was_lost_has_failed(ledger: Ledger, colour: str) -> None:
    """Once with the group, which is rolled back; once behind its savepoint, in a commit that is settled late."""
    desk = Desk(ledger, colour)
    desk.failing = 2
    desk.lose("after")
    first, second = desk.message(0), desk.message(1)
    desk.handle(first, second)
    assert desk.executor.done == [first]
    assert [str(error) for error in desk.executor.wrong] == ["for good"]
    assert (desk.calls, ledger.effects()) == (4, 1)


@pytest.mark.parametrize("how", ["after", "late", "never"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_transactional_step_whose_answer_was_lost_is_done_once(ledger: Ledger, colour: str, how: str) -> None:
    """What it returned is read from the ledger, where it was committed; else it runs again."""
    desk = Desk(ledger, colour)
    run = desk.message(0)
    ledger.run(
        "start_workflow",
        id=run.workflow_id,
        name="n",
        application="x",
        executor=ledger.a,
        arguments="{}",
        deadline=None,
        attributes=None,
        parent=None,
    )
    branch = Branch(run, None)
    desk.lose(how)
    assert desk.step(branch) == (2 if how == "never" else 1)
    desk.join()
    assert desk.step(branch) == desk.calls
    rows = ledger.observer.execute("select seq, output from eventflow.checkpoints order by seq").fetchall()
    assert rows == [(1, "2" if how == "never" else "1"), (2, str(desk.calls))]
    assert (ledger.effects(), run.history.seq) == (2, 2)
