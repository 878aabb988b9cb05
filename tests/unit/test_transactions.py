"""Which transactional handlers may begin, how many together, what may be kept back of them; who is not called again."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from eventflow.database import Database
from eventflow.fetched import Fetched
from eventflow.kafka import Message
from eventflow.lent import _waits
from eventflow.ports import drive
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Run
from eventflow.transactions import GROUP, PIPED, Transactions
from tests.unit.test_fetched import FakeMessage


class FakeExecutor:
    loop = tracing = None

    def __init__(self) -> None:
        self.outcomes = self
        self.wrong: list[Run] = []
        self.begun: list[Run] = []

    def able(self, runs: list[Run]) -> list[Run]:
        for run in runs:
            run.dropped = run.dropped or not run.may_begin()
        return [run for run in runs if not run.dropped]

    def beginning(self, runs: list[Run]) -> list[Run]:
        self.begun += runs
        return runs

    def abandon(self, run: Run) -> None:
        run.dropped = True

    def failed(self, run: Run, error: BaseException) -> None:
        self.wrong.append(run)


def message(name: str, *, pipeline: bool = False) -> Run:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, name, Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0), pipeline=pipeline)
    spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own)
    return Run(spec, name, "a")


def new_lanes(executor: FakeExecutor | None = None) -> Transactions:
    return Transactions(
        Database("postgresql://"), executor or FakeExecutor(), [], "a", on_lost=lambda _: None, on_fenced=lambda _: None  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(("pipeline", "most"), [(False, GROUP), (True, PIPED)])
def test_how_many_share_a_transaction(pipeline: bool, most: int) -> None:  # noqa: FBT001
    lanes, run = new_lanes(), message("m", pipeline=pipeline)
    lanes.put([run] * 1_000)
    sizes: list[int] = []
    for seconds in (None, 0.0001, 0.1 / 30, 0.2):
        if seconds is not None:
            lanes._pace["m"] = seconds
        sizes.append(len(lanes._take(lanes._line.next())))
    assert sizes == [10, most, 30, 1]


WRITES = (
    "insert into t values (%s)", b"INSERT INTO t DEFAULT VALUES", "\n  update t set a = %(a)s", "Delete from t; ",
    "merge into t using u on t.id = u.id when matched then delete", "insert into t values (1) on conflict do nothing",
)  # fmt: skip
OTHERS = (
    "select 1", "with a as (select 1) insert into t select * from a", "insert into t values (1) returning id",
    "insert into t values (1);;", sql.SQL("insert into t values (1)"), "insert into t values ('" + "x" * 5_000 + "')",
    "delete from t; select 1", b"delete from t\nRETURNING *", "/* why */ insert into t values (1)", "insertion", "savepoint a", "commit", "", "copy t from stdin", "call p()", "explain insert into t values (1)",
)  # fmt: skip


def test_which_statements_may_be_kept_back() -> None:
    assert [query for query in WRITES if _waits(query)] == []
    assert [query for query in OTHERS if not _waits(query)] == []


def test_while_the_line_is_closed_only_a_suspect_may_begin() -> None:
    lanes = new_lanes()
    other, suspect = message("other"), message("suspect")
    lanes.open(False)
    lanes.put([other])
    assert not lanes._line
    lanes.put([suspect], alone=True)
    assert lanes._take(lanes._line.next()) == [suspect]
    assert not lanes._line
    lanes.open(True)
    assert lanes._take(lanes._line.next()) == [other]


# ---- who is not called again (R7, R9) -------------------------------------------------------------


class FakePort:
    """A connection that does all that it is told, and on which only the handler can fail."""

    def __init__(self, condition: str) -> None:
        self._condition = condition

    def user(self, spec: TransactionSpec, call: Callable[[Any], Any], mode: str) -> Any:
        return call(None)

    def condition(self) -> str:
        return self._condition

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: None


class Bench:
    """Four messages, or one, of a handler that fails whenever it is called; in the call of this number `happens` does."""

    def __init__(self, kind: str, error: Exception, condition: str, number: int) -> None:
        self.executor = FakeExecutor()
        self.lanes, self.port = new_lanes(self.executor), FakePort(condition)
        self.claim = Claim(1, 1, "g", "t", 0, 1, 1, "kafka:g:t:1:0:", 0)
        self.calls = 0
        self.happens: Callable[[], None]

        def fail() -> None:
            self.calls += 1
            assert self.calls < 40, "it goes on for ever"
            if self.calls == number:
                self.happens()
            raise error

        def one(connection: Any, message: Message[int]) -> None:
            fail()

        def many(connection: Any, messages: list[Message[int]]) -> None:
            fail()

        single = kind in {"one", "group"}
        handler = one if single else many
        spec = make_spec(handler, "handler", Retry(0), 0)
        own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0))
        spec.consumer = ConsumerSpec(
            ("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own, batch=None if single else 4
        )  # fmt: skip
        fetched = Fetched(spec, self.claim, 0)
        fetched.messages = [FakeMessage(n, b"1") for n in range(1 if kind.startswith("one") else 4)]
        fetched.end = len(fetched)
        self.group: Any = [fetched] if kind.endswith("fetched") else self.executor.beginning(fetched.runs("a"))

    def run(self) -> None:
        drive(self.lanes.group(SimpleNamespace(), self.group), self.port)  # type: ignore[arg-type]


KINDS = ("one", "group", "batch", "fetched", "one fetched")
FAILURES: dict[str, tuple[Exception, str]] = {
    "its own": (ValueError(), "whole"),
    "a conflict": (psycopg.errors.SerializationFailure(), "failed"),
    "a full disk": (psycopg.errors.DiskFull(), "failed"),
    "broken": (psycopg.OperationalError(), "broken"),
}
# Of a group the others are called in the transaction that is under way; one alone is tried again later, by its policy.
AGAIN = [(k, f) for k in KINDS for f in FAILURES if k in {"batch", "fetched"} or f != "its own"]


@pytest.mark.parametrize(
    ("kind", "failure", "number"), [*((k, f, 1) for k in KINDS for f in FAILURES), *((k, f, 2) for k, f in AGAIN)]
)
def test_nobody_is_called_again_after_the_end(kind: str, failure: str, number: int) -> None:
    """What it would do can be recorded by nobody here; nor is the failure, which is the next owner's to see."""
    bench = Bench(kind, *FAILURES[failure], number)
    bench.happens = bench.lanes.stop
    bench.run()
    assert bench.calls == number
    assert bench.executor.wrong == []
    assert all(run.dropped for run in bench.executor.begun)


@pytest.mark.parametrize("kind", ["batch", "fetched"])
def test_a_half_whose_claim_is_gone_is_not_called(kind: str) -> None:
    bench = Bench(kind, *FAILURES["its own"], 2)
    bench.happens = bench.claim.lose
    bench.run()
    assert bench.calls == 2, "with all of them, and with the first half"
    assert [run.offset for run in bench.executor.begun if run.dropped] == [0, 1, 2, 3]
