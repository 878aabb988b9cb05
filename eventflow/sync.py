"""The verbs of `eventflow` and `eventflow.durable`, blocking: for plain programs and sync workflows.

One implementation serves both faces.
"""

import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, cast, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

import eventflow.talk as talk
from eventflow.borrowed import Borrowed
from eventflow.client import Changes, Filter, Pages, each
from eventflow.client import Client as AsyncClient
from eventflow.codec import Codec, codec_for
from eventflow.context import (
    Start,
    StepScope,
    Suspended,
    current,
    current_branch,
    refuse_in_workflow,
    refuse_loop,
    runtime,
)
from eventflow.cron import Overlap
from eventflow.dead_letters import LetterFilter, LetterPages, Letters
from eventflow.errors import Cancelled, UsageError
from eventflow.handles import Handle as AsyncHandle
from eventflow.handles import (
    StreamPages,
    id_of,
    order_for,
    prepare,
    refuse_given,
    step_that_asks,
    step_that_enqueues,
    step_that_starts,
    taken_for_ours,
)
from eventflow.operations import note, operate_sync
from eventflow.outbox import Undelivered, outbox_row, rider_of, traced
from eventflow.payloads import PayloadCodec
from eventflow.queues import DEFAULT, IfExists, QueueRecord
from eventflow.records import (
    Choice,
    DeadLetter,
    DeadLetterDetails,
    IncidentRecord,
    Overview,
    PartitionLag,
    Pause,
    Reason,
    Redelivery,
    Reprocessing,
    Status,
    StepRecord,
    WorkflowDetails,
    WorkflowRecord,
)
from eventflow.replay import Branch
from eventflow.retry import Retry, Seconds, seconds
from eventflow.schedules import ScheduleRecord
from eventflow.steps import drive_sync, step_of
from eventflow.tracing import creation
from eventflow.workflows import AsyncStartable, SyncStartable, Workflow, transaction_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
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
        if self._handle.recorded and isinstance(current.get(), StepScope):
            raise UsageError("a handle cannot be awaited in a step or transaction")
        if not self._handle.recorded or current_branch() is None:
            return self._handle.backend.on_loop(self._handle.result(timeout=timeout))
        limit = None if timeout is None else seconds(timeout, "timeout")
        wait = talk.result(self.workflow_id, self._handle.codec, limit)
        return operate_sync("a handle's result", "await eventflow.Handle.result", wait)

    def get(self) -> WorkflowRecord:
        """The workflow as the ledger has it.

        Raises:
            BlockingCallError: on a thread with a running event loop.
            NotRunningError: outside `running()`.
            WorkflowNotFoundError: the ledger has none of this id.

        """
        refuse_loop("sync.Handle.get", "await eventflow.Handle.get")
        return self._handle.backend.on_loop(self._handle.get())

    def send(self, message: object, *, topic: str = "", idempotency_key: str | None = None) -> None:
        """Put a message into the workflow's inbox, exactly once; see `eventflow.Handle.send`."""
        refuse_loop("sync.Handle.send", "await eventflow.Handle.send")
        if self._handle.recorded and current.get() is not None:
            talk.send(self.workflow_id, message, topic)
        else:
            sent = self._handle.send(message, topic=topic, idempotency_key=idempotency_key)
            self._handle.backend.on_loop(sent)

    def event(self, key: str, type: type[T], /, *, timeout: Seconds | None = None) -> T:  # noqa: A002
        """The value that the workflow has set under this key, once it has; see `eventflow.Handle.event`."""
        refuse_loop("sync.Handle.event", "await eventflow.Handle.event")
        if self._handle.recorded and current_branch() is not None:
            return event(self.workflow_id, key, type, timeout=timeout)
        return self._handle.backend.on_loop(self._handle.event(key, type, timeout=timeout))

    def stream(self, key: str, type: type[T], /, *, offset: int = 0) -> Iterator[T]:  # noqa: A002
        """What the workflow writes to a stream, as it is written, until it ends; see `eventflow.Handle.stream`."""
        refuse_loop("sync.Handle.stream", "async for ... in eventflow.Handle.stream")
        return self._values(StreamPages(self._handle.backend, self.workflow_id, key, offset), codec_for(type))

    def _values(self, pages: StreamPages, codec: Codec) -> Iterator[Any]:
        while (page := self._handle.backend.on_loop(pages.read())) is not None:
            for text in page:
                yield codec.decode(text)

    def cancel(self, *, children: bool = True) -> None:
        """Ask for the workflow to end; see `eventflow.Handle.cancel`."""
        refuse_loop("sync.Handle.cancel", "await eventflow.Handle.cancel")
        self._ask("cancel", children)

    def terminate(self, *, children: bool = True) -> None:
        """End the workflow here and now; see `eventflow.Handle.terminate`."""
        refuse_loop("sync.Handle.terminate", "await eventflow.Handle.terminate")
        self._ask("terminate", children)

    def _ask(self, kind: str, children: bool) -> None:
        backend, branch = self._handle.backend, current_branch() if self._handle.recorded else None

        def ask() -> int:
            return backend.on_loop(backend.request([self.workflow_id], kind, children=children))

        if branch is None:
            ask()
        else:
            drive_sync(branch, step_that_asks(kind, ask), (), {})

    def steps(self) -> list[StepRecord]:
        """The workflow's durable steps, in order, failures as "Type: message"; none where the ledger has no such workflow.

        Raises:
            BlockingCallError: on a thread with a running event loop.
            NotRunningError: outside `running()`.

        """
        refuse_loop("sync.Handle.steps", "await eventflow.Handle.steps")
        return self._handle.backend.on_loop(self._handle.steps())

    def resume(self) -> None:
        """Let a parked or cancelled workflow go on; see `eventflow.Handle.resume`."""
        refuse_loop("sync.Handle.resume", "await eventflow.Handle.resume")
        self._handle.backend.on_loop(self._handle.resume())

    def delay(self, until: Seconds | datetime, /) -> None:
        """Let a workflow that waits in its queue wait until then; see `eventflow.Handle.delay`."""
        refuse_loop("sync.Handle.delay", "await eventflow.Handle.delay")
        self._handle.backend.on_loop(self._handle.delay(until))

    def retry(self) -> None:
        """Run a failed workflow again from the step that ended it; see `eventflow.Handle.retry`."""
        refuse_loop("sync.Handle.retry", "await eventflow.Handle.retry")
        self._handle.backend.on_loop(self._handle.retry())

    def restart(self) -> None:
        """Run a workflow that has ended again from the beginning; see `eventflow.Handle.restart`."""
        refuse_loop("sync.Handle.restart", "await eventflow.Handle.restart")
        self._handle.backend.on_loop(self._handle.restart())

    def delete(self) -> None:
        """Delete a workflow that has ended or is parked; see `eventflow.Handle.delete`."""
        refuse_loop("sync.Handle.delete", "await eventflow.Handle.delete")
        self._handle.backend.on_loop(self._handle.delete())

    def fork(self, step: str | None = None, *, workflow_id: str | None = None) -> "Handle[R_co]":
        """Start a new workflow from what this one recorded before a step; see `eventflow.Handle.fork`."""
        refuse_loop("sync.Handle.fork", "await eventflow.Handle.fork")
        return Handle(self._handle.backend.on_loop(self._handle.fork(step, workflow_id=workflow_id)))


@overload
def start(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[R]: ...  # fmt: skip
@overload
def start(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[R]: ...  # fmt: skip
def start(
    workflow: Any, /, *args: Any, workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[Any]:  # fmt: skip
    """Start a workflow, sync or async, from blocking code; as a child in a sync workflow. See `eventflow.start`.

    Raises:
        BlockingCallError: on a thread with a running event loop.
        NotRunningError, WorkflowExistsError, UsageError: as of `eventflow.start`.

    """
    refuse_loop("sync.start", "await eventflow.start")
    asked = prepare(workflow, args, workflow_id, if_exists, timeout, attributes)
    branch = current_branch()
    if isinstance(current.get(), StepScope):
        started = talk.start_with_step(asked)
    elif branch is None:
        started = runtime("start").on_loop(runtime("start").start_soon(asked))
    elif workflow_id is None:
        started = note("sync.start", talk.start(asked))
    else:
        spec = step_that_starts(asked, lambda: _start_given(taken_for_ours(branch, talk.child_of(branch, asked))))
        started = drive_sync(branch, spec, (), {})
    return Handle(AsyncHandle(started, asked.spec.result))


def _start_given(asked: Start) -> str:
    return runtime("start").on_loop(runtime("start").start_soon(asked))


@overload
def enqueue(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
    deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
    workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
    attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
) -> Handle[R]: ...  # fmt: skip
@overload
def enqueue(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
    deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
    workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
    attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
) -> Handle[R]: ...  # fmt: skip
def enqueue(
    workflow: Any, /, *args: Any, queue: str = DEFAULT, key: str | None = None, priority: int = 0,
    delay: Seconds | datetime | None = None, deduplication_id: str | None = None, debounce: Seconds | None = None,
    debounce_limit: Seconds | None = None, workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
) -> Handle[Any]:  # fmt: skip
    """Put a workflow, sync or async, in line, from blocking code. See `eventflow.enqueue`.

    Raises:
        BlockingCallError: on a thread with a running event loop.
        NotRunningError, WorkflowExistsError, UsageError, CodecError: as of `eventflow.enqueue`.

    """
    refuse_loop("sync.enqueue", "await eventflow.enqueue")
    order, codec = order_for(
        workflow, args, {}, queue, key, priority, delay, deduplication_id, debounce, debounce_limit, workflow_id,
        if_exists, timeout, attributes,
    )  # fmt: skip
    app, branch = runtime("enqueue"), current_branch()
    if session is not None:
        refuse_in_workflow("enqueue")
        return Handle(AsyncHandle(app.enqueue_on_sync(session, order), codec))
    if current.get() is None:
        return Handle(AsyncHandle(app.enqueue_sync(order), codec))
    app.check_queue(queue)
    refuse_given(order)
    if branch is None or not order.shared:
        return Handle(AsyncHandle(talk.enqueue(order), codec))
    spec = step_that_enqueues(branch, order, lambda placed: app.enqueue_sync(taken_for_ours(branch, placed)))
    return Handle(AsyncHandle(drive_sync(branch, spec, (), {}), codec))


def first(*handles: Handle[R]) -> Handle[R]:
    """The handle of the workflow that ends first; see `durable.first`."""
    ids = [id_of(handle) for handle in handles]
    return handles[operate_sync("sync.first", "await eventflow.durable.first", talk.first(ids))]


# ---- in a sync workflow ----------------------------------------------------------------------------


def sleep(duration: Seconds, /) -> None:
    """Sleep for so many seconds, through any crash; see `durable.sleep`."""
    operate_sync("sync.sleep", "await eventflow.durable.sleep", talk.sleep(duration))


def sleep_until(time: datetime, /) -> None:
    """Sleep until a moment, which has a zone; see `durable.sleep_until`."""
    operate_sync("sync.sleep_until", "await eventflow.durable.sleep_until", talk.sleep_until(time))


def recv(type: type[T], /, *, topic: str = "", timeout: Seconds | None = None) -> T:  # noqa: A002
    """Receive the next message that was sent to this workflow; see `durable.recv`."""
    return operate_sync("sync.recv", "await eventflow.durable.recv", talk.recv(type, topic, timeout))


def event(workflow_id: str, key: str, type: type[T], /, *, timeout: Seconds | None = None) -> T:  # noqa: A002
    """The value of another workflow's event, once it is set; see `durable.event`."""
    return operate_sync("sync.event", "await eventflow.durable.event", talk.get_event(workflow_id, key, type, timeout))


def publish(
    topic: str, value: object, /, *, key: str | bytes | None = None,
    headers: Mapping[str, str | bytes] | None = None, session: Borrowed | None = None,
) -> None:  # fmt: skip
    """Publish an event to Kafka, exactly once, from blocking code. See `eventflow.publish`.

    Raises:
        BlockingCallError: outside a workflow, on a thread with a running event loop.
        NotRunningError, UsageError, CodecError: as of `eventflow.publish`.

    """
    row = outbox_row(topic, value, key, headers)
    if session is None and current.get() is not None:
        talk.publish(row)
        return
    refuse_loop("sync.publish", "await eventflow.publish")
    app, row = runtime("publish"), traced(row, creation(topic))
    if session is None:
        app.on_loop(app.write([rider_of(row)]))
    else:
        refuse_in_workflow("publish")
        app.publish_on_sync(session, row)


def send(workflow_id: str, message: object, /, *, topic: str = "") -> None:
    """Put a message into another workflow's inbox, exactly once; see `durable.send`."""
    talk.send(workflow_id, message, topic)


def send_many(messages: Iterable[tuple[str, object]], /, *, topic: str = "") -> None:
    """Put many messages into their inboxes, in one record; see `durable.send_many`."""
    talk.send_many(messages, topic)


def set_event(key: str, value: object, /) -> None:
    """Tell everyone a value under a key; see `durable.set_event`."""
    talk.set_event(key, value)


def write_stream(key: str, value: object, /) -> None:
    """Append a value to a stream of this workflow, exactly once; see `durable.write_stream`."""
    talk.write_stream(key, value)


def close_stream(key: str, /) -> None:
    """End a stream of this workflow; see `durable.close_stream`."""
    talk.close_stream(key)


# ---- inside a sync workflow ----------------------------------------------------------------------


@overload
def run_step(
    function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None,
) -> R: ...  # fmt: skip
@overload
def run_step(
    function: Callable[[Unpack[Ts]], R], /, *args: Unpack[Ts],
    name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None,
) -> R: ...  # fmt: skip
def run_step(
    function: Callable[..., Any], /, *args: Any, name: str | None = None, retries: int | Retry = 0,
    timeout: Seconds | None = None,
) -> Any:  # fmt: skip
    """Run a function as a step of the current sync workflow; an async one on the application's loop, and wait for it.

    The function is called as it is, with its decorators. A `@step` keeps its name and its policy, where these are not
    given; a `@transaction` is run as the transaction that it is, its checkpoint in the same commit. `retries` counts
    attempts after the first.

    Runs at least once until its checkpoint is durable, and never after that.

    Raises:
        BlockingCallError: on a thread with a running event loop.
        UsageError: outside a workflow, or a decorator hides a `@transaction`.
        Exception: the step's own.

    """
    refuse_loop("sync.run_step", "await eventflow.durable.run_step")
    branch = current_branch()
    if branch is None:
        raise UsageError("run_step belongs into a workflow, outside its steps")
    transaction = transaction_of(function, args, name, retries)
    if transaction is not None:
        return _transact(branch, *transaction)
    spec = step_of(function, name, retries, timeout)
    return drive_sync(branch, spec.called_by(functools.partial(_blocking, function)), args, {})


def _transact(branch: Branch, spec: Any, args: Sequence[Any]) -> Any:
    app = runtime("run_step")
    branch.run.executor.check(branch.run)  # in this thread, which may be the one to be got rid of
    if spec.is_async:
        return app.on_loop(app.transact(spec, branch, args, {}))
    return app.transact_sync(spec, branch, args, {})


def _blocking(function: Callable[..., Any], *args: Any) -> Any:
    result = function(*args)
    return runtime("run_step").on_loop(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def gather(*calls: Callable[[], R]) -> list[R]:
    """Make these calls in parallel, in worker threads and in this one, and wait for all; their results in order.

    In a sync workflow each call is a branch, numbered in the order of the calls, so that a replay finds each step's
    record whichever was quicker. As many run at once as there are threads free (`EVENTFLOW_THREADS`): none may wait
    for another. Arguments go in with a `lambda` or `functools.partial`.

    Raises:
        BlockingCallError: on a thread with a running event loop.
        NotRunningError: outside `running()`.
        BaseException: of those that failed, the first in the order of the calls; after all have ended. `Cancelled` comes
            before others: each call is told once that the workflow is to end, where it next acts or waits.

    """
    refuse_loop("sync.gather", "asyncio.gather")
    branch = current_branch()
    made = [_Call(call, branch and branch.child(None)) for call in calls]
    waiting = deque(made)
    _count(branch, -1)
    runtime("sync.gather").in_threads(functools.partial(_make_all, waiting), len(made) - 1)
    _make_all(waiting)  # so that there is progress where no other thread is free, and nested ones cannot wait for ever
    for call in made:
        call.ended.wait()
    _count(branch, 1)
    failures = [call.error for call in made if call.error is not None]
    if failures:
        failure = next((one for one in failures if isinstance(one, Cancelled)), failures[0])
        if branch is not None:
            branch.told = branch.told or isinstance(failure, Cancelled)
            branch.run.history.failed_together(failure, [one for one in failures if one is not failure])
        raise failure
    return [cast("R", call.result) for call in made]


def _count(branch: Branch | None, change: int) -> None:
    """So many more threads of the branch's workflow do something."""
    if branch is not None:
        with branch.run.lock:
            branch.run.acting += change


def _make_all(waiting: "deque[_Call]") -> None:
    while True:
        try:
            call = waiting.popleft()
        except IndexError:
            return
        call.make()


class _Call:
    """One call of a `gather`: in whichever thread, in the caller's context, on a branch of its own."""

    def __init__(self, call: Callable[[], Any], branch: Branch | None) -> None:
        self._call, self._branch = call, branch
        self._context = copy_context()
        self.ended = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        _count(self._branch, 1)
        try:
            self.result = self._context.run(self._here)
        except BaseException as error:
            self.error = error
        finally:
            _count(self._branch, -1)
            self.ended.set()

    def _leave(self) -> None:
        self.error = Suspended()
        _count(self._branch, -1)
        self.ended.set()

    def _here(self) -> Any:
        if self._branch is not None:
            self._branch.home = threading.current_thread()
            self._branch.leave = self._leave
            current.set(self._branch)
        return self._call()


# ---- for a process that runs no workflows ----------------------------------------------------------


class Client:
    """The ledger from a process without the workflows' code, for blocking code; see `eventflow.client.Client`."""

    def __init__(
        self, database_url: str | None = None, *, schema: str = "eventflow", application: str | None = None,
        payload_codec: PayloadCodec | None = None,
    ) -> None:  # fmt: skip
        self._client = AsyncClient(database_url, schema=schema, application=application, payload_codec=payload_codec)

    @classmethod
    def here(cls) -> Self:
        """The client of the application that runs in this process; see `eventflow.client.Client.here`."""
        made = cls.__new__(cls)
        made._client = AsyncClient.here()
        return made

    def __enter__(self) -> Self:
        refuse_loop("sync.Client", "async with eventflow.client.Client()")
        self._client.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._client.close()

    def handle(self, workflow_id: str, result: type[R], /) -> Handle[R]:
        """The handle of a workflow whose result is of this type; see `eventflow.client.Client.handle`."""
        return Handle(self._client.handle(workflow_id, result))

    @overload  # by name: arguments are checked by whoever runs it
    def enqueue(
        self, workflow: str, /, *args: object, result: type[R], kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    def enqueue(
        self, workflow: str, /, *args: object, kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
    ) -> Handle[object]: ...  # fmt: skip
    @overload
    def enqueue(
        self, workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    def enqueue(
        self, workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    def enqueue(
        self, workflow: Any, /, *args: Any, result: Any = None, kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: Borrowed | None = None,
    ) -> Handle[Any]:  # fmt: skip
        """Put a workflow in line, by its name or by its function; see `eventflow.client.Client.enqueue`."""
        refuse_loop("sync.Client.enqueue", "await eventflow.client.Client.enqueue")
        order, codec = order_for(
            workflow, args, kwargs or {}, queue, key, priority, delay, deduplication_id, debounce, debounce_limit,
            workflow_id, if_exists, timeout, attributes,
        )  # fmt: skip
        ledger = self._client.ledger
        placed = ledger.on_loop(ledger.enqueue(order)) if session is None else ledger.enqueue_on_sync(session, order)
        return Handle(AsyncHandle(placed, codec if result is None else codec_for(result), ledger))

    def queues(self) -> list[QueueRecord]:
        """The queues, with their limits, and how many wait in each."""
        return self._run("queues", self._client.queues)

    def change_queue(self, name: str, /, **limits: Any) -> None:
        """Change a queue's limits at once; see `eventflow.client.Client.change_queue`."""
        self._run("change_queue", self._client.change_queue, name, **limits)

    def reset_queue(self, name: str, /) -> None:
        """Let a queue have the limits that code says; see `eventflow.client.Client.reset_queue`."""
        self._run("reset_queue", self._client.reset_queue, name)

    def pause_queue(self, name: str, /) -> None:
        """Let nothing of a queue begin; see `eventflow.client.Client.pause_queue`."""
        self._run("pause_queue", self._client.pause_queue, name)

    def resume_queue(self, name: str, /) -> None:
        """Let a paused queue go on; see `eventflow.client.Client.resume_queue`."""
        self._run("resume_queue", self._client.resume_queue, name)

    def schedules(self) -> list[ScheduleRecord]:
        """The schedules; see `eventflow.client.Client.schedules`."""
        return self._run("schedules", self._client.schedules)

    def schedule(self, name: str, /) -> ScheduleRecord:
        """One schedule; see `eventflow.client.Client.schedule`."""
        return self._run("schedule", self._client.schedule, name)

    def upcoming(self, name: str, /, *, count: int = 10, after: datetime | None = None) -> list[datetime]:
        """The next fire times of a schedule; see `eventflow.client.Client.upcoming`."""
        return self._run("upcoming", self._client.upcoming, name, count=count, after=after)

    def create_schedule(
        self, name: str, workflow: str | Workflow[..., Any], /, *args: object, cron: str | None = None,
        every: timedelta | None = None, timezone: str = "UTC", overlap: Overlap = "skip", catch_up: Seconds = 3600,
        jitter: Seconds = 0, start: datetime | None = None, end: datetime | None = None, timeout: Seconds | None = None,
        kwargs: Mapping[str, object] | None = None, with_fire: bool | None = None, replace: bool = False,
    ) -> None:  # fmt: skip
        """Make a schedule that is kept in the ledger; see `eventflow.client.Client.create_schedule`."""
        self._run(
            "create_schedule", self._client.create_schedule, name, workflow, *args, cron=cron, every=every,
            timezone=timezone, overlap=overlap, catch_up=catch_up, jitter=jitter, start=start, end=end, timeout=timeout,
            kwargs=kwargs, with_fire=with_fire, replace=replace,
        )  # fmt: skip

    def delete_schedule(self, name: str, /) -> None:
        """Forget a schedule; see `eventflow.client.Client.delete_schedule`."""
        self._run("delete_schedule", self._client.delete_schedule, name)

    def pause_schedule(self, name: str, /, note: str = "") -> None:
        """Let a schedule start nothing until it is resumed; see `eventflow.client.Client.pause_schedule`."""
        self._run("pause_schedule", self._client.pause_schedule, name, note)

    def resume_schedule(self, name: str, /) -> None:
        """Let a paused schedule fire again; see `eventflow.client.Client.resume_schedule`."""
        self._run("resume_schedule", self._client.resume_schedule, name)

    @overload
    def trigger_schedule(self, name: str, /, *, result: type[R]) -> Handle[R]: ...
    @overload
    def trigger_schedule(self, name: str, /) -> Handle[object]: ...
    def trigger_schedule(self, name: str, /, *, result: Any = object) -> Handle[Any]:
        """Fire a schedule now; see `eventflow.client.Client.trigger_schedule`."""
        return Handle(self._run("trigger_schedule", self._client.trigger_schedule, name, result=result))

    def backfill_schedule(
        self, name: str, first: datetime, last: datetime, /, *, at_once: bool = False, dry_run: bool = False
    ) -> list[datetime]:
        """Fire the fire times of a range that have started nothing; see `eventflow.client.Client.backfill_schedule`."""
        return self._run(
            "backfill_schedule", self._client.backfill_schedule, name, first, last, at_once=at_once, dry_run=dry_run
        )

    def delay(self, workflow_ids: Sequence[str], until: Seconds | datetime, /) -> int:
        """Let workflows that wait in their queues wait until another time; see `eventflow.Handle.delay`."""
        return self._run("delay", self._client.delay, workflow_ids, until)

    def workflows(
        self, *, status: Status | None = None, name: str | None = None, queue: str | None = None,
        prefix: str | None = None, attributes: Mapping[str, object] | None = None, parent: str | None = None,
        created_after: datetime | None = None, created_before: datetime | None = None, newest_first: bool = False,
    ) -> Iterator[WorkflowRecord]:  # fmt: skip
        """Workflows, oldest first; see `eventflow.client.Client.workflows`."""
        refuse_loop("sync.Client.workflows", "async for ... in eventflow.client.Client.workflows")
        wanted = Filter(status, name, queue, prefix, attributes, parent, created_after, created_before)
        return each(Pages(self._client.ledger, wanted, newest_first=newest_first))

    def workflow(self, workflow_id: str, /) -> WorkflowDetails:
        """A workflow with all that is known of it; see `eventflow.client.Client.workflow`."""
        return self._run("workflow", self._client.workflow, workflow_id)

    def overview(self) -> Overview:
        """What goes on; see `eventflow.client.Client.overview`."""
        return self._run("overview", self._client.overview)

    def why(self, subject: str, /, *, group: str | None = None) -> list[Reason]:
        """Why something does not run; see `eventflow.client.Client.why`."""
        return self._run("why", self._client.why, subject, group=group)

    def publish(
        self, topic: str, value: object, /, *, key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None, session: Borrowed | None = None,
    ) -> None:  # fmt: skip
        """Publish an event; see `eventflow.client.Client.publish`."""
        if session is None:
            self._run("publish", self._client.publish, topic, value, key=key, headers=headers)
        else:
            refuse_loop("sync.Client.publish", "await eventflow.client.Client.publish")
            row = outbox_row(topic, value, key, headers)
            self._client.ledger.publish_on_sync(session, traced(row, creation(topic)))

    def undelivered(self) -> list[Undelivered]:
        """The events that Kafka refuses; see `eventflow.client.Client.undelivered`."""
        return self._run("undelivered", self._client.undelivered)

    def retry_undelivered(self, ids: Sequence[int] | None = None, /) -> int:
        """Have refused events tried again; see `eventflow.client.Client.retry_undelivered`."""
        return self._run("retry_undelivered", self._client.retry_undelivered, ids)

    def drop_undelivered(self, ids: Sequence[int], /) -> int:
        """Have refused events dropped; see `eventflow.client.Client.drop_undelivered`."""
        return self._run("drop_undelivered", self._client.drop_undelivered, ids)

    def send_many(
        self, messages: Iterable[tuple[str, object]], /, *, topic: str = "", idempotency_key: str | None = None
    ) -> None:
        """Put many messages into their inboxes, in one transaction; see `eventflow.client.Client.send_many`."""
        self._run("send_many", self._client.send_many, messages, topic=topic, idempotency_key=idempotency_key)

    def cancel(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """Ask for workflows to end; returns of how many that is true. See `eventflow.Handle.cancel`."""
        return self._run("cancel", self._client.cancel, workflow_ids, children=children)

    def terminate(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """End workflows here and now; returns of how many that is true. See `eventflow.Handle.terminate`."""
        return self._run("terminate", self._client.terminate, workflow_ids, children=children)

    def resume(self, workflow_ids: Sequence[str], /) -> int:
        """Let parked and cancelled workflows go on; see `eventflow.Handle.resume`."""
        return self._run("resume", self._client.resume, workflow_ids)

    def retry(self, workflow_ids: Sequence[str], /) -> int:
        """Run failed workflows again from the step that ended them; see `eventflow.Handle.retry`."""
        return self._run("retry", self._client.retry, workflow_ids)

    def restart(self, workflow_ids: Sequence[str], /) -> int:
        """Run workflows that have ended again from the beginning; see `eventflow.Handle.restart`."""
        return self._run("restart", self._client.restart, workflow_ids)

    def fork(self, workflow_ids: Sequence[str], /, step: str | None = None) -> list[str]:
        """Start a new workflow from each of these; their ids. See `eventflow.client.Client.fork`."""
        return self._run("fork", self._client.fork, workflow_ids, step)

    def delete(self, workflow_ids: Sequence[str], /) -> int:
        """Delete workflows that have ended or are parked; see `eventflow.Handle.delete`."""
        return self._run("delete", self._client.delete, workflow_ids)

    def dead_letters(self, **only: Unpack[Letters]) -> Iterator[DeadLetter]:
        """Messages that failed for good or are parked; see `eventflow.client.Client.dead_letters`."""
        refuse_loop("sync.Client.dead_letters", "async for ... in eventflow.client.Client.dead_letters")
        return each(LetterPages(self._client.ledger, LetterFilter(**only)))

    def dead_letter(self, workflow_id: str, /) -> DeadLetterDetails:
        """A message with its history; see `eventflow.client.Client.dead_letter`."""
        return self._run("dead_letter", self._client.dead_letter, workflow_id)

    def redeliver(self, workflow_ids: Sequence[str], /) -> int:
        """Run dead letters again; see `eventflow.client.Client.redeliver`."""
        return self._run("redeliver", self._client.redeliver, workflow_ids)

    def redeliver_edited(self, workflow_id: str, /, **changes: Unpack[Changes]) -> None:
        """Run a dead letter again with another value, or other headers; see `eventflow.client.Client.redeliver_edited`."""
        self._run("redeliver_edited", self._client.redeliver_edited, workflow_id, **changes)

    def drop(self, workflow_ids: Sequence[str], /, reason: str) -> int:
        """Have dead letters never be handled; see `eventflow.client.Client.drop`."""
        return self._run("drop", self._client.drop, workflow_ids, reason)

    def redeliver_all(self, *, rate: float | None = None, **only: Unpack[Letters]) -> Redelivery:
        """Redeliver all dead letters, at a rate; returns at once. See `eventflow.client.Client.redeliver_all`."""
        return self._run("redeliver_all", self._client.redeliver_all, rate=rate, **only)

    def redelivery(self, number: int, /) -> Redelivery:
        """How far a redelivery is; see `eventflow.client.Client.redelivery`."""
        return self._run("redelivery", self._client.redelivery, number)

    def redeliveries(self) -> list[Redelivery]:
        """All redeliveries that people have ordered; see `eventflow.client.Client.redeliveries`."""
        return self._run("redeliveries", self._client.redeliveries)

    def stop_redelivery(self, number: int, /) -> bool:
        """Let no more of a redelivery go; see `eventflow.client.Client.stop_redelivery`."""
        return self._run("stop_redelivery", self._client.stop_redelivery, number)

    def pause_consumer(
        self, group: str, topic: str | None = None, partition: int | None = None, /, *, reason: str
    ) -> None:
        """Let a consumer read nothing more until it is resumed; see `eventflow.client.Client.pause_consumer`."""
        self._run("pause_consumer", self._client.pause_consumer, group, topic, partition, reason=reason)

    def resume_consumer(self, group: str, topic: str | None = None, partition: int | None = None, /) -> int:
        """Let what is paused go on; see `eventflow.client.Client.resume_consumer`."""
        return self._run("resume_consumer", self._client.resume_consumer, group, topic, partition)

    def pauses(self, group: str | None = None, /) -> list[Pause]:
        """What people have paused; see `eventflow.client.Client.pauses`."""
        return self._run("pauses", self._client.pauses, group)

    def lag(self, group: str | None = None, topic: str | None = None, /) -> list[PartitionLag]:
        """How far behind the groups are; see `eventflow.client.Client.lag`."""
        return self._run("lag", self._client.lag, group, topic)

    def reprocess(
        self, group: str, topic: str, /, *, since: datetime | None = None, offsets: Mapping[int, int] | None = None,
        instead: bool = False, rate: float | None = None, dry_run: bool = False,
    ) -> Reprocessing:  # fmt: skip
        """Run a topic again, as another generation of the group; see `eventflow.client.Client.reprocess`."""
        return self._run(
            "reprocess", self._client.reprocess, group, topic, since=since, offsets=offsets, instead=instead, rate=rate,
            dry_run=dry_run,
        )  # fmt: skip

    def reprocessing(self, number: int, /) -> Reprocessing:
        """How far a reprocessing is; see `eventflow.client.Client.reprocessing`."""
        return self._run("reprocessing", self._client.reprocessing, number)

    def reprocessings(self) -> list[Reprocessing]:
        """All that people have ordered; see `eventflow.client.Client.reprocessings`."""
        return self._run("reprocessings", self._client.reprocessings)

    def stop_reprocessing(self, number: int, /) -> bool:
        """Begin nothing more of it; see `eventflow.client.Client.stop_reprocessing`."""
        return self._run("stop_reprocessing", self._client.stop_reprocessing, number)

    def incidents(self, *, settled: bool = False) -> list[IncidentRecord]:
        """What a person should look at; see `eventflow.client.Client.incidents`."""
        return self._run("incidents", self._client.incidents, settled=settled)

    def settle(self, incident_id: int, choice: Choice, /) -> None:
        """Settle an incident; see `eventflow.client.Client.settle`."""
        self._run("settle", self._client.settle, incident_id, choice)

    def _run(self, name: str, ask: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_loop(f"sync.Client.{name}", f"await eventflow.client.Client.{name}")
        return self._client.ledger.on_loop(ask(*args, **kwargs))
