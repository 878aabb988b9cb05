"""Which transactional handlers may begin."""

from typing import Any

from eventflow.database import Database
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Run
from eventflow.transactions import Transactions


class FakeExecutor:
    loop = None


def message(name: str) -> Run:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, name, Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0))
    spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, own)
    return Run(spec, name, "a")


def test_while_the_line_is_closed_only_a_suspect_may_begin() -> None:
    lanes = Transactions(
        Database("postgresql://"), FakeExecutor(), [], "a", on_lost=lambda _: None, on_fenced=lambda _: None  # type: ignore[arg-type]
    )  # fmt: skip
    other, suspect = message("other"), message("suspect")
    lanes.open(False)
    lanes.put([other])
    assert not lanes._line
    lanes.put([suspect], alone=True)
    assert lanes._take(lanes._line.next()) == [suspect]
    assert not lanes._line
    lanes.open(True)
    assert lanes._take(lanes._line.next()) == [other]
