"""Cancelling, and leaving: a workflow is told once, where it is; a replay is told there again, whatever has come meanwhile: API.md 2.5.9."""

import asyncio
import time
import uuid
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.context import slot
from eventflow.errors import Cancelled, UsageError, WorkflowCancelledError
from tests.conformance.colours import Body, Colour, Do, _seen, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names

TOLD = (asyncio.CancelledError, Cancelled)


def ends_cancelled(handle: sync.Handle[Any]) -> None:
    with pytest.raises(WorkflowCancelledError):
        handle.result(timeout=10)
    assert handle.get().status == "cancelled"


@both
def naps_and_cleans_up_for_long(do: Do) -> Body[None]:
    try:
        yield do.sleep(0.5)
        yield do.run_step(trace, "slept")
    except TOLD:
        yield do.run_step(trace, "told")
        yield do.sleep(0.8)  # by then the time of the other sleep has come
        yield do.run_step(trace, "cleaned up")
        raise


def test_a_sleep_whose_time_comes_while_it_cleans_up_is_cancelled_all_the_same(app: App, colour: Colour) -> None:
    handle = app.start(naps_and_cleans_up_for_long, colour)
    app.asleep(handle)
    handle.cancel()
    ends_cancelled(handle)
    assert traced(handle.workflow_id) == ["told", "cleaned up"]


@both
def receives_and_cleans_up_for_long(do: Do) -> Body[None]:
    try:
        yield do.recv(str)
        yield do.run_step(trace, "received")
    except TOLD:
        yield do.run_step(trace, "told")
        yield do.sleep(0.3)
        yield do.run_step(trace, "cleaned up")
        raise


def test_a_message_that_comes_while_it_cleans_up_is_not_received(app: App, colour: Colour) -> None:
    handle = app.start(receives_and_cleans_up_for_long, colour)
    app.asleep(handle)
    handle.cancel()
    until(lambda: traced(handle.workflow_id) == ["told"])
    handle.send("late")
    ends_cancelled(handle)
    assert traced(handle.workflow_id) == ["told", "cleaned up"]


@eventflow.step
async def takes_long() -> None:
    trace("begins")
    if traced(durable.workflow_id()).count("begins") == 1:
        await asyncio.sleep(30)


@both
def acts_and_cleans_up_for_long(do: Do) -> Body[None]:
    try:
        yield do.run_step(takes_long)
        yield do.run_step(trace, "acted")
    except TOLD:
        yield do.run_step(trace, "told")
        yield do.sleep(0.3)
        yield do.run_step(trace, "cleaned up")
        raise


def test_a_step_that_was_cancelled_does_not_run_again_beside_the_clean_up(app: App) -> None:
    handle = app.start(acts_and_cleans_up_for_long, "async")
    until(lambda: traced(handle.workflow_id) == ["begins"])
    handle.cancel()
    ends_cancelled(handle)
    assert traced(handle.workflow_id) == ["begins", "told", "cleaned up"]


@eventflow.transaction
async def takes_its_time(connection: "psycopg.AsyncConnection[Any]") -> None:
    """Its commit is on its way when its workflow is told to end."""
    await connection.execute("select 1")
    app: Any = slot.runtime
    executor = app._incarnation.executor
    executor.interrupts.interrupt(
        executor.runs[durable.workflow_id()], WorkflowCancelledError("cancelled by its own transaction")
    )


@both
def commits_and_cleans_up_for_long(do: Do) -> Body[None]:
    try:
        yield do.run_step(takes_its_time)
        yield do.run_step(trace, "committed")
        yield do.sleep(30)
    except TOLD:
        yield do.run_step(trace, "told")
        yield do.sleep(0.3)
        yield do.run_step(trace, "cleaned up")
        raise


def test_a_transaction_that_commits_although_it_is_cancelled(app: App) -> None:
    """It is recorded, and its workflow is told behind it, also on every replay."""
    handle = app.start(commits_and_cleans_up_for_long, "async")
    ends_cancelled(handle)
    assert traced(handle.workflow_id) in (["told", "cleaned up"], ["committed", "told", "cleaned up"])


@both
def survives_and_begins_anew(do: Do, run: int) -> Body[str]:
    if run == 2:
        for _ in range(3):
            yield do.sleep(0.3)
        return "went on"
    try:
        yield do.sleep(30)
    except TOLD:
        yield do.run_step(trace, "told")
    return durable.continue_as_new(survives_and_begins_anew[do.colour].bind(2))


def test_the_next_run_is_not_told_of_what_the_one_before_it_survived(app: App, colour: Colour) -> None:
    handle = app.start(survives_and_begins_anew, colour, 1)
    app.asleep(handle)
    handle.cancel()
    assert handle.result(timeout=10) == "went on"
    assert traced(handle.workflow_id) == ["told"]


@both
def waits_for_ever(do: Do) -> Body[None]:
    yield do.sleep(60)


@both
def cancels_at_once(do: Do) -> Body[str]:
    child = yield do.start(waits_for_ever)
    yield child.cancel
    try:
        yield child.result
    except WorkflowCancelledError:
        return "cancelled"
    return "not cancelled"


def test_a_child_is_cancelled_right_after_its_start(app: App, colour: Colour) -> None:
    """The request finds it: what the parent has recorded before is durable by then."""
    handle = app.start(cancels_at_once, colour)
    assert handle.result(timeout=10) == "cancelled"
    assert [name.split()[0] for name in names(handle)] == ["start", "cancel", "result"]


@both
def survives(do: Do) -> Body[str]:
    try:
        yield do.sleep(60)
    except TOLD:
        trace("told")
    yield do.recv(str)
    yield do.call(waits_for_a_moment)
    return "survived"


@both
def waits_for_a_moment(do: Do) -> Body[None]:
    yield do.sleep(0.8)


@both
def cancels_a_survivor(do: Do) -> Body[str]:
    child = yield do.start(survives)
    yield do.sleep(0.3)
    yield child.cancel
    yield do.send(child.workflow_id, "go on")
    yield do.sleep(0.3)  # each wake is a replay; the child has a child by then
    return (yield child.result)


def test_a_replay_does_not_cancel_again(app: App, colour: Colour) -> None:
    handle = app.start(cancels_a_survivor, colour)
    assert handle.result(timeout=10) == "survived"
    assert "cancel" in {name.split()[0] for name in names(handle)}


def _waits_in_a_branch(do: Do, n: int) -> Body[None]:
    try:
        if n:
            yield do.run_step(takes_a_moment)
        yield do.sleep(30)
    except TOLD:
        trace(f"branch {n} told")
        raise


def takes_a_moment() -> None:
    trace("acts")
    until(lambda: traced(durable.workflow_id()).count("go on"))


@both
def waits_in_branches(do: Do) -> Body[None]:
    try:
        yield do.gather(*(_waits_in_a_branch(do, n) for n in range(2)))
    except TOLD:
        yield do.run_step(trace, "cleaned up")
        raise


def test_every_branch_is_told(app: App) -> None:
    """Also one that does not wait just then: sync code is told where it next does."""
    handle = app.start(waits_in_branches, "sync")
    until(lambda: traced(handle.workflow_id) == ["acts"])
    handle.cancel()
    until(lambda: "branch 0 told" in traced(handle.workflow_id))
    _seen[handle.workflow_id].append("go on")
    ends_cancelled(handle)
    assert traced(handle.workflow_id) == ["acts", "branch 0 told", "go on", "branch 1 told", "cleaned up"]


@both
def compensates(do: Do, goes_on: bool) -> Body[str]:
    try:
        yield do.run_step(takes_long)
    except TOLD:
        yield do.run_step(trace, "compensated")
        if not goes_on:
            raise
    return "done"


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_process_that_leaves_cancels_no_workflow(app: App, goes_on: bool) -> None:
    """Its task is cancelled, and unwinds; what it reaches meanwhile does nothing, for nobody has cancelled the workflow."""
    handle = app.start(compensates, "async", goes_on)
    until(lambda: traced(handle.workflow_id) == ["begins"])
    app.down()
    app.up()
    assert handle.result(timeout=10) == "done"
    assert traced(handle.workflow_id) == ["begins", "begins"]


@eventflow.step
async def takes_a_while() -> None:
    trace("begins")
    await asyncio.sleep(0.5)


@both
def quick(do: Do) -> Body[int]:
    return 4
    yield


@both
def starts_late(do: Do, child_id: str) -> Body[int]:
    yield do.run_step(takes_a_while)
    child = yield do.start(quick, workflow_id=child_id)
    return (yield child.result)


def test_what_still_runs_in_a_process_that_leaves_may_start_children(app: App, colour: Colour) -> None:
    child_id = f"{colour} late child"
    handle = app.start(starts_late, colour, child_id)
    until(lambda: traced(handle.workflow_id) == ["begins"])
    app.down()
    app.up()
    assert handle.result(timeout=10) == 4


# ---- who is asked, too --------------------------------------------------------------------------------


@both
def descends(do: Do, below: int) -> Body[str]:
    if below:
        yield do.start(descends, below - 1)
    trace("waits")
    try:
        return (yield do.recv(str))
    except TOLD:
        yield do.run_step(trace, "told")
        raise


def family_of(app: App, colour: Colour) -> list[sync.Handle[Any]]:
    """A workflow, its child and its grandchild, all of which wait."""
    client = sync.Client.here()
    family = [app.start(descends, colour, 2)]
    for _ in range(2):
        [child] = until(lambda: list(client.workflows(parent=family[-1].workflow_id)))
        family.append(client.handle(child.workflow_id, str))
    for one in family:
        app.asleep(one)
    return family


@anyhow
@pytest.mark.parametrize("children", [True, False], ids=["children", "alone"])
@pytest.mark.parametrize("asked", [0, 1], ids=["the first", "the second"])
@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_what_descends_from_it_ends_with_it_by_option(
    app: App, colour: Colour, how: str, asked: int, children: bool
) -> None:
    family = family_of(app, colour)
    getattr(family[asked], how)(children=children)
    ended = family[asked:] if children else [family[asked]]
    for one in ended:
        ends_cancelled(one)
        assert ("told" in traced(one.workflow_id)) is (how == "cancel")
    for one in family:
        if one not in ended:
            one.send("goes on")
            assert one.result(timeout=10) == "goes on"
            assert "told" not in traced(one.workflow_id)


@both
def comes_to_nothing(do: Do) -> Body[None]:
    yield do.sleep(0)


@both
def joins(do: Do, workflow_id: str) -> Body[str]:
    verb: Any = eventflow.enqueue if do.colour == "async" else sync.enqueue
    handle = yield lambda: verb(comes_to_nothing[do.colour], workflow_id=workflow_id, delay=3600)
    try:
        yield handle.result
    except WorkflowCancelledError:
        return "told"
    return "not told"


def test_who_waits_for_what_is_cancelled_in_line_is_told_soon(app: App, ledger: str, colour: Colour) -> None:
    """Nobody holds that one: it ends where it is asked to, and not all who sleep until it has ended are its parents."""
    other = f"{colour} {uuid.uuid4()}"
    both_of = [app.start(joins, colour, other) for _ in range(2)]
    for handle in both_of:
        app.asleep(handle)
    with sync.Client(ledger) as client:
        with pytest.raises(UsageError, match="a list of workflow ids"):
            client.cancel(other)
        began = time.monotonic()
        assert client.cancel([other]) == 1
    assert [handle.result(timeout=10) for handle in both_of] == ["told", "told"]
    assert time.monotonic() - began < 3


# ---- terminated ------------------------------------------------------------------------------------------


async def stands_async() -> None:
    trace("stands")
    await asyncio.sleep(30)


def stands_sync() -> None:
    trace("stands")
    until(lambda: "let go" in traced(durable.workflow_id()))


def _waits(do: Do) -> Body[None]:
    trace("stands")
    yield do.recv(str, timeout=30)  # one that has no end leaves memory at once


PLACES: dict[str, Any] = {
    "a wait": _waits,
    "a step": lambda do: (yield do.run_step(stands_async if do.colour == "async" else stands_sync)),
    "branches": lambda do: (yield do.gather(_waits(do), _waits(do))),
    "no operation": lambda _: (yield stands_async),
}


@both
def cleans_up_in_any_case(do: Do, place: str) -> Body[None]:
    yield do.set_event("begun", 1)
    try:
        yield from PLACES[place](do)
    except TOLD:
        trace("told")
        yield do.run_step(trace, "compensated")
        raise
    except Exception:
        trace("failed")
        raise
    finally:
        trace("finally")
        yield do.run_step(trace, "cleaned up")
        yield do.send(durable.workflow_id(), "cleaned up")


def is_terminated(handle: sync.Handle[Any], waits: int = 0) -> None:
    """Nothing more of it is recorded, or done, than that it `waits` for so many messages."""
    recorded = ["set_event", *["recv"] * waits]
    until(lambda: names(handle) == recorded)
    handle.terminate()
    ends_cancelled(handle)
    _seen[handle.workflow_id].append("let go")
    until(lambda: "finally" in traced(handle.workflow_id))
    assert "cleaned up" not in traced(handle.workflow_id)
    assert "compensated" not in traced(handle.workflow_id)
    assert [step.name for step in handle.steps()] == recorded
    assert (handle.get().reason or "").startswith("terminated by ")


@anyhow
@pytest.mark.parametrize("place", ["a wait", "branches"])
def test_who_is_terminated_while_it_waits_cleans_nothing_up(app: App, colour: Colour, place: str) -> None:
    """In memory it unwinds, an async one as a task that is cancelled, and what it reaches does nothing; asleep nothing runs."""
    handle = app.start(cleans_up_in_any_case, colour, place)
    until(lambda: "stands" in traced(handle.workflow_id))
    app.asleep(handle)
    before = traced(handle.workflow_id)
    is_terminated(handle, {"a wait": 1, "branches": 2}[place])
    app.run(quick, colour)
    left = {"let go"} if app.leaves else {"let go", "finally", *(["told"] if colour == "async" else [])}
    assert set(traced(handle.workflow_id)) == {*before, *left}


@pytest.mark.parametrize("app", ["stays"], indirect=True)
def test_who_is_terminated_in_a_step_cleans_nothing_up(app: App, colour: Colour) -> None:
    handle = app.start(cleans_up_in_any_case, colour, "a step")
    until(lambda: "stands" in traced(handle.workflow_id))
    is_terminated(handle)
    told = ["told"] if colour == "async" else []
    assert [what for what in traced(handle.workflow_id) if what != "let go"] == ["stands", *told, "finally"]


@pytest.mark.parametrize("app", ["stays"], indirect=True)
def test_a_task_that_awaits_no_operation_is_cancelled_and_its_operations_do_nothing(app: App) -> None:
    handle = app.start(cleans_up_in_any_case, "async", "no operation")
    until(lambda: "stands" in traced(handle.workflow_id))
    is_terminated(handle)
    assert [what for what in traced(handle.workflow_id) if what != "let go"] == ["stands", "told", "finally"]


# ---- a sync step that runs meanwhile --------------------------------------------------------------------


def runs_on() -> str:
    trace("begins")
    until(lambda: "let go" in traced(durable.workflow_id()))
    trace("ends")
    return "done"


@both
def acts_in_a_thread(do: Do) -> Body[None]:
    try:
        result = yield do.run_step(runs_on)
        trace(f"saw {result}")
        yield do.run_step(trace, "acted")
    except TOLD:
        yield do.run_step(trace, "compensated")
        raise


def has_heard(workflow_id: str) -> bool:
    """Whether its executor knows that it is to end."""
    runtime: Any = slot.runtime
    run = runtime._incarnation.executor.runs[workflow_id]
    return run.life is not None and run.life.interrupted is not None


def test_a_sync_step_runs_to_its_end(app: App, colour: Colour) -> None:
    """An async workflow does not wait for that, and has no result of it; a sync one has, and is told where it acts next."""
    handle = app.start(acts_in_a_thread, colour)
    until(lambda: traced(handle.workflow_id) == ["begins"])
    handle.cancel()
    if colour == "async":
        ends_cancelled(handle)
    else:
        until(lambda: has_heard(handle.workflow_id))
    _seen[handle.workflow_id].append("let go")
    until(lambda: "ends" in traced(handle.workflow_id))
    ends_cancelled(handle)
    app.run(quick, colour)
    if colour == "async":
        assert traced(handle.workflow_id) == ["begins", "compensated", "let go", "ends"]
        assert names(handle) == ["trace"]
    else:
        assert traced(handle.workflow_id) == ["begins", "let go", "ends", "saw done", "compensated"]
        assert names(handle) == ["runs_on", "trace"]
