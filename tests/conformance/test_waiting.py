"""Sleep, and what it means to leave memory while waiting: API.md 2.5."""

import contextvars
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

import eventflow
from eventflow import durable
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names


@both
def naps(do: Do, seconds: float) -> Body[list[str]]:
    trace("begins")
    recorded = [durable.now().isoformat(), str(durable.uuid4()), repr(durable.random())]
    yield do.run_step(trace, "step")
    yield do.sleep(seconds)
    trace(recorded)
    return recorded


@anyhow
def test_a_replay_returns_what_was_recorded(app: App, colour: Colour) -> None:
    handle = app.start(naps, colour, 0.4)
    recorded = handle.result(timeout=10)
    seen = traced(handle.workflow_id)
    assert seen.count("begins") == (2 if app.leaves else 1)
    assert seen.count("step") == 1
    assert seen[-1] == recorded
    assert names(handle) == ["now", "uuid4", "random", "trace", "sleep"]


@both
def measures(do: Do, seconds: float) -> Body[float]:
    before = durable.now()
    yield do.sleep(timedelta(seconds=seconds))
    return (durable.now() - before).total_seconds()


@anyhow
def test_a_sleep_lasts_as_long_as_it_says(app: App, colour: Colour) -> None:
    assert 0.29 <= app.run(measures, colour, 0.3) < 1.3


def test_the_time_counts_from_the_first_reach(app: App, colour: Colour) -> None:
    """Over a restart: the application is away for a part of the sleep, which does not begin anew."""
    handle = app.start(measures, colour, 2)
    app.asleep(handle)
    app.down()
    time.sleep(1.2)
    app.up()
    assert 1.99 <= handle.result(timeout=10) < 3.2


@both
def until_a_time(do: Do, time: datetime) -> Body[datetime]:
    yield do.sleep_until(time)
    return durable.now()


@anyhow
def test_sleep_until_a_moment(app: App, colour: Colour) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.4)
    assert timedelta(seconds=-0.01) <= app.run(until_a_time, colour, moment) - moment < timedelta(seconds=1)


def test_a_moment_that_has_passed_is_no_wait(app: App, colour: Colour) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    assert datetime.now(UTC) - app.run(until_a_time, colour, past) < timedelta(seconds=2)


# ---- unwinding -------------------------------------------------------------------------------------


@both
def cleans_up(do: Do) -> Body[str]:
    try:
        trace("begins")
        yield do.sleep(0.4)
    finally:
        trace("finally")
        yield do.run_step(trace, "compensated")
        yield do.set_event("cleaned", True)
        trace("after")
    return "done"


@anyhow
def test_finally_runs_at_each_suspension_and_its_operations_at_the_end_only(app: App, colour: Colour) -> None:
    handle = app.start(cleans_up, colour)
    assert handle.result(timeout=10) == "done"
    runs = 2 if app.leaves else 1
    seen = traced(handle.workflow_id)
    assert seen.count("finally") == seen.count("begins") == runs
    assert seen[-2:] == ["compensated", "after"]
    assert seen.count("compensated") == seen.count("after") == 1
    assert names(handle) == ["sleep", "trace", "set_event"]


@both
def reaches_everything(do: Do) -> Body[str]:
    """Every kind of operation, reached while it unwinds."""
    operations = [
        durable.now, durable.uuid4, durable.random, lambda: durable.patch("p"), do.sleep(0), do.recv(int, timeout=0),
        do.send("nobody", 1), do.set_event("k", 1), do.run_step(trace, "acted"), do.start(naps, 0),
        do.start(naps, 0, workflow_id=f"{do.colour} never started"), do.event("nobody", "k", int, timeout=0),
    ]  # fmt: skip
    try:
        yield do.sleep(0.4)
    except durable.Suspended:
        for n, operation in enumerate(operations):
            try:
                if n < 4:
                    operation()
                else:
                    yield operation
                trace(f"operation {n} went through")
            except durable.Suspended:
                trace("suspended")
        raise
    return "done"


def test_every_durable_operation_reached_while_unwinding_raises_suspended_and_does_nothing(
    app: App, colour: Colour
) -> None:
    handle = app.start(reaches_everything, colour)
    assert handle.result(timeout=10) == "done"
    assert set(traced(handle.workflow_id)) == {"suspended"}
    assert names(handle) == ["sleep"]


@both
def swallows(do: Do) -> Body[str]:
    try:
        trace("begins")
        yield do.sleep(0.4)
    except BaseException:
        return "swallowed"
    return "slept"


def test_who_swallows_suspended_is_suspended_all_the_same_and_warned_of(
    app: App, colour: Colour, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "eventflow"):
        handle = app.start(swallows, colour)
        assert handle.result(timeout=10) == "slept"
    warned = [r for r in caplog.records if handle.workflow_id in r.getMessage()]
    assert len(warned) == 1
    assert "Suspended" in warned[0].getMessage()


@both
def guards_against_exceptions(do: Do) -> Body[str]:
    try:
        yield do.sleep(0.3)
    except Exception:
        return "seen"
    return "slept"


def test_except_exception_does_not_see_a_suspension(app: App, colour: Colour) -> None:
    assert app.run(guards_against_exceptions, colour) == "slept"


# ---- context ---------------------------------------------------------------------------------------

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@both
def looks_around(do: Do) -> Body[list[str]]:
    found = [caller.get()]
    caller.set("workflow")
    yield do.sleep(0.2)
    found.append(caller.get())
    return found


@anyhow
def test_the_callers_context_is_not_seen_and_the_workflows_own_lives_as_locals_do(app: App, colour: Colour) -> None:
    token = caller.set("test")
    try:
        assert app.run(looks_around, colour) == ["nobody", "workflow"]
    finally:
        caller.reset(token)


# ---- branches --------------------------------------------------------------------------------------


def _nap(do: Do, seconds: float) -> Body[float]:
    yield do.sleep(seconds)
    yield do.run_step(trace, seconds)
    return seconds


@both
def branches(do: Do) -> Body[list[float]]:
    return (yield do.gather(*(_nap(do, seconds) for seconds in (0.6, 0.2, 0.4))))


def test_branches_sleep_at_once_and_each_acts_once(app: App, colour: Colour) -> None:
    handle = app.start(branches, colour)
    assert handle.result(timeout=10) == [0.6, 0.2, 0.4]
    assert traced(handle.workflow_id) == [0.2, 0.4, 0.6]


def _waits_long(do: Do) -> Body[str]:
    try:
        return (yield do.recv(str, timeout=1.2))
    except eventflow.errors.WorkflowTimeoutError:
        return "nothing came"


def _thinks(do: Do) -> Body[str]:
    time.sleep(0.4)  # plain code, between two durable operations
    yield do.run_step(trace, "thought")
    return "thought"


@both
def one_thinks(do: Do) -> Body[list[str]]:
    trace("begins")
    return (yield do.gather(_waits_long(do), _thinks(do)))


@anyhow
def test_a_branch_that_is_busy_between_operations_is_not_suspended(app: App, colour: Colour) -> None:
    handle = app.start(one_thinks, colour)
    time.sleep(0.8)
    assert "thought" in traced(handle.workflow_id), "it got its turn long before the other branch's wait was over"
    assert handle.result(timeout=10) == ["nothing came", "thought"]


# ---- many ------------------------------------------------------------------------------------------


@both
def parent_of_a_sleeper(do: Do) -> Body[float]:
    return (yield do.call(measures, 0.2))


@anyhow
def test_waiting_parents_do_not_exhaust_the_threads(app: App, colour: Colour) -> None:
    """24 parents and their children on 8 threads."""
    handles = [app.start(parent_of_a_sleeper, colour) for _ in range(24)]
    assert all(handle.result(timeout=20) > 0.19 for handle in handles)


def test_wakes_are_no_recoveries(app: App, colour: Colour) -> None:
    """It may die once; it wakes more often, and is not parked."""

    handle = app.start(naps_often, colour, 5)
    assert handle.result(timeout=20) == 5
    assert handle.get().attempt > 3


@both(recoveries=1)
def naps_often(do: Do, count: int) -> Body[int]:
    for _ in range(count):
        yield do.sleep(0.15)
    return count


def test_a_hundred_sleepers_that_wake_at_once(app: App, colour: Colour) -> None:
    handles = [app.start(measures, colour, 0.5) for _ in range(100)]
    slept = [handle.result(timeout=20) for handle in handles]
    assert min(slept) > 0.49
    assert max(slept) < 3


# ---- what it logs ------------------------------------------------------------------------------------

log = logging.getLogger("tests.waiting")


def says(text: str) -> None:
    log.warning("%s, in a step", text)


def says_more(do: Do, name: str) -> Body[None]:
    log.warning("%s", name)
    yield do.run_step(says, name)


@both
def logs_and_waits(do: Do) -> Body[str]:
    log.warning("begins")
    yield do.run_step(says, "first")
    log.warning("before the sleep")
    yield do.sleep(0.3)
    log.warning("after the sleep")
    topic = yield do.recv(str, topic="go", timeout=20)
    log.warning("received")
    yield do.gather(says_more(do, "left"), says_more(do, "right"))
    yield do.sleep(0.3)
    log.warning("ends")
    return topic


def test_what_is_replayed_logs_nothing(app: App, colour: Colour, caplog: pytest.LogCaptureFixture) -> None:
    """API.md 2.5 (6): it runs from its first line after each wait, and after a restart, and says each line once."""
    handle = app.start(logs_and_waits, colour)
    until(lambda: "after the sleep" in caplog.messages and handle.get().status == "waiting")
    app.down()
    app.up()
    handle.send("go!", topic="go")
    assert handle.result(timeout=20) == "go!"
    said = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert said[:5] == ["begins", "first, in a step", "before the sleep", "after the sleep", "received"]
    assert sorted(said[5:-1]) == ["left", "left, in a step", "right", "right, in a step"]
    assert said[-1] == "ends"
