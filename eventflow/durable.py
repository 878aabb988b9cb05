"""Inside a workflow: what a function may ask about its own run, and ad-hoc steps."""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.context import current_branch, idempotency_key, refuse_sync_workflow, runtime, scope_of
from eventflow.errors import UsageError
from eventflow.registry import innermost, is_async
from eventflow.retry import Retry
from eventflow.steps import drive, step_of
from eventflow.workflows import transaction_of

__all__ = ["attempt", "idempotency_key", "run_step", "workflow_id"]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def workflow_id() -> str:
    """The id of the workflow that this code runs in.

    Raises:
        UsageError: outside a workflow.

    """
    return scope_of("workflow_id()")[0].workflow_id


def attempt() -> int:
    """Which run of the workflow this is, from 1; it identifies and limits nothing.

    Raises:
        UsageError: outside a workflow.

    """
    return scope_of("attempt()")[0].attempt


@overload
async def run_step(
    function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0,
) -> R: ...  # fmt: skip
@overload
async def run_step(
    function: Callable[[Unpack[Ts]], R], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0,
) -> R: ...  # fmt: skip
def run_step(function: Callable[..., Any], /, *args: Any, name: str | None = None, retries: int | Retry = 0) -> Any:
    """Run a function as a step of the current async workflow; a sync one in a worker thread.

    The function is called as it is, with its decorators. A `@step` keeps its name and its policy, where these are not
    given; a `@transaction` is run as the transaction that it is, its checkpoint in the same commit. `retries` counts
    attempts after the first.

    Runs at least once until its checkpoint is durable, and never after that.

    Raises:
        UsageError: outside a workflow, in a sync one, or a decorator hides a `@transaction`.
        Exception: the step's own.

    """
    refuse_sync_workflow("durable.run_step")
    return _run_step(function, args, name, retries)


async def _run_step(function: Callable[..., Any], args: Any, name: str | None, retries: int | Retry) -> Any:
    branch = current_branch()
    if branch is None:
        raise UsageError("run_step belongs into a workflow, outside its steps")
    transaction = transaction_of(function, args, name, retries)
    if transaction is not None:
        return await runtime("run_step").transact(transaction[0], branch, transaction[1], {})
    spec = step_of(function, name, retries)
    return await drive(branch, spec.called_by(_awaitable(function)), args, {})


def _awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    if is_async(function):
        return function
    on_loop = is_async(innermost(function))  # a sync decorator of an async function

    async def call(*args: Any) -> Any:
        work = functools.partial(function, *args)
        result = work() if on_loop else await runtime("run_step").in_thread(work)
        return await result if inspect.isawaitable(result) else result

    return call
