"""Children, the first of several, time limits: API.md 2.2, issue 4 §5."""

import time
from typing import Any

import pytest

import eventflow
from eventflow import durable
from eventflow.errors import UsageError, WorkflowTimeoutError
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names


class Broken(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


@both
def child(do: Do, n: int, seconds: float = 0) -> Body[int]:
    trace("begins")
    yield do.run_step(trace, "acts")
    if seconds:
        yield do.sleep(seconds)
    if n < 0:
        raise Broken(n, "below zero")
    return n


@both
def starts_and_waits(do: Do) -> Body[list[Any]]:
    trace("begins")
    started = []
    for n, seconds in ((1, 0.5), (2, 0.3), (3, 0)):
        started.append((yield do.start(child, n, seconds)))
    results = []
    for handle in reversed(started):
        results.append((yield handle.result))
    return [[handle.workflow_id for handle in started], results]


@anyhow
def test_children_are_started_once_and_awaited_in_any_order(app: App, colour: Colour) -> None:
    parent = app.start(starts_and_waits, colour)
    ids, results = parent.result(timeout=15)
    assert results == [3, 2, 1]
    assert len(set(ids)) == 3
    assert all(traced(i).count("acts") == 1 for i in ids)
    if app.leaves:
        assert traced(parent.workflow_id).count("begins") > 1, "it was replayed, and attached to the same children"


def _gives(do: Do, n: int, seconds: float) -> Body[int]:
    return (yield do.call(child, n, seconds))


@both
def fans_out(do: Do) -> Body[list[int]]:
    delays = [0.3, 0.1, 0.4, 0, 0.2]
    return (yield do.gather(*(_gives(do, n, delay) for n, delay in enumerate(delays))))


@anyhow
def test_the_parents_result_does_not_depend_on_who_ends_first(app: App, colour: Colour) -> None:
    assert app.run(fans_out, colour) == [0, 1, 2, 3, 4]


@both
def catches(do: Do, seconds: float) -> Body[list[Any]]:
    try:
        yield do.call(child, -5, seconds)
    except Broken as error:
        return [error.code, str(error)]
    return []


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_a_childs_error_is_raised_as_its_type(app: App, colour: Colour, seconds: float) -> None:
    assert app.run(catches, colour, seconds) == [-5, "(-5, 'below zero')"]


def test_an_error_reaches_who_started_the_workflow_as_its_type(app: App, colour: Colour) -> None:
    with pytest.raises(Broken) as raised:
        app.run(child, colour, -7, 0.3)
    assert raised.value.code == -7


@both
def attaches(do: Do, workflow_id: str) -> Body[int]:
    trace("begins")
    handle = yield do.start(child, 4, 0.6, workflow_id=workflow_id)
    return (yield handle.result)


def test_a_child_of_a_given_id_is_attached_to(app: App, colour: Colour) -> None:
    given = f"{colour} given {time.time()}"
    parents = [app.start(attaches, colour, given) for _ in range(3)]
    assert [parent.result(timeout=10) for parent in parents] == [4, 4, 4]
    assert traced(given).count("acts") == 1


def test_who_waits_for_a_workflow_that_is_not_its_child_is_woken_too(app: App, colour: Colour) -> None:
    given = f"{colour} other's {time.time()}"
    app.start(child, colour, 4, 0.6, workflow_id=given)
    parent = app.start(attaches, colour, given)
    began = time.monotonic()
    assert parent.result(timeout=10) == 4
    assert time.monotonic() - began < 3


@both
def gives_up_on_a_child(do: Do) -> Body[str]:
    handle = yield do.start(child, 1, 0.8)
    try:
        yield lambda: handle.result(timeout=0.3)
    except WorkflowTimeoutError:
        yield do.run_step(trace, "gave up")
    yield do.sleep(0.3)
    return f"gave up, and then {(yield handle.result)}"


def test_a_timeout_of_a_result_is_recorded(app: App, colour: Colour) -> None:
    parent = app.start(gives_up_on_a_child, colour)
    assert parent.result(timeout=10) == "gave up, and then 1"
    assert traced(parent.workflow_id) == ["gave up"]


# ---- first -----------------------------------------------------------------------------------------


@both
def races(do: Do) -> Body[list[int]]:
    trace("begins")
    handles = []
    for n, seconds in ((1, 0.6), (2, 0.1), (3, 0.4)):
        handles.append((yield do.start(child, n, seconds)))
    winner = yield do.first(*handles)
    yield do.sleep(0.6)  # by now the others have ended, too
    again = [(yield winner.result), handles.index(winner)]
    trace(again)
    return again


def test_the_first_of_several_is_recorded(app: App, colour: Colour) -> None:
    assert app.run(races, colour) == [2, 1]


@both
def first_fails(do: Do) -> Body[str]:
    handles = [(yield do.start(child, -1, 0.1)), (yield do.start(child, 2, 0.8))]
    winner = yield do.first(*handles)
    try:
        yield winner.result
    except Broken:
        return "broken"
    return "whole"


def test_who_fails_first_is_first(app: App, colour: Colour) -> None:
    assert app.run(first_fails, colour) == "broken"


# ---- time limits -----------------------------------------------------------------------------------


@both
def sleeps_too_long(do: Do) -> Body[str]:
    try:
        trace("begins")
        yield do.sleep(30)
    except BaseException as error:
        trace(type(error).__name__)
        raise
    return "slept"


@anyhow
def test_a_deadline_is_enforced_while_it_sleeps(app: App, colour: Colour) -> None:
    began = time.monotonic()
    handle = app.start(sleeps_too_long, colour, timeout=0.5)
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=10)
    assert time.monotonic() - began < 3
    assert handle.get().status == "failed"
    assert traced(handle.workflow_id)[-1] == ("CancelledError" if colour == "async" else "Cancelled")


@both
def parent_of_one_too_long(do: Do) -> Body[str]:
    handle = yield do.start(sleeps_too_long)
    trace(handle.workflow_id)
    return (yield handle.result)


def test_a_child_inherits_its_parents_deadline(app: App, colour: Colour) -> None:
    parent = app.start(parent_of_one_too_long, colour, timeout=0.6)
    with pytest.raises(WorkflowTimeoutError):
        parent.result(timeout=10)
    assert "Cancelled" in until(lambda: [e for e in traced(traced(parent.workflow_id)[0]) if "Cancel" in e])[0]


@both
def cleans_up_late(do: Do) -> Body[None]:
    try:
        yield do.sleep(30)
    finally:
        yield do.run_step(trace, "cleaned up")


@anyhow
def test_what_is_over_may_still_clean_up(app: App, colour: Colour) -> None:
    handle = app.start(cleans_up_late, colour, timeout=0.4)
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=10)
    assert traced(handle.workflow_id) == ["cleaned up"]


@both(retries=eventflow.Retry(1000, delay=0.2, max_delay=0.2))
def fails_always(do: Do) -> Body[None]:
    yield do.run_step(trace, "tried")
    raise ValueError("again")


def test_a_deadline_ends_retries(app: App, colour: Colour) -> None:
    handle = app.start(fails_always, colour, timeout=0.7)
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=5)


def test_a_deadline_that_passed_while_nobody_ran(app: App, colour: Colour) -> None:
    handle = app.start(sleeps_too_long, colour, timeout=0.6)
    app.asleep(handle)
    app.down()
    time.sleep(0.7)
    app.up()
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=10)
    assert names(handle) == ["sleep"]


# ---- attempts --------------------------------------------------------------------------------------


@eventflow.step
def fails_once() -> None:
    trace("step")
    if traced(durable.workflow_id()).count("step") == 1:
        raise ValueError("the first attempt fails")


@both(retries=eventflow.Retry(2, delay=0.05))
def starts_after_a_failure(do: Do) -> Body[int]:
    try:
        yield do.run_step(fails_once)
    except ValueError:
        yield do.call(child, 1)
        raise
    return (yield do.call(child, 1))


def test_a_child_that_a_retry_starts_again_is_the_one_that_ran(app: App, colour: Colour) -> None:
    handle = app.start(starts_after_a_failure, colour)
    assert handle.result(timeout=10) == 1
    assert traced(handle.workflow_id) == ["step", "step"]


def test_a_child_called_in_a_step_is_refused(app: App, colour: Colour) -> None:
    with pytest.raises(UsageError, match="step"):
        app.run(calls_in_a_step, colour)


@both
def calls_in_a_step(do: Do) -> Body[None]:
    yield do.run_step(lambda: child[do.colour](1), name="calls")
