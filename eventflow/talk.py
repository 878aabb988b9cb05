"""Sleep, receive, send, tell: the operations of a workflow that waits or talks, as makers for either driver.

Each maker is used twice: awaited by `durable`, blocking by `sync`.
"""

import contextlib
import dataclasses
import hashlib
import json
import random as chance
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Never, cast

from typing_extensions import TypeVar

import eventflow.replay as replay
from eventflow.codec import Codec, codec_for, decode_error
from eventflow.context import ContinuedAsNew, Hopeless, Start, StepScope, current, runtime, scope_of
from eventflow.errors import (
    UsageError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowParkedError,
    WorkflowTimeoutError,
)
from eventflow.idempotency import check_workflow_id
from eventflow.ids import new_id
from eventflow.operations import branch_for, emit, note
from eventflow.outbox import Row, rider_of, traced
from eventflow.queues import Order
from eventflow.records import Rider
from eventflow.registry import Spec, check_name
from eventflow.replay import Branch, Operation
from eventflow.retry import Seconds, seconds
from eventflow.tracing import creation, started

T = TypeVar("T")
Maker = Callable[[Branch, str], Operation[T]]
_TEXT = 500  # characters of a topic or key
_ADDRESS = 2000  # characters of the id of a message's workflow, or of a child's
_MANY = 10_000  # messages that one call sends
_MANY_CHARACTERS = 16 * 1024 * 1024  # of all of them together, encoded: one statement, one flush


def sleep(duration: Seconds) -> Maker[None]:
    """Wait for so many seconds."""
    length = seconds(duration, "a sleep")

    def make(branch: Branch, position: str) -> Operation[None]:
        now = branch.run.executor.now
        return replay.sleep(branch.run.history, position, now, lambda: now() + length)

    return make


def sleep_until(time: datetime) -> Maker[None]:
    """Wait until a moment."""
    if not isinstance(time, datetime) or time.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"sleep_until takes a time with a zone, not {time!r}")

    def make(branch: Branch, position: str) -> Operation[None]:
        return replay.sleep(branch.run.history, position, branch.run.executor.now, time.timestamp)

    return make


def recv(kind: type[T], topic: str, timeout: Seconds | None) -> Maker[T]:
    """The next message of a topic."""
    codec, limit = codec_for(kind), None if timeout is None else seconds(timeout, "timeout")
    check_text(topic, "topic")

    def make(branch: Branch, position: str) -> Operation[T]:
        run = branch.run
        payload = yield from replay.receive(run.history, position, run.workflow_id, topic, run.executor.now, limit)
        if payload is None:
            raise WorkflowTimeoutError(f"no message came within {limit} s (topic {topic!r})")
        return codec.decode(payload)

    return make


def message(workflow_id: str, message: object, topic: str, key: str | None) -> list[Rider]:
    """What puts a message into a workflow's inbox, and wakes it."""
    check_address(workflow_id)
    check_text(topic, "topic")
    payload = _encoded(message, f"the message to {workflow_id!r}")
    return [
        Rider("insert_messages", (workflow_id, topic, payload, key or None)),
        Rider("insert_signals", (workflow_id,)),
    ]


def _encoded(value: object, what: str) -> str:
    return codec_for(type(value)).named(what).encode(value)


def send(workflow_id: str, content: object, topic: str) -> None:
    """Put a message into a workflow's inbox, with what this code records."""
    message(workflow_id, content, topic, None)  # checked here and now, also where it was recorded before
    emit("send", "send", lambda key: message(workflow_id, content, topic, key))


class Mail:
    """Many messages, checked and encoded: what one call sends.

    Raises:
        UsageError: what is no pair of an id and a message, too many or too much for one call, an id or topic that cannot be.
        CodecError: a message that is no plain value, model or dataclass.

    """

    def __init__(self, messages: Iterable[tuple[str, object]], topic: str) -> None:
        check_text(topic, "topic")
        self._topic = topic
        self._letters: list[tuple[str, str]] = []
        size = 0
        for pair in cast("Iterable[Any]", messages):
            number = len(self._letters)
            if not isinstance(pair, tuple) or len(cast("tuple[Any, ...]", pair)) != 2:
                raise UsageError(f"send_many takes pairs (workflow id, message); number {number} is {pair!r}")
            if number == _MANY:
                raise UsageError(f"send_many sends at most {_MANY:,} messages in one call")
            workflow_id, content = cast("tuple[Any, Any]", pair)
            check_address(workflow_id)
            payload = _encoded(content, f"the message to {workflow_id!r}")
            size += len(payload)
            if size > _MANY_CHARACTERS:
                raise UsageError(
                    f"send_many sends at most {_MANY_CHARACTERS:,} characters of JSON in one call; with message number "
                    f"{number} it is {size:,}"
                )
            self._letters.append((workflow_id, payload))

    def riders(self, key: str | None) -> list[Rider]:
        """What puts each into its inbox, and wakes who sleeps; sent again under the same key they are the same messages."""
        posted = [
            Rider("insert_messages", (workflow_id, self._topic, payload, f"{key}.{number}" if key else None))
            for number, (workflow_id, payload) in enumerate(self._letters)
        ]
        return [*posted, *(Rider("insert_signals", (to,)) for to in dict.fromkeys(to for to, _ in self._letters))]


def send_many(messages: Iterable[tuple[str, object]], topic: str) -> None:
    """Put a message into each of many inboxes, with what this code records."""
    emit("send_many", "send_many", Mail(messages, topic).riders)


def set_event(key: str, value: object) -> None:
    """Tell everyone a value, by key, with what this code records."""
    check_text(key, "key")
    text = _encoded(value, f"the event {key!r}")
    me = scope_of("set_event()")[0].workflow_id
    riders = [Rider("insert_events", (me, key, text)), Rider("signal_watches", (me, key))]
    emit("set_event", "set_event", lambda _: riders)


def get_event(workflow_id: str, key: str, kind: type[T], timeout: Seconds | None) -> Maker[T]:
    """The value of another workflow's event."""
    codec, limit = codec_for(kind), None if timeout is None else seconds(timeout, "timeout")
    check_address(workflow_id)
    check_text(key, "key")

    def make(branch: Branch, position: str) -> Operation[T]:
        run = branch.run
        value = yield from replay.event(run.history, position, workflow_id, key, run.executor.now, limit)
        if value is None:
            raise WorkflowTimeoutError(f"the event {key!r} of {workflow_id!r} was not set within {limit} s")
        return codec.decode(value)

    return make


def write_stream(key: str, value: object) -> None:
    """Append to a stream of this workflow, with what this code records."""
    check_text(key, "key")
    text = _encoded(value, f"the item of the stream {key!r}")
    run = scope_of("write_stream()")[0]
    if run is None:
        raise UsageError("write_stream() belongs into a workflow or a step of one: a stream is a workflow's")
    digest = hashlib.sha256(f"{key}\0{text}".encode()).hexdigest()[:16]

    def make(place: str) -> list[Rider]:
        if key in run.history.closed():
            raise UsageError(
                f"the stream {key!r} of {run.workflow_id!r} is closed: nothing can be written to it any more"
            )
        return [Rider("insert_stream_items", (run.workflow_id, key, text, f"{place.rpartition('#')[2]} {digest}"))]

    emit("write_stream", "write_stream", make)


def close_stream(key: str) -> None:
    """End a stream of this workflow, recorded; a second time says nothing new."""
    check_text(key, "key")

    def record(branch: Branch, position: str) -> None:
        run = branch.run
        if run.history.find(position, "close_stream") is None:
            closed = Rider("insert_stream_items", (run.workflow_id, key, None, None))
            already = key in run.history.closed()
            run.history.note(position, "close_stream", json.dumps(key), *(() if already else (closed,)))
            run.history.closed().add(key)

    note("close_stream()", record)


def publish(row: Row) -> None:
    """Publish an event with what this code records."""
    emit("publish", f"publish {row[0]}", lambda _: [rider_of(traced(row, creation(row[0])))])


# ---- progress of a step ------------------------------------------------------------------------------


def heartbeat(value: object) -> None:
    """Tell how far this step is."""
    scope = _step_of("heartbeat()")
    text = _encoded(value, f"the details of the step {scope.name!r}")
    if scope.left:  # its time was over, and the next attempt may tell more
        return
    scope = scope.whole or scope
    scope.branch.run.executor.heartbeat(scope, text)


def details(kind: type[T]) -> T | None:
    """What this step, or a former attempt of it, told last."""
    scope = _step_of("details()")
    codec = codec_for(kind).named(f"the details of the step {scope.name!r}")
    told = (scope.whole or scope).progress
    text = scope.branch.run.history.details(scope.position) if told is None else told.details
    return None if text is None or text == "null" else codec.decode(text)


def _step_of(what: str) -> StepScope:
    here = current.get()
    if not isinstance(here, StepScope):
        raise UsageError(f"{what} belongs into a step of a workflow")
    if here.kind != "step":
        raise UsageError(f"{what} belongs into a step; of the transaction {here.name!r} that fails nothing is left")
    return here


# ---- children ----------------------------------------------------------------------------------------


def start(asked: Start) -> Callable[[Branch, str], str]:
    """Start a child: its row is written with this position's checkpoint. Returns its id, derived from both."""

    def record(branch: Branch, position: str) -> str:
        run, name = branch.run, f"start {asked.spec.name}"
        workflow_id = run.child_id(position)
        if run.history.find(position, name) is None:
            rider = run.executor.child(child_of(branch, asked), workflow_id, again=run.attempt > 1)
            cause = started("start", asked.spec.name, workflow_id)
            run.history.note(position, name, json.dumps(workflow_id), *cause, rider)
        return workflow_id

    return record


def start_with_step(asked: Start) -> str:
    """Start a workflow with what this step or transaction records; a child, where that is a workflow's. Returns its id."""
    here = current.get()
    assert isinstance(here, StepScope)
    run = here.branch.run
    if run is None:
        app, workflow_id = runtime("start"), new_id()
        rider = asked.rider(workflow_id, app.application, app.now(), None)
    else:
        place = here.place()
        workflow_id = run.child_id(place)
        again = run.attempt > 1 or here.kind == "elsewhere"  # who commits it may be another executor than this one
        asked = child_of(here.branch, asked)
        rider = run.executor.child_with_step(asked, workflow_id, again=again, beside=len(here.riders))
    emit("start", "start", lambda _: [*started("start", asked.spec.name, workflow_id), rider])
    return workflow_id


def child_of(branch: Branch, asked: Start) -> Start:
    """The same, of this parent: its time is over when its own limit is, or its parent's, whichever comes first."""
    run = branch.run
    left = None if run.life is None or run.life.deadline is None else max(0.0, run.life.deadline - run.executor.now())
    limit = min((one for one in (left, asked.timeout) if one is not None), default=None)
    return dataclasses.replace(asked, parent=run.workflow_id, timeout=limit)


def enqueue(order: Order) -> str:
    """Put a workflow in line with what this code records. Returns its id, derived from where it is recorded."""
    here = current.get()
    if isinstance(here, StepScope):
        run = here.branch.run
        placed = order if run is None else order_of(run, here.place(), order)
        application = runtime("enqueue").application
        rider = Rider("enqueue", placed.row(application))
        emit("enqueue", "enqueue", lambda _: [rider, *started("enqueue", placed.name, placed.workflow_id)])
        return placed.workflow_id

    def record(branch: Branch, position: str) -> str:
        run, name = branch.run, f"enqueue {order.name}"
        placed = order_of(run, position, order)
        if run.history.find(position, name) is None:
            rider = Rider("enqueue", placed.row(run.application))
            cause = started("enqueue", placed.name, placed.workflow_id)
            run.history.note(position, name, json.dumps(placed.workflow_id), rider, *cause)
        return placed.workflow_id

    return note("enqueue", record)


def order_of(run: Any, position: str, order: Order) -> Order:
    """The same, of this parent: with an id derived from both where none is given; over with the parent, at the latest."""
    life = run.life
    return dataclasses.replace(
        order, workflow_id=order.workflow_id if order.given else run.child_id(position), parent=run.workflow_id,
        deadline=None if life is None else life.deadline,
    )  # fmt: skip


def result(workflow_id: str, codec: Codec, limit: float | None) -> Maker[Any]:
    """How another workflow ended."""

    def make(branch: Branch, position: str) -> Operation[Any]:
        run = branch.run
        ended = yield from replay.outcome(run.history, position, workflow_id, run.settled, run.executor.now, limit)
        if ended is None:
            raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {limit} s")
        status, output, error, reason = ended
        try:
            return result_of(workflow_id, status, output, error, reason, codec)
        except Exception as failure:
            run.history.note_failure(failure, position)
            raise

    return make


def first(workflow_ids: Sequence[str]) -> Maker[int]:
    """Which of these workflows ended first."""
    if not workflow_ids:
        raise UsageError("first needs at least one handle")

    def make(branch: Branch, position: str) -> Operation[int]:
        return replay.first(branch.run.history, position, workflow_ids, branch.run.settled)

    return make


def result_of(
    workflow_id: str, status: str, output: str | None, error: str | None, reason: str | None, codec: Codec
) -> Any:
    """The result of a workflow that has ended, or is parked.

    Raises:
        WorkflowCancelledError, WorkflowParkedError: there is none.
        WorkflowNotFoundError: nor is there a workflow.
        Exception: the workflow's own, as recorded.

    """
    if status == "succeeded":
        return codec.decode(output or "null")
    if status == "failed":
        raise decode_error(error or "{}")
    if status == "cancelled":
        raise WorkflowCancelledError(f"{workflow_id!r} was {reason}")
    if status == "gone":
        raise WorkflowNotFoundError(f"no workflow has the id {workflow_id!r}: it was deleted, or never there")
    raise WorkflowParkedError(f"{workflow_id!r} is parked: {reason}")


# ---- recorded values -------------------------------------------------------------------------------


def now() -> datetime:
    """The time by the ledger's clock, when this was first reached."""

    def record(branch: Branch, position: str) -> str:
        clock = branch.run.executor.now
        return replay.recorded_value(branch.run.history, position, "now", lambda: repr(clock()))

    return datetime.fromtimestamp(float(note("now()", record, lambda: repr(time.time()))), UTC)


def uuid4() -> uuid.UUID:
    """A random id, the same on every replay."""

    def record(branch: Branch, position: str) -> str:
        return replay.recorded_value(branch.run.history, position, "uuid4", lambda: uuid.uuid4().hex)

    return uuid.UUID(hex=note("uuid4()", record, lambda: uuid.uuid4().hex))


def random() -> float:
    """A random number from 0 to 1, the same on every replay."""

    def record(branch: Branch, position: str) -> str:
        return replay.recorded_value(branch.run.history, position, "random", lambda: repr(chance.random()))

    return float(note("random()", record, lambda: repr(chance.random())))


def patch(name: str) -> bool:
    """Whether the code that is new since `name` shall run here."""
    branch = branch_for("patch()")
    try:
        branch.run.executor.check(branch.run)
    except Hopeless:
        return True
    return replay.patch(branch.run.history, branch, check_name(name))


def deprecate_patch(name: str) -> None:
    """Pass over a patch's marker."""
    branch = branch_for("deprecate_patch()")
    with contextlib.suppress(Hopeless):
        branch.run.executor.check(branch.run)
    replay.deprecate_patch(branch.run.history, branch, check_name(name))


def continue_as_new(spec: Spec, arguments: str) -> Never:
    """End this run and start the next, with these arguments and an empty history."""
    branch = branch_for("continue_as_new")
    if branch.run.spec is not spec:
        raise UsageError(f"continue_as_new goes on with {branch.run.name!r} itself, not with {spec.name!r}")
    raise ContinuedAsNew(arguments)


def check_text(text: Any, what: str) -> None:
    """Refuse a topic or key that is no text, or longer than anyone can mean."""
    if not isinstance(text, str) or len(text) > _TEXT or "\0" in text or text.encode(errors="replace").decode() != text:
        raise UsageError(f"not a {what}: {text!r}; it is a text of at most {_TEXT} characters")


def check_address(workflow_id: Any) -> None:
    """Refuse what can be no workflow's id. A message's workflow has one, too, and a fire time's."""
    derived = isinstance(workflow_id, str) and (workflow_id.startswith(("kafka:", "schedule:")) or ">" in workflow_id)
    if not derived:
        check_workflow_id(workflow_id)
    elif not workflow_id.isprintable() or len(workflow_id) > _ADDRESS:
        raise UsageError(f"a workflow id is at most {_ADDRESS} printable characters: {workflow_id!r}")
