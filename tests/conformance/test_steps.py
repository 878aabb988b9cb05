"""Attempts of steps, and their time limits: API.md 2.3.5, 2.3.6; issue 4 §2."""

import asyncio
import time

import eventflow
from eventflow import Retry, durable
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names

LONG = Retry(2, delay=0.5, factor=12, max_delay=6, jitter=0)  # 0.5 s, 6 s: long enough to be recorded


def always_fails() -> None:
    trace(durable.idempotency_key())
    raise ValueError("never works")


def works_the_second_time() -> str:
    trace("tried")
    if traced(durable.workflow_id()).count("tried") == 1:
        raise ValueError("not yet")
    return "worked"


@both
def tries(do: Do, retries: int) -> Body[str]:
    try:
        yield do.run_step(always_fails, retries=Retry(retries, delay=0.01))
    except ValueError as error:
        yield do.sleep(0.2)
        return f"{error}: {error.__notes__}"
    return ""


def test_the_last_attempts_exception_is_raised_with_their_count_and_recorded(app: App, colour: Colour) -> None:
    handle = app.start(tries, colour, 2)
    text = handle.result(timeout=10)
    assert text.startswith("never works")
    assert "3 attempts" in text
    keys = traced(handle.workflow_id)
    assert len(keys) == 3
    assert len(set(keys)) == 1, "one key for all attempts"
    assert handle.steps()[0].attempts == 3


@both
def waits_between_attempts(do: Do) -> Body[str]:
    trace("begins")
    return (yield do.run_step(works_the_second_time, name="charge", retries=LONG))


def test_attempts_far_apart_are_recorded(app: App, colour: Colour) -> None:
    handle = app.start(waits_between_attempts, colour)
    assert handle.result(timeout=10) == "worked"
    assert traced(handle.workflow_id).count("tried") == 2
    assert names(handle) == ["charge", "charge"]
    assert [step.attempts for step in handle.steps()] == [1, 2]


@anyhow
def test_a_workflow_leaves_memory_between_attempts_that_are_far_apart(app: App, colour: Colour) -> None:
    handle = app.start(waits_between_attempts, colour)
    assert handle.result(timeout=10) == "worked"
    assert traced(handle.workflow_id).count("begins") == (2 if app.leaves else 1)


def test_a_restart_does_not_start_attempts_over(app: App, colour: Colour) -> None:
    handle = app.start(waits_between_attempts, colour)
    until(lambda: len(names(handle)) == 1)
    app.down()
    time.sleep(0.3)
    app.up()
    assert handle.result(timeout=10) == "worked"
    assert traced(handle.workflow_id).count("tried") == 2


@eventflow.step(timeout=0.2)
async def hangs_async() -> None:
    try:
        await asyncio.sleep(5)
    finally:
        trace("ended")


@eventflow.step(timeout=0.2)
def hangs_sync() -> None:
    time.sleep(0.6)
    trace("ended")


@both
def runs_into_a_limit(do: Do) -> Body[str]:
    try:
        yield do.run_step(hangs_async if do.colour == "async" else hangs_sync)
    except TimeoutError as error:
        return str(error)
    return "no limit"


def test_an_attempt_that_takes_too_long_fails(app: App, colour: Colour) -> None:
    """An async one is cancelled, a sync one left to itself."""
    began = time.monotonic()
    handle = app.start(runs_into_a_limit, colour)
    assert "0.2 s" in handle.result(timeout=10)
    assert time.monotonic() - began < 3
    until(lambda: traced(handle.workflow_id) == ["ended"])


@both
def fast_within_a_limit(do: Do) -> Body[str]:
    return (yield do.run_step(works_the_second_time, retries=Retry(3, delay=0.01), timeout=5))


def test_an_attempt_within_its_limit_is_as_without(app: App, colour: Colour) -> None:
    assert app.run(fast_within_a_limit, colour) == "worked"
