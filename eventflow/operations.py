"""Drivers of the operations that are no steps: what waits, what is recorded, what talks (`replay` has the protocols).

One generator for both colours; a driver does what it asks, on the loop or in a worker thread.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

from typing_extensions import TypeVar

from eventflow.context import Hopeless, StepScope, checked, current, current_branch, never, would_block
from eventflow.errors import Cancelled, UsageError
from eventflow.records import Rider
from eventflow.replay import BARRIER, Await, Branch, Operation

R = TypeVar("R")


def branch_for(what: str) -> Branch:
    """The branch of the workflow that this call is made in.

    Raises:
        UsageError: outside a workflow, or in a step or transaction.

    """
    if isinstance(current.get(), StepScope):
        raise UsageError(f"{what} belongs into a workflow, outside its steps and transactions")
    branch = current_branch()
    if branch is None:
        raise UsageError(f"{what} belongs into a workflow")
    return branch


async def awaited(act: Callable[[], R]) -> R:
    """What is awaited, and does not wait: an operation that is only recorded."""
    try:
        return act()
    except Hopeless:
        return await never()


def note(what: str, record: Callable[[Branch, str], R], unrecorded: Callable[[], R] | None = None) -> R:
    """An operation that never waits: `record` gets the branch and its next position. For async and sync code.

    `unrecorded`: what code is given that is left alone, so that it comes to where it awaits something.
    """
    branch = branch_for(what)
    try:
        branch.run.executor.check(branch.run)
    except Hopeless:
        if unrecorded is None:
            raise
        return unrecorded()
    result = record(branch, branch.next_position())
    branch.run.executor.recorded(branch.run)
    return result


def emit(what: str, name: str, make: Callable[[str], list[Rider]]) -> None:
    """Have rows written with what this code records: at a position of its own, or with the checkpoint of its step.

    `make` gets a key that is the same whenever this code comes here again.

    Raises:
        UsageError: outside a workflow.

    """
    here = current.get()
    if isinstance(here, StepScope):
        run, place = here.branch.run, here.place()
        here.riders += (*make("" if run is None else run.key_of(place)),)
        return

    def record(branch: Branch, position: str) -> None:
        history = branch.run.history
        if history.find(position, name) is None:
            history.note(position, name, None, *make(branch.run.key_of(position)))

    note(what, record)


async def operate(what: str, make: Callable[[Branch, str], Operation[R]]) -> R:
    """Drive an operation on the loop; `make` gets the branch and its next position.

    Raises:
        UsageError: not in an async workflow.

    """
    branch = branch_for(what)
    run, executor = branch.run, branch.run.executor
    if isinstance(branch.home, threading.Thread):
        raise UsageError(f"{what} is awaited in async workflows; sync ones have eventflow.sync")
    await checked(branch)
    position = branch.next_position()
    operation = make(branch, position)
    outcome: Any = None
    try:
        if run.life is not None:
            await executor.interrupts.begin(branch, position)
        while True:
            effect = operation.send(outcome)
            outcome = None
            if effect is BARRIER:
                await executor.barrier(run)
            else:
                outcome = await executor.wait(run, cast("Await", effect))
    except StopIteration as stop:
        return stop.value
    except asyncio.CancelledError:
        executor.interrupts.told(branch, position)
        raise
    finally:
        executor.recorded(run)


def operate_sync(what: str, instead: str, make: Callable[[Branch, str], Operation[R]]) -> R:
    """Drive an operation in a worker thread.

    Raises:
        BlockingCallError: on a thread with a running loop.

    """
    branch = branch_for(what)
    run, executor = branch.run, branch.run.executor
    if not isinstance(branch.home, threading.Thread):
        raise would_block(what, instead)
    executor.check(run)
    position = branch.next_position()
    operation = make(branch, position)
    outcome: Any = None
    try:
        if run.life is not None:
            executor.interrupts.begin_sync(branch, position)
        while True:
            effect = operation.send(outcome)
            outcome = None
            if effect is BARRIER:
                executor.barrier_sync(run)
            else:
                outcome = executor.wait_sync(branch, cast("Await", effect))
    except StopIteration as stop:
        return stop.value
    except Cancelled:
        executor.interrupts.told(branch, position)
        raise
    finally:
        executor.recorded(run)
