"""Inside a workflow: what a function may ask about its own run, and ad-hoc steps."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.context import current_branch, idempotency_key, runtime, scope_of
from eventflow.errors import UsageError
from eventflow.registry import check_name
from eventflow.retry import Retry, as_retry
from eventflow.steps import StepSpec, drive

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
async def run_step(
    function: Callable[..., Any], /, *args: Any, name: str | None = None, retries: int | Retry = 0
) -> Any:
    """Run a function as a step of the current async workflow; a sync one in a worker thread.

    Raises:
        UsageError: outside a workflow.
        Exception: the step's own.

    """
    branch = current_branch()
    if branch is None:
        raise UsageError("run_step belongs into a workflow, outside its steps")
    declared = getattr(function, "__eventflow_step__", None)
    if isinstance(declared, StepSpec) and name is None and retries == 0:
        spec = StepSpec(declared.name, _awaitable(declared.function), declared.policy)
        spec.__dict__["result"] = declared.result
        return await drive(branch, spec, args, {})
    title = check_name(name or getattr(function, "__qualname__", type(function).__name__))
    spec = StepSpec(title, _awaitable(function), as_retry(retries))
    spec.__dict__["result"] = StepSpec(title, inspect.unwrap(function), spec.policy).result
    return await drive(branch, spec, args, {})


def _awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    plain = cast("Callable[..., Any]", inspect.unwrap(function))
    if inspect.iscoroutinefunction(plain):
        return plain

    async def in_thread(*args: Any) -> Any:
        return await runtime("run_step").in_thread(lambda: plain(*args))

    return in_thread
