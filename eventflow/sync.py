"""The verbs of `eventflow`, blocking: for plain programs and sync workflows. One implementation serves both faces."""

from typing import Any, Generic, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.app import Handle as AsyncHandle
from eventflow.app import IfExists
from eventflow.app import start as start_async
from eventflow.context import refuse_loop, runtime
from eventflow.records import StepRecord, WorkflowRecord
from eventflow.retry import Seconds
from eventflow.workflows import AsyncStartable, SyncStartable

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class Handle(Generic[R_co]):
    """A started workflow, for blocking code."""

    def __init__(self, handle: AsyncHandle[R_co]) -> None:
        self._handle = handle

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self._handle.workflow_id

    def result(self, *, timeout: Seconds | None = None) -> R_co:
        """Wait for the result, `timeout` seconds at most.

        Raises:
            BlockingCallError: on a thread with a running event loop.
            NotRunningError: outside `running()`.
            Exception: as of `eventflow.Handle.result`.

        """
        refuse_loop("sync.Handle.result", "await eventflow.Handle.result")
        return runtime("a handle").on_loop(self._handle.result(timeout=timeout))

    def get(self) -> WorkflowRecord:
        """The workflow as the ledger has it.

        Raises:
            BlockingCallError: on a thread with a running event loop.
            NotRunningError: outside `running()`.
            WorkflowNotFoundError: the ledger has none of this id.

        """
        refuse_loop("sync.Handle.get", "await eventflow.Handle.get")
        return runtime("a handle").on_loop(self._handle.get())

    def steps(self) -> list[StepRecord]:
        """The workflow's durable steps, in order; none where the ledger has no such workflow.

        Raises:
            BlockingCallError: on a thread with a running event loop.
            NotRunningError: outside `running()`.

        """
        refuse_loop("sync.Handle.steps", "await eventflow.Handle.steps")
        return runtime("a handle").on_loop(self._handle.steps())


@overload
def start(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
) -> Handle[R]: ...  # fmt: skip
@overload
def start(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
) -> Handle[R]: ...  # fmt: skip
def start(workflow: Any, /, *args: Any, workflow_id: str | None = None, if_exists: IfExists = "attach") -> Handle[Any]:
    """Start a workflow, sync or async, from blocking code; returns once it is durable, as `eventflow.start` does.

    Raises:
        BlockingCallError: on a thread with a running event loop.
        NotRunningError, WorkflowExistsError, UsageError: as of `eventflow.start`.

    """
    refuse_loop("sync.start", "await eventflow.start")
    started: AsyncHandle[Any] = runtime("start").on_loop(
        start_async(workflow, *args, workflow_id=workflow_id, if_exists=if_exists)
    )
    return Handle(started)
