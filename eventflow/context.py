"""Where a call is made: in which workflow, on which branch of it, in a step or outside; and the running application.

What needs the running application (starting, transactions) goes through the one slot `runtime`, which `running()` fills.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

from typing_extensions import TypeVar

from eventflow.codec import Codec
from eventflow.errors import BlockingCallError, NotRunningError, UsageError
from eventflow.idempotency import step_idempotency_key
from eventflow.registry import Spec, TransactionSpec
from eventflow.replay import Branch

R = TypeVar("R")


@dataclass(slots=True)
class StepScope:
    """What is current while a step's function runs: durable calls in it are plain, or refused."""

    branch: Branch
    position: str
    name: str


current: ContextVar[Branch | StepScope | None] = ContextVar("eventflow_current", default=None)


# ---- the running application ---------------------------------------------------------------------


class Runtime(Protocol):
    """What the running application does for the verbs; `app` provides it."""

    def start_soon(self, spec: Spec, arguments: str, workflow_id: str | None, if_exists: str) -> Any: ...
    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any: ...
    async def transact(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    def transact_sync(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    async def in_thread(self, function: Callable[[], R]) -> R: ...
    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R: ...


@dataclass
class _Slot:
    runtime: Runtime | None = None


slot = _Slot()


def runtime(what: str) -> Runtime:
    """The running application.

    Raises:
        NotRunningError: there is none.

    """
    if slot.runtime is None:
        raise NotRunningError(f"{what} needs a running eventflow: enter `async with eventflow.running():` first")
    return slot.runtime


def refuse_loop(what: str, instead: str) -> None:
    """Raise where a blocking call would stop this thread's event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise would_block(what, instead)


def would_block(what: str, instead: str) -> BlockingCallError:
    """The error of a blocking call on a thread whose event loop it would stop."""
    return BlockingCallError(f"{what} would block the running event loop; use {instead}")


# ---- where am I --------------------------------------------------------------------------------


def current_branch() -> Branch | None:
    """The workflow branch that this call belongs to; None outside a workflow and inside a step.

    Raises:
        UsageError: from a thread that the workflow does not know.

    """
    branch = current.get()
    if branch is None or type(branch) is StepScope:
        return None
    branch = cast("Branch", branch)
    home = branch.run.executor.home()
    if branch.home is home:
        return branch
    if isinstance(home, threading.Thread):
        raise UsageError(
            "a durable operation from a thread of its own: use sync.gather, which makes a branch for each call"
        )
    child = branch.child(home)
    current.set(child)
    return child


def scope_of(what: str) -> tuple[Any, str]:
    """The run and the position of what runs now."""
    here = current.get()
    if here is None:
        raise UsageError(f"{what} belongs into a workflow or a step")
    if isinstance(here, StepScope):
        return here.branch.run, here.position
    return here.run, ""


def idempotency_key() -> str:
    """A key for the outside world: the same for all attempts of a step and in any process, different between steps.

    In a workflow, outside its steps, it is the workflow's own.

    Raises:
        UsageError: outside a workflow.

    """
    run, position = scope_of("idempotency_key()")
    return step_idempotency_key(run.workflow_id, position)
