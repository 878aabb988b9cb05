"""What a consumer's thread does about what others tell it: that it is fenced, that claims are lost, that folds can wait."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import psycopg
import pytest

from eventflow.apart import apart
from eventflow.app import App
from eventflow.database import Database
from eventflow.errors import FencedError, UsageError
from eventflow.incarnation import Incarnation
from eventflow.journal import Identity, Lane
from eventflow.ports import Protocol, adrive, drive
from eventflow.registry import ConsumerSpec, Registry, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Run
from eventflow.settings import Settings
from eventflow.transactions import Transactions
from tests.unit.test_intake import Desk

# ---- fenced ------------------------------------------------------------------------------------------


def test_a_fenced_consumer_tells_its_incarnation() -> None:
    """Otherwise the process would live on, beating and owning partitions that it does not read."""
    desk, told = Desk(), list[Exception]()
    desk.intake._on_fatal = told.append
    desk.intake._ledger = SimpleNamespace(close=lambda: None)
    fenced = FencedError("the claim was refused")

    def session() -> None:
        raise fenced

    desk.intake._session = session
    desk.intake._main()
    assert told == [fenced]


async def test_a_program_that_gives_up_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody waits for `failed`, as in a web server's lifespan, only the log tells."""
    app: Any = App(Settings(database_url="postgresql://"), False, False, Registry())
    loop = asyncio.get_running_loop()
    app.failed, ended = loop.create_future(), loop.create_future()

    async def abort() -> None: ...

    async def begin() -> None:
        raise UsageError("the name is taken\nand more")

    app._incarnation, app._begin = SimpleNamespace(ended=ended, abort=abort), begin
    ended.set_result(FencedError("presumed dead"))
    await asyncio.wait_for(app._supervise(), 5)
    assert isinstance(app.failed.result(), UsageError)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["eventflow has stopped: the name is taken"]


def aborting() -> Any:
    return Incarnation.abort(MagicMock(_close_transactions=AsyncMock()))


def leaving() -> Any:
    incarnation = MagicMock(_close_transactions=AsyncMock(), _busy=lambda: False)
    incarnation.executor.drain = AsyncMock()
    incarnation._settings.drain = 0.0
    return Incarnation._leave(incarnation)


def closing_a_number() -> Any:
    def protocol() -> Protocol:
        yield (lambda: None,)

    return adrive(protocol(), None)


async def beginning() -> None:
    app: Any = App(Settings(database_url="postgresql://"), False, False, Registry())
    app._loop, app._others = asyncio.get_running_loop(), None
    await app._begin()


@pytest.mark.parametrize("work", [aborting, leaving, closing_a_number, beginning])
async def test_an_executor_ends_and_begins_although_the_users_threads_hang(
    work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `asyncio.to_thread`, where each waits for the same network that had it fenced."""
    release, executor = threading.Event(), ThreadPoolExecutor(1)
    monkeypatch.setattr("eventflow.app.birth", lambda *_: Identity(7, "1", [0]))
    monkeypatch.setattr("eventflow.app.Incarnation", MagicMock())
    asyncio.get_running_loop().set_default_executor(executor)
    hanging = asyncio.create_task(asyncio.to_thread(release.wait, 30))
    try:
        await asyncio.wait_for(work(), 10)
    finally:
        release.set()
        await hanging


async def test_what_is_called_apart_answers_whoever_has_not_gone() -> None:
    def refused() -> None:
        raise UsageError("not now")

    with pytest.raises(UsageError, match="not now"):
        await apart(refused)
    go, gone = threading.Event(), threading.Event()

    def late() -> None:
        go.wait(10)
        gone.set()

    call = asyncio.create_task(apart(late))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    assert await apart(gone.wait, 10)


# ---- lost claims (R7) --------------------------------------------------------------------------------


class Interrupted(deque[Claim]):
    """Another thread comes in between when something is appended: after the place was looked up, before it is filled."""

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__()
        self.between = between

    def append(self, claim: Claim, /) -> None:
        self.between()
        super().append(claim)


def test_a_claim_that_is_lost_while_others_are_claimed_again_is_not_forgotten() -> None:
    desk = Desk(ordered=True)
    desk.consumer.assignment = list  # type: ignore[attr-defined]
    desk.intake._lost = Interrupted(desk.intake._claim_again)
    desk.intake.lose([desk.claim])
    desk.intake._claim_again()
    assert desk.claim.lost


# ---- folds beside transactions above READ COMMITTED (R5) ---------------------------------------------


def test_folds_are_put_off_for_isolated_transactions_and_not_for_ever() -> None:
    desk, folds = Desk(ordered=True), list[int]()
    desk.journal.between_flushes = lambda _: folds.append(turn)  # type: ignore[attr-defined]
    desk.claim.isolated = 1
    for turn in range(40):
        desk.claim.next_offset += 1
        desk.intake.claims.fold()
    assert folds == [0, 12, 25, 38], "the other claim's, which nothing holds up, then one in thirteen"
    desk.claim.isolated = 0
    for turn in range(40, 43):
        desk.claim.next_offset += 1
        desk.intake.claims.fold()
    assert folds[4:] == [40, 41, 42]


class FakePort:
    """Does nothing but look; commits as often as it is told to fail with a conflict."""

    def __init__(self, claims: list[Claim], conflicts: int, *, begins: bool = True) -> None:
        self.claims, self.conflicts, self.begins = claims, conflicts, begins
        self.seen: list[tuple[str, list[int]]] = []

    def _look(self, what: str) -> None:
        self.seen.append((what, [claim.isolated for claim in self.claims]))

    def begin(self, spec: Any) -> None:
        self._look("begin")
        if not self.begins:
            raise ZeroDivisionError

    def user(self, spec: Any, call: Any, mode: str) -> None:
        self._look("user")

    def commit(self) -> None:
        self._look("commit")
        if self.conflicts:
            self.conflicts -= 1
            raise psycopg.errors.SerializationFailure("could not serialize")

    def rollback(self) -> None:
        self._look("rollback")

    def condition(self) -> str:
        return "whole"

    def flush(self) -> None: ...
    def batch(self, statements: Any) -> None: ...
    def execute(self, statement: bytes) -> None: ...


class Ends:
    """An executor that notes how its runs end."""

    loop = None

    def __init__(self) -> None:
        self.outcomes = self
        self.tracing = None
        self.done: list[Run] = []
        self.failures: list[BaseException] = []

    def tell(self, riders: Any) -> None:
        assert not list(riders)

    def settled(self, runs: list[Run]) -> None:
        self.done += runs

    def failed(self, run: Run, error: BaseException) -> None:
        self.failures.append(error)


def isolated_group(isolation: Any, port: Callable[[list[Claim]], FakePort]) -> tuple[FakePort, Ends, list[int]]:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, "isolated", Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, isolation, Retry(0))
    spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own)
    claims = [Claim(n, 1, "g", "t", n, 1, 1, "id:", 0) for n in range(2)]
    runs = [Run(spec, f"id:{n}", "a") for n in range(4)]
    for offset, run in enumerate(runs):
        run.claim, run.offset, run.first = claims[offset % 2], offset, offset
    database, ends, looking = Database("postgresql://"), Ends(), port(claims)
    transactions = Transactions(
        database, ends, [], "a", on_lost=lambda _: None, on_fenced=lambda _: None  # type: ignore[arg-type]
    )  # fmt: skip
    lane = Lane(database, Identity(1, "1", [0]), 0, transactions._stopped)
    drive(transactions.group(lane, runs), looking)  # type: ignore[arg-type]
    return looking, ends, [claim.isolated for claim in claims]


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read", "read committed", None])
def test_an_isolated_transaction_is_counted_from_its_first_statement_to_its_end(isolation: Any) -> None:
    n = 1 if isolation in {"serializable", "repeatable read"} else 0
    port, ends, after = isolated_group(isolation, lambda claims: FakePort(claims, 0))
    assert port.seen == [("begin", [0, 0]), *[("user", [n, n])] * 4, ("commit", [n, n])]
    assert (len(ends.done), after) == (4, [0, 0])


def test_an_isolated_transaction_is_counted_down_whatever_ends_it() -> None:
    port, ends, after = isolated_group("serializable", lambda claims: FakePort(claims, 3))
    assert (len(ends.done), ends.failures, after) == (4, [], [0, 0])
    assert {tuple(n) for what, n in port.seen if what == "begin"} == {(0, 0)}, "each try counts anew"
    port, ends, after = isolated_group("serializable", lambda claims: FakePort(claims, 0, begins=False))
    assert (len(ends.failures), after) == (4, [0, 0])
    assert {n for _, both in port.seen for n in both} == {0}, "what did not begin is not counted"
