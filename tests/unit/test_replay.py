"""The step protocol, driven by hand: no loop, no database, no clock."""

from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.codec import codec_for, decode_error, encode_error
from eventflow.errors import DeterminismError
from eventflow.replay import BARRIER, CALL, Branch, History, Kind, step
from eventflow.retry import Retry


def protocol(history: History, position: str = "1.1", name: str = "charge", retries: int = 0,
             settled: Callable[[], bool] = lambda: True) -> Generator[Any, Any, Any]:  # fmt: skip
    codec = codec_for(int | None)
    kind = Kind(
        name, Retry(retries, delay=1, jitter=0), codec.encode, codec.decode, encode_error, decode_error, lambda: 0.0,
        lambda: 0.5,
    )  # fmt: skip
    return step(history, position, kind, settled, lambda: 0.0, SimpleNamespace(riders=()))


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
    root = Branch(None, "main")
    assert [root.next_position(), root.next_position()] == ["1.1", "1.2"]
    first, second = root.child("a"), root.child("b")
    assert [first.next_position(), second.next_position(), first.next_position()] == ["2.1", "3.1", "2.2"]
    assert first.child("c").next_position() == "2/2.1"
