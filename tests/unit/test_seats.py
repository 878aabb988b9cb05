"""Who is let into whose transaction."""

from concurrent.futures import Future
from typing import Any, cast

from eventflow.registry import TransactionSpec
from eventflow.retry import Retry
from eventflow.seats import Place, Places


def act(connection: Any) -> None: ...


def spec(name: str = "act") -> TransactionSpec:
    return TransactionSpec(name, act, False, "connection", 0, None, Retry(0))


def test_a_call_that_was_cancelled_does_not_count_as_one_that_waits() -> None:
    places = Places([])
    first = cast("Future[Any]", places.take(spec(), Future))
    first.cancel()
    assert not places.crowded(spec())
    places.take(None, Future)
    assert not places.crowded(spec())


def test_the_next_in_line_of_the_same_function_comes_in_whatever_its_name() -> None:
    places, place = Places([]), Place(cast("Any", None), None)
    waits = cast("Future[Any]", places.take(spec("another name"), Future))
    assert places.crowded(spec())
    assert places.pass_on(place, spec())
    assert waits.result() is place
