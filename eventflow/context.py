"""Where a call is made: in which workflow, on which branch of it, in a step or outside; and the running application.

What needs the running application (starting, transactions) goes through the one slot `runtime`, which `running()` fills.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Never, Protocol

from typing_extensions import TypeVar

from eventflow.codec import Codec
from eventflow.errors import BlockingCallError, NotRunningError, UsageError
from eventflow.outbox import Row
from eventflow.queues import Order
from eventflow.records import Choice, Operation, Rider
from eventflow.registry import Spec, TransactionSpec
from eventflow.replay import Branch
from eventflow.settings import KafkaProperties

R = TypeVar("R")


class Suspended(BaseException):
    """Unwinds a workflow that leaves memory while it waits; it goes on, from its record, when it is woken.

    `finally` and `with` run on the way; durable operations reached there do nothing and raise it again. Never catch it
    for good: what swallows it is suspended all the same (API.md 2.5, after Restate's suspension).
    """


class Hopeless(BaseException):
    """Code that swallows what unwinds it has done so for too long: whatever it awaits never comes, and it is left alone."""


class ContinuedAsNew(BaseException):
    """Unwinds a workflow that goes on with other arguments and an empty history."""

    def __init__(self, arguments: str) -> None:
        super().__init__("continue_as_new")
        self.arguments = arguments


class StepScope:
    """What is current while a step's function runs: durable calls in it are plain, or refused.

    `riders` are what is written with its checkpoint, if it succeeds.

    Attributes:
        kind: a transaction has no attempts that anyone could learn of; one elsewhere may be recorded by another executor.
        progress: what its attempts tell of how far they are, once one has.
        whole: the scope of the step, where this is that of one attempt with a time limit.
        left: the time of that attempt is over: whatever it still does counts for nothing.
        many: it is the call of a batch handler, for many messages; `branch` is that of the first.

    """

    __slots__ = ("branch", "kind", "left", "many", "name", "position", "progress", "riders", "whole")

    def __init__(
        self, branch: Branch, position: str, name: str, *, kind: Literal["step", "transaction", "elsewhere"] = "step",
        many: bool = False,
    ) -> None:  # fmt: skip
        self.branch = branch
        self.kind = kind
        self.many = many
        self.position = position
        self.name = name
        self.riders: tuple[Rider, ...] = ()
        self.progress: Progress | None = None
        self.left = False
        self.whole: StepScope | None = None

    def attempt(self) -> "StepScope":
        """What is current in an attempt that may be left to itself, beside the next one."""
        one = StepScope(self.branch, self.position, self.name)
        one.whole = self
        return one

    def place(self) -> str:
        """What tells the next of what it has written from the others; a trace beside one of these is none of them."""
        return f"{self.position}.{sum(rider.query != 'insert_traces' for rider in self.riders) + 1}"

    def end(self) -> tuple[Rider, ...]:
        """Its step has ended, and is about to be recorded: nothing more is kept of its progress; what takes away what was."""
        if self.progress is not None:
            self.progress.over, self.progress.due = True, False
        run = self.branch.run
        return () if run.history.recorded is None else run.history.end_details(run.workflow_id, self.position)


class Progress:
    """How far a step is, as its attempts have told: the newest details, and whether these are still to be kept.

    Attributes:
        details: as JSON. due: they are not with the journal yet. written: when some last were, by the executor's clock.
        over: the step has ended.

    """

    __slots__ = ("details", "due", "over", "written")

    def __init__(self) -> None:
        self.details = "null"
        self.due = self.over = False
        self.written = float("-inf")


current: ContextVar[Branch | StepScope | None] = ContextVar("eventflow_current", default=None)


# ---- the running application ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """A workflow to be started.

    Attributes:
        arguments: encoded. workflow_id: None for one that is made up. timeout: seconds until it is over.
        attributes: to search by, as JSON. parent: the workflow that starts it.

    """

    spec: Spec
    arguments: str
    workflow_id: str | None = None
    if_exists: Literal["attach", "reject"] = "attach"
    timeout: float | None = None
    attributes: str | None = None
    parent: str | None = None

    def rider(self, workflow_id: str, application: str, now: float, executor: int | None) -> Rider:
        """What writes its row with what starts it; `executor`: who runs it, None for whoever has room."""
        deadline = None if self.timeout is None else now + self.timeout
        row = (
            workflow_id, self.spec.name, application, executor, self.parent, self.arguments, deadline, self.attributes,
        )  # fmt: skip
        return Rider("insert_children", row)


class RunQuery(Protocol):
    """Runs a named query in the transaction that is open, and gives its rows."""

    def __call__(self, query: str, params: Mapping[str, Any], /) -> list[tuple[Any, ...]]: ...


class Backend(Protocol):
    """What stands behind a handle or a client: the running application, or a `ledger` of the client's own."""

    application: str
    encoded: bool  # values pass a payload codec
    kafka: tuple[str, KafkaProperties]  # the brokers, and how they are spoken to

    def query(self, query: str, params: dict[str, Any]) -> list[tuple[Any, ...]]: ...
    async def on_schedules(self, work: "Callable[[RunQuery], R]") -> R: ...
    async def change_queue(
        self, name: str, changed: str, *, reset: bool = False, paused: bool | None = None
    ) -> None: ...
    async def settle(self, incident_id: int, choice: Choice) -> None: ...
    async def write(self, riders: list[Rider]) -> None: ...
    async def enqueue(self, order: Order) -> str: ...
    def enqueue_sync(self, order: Order) -> str: ...
    async def enqueue_on(self, session: Any, order: Order) -> str: ...
    def enqueue_on_sync(self, session: Any, order: Order) -> str: ...
    async def publish_on(self, session: Any, row: Row) -> None: ...
    def publish_on_sync(self, session: Any, row: Row) -> None: ...
    async def delay(self, ids: Sequence[str], wait: float | None, until: float | None) -> int: ...
    async def event(self, workflow_id: str, key: str, timeout: float | None) -> str | None: ...
    async def stream(self, workflow_id: str, key: str, after: int, skip: int) -> list[tuple[Any, ...]]: ...
    async def request(self, ids: Sequence[str], kind: str, *, children: bool) -> int: ...
    async def manage(self, operation: Operation, ids: Sequence[str], **more: Any) -> int: ...
    async def fork(self, ids: Sequence[str], position: str | None, fork_ids: Sequence[str]) -> None: ...
    def row(self, workflow_id: str) -> tuple[Any, ...]: ...
    def read(self, query: str, workflow_id: str, missing: str | None = None) -> list[tuple[Any, ...]]: ...
    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any: ...
    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R: ...


class Runtime(Backend, Protocol):
    """What the running application does for the verbs; `app` provides it."""

    def now(self) -> float: ...
    async def start_soon(self, start: Start) -> str: ...
    def check_queue(self, name: str) -> None: ...
    async def call(self, start: Start, codec: Codec) -> Any: ...
    def call_sync(self, start: Start, codec: Codec) -> Any: ...
    async def transact(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    def transact_sync(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    async def in_thread(self, function: Callable[[], R]) -> R: ...
    def in_threads(self, function: Callable[[], None], count: int) -> None: ...


@dataclass
class _Slot:
    runtime: Runtime | None = None
    pid: int = 0  # of the process that filled it; a fork inherits the slot, and none of the threads behind it

    def fill(self, runtime: Runtime) -> None:
        self.runtime, self.pid = runtime, os.getpid()

    def forked(self) -> bool:
        """Whether the application that runs here, as it seems, runs in this process's parent."""
        return self.runtime is not None and self.pid != os.getpid()


slot = _Slot()


def runtime(what: str) -> Runtime:
    """The running application.

    Raises:
        NotRunningError: there is none.
        UsageError: it is that of the process that this one was forked from.

    """
    if slot.runtime is None:
        raise NotRunningError(f"{what} needs a running eventflow: enter `async with eventflow.running():` first")
    if slot.forked():
        raise UsageError(
            f"{what} in a process that was forked inside `running()`, whose threads and connections stayed in process "
            f'{slot.pid}: fork before you enter it, or start a new process (multiprocessing\'s "spawn")'
        )
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


def refuse_in_workflow(verb: str) -> None:
    """Raise where a caller's own transaction is used in a workflow, which would not know whether it was committed."""
    if current_branch() is not None:
        raise UsageError(f"{verb}(session=...) in a workflow is not recorded: {verb} without it, or in a @transaction")


def refuse_sync_workflow(what: str, name: str = "") -> None:
    """Raise where something that is awaited is called in a sync workflow, which would never await it."""
    here = current.get()
    if type(here) is Branch and not here.run.spec.is_async:
        raise UsageError(
            f"{what}{name and f' {name!r}'} is async and the workflow {here.run.name!r} is sync: use "
            "eventflow.sync.run_step(...), which runs it on the application's loop and waits"
        )


# ---- where am I --------------------------------------------------------------------------------


def current_branch() -> Branch | None:
    """The workflow branch that this call belongs to; None outside a workflow and inside a step.

    Raises:
        UsageError: from a thread or a loop that the workflow does not know.

    """
    branch = current.get()
    if branch is None or isinstance(branch, StepScope):
        return None
    home = branch.run.executor.home()
    if branch.home is home:
        return branch
    if isinstance(home, threading.Thread) or _on_a_strange_loop(branch):
        raise UsageError(_strange_thread(branch))
    child = branch.child(home)
    current.set(child)
    return child


def _on_a_strange_loop(branch: Branch) -> bool:
    """Whether the loop that runs here is not the workflow's: one that was started in another thread."""
    if branch.run.spec.is_async:
        return asyncio._get_running_loop() is not branch.run.executor.loop
    return isinstance(branch.home, threading.Thread) and branch.home is not threading.current_thread()


def _strange_thread(branch: Branch) -> str:
    name, is_async = branch.run.name, branch.run.spec.is_async
    if is_async:
        return (
            f"a durable operation of the async workflow {name!r} in another thread or on another loop: await it in the "
            "workflow; `durable.run_step` runs a sync function in a thread"
        )
    return (
        f"a durable operation of the sync workflow {name!r} in another thread: use `sync.gather`, which runs calls in "
        "threads and makes a branch for each"
    )


async def never() -> Never:
    """What is awaited by code that is left alone (`Hopeless`)."""
    await asyncio.get_running_loop().create_future()
    raise Hopeless


async def checked(branch: Branch) -> None:
    """Raise where an operation of an async workflow may not begin (`Executor.check`); never return to one left alone."""
    try:
        branch.run.executor.check(branch.run, branch.attempt)
    except Hopeless:
        await never()


def scope_of(what: str) -> tuple[Any, str]:
    """The run and the position of what runs now."""
    here = current.get()
    if here is None:
        raise UsageError(f"{what} belongs into a workflow or a step")
    if isinstance(here, StepScope):
        if here.branch.run is None:
            raise UsageError(f"{what} belongs into a workflow: this transaction is called outside one")
        if here.many:
            raise UsageError(f"{what} in a batch handler, whose messages are many, and not always the same together")
        return here.branch.run, here.position
    return here.run, ""


def idempotency_key() -> str:
    """A key for the outside world: the same for all attempts of a step and in any process, different between steps.

    In a workflow, outside its steps, it is the workflow's own.

    Raises:
        UsageError: outside a workflow.

    """
    run, position = scope_of("idempotency_key()")
    return run.key_of(position)
