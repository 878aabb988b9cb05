"""Inside an async workflow: what is recorded and replayed. `eventflow.sync` has the blocking twins.

`now`, `uuid4`, `random` and what a function may ask about its own run never wait, and serve sync workflows, too.
"""

import functools
import inspect
import uuid
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Never, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

import eventflow.talk as talk
from eventflow.context import Suspended, current_branch, idempotency_key, refuse_sync_workflow, runtime, scope_of
from eventflow.errors import UsageError
from eventflow.handles import first
from eventflow.operations import awaited, operate
from eventflow.registry import innermost, is_async
from eventflow.retry import Retry, Seconds
from eventflow.steps import drive, step_of
from eventflow.workflows import Workflow, transaction_of

__all__ = [
    "Suspended",
    "attempt",
    "close_stream",
    "continue_as_new",
    "deprecate_patch",
    "details",
    "event",
    "first",
    "heartbeat",
    "idempotency_key",
    "now",
    "patch",
    "random",
    "recv",
    "run_step",
    "send",
    "send_many",
    "set_event",
    "sleep",
    "sleep_until",
    "uuid4",
    "workflow_id",
    "write_stream",
]

R = TypeVar("R")
T = TypeVar("T")
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


# ---- recorded values -------------------------------------------------------------------------------


def now() -> datetime:
    """The time by the ledger's clock when this was first reached, with zone UTC; the same on every replay.

    Raises:
        UsageError: outside a workflow, or in a step.

    """
    return talk.now()


def uuid4() -> uuid.UUID:
    """A random id, the same on every replay.

    Raises:
        UsageError: outside a workflow, or in a step.

    """
    return talk.uuid4()


def random() -> float:
    """A random number from 0 to 1, the same on every replay.

    Raises:
        UsageError: outside a workflow, or in a step.

    """
    return talk.random()


def patch(name: str, /) -> bool:
    """Whether to run the code that is new since `name`: False in a workflow that went the old way before this deploy.

    Recorded where it is first reached, so that every replay goes the same way.

    Raises:
        UsageError: outside a workflow, or in a step.

    """
    return talk.patch(name)


def deprecate_patch(name: str, /) -> None:
    """What `patch(name)` becomes when no workflow of the old code is left: runs that have its marker pass over it."""
    talk.deprecate_patch(name)


def continue_as_new(workflow: Workflow[[], Any], /) -> Never:
    """End this run, and start the next one of the same workflow under the same id, with an empty history, in one commit.

    For workflows that would never end: waking reads every checkpoint. Messages not received yet are kept.

    Raises:
        UsageError: outside a workflow, or another workflow than this one; `workflow` is `this.bind(...)`.

    """
    talk.continue_as_new(workflow.spec, workflow.encode((), {}))


# ---- progress of a step ----------------------------------------------------------------------------


def heartbeat(details: object = None, /) -> None:
    """Tell how far this step is: whatever its next attempt needs to go on from there reads it by `details`.

    In a step of a sync or an async workflow. Never waits: it is kept in the background, at once where nothing was for a
    second, so that at most the last second's is lost with the process. The newest counts; the step's end clears it. A retry
    of the whole workflow, a restart and a fork begin without.

    Raises:
        UsageError: outside a step of a workflow, or in a transaction, whose effects go with the attempt that fails.
        CodecError: the details are no plain value, model or dataclass, or too large; names the step.

    """
    talk.heartbeat(details)


def details(type: type[T], /) -> T | None:  # noqa: A002
    """What this step, or a former attempt of it in any process, told last by `heartbeat`; None where nothing is known.

    Raises:
        UsageError: outside a step of a workflow, or in a transaction.
        CodecError: it is no such type; names the step.

    """
    return talk.details(type)


# ---- waiting ---------------------------------------------------------------------------------------


async def sleep(duration: Seconds, /) -> None:
    """Sleep for so many seconds, through any crash; a long sleep leaves memory, and any process goes on after it.

    The time is counted from the first time that this is reached, by the ledger's clock.

    Raises:
        UsageError: outside an async workflow, or a duration that cannot be.
        Suspended: the workflow leaves memory; let it pass.

    """
    await operate("sleep", talk.sleep(duration))


async def sleep_until(time: datetime, /) -> None:
    """Sleep until a moment, which has a zone; one that has passed returns at once. Raises as `sleep`."""
    await operate("sleep_until", talk.sleep_until(time))


async def recv(type: type[T], /, *, topic: str = "", timeout: Seconds | None = None) -> T:  # noqa: A002
    """Receive the next message that was sent to this workflow under the topic, in the order in which they were committed.

    Each message is received once; the receipt is recorded, and a replay returns the same one.

    Raises:
        WorkflowTimeoutError: none came within `timeout` seconds; that is recorded, too.
        CodecError: it is no such type.
        UsageError: outside an async workflow.
        Suspended: the workflow leaves memory; let it pass.

    """
    return await operate("recv", talk.recv(type, topic, timeout))


async def event(workflow_id: str, key: str, type: type[T], /, *, timeout: Seconds | None = None) -> T:  # noqa: A002
    """The value of another workflow's event, once it is set; recorded. Raises as `recv`."""
    return await operate("event", talk.get_event(workflow_id, key, type, timeout))


# ---- talking ---------------------------------------------------------------------------------------


async def send(workflow_id: str, message: object, /, *, topic: str = "") -> None:
    """Put a message into another workflow's inbox, exactly once; it need not exist yet.

    It is written in the same transaction as the record that it was sent.

    Raises:
        UsageError: outside a workflow, or an id or topic that cannot be.
        CodecError: the message is no plain value, model or dataclass.

    """
    await awaited(lambda: talk.send(workflow_id, message, topic))


async def send_many(messages: Iterable[tuple[str, object]], /, *, topic: str = "") -> None:
    """Put many messages, pairs of a workflow's id and what it is sent, into their inboxes, each exactly once.

    One record and one statement for all of them: at most 10,000 messages, and 16 Mi characters of JSON. Those to one
    workflow keep their order. In a step or transaction they are sent with what that records.

    Raises:
        UsageError: outside a workflow; what is no such pair, too many or too much, an id or topic that cannot be.
        CodecError: a message is no plain value, model or dataclass.

    """
    await awaited(lambda: talk.send_many(messages, topic))


async def set_event(key: str, value: object, /) -> None:
    """Tell everyone a value under a key; the last one counts. Written with its record. Raises as `send`."""
    await awaited(lambda: talk.set_event(key, value))


async def write_stream(key: str, value: object, /) -> None:
    """Append a value to a stream of this workflow, exactly once; `Handle.stream` reads it, live or later.

    In the workflow it is written in the same transaction as its record, in a step or transaction with what that records.

    Raises:
        UsageError: outside a workflow, a key that cannot be, or the stream is closed.
        CodecError: the value is no plain value, model or dataclass.

    """
    await awaited(lambda: talk.write_stream(key, value))


async def close_stream(key: str, /) -> None:
    """End a stream of this workflow: its readers end behind what was written. The workflow's end ends it, too.

    Raises:
        UsageError: outside a workflow, or in a step or transaction.

    """
    await awaited(lambda: talk.close_stream(key))


# ---- steps -----------------------------------------------------------------------------------------


@overload
async def run_step(
    function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None,
) -> R: ...  # fmt: skip
@overload
async def run_step(
    function: Callable[[Unpack[Ts]], R], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None,
) -> R: ...  # fmt: skip
def run_step(
    function: Callable[..., Any], /, *args: Any, name: str | None = None, retries: int | Retry = 0,
    timeout: Seconds | None = None,
) -> Any:  # fmt: skip
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
    return _run_step(function, args, name, retries, timeout)


async def _run_step(
    function: Callable[..., Any], args: Any, name: str | None, retries: int | Retry, timeout: Seconds | None
) -> Any:
    branch = current_branch()
    if branch is None:
        raise UsageError("run_step belongs into a workflow, outside its steps")
    transaction = transaction_of(function, args, name, retries)
    if transaction is not None:
        return await runtime("run_step").transact(transaction[0], branch, transaction[1], {})
    spec = step_of(function, name, retries, timeout)
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
