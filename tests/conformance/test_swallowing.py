"""Code that swallows what unwinds it: it is named, and gets nobody stuck. API.md 2.5 rule 5."""

import asyncio
import contextlib
import inspect
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.errors import WorkflowParkedError
from eventflow.swallowed import swallowing_line
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App

HERE = __file__


def line_of(function: Any, text: str) -> int:
    """The number of the line of this function that holds the text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(n for n, line in enumerate(lines) if text in line)


# ---- once: it is suspended all the same ---------------------------------------------------------------


def returns(do: Do) -> Body[str]:
    try:
        yield do.sleep(0.4)
    except BaseException:  # here
        return "swallowed"
    return "slept"


def returns_in_finally(do: Do) -> Body[str]:
    said = "swallowed"
    try:
        yield do.sleep(0.4)
        said = "slept"
    finally:
        return said  # noqa: B012 -- here


def deeper(do: Do) -> Body[str]:
    def inner() -> Body[str]:
        try:
            return (yield do.call(returns_slept))
        except ValueError:
            return "no"

    try:
        return (yield from inner())
    except (ValueError, BaseException):  # here
        return "swallowed"


@both(name="swallowing.slept")
def returns_slept(do: Do) -> Body[str]:
    yield do.sleep(0.4)
    return "slept"


def suppresses(do: Do) -> Body[str]:
    with contextlib.suppress(BaseException):
        yield do.sleep(0.4)  # here
        return "slept"
    return "swallowed"


def in_a_branch(do: Do) -> Body[str]:
    found = yield do.gather(returns(do), returns(do))
    return found[0]


ONCE: dict[str, Any] = {f.__name__: f for f in (returns, returns_in_finally, deeper, suppresses)}
PAIRS = {name: both(name=f"swallowing {name}")(f) for name, f in ONCE.items()}
branches = both(name="swallowing branches")(in_a_branch)


def warnings(caplog: pytest.LogCaptureFixture, workflow_id: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if workflow_id in r.getMessage() and r.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ONCE)
def test_it_is_suspended_all_the_same_and_the_line_is_named(
    app: App, colour: Colour, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "eventflow"):
        handle = app.start(PAIRS[name], colour)
        assert handle.result(timeout=10) == "slept"
    [warned] = warnings(caplog, handle.workflow_id)
    assert f"{HERE}:{line_of(ONCE[name], 'here')}, in {name}" in warned


def test_one_that_is_swallowed_in_a_branch(app: App, colour: Colour, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "eventflow"):
        handle = app.start(branches, colour)
        assert handle.result(timeout=10) == "slept"
    [warned] = warnings(caplog, handle.workflow_id)
    assert f"{HERE}:{line_of(returns, 'here')}, in returns" in warned


async def naps(n: int) -> int:
    await durable.sleep(0.3 + n / 10)
    return n


@eventflow.workflow
async def in_a_task_group() -> list[int]:
    trace("begins")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(naps(n)) for n in range(2)]
    trace("joined")
    return [task.result() for task in tasks]


def test_a_task_group_is_no_code_that_swallows(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """It makes a group of what its tasks are told, which counts as that."""
    with caplog.at_level(logging.WARNING, "eventflow"):
        handle = sync.start(in_a_task_group, workflow_id="a task group")
        until(lambda: handle.get().status == "waiting")
        assert handle.result(timeout=10) == [0, 1]
    assert traced(handle.workflow_id).count("begins") > 1, "it left memory"
    assert traced(handle.workflow_id).count("joined") == 1
    assert warnings(caplog, handle.workflow_id) == []


# ---- again and again -----------------------------------------------------------------------------------


let_go: set[str] = set()


@eventflow.workflow
async def loops_async(what: str) -> str:
    trace("begins")
    while durable.workflow_id() not in let_go:
        try:
            await LOOPS[what](durable)
        except BaseException:  # here
            continue
    return "ended"


@eventflow.workflow
def loops_sync(what: str) -> str:
    trace("begins")
    while durable.workflow_id() not in let_go:
        try:
            LOOPS[what](sync)
        except BaseException:  # here
            continue
    return "ended"


async def _now_then_sleep() -> None:
    durable.now()
    durable.uuid4()
    durable.random()
    durable.patch("p")
    await durable.sleep(30)


def asks_now(verbs: Any) -> Any:
    if verbs is durable:
        return _now_then_sleep()
    durable.now()
    return sync.sleep(30)


def swaps(name: str, *args: Any) -> Callable[[Any], Any]:
    """Sleeps at first; then, while it is to unwind, comes to this operation."""

    def act(verbs: Any) -> Any:
        me = durable.workflow_id()
        if me not in swapped:
            swapped.add(me)
            return verbs.sleep(30)
        return getattr(verbs, name)(*args)

    return act


swapped: set[str] = set()


@eventflow.transaction
async def commits_async(connection: "psycopg.AsyncConnection[Any]") -> None: ...


@eventflow.transaction
def commits_sync(connection: "psycopg.Connection[Any]") -> None: ...


def starts(verbs: Any) -> Any:
    if durable.workflow_id() not in swapped:
        swapped.add(durable.workflow_id())
        return verbs.sleep(30)
    return (eventflow if verbs is durable else sync).start(returns_slept["sync"])


def transacts(verbs: Any) -> Any:
    if durable.workflow_id() not in swapped:
        swapped.add(durable.workflow_id())
        return verbs.sleep(30)
    return commits_async() if verbs is durable else commits_sync()


def calls(verbs: Any) -> Any:
    if durable.workflow_id() not in swapped:
        swapped.add(durable.workflow_id())
        return verbs.sleep(30)
    return returns_slept["async" if verbs is durable else "sync"]()


def in_branches(verbs: Any) -> Any:
    if verbs is durable:
        return asyncio.gather(_one_branch(), _one_branch())
    return sync.gather(_one_branch_sync, _one_branch_sync)


async def _one_branch() -> None:
    while True:
        try:
            await durable.sleep(30)
        except BaseException:  # noqa: S112
            continue


def _one_branch_sync() -> None:
    while True:
        try:
            sync.sleep(30)
        except BaseException:  # noqa: S112
            continue


LOOPS: dict[str, Callable[[Any], Any]] = {
    "sleep": lambda verbs: verbs.sleep(30),
    "recv": lambda verbs: verbs.recv(int, timeout=30),
    "now": asks_now,
    "send": swaps("send", "someone", 1),
    "set_event": swaps("set_event", "k", 1),
    "run_step": swaps("run_step", trace, "never"),
    "start": starts,
    "call": calls,
    "transaction": transacts,
    "transaction by run_step": swaps("run_step", commits_sync),
    "async transaction by run_step": swaps("run_step", commits_async),
    "gather": in_branches,
}


@pytest.mark.parametrize("what", LOOPS)
def test_one_that_never_unwinds_is_parked_and_the_others_go_on(
    app: App, colour: Colour, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = loops_async if colour == "async" else loops_sync
    handles = [sync.start(workflow, what, workflow_id=f"loops {colour} {what} {n}") for n in range(2)]
    for handle in handles:
        with pytest.raises(WorkflowParkedError) as parked:
            handle.result(timeout=20)
        place = _one_branch if what == "gather" else loops_async.spec.function
        if colour == "sync":
            place = _one_branch_sync if what == "gather" else loops_sync.spec.function
        assert f"{HERE}:{line_of(place, 'except')}, in {place.__name__}" in str(parked.value)
        assert traced(handle.workflow_id).count("never") == 0
    began = time.monotonic()
    assert app.run(PAIRS["returns"], colour) == "slept"
    assert time.monotonic() - began < 5


def test_there_are_threads_left(app: App) -> None:
    """Each takes a thread with it; as many as there are, and more."""
    handles = [sync.start(loops_sync, "sleep", workflow_id=f"thread {n}") for n in range(12)]
    for handle in handles:
        with pytest.raises(WorkflowParkedError):
            handle.result(timeout=20)
    assert app.run(PAIRS["returns"], "sync") == "slept"


def test_it_is_resumed_where_its_code_was_mended(app: App, colour: Colour) -> None:
    workflow = loops_async if colour == "async" else loops_sync
    handle = sync.start(workflow, "sleep", workflow_id=f"mended {colour}")
    with pytest.raises(WorkflowParkedError):
        handle.result(timeout=20)
    let_go.add(handle.workflow_id)
    handle.resume()
    assert handle.result(timeout=10) == "ended"


@pytest.mark.parametrize("what", ["sleep", "gather"])
def test_the_process_leaves_all_the_same(app: App, colour: Colour, what: str) -> None:
    workflow = loops_async if colour == "async" else loops_sync
    handle = sync.start(workflow, what, workflow_id=f"leaves {colour} {what}")
    with pytest.raises(WorkflowParkedError):
        handle.result(timeout=20)
    began = time.monotonic()
    app.down()
    took = time.monotonic() - began
    app.up()
    assert took < 4


PROGRAM = """
import asyncio
import eventflow
from eventflow import durable

async def branch() -> None:
    while True:
        try:
            await durable.sleep(600)
        except BaseException:
            continue

@eventflow.workflow
async def loops() -> None:
    await asyncio.gather(branch(), branch())

async def main() -> None:
    async with eventflow.running(consumers=False):
        try:
            await (await eventflow.start(loops)).result(timeout=20)
        except eventflow.EventflowError as error:
            print(type(error).__name__)

asyncio.run(main())
"""


def test_a_program_of_its_own_loop_ends(ledger: str, tmp_path: Path) -> None:
    """`asyncio.run` cancels what is left of its tasks, and waits for them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {
        "DATABASE_URL": ledger,
        "EVENTFLOW_SUSPEND_AFTER": "0.05",
        "EVENTFLOW_APPLICATION": "loops",
    }
    ended = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "WorkflowParkedError\n"
    assert "Error" not in ended.stderr.replace("BaseException", ""), "nothing is destroyed while it is pending"


def test_which_line_it_was() -> None:
    source = """
try:
    try:
        act()
    except ValueError:
        pass
except (KeyError, BaseException):
    pass
try:
    act()
finally:
    cleans()
act()
while True:
    try: act()
    except: break
"""
    assert [swallowing_line(source, line) for line in (4, 10, 13, 15)] == [7, 10, 13, 16]
    assert swallowing_line("not python (", 1) == 1


busy: set[str] = set()


async def looks_busy() -> None:
    busy.add(durable.workflow_id())
    await asyncio.sleep(0.01)


def looks_busy_sync() -> None:
    busy.add(durable.workflow_id())
    time.sleep(0.01)


@eventflow.workflow
async def never_ends_async() -> str:
    while durable.workflow_id() not in let_go:
        try:
            await durable.run_step(looks_busy)
        except BaseException:  # noqa: S112
            continue
    return "ended"


@eventflow.workflow
def never_ends_sync() -> str:
    while durable.workflow_id() not in let_go:
        try:
            sync.run_step(looks_busy_sync)
        except BaseException:  # noqa: S112
            continue
    return "ended"


def test_who_is_terminated_and_goes_on_holds_up_nobody(app: App, colour: Colour) -> None:
    workflow = never_ends_async if colour == "async" else never_ends_sync
    handle = sync.start(workflow, workflow_id=f"terminated {colour}")
    until(lambda: handle.workflow_id in busy)
    handle.terminate()
    until(lambda: handle.get().status == "cancelled")
    assert app.run(PAIRS["returns"], colour) == "slept"
    began = time.monotonic()
    app.down()
    took = time.monotonic() - began
    app.up()
    assert took < 4


def test_who_is_busy_where_its_process_leaves_is_let_go_of(app: App) -> None:
    handle = sync.start(never_ends_async, workflow_id="let go")
    until(lambda: handle.workflow_id in busy)
    app.down()
    let_go.add("let go")
    app.up()
    assert handle.result(timeout=10) == "ended"
