"""Starting workflows, and what a started one is to its caller: its id, its state, its result.

Inside a workflow both are recorded: a child's id is derived from its parent's and the position, and what it came to is
replayed.
"""

import asyncio
import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, cast, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

import eventflow.talk as talk
from eventflow.borrowed import AsyncBorrowed
from eventflow.codec import Codec, codec_for, recorded_line
from eventflow.context import Backend, Start, StepScope, current, current_branch, refuse_in_workflow, runtime
from eventflow.errors import UsageError, WorkflowNotFoundError, WorkflowTimeoutError
from eventflow.idempotency import check_workflow_id
from eventflow.ids import new_id
from eventflow.operations import awaited, note, operate
from eventflow.payloads import unread
from eventflow.queues import DEFAULT, IfExists, Order, delayed, place_in_line, plain_arguments
from eventflow.records import StepRecord, WorkflowRecord
from eventflow.registry import check_name
from eventflow.replay import Branch, History
from eventflow.retry import Seconds, seconds
from eventflow.steps import StepSpec, drive
from eventflow.workflows import AsyncStartable, SyncStartable, Workflow

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Asked = TypeVar("Asked", Start, Order)
_PARENT = 11  # the parent's column in `read_workflow.sql`
_SHORTEST, _LONGEST = 0.02, 0.5  # seconds between two looks at a stream where nothing has come


class Handle(Generic[R_co]):
    """A started workflow: its id, its state, its result."""

    def __init__(self, workflow_id: str, codec: Codec, backend: Backend | None = None) -> None:
        self._workflow_id = workflow_id
        self.codec = codec
        self._backend = backend

    @property
    def backend(self) -> Backend:
        """What answers for it: the running application, or the client that it came from.

        Raises:
            NotRunningError: outside `running()`.

        """
        return runtime("a handle") if self._backend is None else self._backend

    @property
    def recorded(self) -> bool:
        """Whether what a workflow does with it is recorded: not where it came from a client, which acts at once."""
        return self._backend is None

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self._workflow_id

    def __repr__(self) -> str:
        return f"Handle({self._workflow_id!r})"

    async def result(self, *, timeout: Seconds | None = None) -> R_co:
        """Wait for the workflow's result, `timeout` seconds at most. In a workflow, what came is recorded.

        Raises:
            WorkflowTimeoutError: there is none yet.
            WorkflowParkedError, WorkflowCancelledError: there will be none.
            WorkflowNotFoundError: the ledger has none of this id.
            NotRunningError: outside `running()`.
            UsageError: in a step or transaction.
            Exception: the workflow's own, as recorded.

        """
        if self.recorded and isinstance(current.get(), StepScope):
            raise UsageError("a handle cannot be awaited in a step or transaction")
        limit = None if timeout is None else seconds(timeout, "timeout")
        if self.recorded and current_branch() is not None:
            return await operate("a handle's result", talk.result(self._workflow_id, self.codec, limit))
        return await self.backend.result(self._workflow_id, self.codec, limit)

    async def get(self) -> WorkflowRecord:
        """The workflow as the ledger has it.

        Raises:
            NotRunningError: outside `running()`.
            WorkflowNotFoundError: it has none of this id.

        """
        row = await asyncio.to_thread(self.backend.row, self._workflow_id)
        return WorkflowRecord(*row[:6], *row[10:])

    async def steps(self) -> list[StepRecord]:
        """The workflow's durable steps, in order, failures as "Type: message"; none where the ledger has no such workflow.

        Raises:
            NotRunningError: outside `running()`.
            UnreadableError: they stand inside an encrypted row whose key is gone.

        """
        return steps_of(await asyncio.to_thread(self.backend.read, "read_steps", self._workflow_id))

    async def send(self, message: object, *, topic: str = "", idempotency_key: str | None = None) -> None:
        """Put a message into the workflow's inbox, exactly once; sent again under the same key it is the same message.

        In a workflow it is recorded, in a step or transaction it is sent with what that records. The workflow need not
        exist yet.

        Raises:
            CodecError: the message is no plain value, model or dataclass.
            UsageError: a topic or key that cannot be.
            NotRunningError: outside `running()`.

        """
        if self.recorded and current.get() is not None:
            talk.send(self._workflow_id, message, topic)
            return
        if idempotency_key is not None:
            talk.check_text(idempotency_key, "idempotency key")
        await self.backend.write(talk.message(self._workflow_id, message, topic, idempotency_key))

    async def event(self, key: str, type: type[T], /, *, timeout: Seconds | None = None) -> T:  # noqa: A002
        """The value that the workflow has set under this key, once it has. In a workflow it is recorded.

        Raises:
            WorkflowTimeoutError: it was not set within `timeout` seconds.
            CodecError: it is no such type.
            NotRunningError: outside `running()`.

        """
        if self.recorded and current_branch() is not None:
            return await operate("event", talk.get_event(self._workflow_id, key, type, timeout))
        limit = None if timeout is None else seconds(timeout, "timeout")
        talk.check_text(key, "key")
        value = await self.backend.event(self._workflow_id, key, limit)
        if value is None:
            raise WorkflowTimeoutError(f"the event {key!r} of {self._workflow_id!r} was not set within {limit} s")
        return codec_for(type).decode(value)

    def stream(self, key: str, type: type[T], /, *, offset: int = 0) -> AsyncIterator[T]:  # noqa: A002
        """What the workflow writes to a stream, from the item of this number on, as it is written.

        Ends behind the last item where the stream is closed, or the workflow has ended.

        Raises:
            UsageError: in a workflow (a step may read), or an offset or key that cannot be.
            WorkflowNotFoundError: while it is read; the ledger has none of this id.
            CodecError: while it is read; an item is no such type.
            NotRunningError: while it is read, outside `running()`.

        """
        return self._values(StreamPages(self.backend, self._workflow_id, key, offset), codec_for(type))

    async def _values(self, pages: "StreamPages", codec: Codec) -> AsyncIterator[Any]:
        while (page := await pages.read()) is not None:
            for text in page:
                yield codec.decode(text)

    async def cancel(self, *, children: bool = True) -> None:
        """Ask for the workflow to end: its wait or next operation raises once, then it may clean up. It may have ended.

        `asyncio.CancelledError` in async code, `errors.Cancelled` in sync code; where that is not caught, it ends as
        `cancelled`. With `children`, all that descends from it is asked, too. Who asked, and when, is recorded.

        In a workflow it is a step: done once what stands before it is durable, and not again by a replay.

        Raises:
            NotRunningError: outside `running()`.

        """
        await self._ask("cancel", children)

    async def terminate(self, *, children: bool = True) -> None:
        """End the workflow here and now, as `cancelled`: what its code still does is not recorded. Raises as `cancel`."""
        await self._ask("terminate", children)

    async def _ask(self, kind: str, children: bool) -> None:
        branch = current_branch() if self.recorded else None
        ask = functools.partial(self.backend.request, [self._workflow_id], kind, children=children)
        if branch is None:
            await ask()
        else:
            await drive(branch, step_that_asks(kind, ask), (), {})

    # ---- what people do to a workflow that nobody holds; who did it, and when, is recorded ----

    async def resume(self) -> None:
        """Let a parked or cancelled workflow go on from what it has recorded, on any process that serves it.

        What a cancelled one recorded after it was told so, its clean-up, is dropped. Its recoveries count from 0, and a
        deadline that is over no longer holds; so, too, with `retry` and `restart`.

        Raises:
            WorkflowStateError: it is in another state.
            WorkflowNotFoundError: the ledger has none of this id.
            NotRunningError: outside `running()`.

        """
        await self.backend.manage("resume", [self._workflow_id])

    async def retry(self) -> None:
        """Run a failed workflow again: the step whose exception ended it and everything recorded after it is dropped.

        Where no step's exception ended it, all that is recorded stays, and the code after it runs again. Raises as `resume`.
        """
        await self.backend.manage("retry", [self._workflow_id])

    async def restart(self) -> None:
        """Run a workflow that has ended again from the beginning, under its id, with all messages that it was ever sent.

        Children that it starts again have the ids that they had: it finds those that there are. Raises as `resume`.
        """
        await self.backend.manage("restart", [self._workflow_id])

    async def fork(self, step: str | None = None, *, workflow_id: str | None = None) -> "Handle[R_co]":
        """Start a new workflow with the same arguments, and with what this one recorded before a step, by its position.

        Positions are those of `steps()`; without one, it begins from the beginning. It has no messages, and no parent.

        Raises:
            WorkflowStateError: an executor holds this one; or it is a message's, whose place in Kafka is in its id.
            WorkflowExistsError: the id is taken.
            UsageError: nothing was recorded at this position; an id that cannot be.
            WorkflowNotFoundError, NotRunningError: as of `resume`.

        """
        fork_id = new_id() if workflow_id is None else check_workflow_id(workflow_id)
        if step is not None:
            talk.check_text(step, "position")
        await self.backend.fork([self._workflow_id], step, [fork_id])
        return Handle(fork_id, self.codec, self._backend)

    async def delay(self, until: Seconds | datetime, /) -> None:
        """Let a workflow that waits in its queue wait until then, or for so many seconds from now; 0: no longer.

        Raises:
            WorkflowStateError: it has begun, or ended.
            UsageError: a time that cannot be.
            WorkflowNotFoundError, NotRunningError: as of `resume`.

        """
        await self.backend.delay([self._workflow_id], *delayed(until))

    async def delete(self) -> None:
        """Delete a workflow that has ended or is parked, with what it recorded, its messages and its events.

        Raises as `resume`.
        """
        await self.backend.manage("forget", [self._workflow_id])


def steps_of(rows: list[tuple[Any, ...]]) -> list[StepRecord]:
    """The rows of `read_steps.sql` as records.

    Raises:
        UnreadableError: they stand inside a row that cannot be decoded.

    """
    found: list[StepRecord] = []
    for *facts, error, steps in rows:
        if steps is None:
            found.append(StepRecord(*facts, error=error and recorded_line(error)))
            continue
        unreadable = unread([steps])
        if unreadable is not None:
            raise unreadable
        for position, name, _, failure, attempts, taken in json.loads(steps):
            began, ended = facts[-1] - timedelta(seconds=taken), facts[-1]
            found.append(StepRecord(position, name, attempts, began, ended, failure and recorded_line(failure)))
    return found


class StreamPages:
    """A stream as it is read: page by page, with pauses where nothing has come."""

    def __init__(self, backend: Backend, workflow_id: str, key: str, offset: int) -> None:
        if current_branch() is not None:
            raise UsageError("a stream is not read in a workflow, where it is not recorded; read it in a step")
        if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < 2**63:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"not an offset: {offset!r}; it is the number of an item, from 0")
        talk.check_text(key, "key")
        self._backend, self._workflow_id, self._key, self._skip = backend, workflow_id, key, offset
        self._after, self._pause, self._over = 0, 0.0, False

    async def read(self) -> list[str] | None:
        """The next items, encoded; None where nothing will follow."""
        while not self._over:
            if self._pause:
                await asyncio.sleep(self._pause)
            rows = await self._backend.stream(self._workflow_id, self._key, self._after, self._skip)
            if not rows:
                raise WorkflowNotFoundError(f"no workflow has the id {self._workflow_id!r}")
            items = [(row[1], row[2]) for row in rows if row[1] is not None]
            if items:
                self._after, self._skip, self._pause = items[-1][0], 0, 0.0
                return [value for _, value in items]
            self._over = rows[0][0]
            self._pause = min(max(_SHORTEST, self._pause * 1.5), _LONGEST)
        return None


def prepare(
    workflow: object, args: tuple[Any, ...], workflow_id: str | None, if_exists: IfExists, timeout: Seconds | None,
    attributes: Mapping[str, object] | None,
) -> Start:  # fmt: skip
    """What is to be started, checked.

    Raises:
        UsageError: no workflow, or an option that cannot be.
        CodecError: an argument or attribute that cannot be encoded.

    """
    if not isinstance(workflow, Workflow):
        raise UsageError(f"start takes a function decorated with @workflow, not {workflow!r}")
    if isinstance(current.get(), StepScope) and workflow_id is not None:  # as `refuse_given`
        raise UsageError("start with a workflow_id in a step or transaction: do it in the workflow")
    if if_exists not in {"attach", "reject"}:
        raise UsageError(f"if_exists is 'attach' or 'reject', not {if_exists!r}")
    chosen = cast("Workflow[..., Any]", workflow)
    limit = chosen.spec.timeout if timeout is None else seconds(timeout, "timeout")
    found = None if attributes is None else codec_for(dict[str, Any]).named("the attributes").encode(dict(attributes))
    return Start(chosen.spec, chosen.encode(args, {}), workflow_id, if_exists, limit, found)


def step_that_asks(kind: str, call: Any) -> StepSpec:
    """Asking a workflow to end, as a step; asked twice it is told once."""
    return StepSpec.ours(kind, call, int)


def step_that_starts(start: Start, call: Any) -> StepSpec:
    """Starting under a given id, as a step: what exists is attached to, so that it may be done twice."""
    return StepSpec.ours(f"start {start.spec.name}", call, str)


def taken_for_ours(branch: Branch, asked: Asked) -> Asked:
    """What is started or enqueued under a given id, and rejected where it exists: not where it is this one. Blocks.

    An attempt that died before its record was durable may have started it, and then no operation has recorded it.
    """
    history: History = branch.run.history
    if asked.if_exists == "attach" or asked.workflow_id is None or history.has_begun(asked.workflow_id):
        return asked
    try:
        row = runtime("start").row(asked.workflow_id)
    except WorkflowNotFoundError:
        return asked
    return dataclasses.replace(asked, if_exists="attach") if row[_PARENT] == branch.run.workflow_id else asked


@overload
async def start(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[R]: ...  # fmt: skip
@overload
async def start(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[R]: ...  # fmt: skip
async def start(
    workflow: Any, /, *args: Any, workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None,
) -> Handle[Any]:  # fmt: skip
    """Start a workflow on this process; returns once it is durable, whatever then happens to the process.

    An id that exists: `attach` returns its handle if name and arguments agree, `reject` never does. In a workflow it
    starts a child, once through any crash, whose id is derived from the parent's where none is given; in a step or
    transaction it commits with what that records, and begins then. `timeout` is in seconds, stored, and inherited by
    children; what has not ended by then fails with `WorkflowTimeoutError`.

    Raises:
        NotRunningError: outside `running()`.
        WorkflowExistsError: the id is taken.
        UsageError: no workflow, or an id that cannot be; in a step or transaction: an id that is given.

    """
    asked = prepare(workflow, args, workflow_id, if_exists, timeout, attributes)
    if isinstance(current.get(), StepScope):
        return Handle(talk.start_with_step(asked), asked.spec.result)
    branch = current_branch()
    if branch is None:
        return Handle(await runtime("start").start_soon(asked), asked.spec.result)
    if workflow_id is None:
        return Handle(await awaited(lambda: note("start", talk.start(asked))), asked.spec.result)

    async def begin() -> str:
        child = await asyncio.to_thread(taken_for_ours, branch, talk.child_of(branch, asked))
        return await runtime("start").start_soon(child)

    return Handle(await drive(branch, step_that_starts(asked, begin), (), {}), asked.spec.result)


def order_for(
    workflow: object, args: tuple[Any, ...], kwargs: Mapping[str, object], queue: str, key: str | None, priority: int,
    delay: Seconds | datetime | None, deduplication_id: str | None, debounce: Seconds | None,
    debounce_limit: Seconds | None, workflow_id: str | None, if_exists: IfExists, timeout: Seconds | None,
    attributes: Mapping[str, object] | None,
) -> tuple[Order, Codec]:  # fmt: skip
    """What is to be put in line, checked, and the codec of its result; by name where its code is not here.

    Raises:
        UsageError: no workflow, or an option that cannot be.
        CodecError: an argument or attribute that cannot be encoded.

    """
    place = place_in_line(
        queue, key, priority, delay, deduplication_id, debounce, debounce_limit, if_exists, workflow_id
    )
    limit = None if timeout is None else seconds(timeout, "timeout")
    if isinstance(workflow, str):
        name, arguments, codec = check_name(workflow), plain_arguments(args, kwargs), codec_for(Any)
    elif isinstance(workflow, Workflow):
        chosen = cast("Workflow[..., Any]", workflow)
        name, arguments, codec = chosen.name, chosen.encode(args, dict(kwargs)), chosen.spec.result
        limit = chosen.spec.timeout if limit is None else limit
    else:
        raise UsageError(f"enqueue takes a function decorated with @workflow, not {workflow!r}")
    found = None if attributes is None else codec_for(dict[str, Any]).named("the attributes").encode(dict(attributes))
    chosen_id, given = workflow_id or new_id(), workflow_id is not None
    return Order(name, arguments, chosen_id, given, timeout=limit, attributes=found, **place), codec


def refuse_given(order: Order) -> None:
    """In a step or transaction: what others may hold would hold up the flush that carries it (PROTOCOL.md R4).

    Raises:
        UsageError: the order has an id or a deduplication id that is given.

    """
    if isinstance(current.get(), StepScope) and order.shared:
        raise UsageError(
            "enqueue with a workflow_id or a deduplication_id in a step or transaction: do it in the workflow, or pass the "
            "transaction's session="
        )


def step_that_enqueues(branch: Branch, order: Order, call: Callable[[Order], Any]) -> StepSpec:
    """Enqueueing under an id that others may have, as a step: sent twice it is placed once, by its id."""
    placed = talk.order_of(branch.run, branch.peek(), order)
    return StepSpec.ours(f"enqueue {order.name}", lambda: call(placed), str)


@overload
async def enqueue(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
    deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
    workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
    attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
) -> Handle[R]: ...  # fmt: skip
@overload
async def enqueue(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
    deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
    workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
    attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
) -> Handle[R]: ...  # fmt: skip
async def enqueue(
    workflow: Any, /, *args: Any, queue: str = DEFAULT, key: str | None = None, priority: int = 0,
    delay: Seconds | datetime | None = None, deduplication_id: str | None = None, debounce: Seconds | None = None,
    debounce_limit: Seconds | None = None, workflow_id: str | None = None, if_exists: IfExists = "attach",
    timeout: Seconds | None = None, attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
) -> Handle[Any]:  # fmt: skip
    """Put a workflow in line; any process that serves the queue takes it, as soon as the queue's limits allow.

    The smallest `priority` goes first; of one priority the `key`s take turns, and the queue's limits by key go by it.
    `delay` is in seconds, or until a moment. One unfinished workflow of the queue has a `deduplication_id`: where there
    is one, its handle is returned (or, by `if_exists`, refused). `debounce`: it begins when for so many seconds no other
    call with its deduplication id has come, the last call's arguments count; after `debounce_limit` seconds in any case.
    `timeout` is in seconds from when it begins. With `session`, which has a transaction on the ledger's database, the
    workflow exists when the caller commits. In a workflow it is recorded; in a step or transaction it commits with what
    that records.

    Raises:
        NotRunningError: outside `running()`; a process that runs nothing has `Client.enqueue`.
        WorkflowExistsError: the id is taken.
        UsageError: no workflow, no such queue, or an option that cannot be.
        CodecError: an argument that cannot be encoded.

    """
    order, codec = order_for(
        workflow, args, {}, queue, key, priority, delay, deduplication_id, debounce, debounce_limit, workflow_id,
        if_exists, timeout, attributes,
    )  # fmt: skip
    app, branch = runtime("enqueue"), current_branch()
    if session is not None:
        refuse_in_workflow("enqueue")
        return Handle(await app.enqueue_on(session, order), codec)
    if current.get() is None:
        return Handle(await app.enqueue(order), codec)
    app.check_queue(queue)
    refuse_given(order)
    if branch is None or not order.shared:
        return Handle(await awaited(lambda: talk.enqueue(order)), codec)

    async def place(placed: Order) -> str:
        return await app.enqueue(await asyncio.to_thread(taken_for_ours, branch, placed))

    return Handle(await drive(branch, step_that_enqueues(branch, order, place), (), {}), codec)


async def first(*handles: Handle[R]) -> Handle[R]:
    """The handle of the workflow that ends first; which one that was is recorded.

    Raises:
        UsageError: outside an async workflow, or without handles.

    """
    return handles[await operate("first", talk.first([id_of(handle) for handle in handles]))]


def id_of(handle: Any) -> str:
    """The id of the workflow that a handle stands for.

    Raises:
        UsageError: it is no handle.

    """
    workflow_id = getattr(handle, "workflow_id", None)
    if not isinstance(workflow_id, str):
        raise UsageError(f"not a handle of a workflow: {handle!r}")
    return workflow_id
