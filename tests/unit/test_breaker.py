"""When a breaker opens and closes, by a clock that the test moves; and that what waits is charged with nothing."""

from typing import Any

import pytest

from eventflow.breaker import Breaker, Circuit
from eventflow.errors import UsageError
from eventflow.kafka import Message
from eventflow.retry import Retry
from tests.unit.test_runs import desk, handler_spec, until

AWAY = ConnectionError("away")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def circuit(failures: int = 2, **options: Any) -> tuple[Circuit, Clock]:
    clock = Clock()
    return Circuit(Breaker(failures, errors=(ConnectionError,), pause=10, max_pause=30, **options), clock), clock


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    one, _ = circuit(2)
    assert not one.failed("a", AWAY)
    one.succeeded("b")
    assert not one.failed("a", AWAY)
    assert not one.failed("c", ValueError("the message's own")), "which says nothing of the dependency"
    assert one.failed("d", AWAY)
    assert one.is_open
    assert not one.failed("e", ValueError("the message's own")), "and is charged although it is open"


def test_one_is_tried_after_a_pause_which_doubles() -> None:
    one, clock = circuit(1)
    one.failed("a", AWAY)
    assert one.wait("a") == 1.0
    one.succeeded("was under way")
    assert one.is_open
    for pause in (10, 20, 30, 30):
        clock.now += pause
        assert one.wait("a") == 0
        assert one.wait("b") > 0, "one at a time"
        assert one.wait("a") == 0, "which is asked about once more when it is launched"
        assert one.failed("a", AWAY)
    clock.now += 30
    assert one.wait("b") == 0
    one.succeeded("b")
    assert not one.is_open
    one.failed("a", AWAY)
    clock.now += 10
    assert one.wait("a") == 0, "the pause is as short as at first"


def test_a_trial_that_fails_for_its_own_sake_closes_it() -> None:
    one, clock = circuit(1)
    one.failed("a", AWAY)
    clock.now = 10
    assert one.wait("a") == 0
    assert not one.failed("a", ValueError("its own"))
    assert not one.is_open


def test_a_trial_of_which_nobody_hears_is_followed_by_another() -> None:
    one, clock = circuit(1)
    one.failed("a", AWAY)
    clock.now = 10
    assert one.wait("a") == 0
    clock.now = 20
    assert one.wait("b") == 0


def test_a_predicate_that_raises_counts_nothing() -> None:
    """What its author did not foresee is the message's own failure."""
    breaker = Breaker(1, errors=lambda e: e.response.status_code >= 500)  # type: ignore[attr-defined]
    one, error = Circuit(breaker, Clock()), ValueError("of no response")
    assert not one.failed("a", error)
    assert not one.is_open
    assert "`errors` raised" in error.__notes__[0]


@pytest.mark.parametrize("options", [{"failures": 0}, {"pause": 0}, {"pause": 20, "max_pause": 10}, {"pause": -1}])
def test_breakers_that_cannot_be(options: Any) -> None:
    with pytest.raises(UsageError):
        Breaker(**{"failures": 1, "errors": (ConnectionError,), **options})


async def test_what_fails_while_it_is_open_is_charged_with_nothing() -> None:
    async with desk() as at:
        calls, away = list[int](), [True]

        async def handler(message: Message[int]) -> None:
            calls.append(message.value)
            if away[0]:
                raise AWAY

        spec = handler_spec(handler, Retry(1, delay=0.01))
        spec.circuit = Circuit(Breaker(1, errors=(ConnectionError,), pause=0.05, max_pause=0.05), at.executor._clock)
        runs = [at.message(spec, offset) for offset in range(3)]
        for run in runs:
            run.value = b"1"
        at.executor.dispatch(runs)
        await until(lambda: len(calls) >= 8, "it was tried more often than retries allow")
        away[0] = False
        await until(lambda: at.claim.finished == 3, "all are durable")
        assert [run.retries for run in runs] == [0, 0, 0]
        assert {e.status for e in at.submitted if e.run.ended} >= {"succeeded"}
        assert not spec.circuit.is_open


async def test_while_it_is_open_nothing_new_is_called() -> None:
    """After the pause one is tried; when that is well, all are called."""
    async with desk() as at:
        calls, away, clock = list[int](), [True], Clock()

        async def handler(message: Message[int]) -> None:
            calls.append(message.value)
            if away[0]:
                raise AWAY

        spec = handler_spec(handler, Retry(1, delay=0.01))
        spec.circuit = one = Circuit(Breaker(1, errors=(ConnectionError,), pause=10, max_pause=10), clock)
        held = at.executor.outcomes._timers
        runs = [at.message(spec, offset) for offset in range(5)]
        for run in runs:
            run.value = str(run.offset).encode()
        at.executor.dispatch(runs[:1])
        await until(lambda: one.is_open and runs[0] in held, "it is open")
        at.executor.dispatch(runs[1:])
        await until(lambda: len(held) == 5, "all wait")
        assert (calls, [run.submitted for run in runs[1:]]) == ([0], [0] * 4), (
            "nothing is written for who has not begun"
        )
        assert one.wait(None) == 1.0
        clock.now, away[0] = 10.0, False
        at.executor._launch([runs[2]])
        await until(lambda: not one.is_open, "the one that is tried is well")
        assert calls == [0, 2]
        await until(lambda: at.claim.finished == 5, "all are called")
        assert sorted(calls) == [0, 0, 1, 2, 3, 4]


async def test_what_waits_unbegun_is_let_go_of_without_a_row() -> None:
    async with desk() as at:
        calls = list[int]()

        async def handler(message: Message[int]) -> None:
            calls.append(message.value)

        spec = handler_spec(handler)
        spec.circuit = one = Circuit(Breaker(1, errors=(ConnectionError,), pause=10), Clock())
        one.failed("a", AWAY)
        run = at.message(spec, 0)
        at.executor.dispatch([run])
        await until(lambda: run in at.executor.outcomes._timers, "it waits")
        await at.executor.drain(lambda: False)
        assert (calls, run.submitted, at.executor.outcomes._timers) == ([], 0, {})
