"""The step protocol, driven by hand: no loop, no database, no clock."""

from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.codec import codec_for, decode_error, encode_error
from eventflow.errors import DeterminismError
from eventflow.records import Rider
from eventflow.replay import BARRIER, CALL, Branch, History, Kind, Pace, patch, step
from eventflow.retry import Retry


def protocol(history: History, position: str = "1.1", name: str = "charge", retries: int = 0,
             settled: Callable[[], bool] = lambda: True) -> Generator[Any, Any, Any]:  # fmt: skip
    codec = codec_for(int | None)
    kind = Kind(
        name, Retry(retries, delay=1, jitter=0), codec.encode, codec.decode, encode_error, decode_error, lambda: 0.0
    )  # fmt: skip
    pace = Pace(lambda: 0.0, lambda: 0.5)
    return step(history, position, kind, settled, pace, SimpleNamespace(riders=(), end=tuple))


def finish(generator: Generator[Any, Any, Any], value: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        generator.send(value)
    return stop.value.value


@pytest.mark.parametrize("result", [7, None])
def test_a_result_is_recorded_and_replayed(result: int | None) -> None:
    history = History()
    running = protocol(history)
    assert next(running) == CALL
    assert finish(running, result) == result
    again = History({c.position: c for c in history.take_fresh()})
    assert finish(protocol(again), None) == result


def test_a_failure_is_a_result() -> None:
    history = History()
    running = protocol(history)
    next(running)
    with pytest.raises(ValueError, match="no"):
        running.throw(ValueError("no"))
    again = History({c.position: c for c in history.take_fresh()})
    with pytest.raises(ValueError, match="no"):
        next(protocol(again))


def test_retries_wait_and_end() -> None:
    running = protocol(History(), retries=2)
    assert next(running) == CALL
    assert running.throw(ValueError("1")) == 1.0
    assert next(running) == CALL
    assert running.throw(ValueError("2")) == 2.0
    assert next(running) == CALL
    with pytest.raises(ValueError, match="3") as error:
        running.throw(ValueError("3"))
    assert "3 attempts" in error.value.__notes__[0]


def test_a_step_waits_for_what_was_recorded_before() -> None:
    running = protocol(History(), settled=lambda: False)
    assert next(running) == BARRIER
    assert next(running) == CALL


def test_another_step_at_a_recorded_position() -> None:
    history = History()
    running = protocol(history)
    next(running)
    finish(running, 1)
    again = History({c.position: c for c in history.take_fresh()})
    with pytest.raises(DeterminismError, match=r"1\.1.*'charge'.*'refund'"):
        next(protocol(again, name="refund"))


def test_a_retry_drops_the_failure_and_what_came_after_it() -> None:
    history = History()
    for position in ("1.1", "1.2"):
        running = protocol(history, position)
        next(running)
        finish(running, 1)
    running = protocol(history, "1.3")
    next(running)
    with pytest.raises(ValueError) as failure:
        running.throw(ValueError("x"))
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = failure.value
    assert (history.drop_failed(wrapped) or (0, ""))[0] == 3
    assert [c.position for c in history.fresh] == ["1.1", "1.2"]
    assert history.drop_failed(RuntimeError("other")) is None


def test_branches_are_numbered_below_the_one_that_started_them() -> None:
    root = Branch(SimpleNamespace(history=History()), "main")
    assert [root.next_position(), root.next_position()] == ["1.1", "1.2"]
    first, second = root.child("a"), root.child("b")
    assert [first.next_position(), second.next_position(), first.next_position()] == ["2.1", "3.1", "2.2"]
    assert first.child("c").next_position() == "2/2.1"


# ---- tickets: transactions on other databases ---------------------------------------------------------


def again(history: History) -> History:
    """As the next run reads it."""
    history.take_fresh()
    return History(dict(history.recorded or {}))


def test_a_ticket_without_a_result_is_another_operations_end() -> None:
    history = History()
    history.issue("1.1", "book", '["shop", "t"]')
    later = again(history)
    assert [c.position for c in later.tickets("1.1")] == ["1.1~t1"]
    for name in ("charge", "book"):  # of the same name, too: it looks nowhere else
        with pytest.raises(
            DeterminismError, match=rf"1\.1: the transaction 'book' had begun in the database 'shop'.*'{name}'"
        ):
            next(protocol(later, name=name))
    assert next(protocol(later, "1.2")) == CALL


def test_a_result_has_its_tickets_number() -> None:
    """What drops the one drops the other: both began before the failure, or both after."""
    history = History()
    early = history.issue("2.1", "book", "[]")
    running = protocol(history, "1.1")
    next(running)
    with pytest.raises(ValueError) as failure:
        running.throw(ValueError("x"))
    late = history.issue("3.1", "book", "[]")
    rider = Rider("insert_messages", ("to",))
    history.settle(late, "1", 1, 0.0, [rider])
    history.settle(early, "2", 1, 0.0, [rider])
    assert [(c.position, c.seq) for c in history.fresh] == [
        ("2.1~t1", 1),
        ("1.1", 2),
        ("3.1~t1", 3),
        ("3.1", 3),
        ("2.1", 1),
    ]
    assert [r.seq for r in history.riders] == [3, 1]
    history.drop_failed(failure.value)
    assert [c.position for c in history.fresh] == ["2.1~t1", "2.1"]
    assert [r.seq for r in history.riders] == [1]


def test_the_failure_of_a_transaction_drops_its_tickets() -> None:
    history = History()
    history.issue("1.1", "book", "[]")
    error = ValueError("x")
    history.failures.append((error, history.add("1.1", "book", None, "{}", 1, 0.0).seq))
    assert history.drop_failed(error) == (2, "1.1")
    assert history.fresh == []


def test_the_next_ticket_of_a_position_has_the_number_of_its_first() -> None:
    history = History()
    history.issue("1.1", "book", "[]")
    history.add("2.1", "other", "1", None, 1, 0.0)
    later = again(history)
    second = later.issue("1.1", "book", "[]")
    assert (second.position, second.seq, later.seq) == ("1.1~t2", 1, 2)
    assert [c.position for c in again(later).tickets("1.1")] == ["1.1~t1", "1.1~t2"]


def test_who_has_begun_a_transaction_went_the_old_way() -> None:
    """Else a patch takes its place, and it begins again behind it."""
    history = History()
    history.issue("1.1", "book", '["shop", "t"]')
    later = again(history)
    branch = Branch(SimpleNamespace(history=later), "main")
    assert not patch(later, branch, "new")
    assert branch.peek() == "1.1"
    assert patch(again(History()), branch, "new")
