"""Which transactional handlers may begin, how many together, and what may be kept back of them."""

from typing import Any

import pytest
from psycopg import sql

from eventflow.database import Database
from eventflow.lent import _waits
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Run
from eventflow.transactions import GROUP, PIPED, Transactions


class FakeExecutor:
    loop = None

    def able(self, runs: list[Run]) -> list[Run]:
        assert all(run.may_begin() for run in runs)
        return runs


def message(name: str, *, pipeline: bool = False) -> Run:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, name, Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0), pipeline=pipeline)
    spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own)
    return Run(spec, name, "a")


def new_lanes() -> Transactions:
    return Transactions(
        Database("postgresql://"), FakeExecutor(), [], "a", on_lost=lambda _: None, on_fenced=lambda _: None  # type: ignore[arg-type]
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
