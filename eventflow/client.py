"""For a process that runs no workflows: handles and lists, straight from the ledger. `sync.Client` is the blocking twin."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, get_args, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

import eventflow.firing as firing
import eventflow.talk as talk
from eventflow.borrowed import AsyncBorrowed
from eventflow.codec import codec_for, limit
from eventflow.context import Backend, RunQuery, runtime, slot
from eventflow.cron import Overlap
from eventflow.database import database_of
from eventflow.dead_letters import (
    HeaderValues,
    LetterFilter,
    LetterPages,
    Letters,
    check_rate,
    edited,
    read_letter,
    redeliveries,
)
from eventflow.details import read_details, read_overview, read_why
from eventflow.errors import UsageError, WorkflowNotFoundError
from eventflow.handles import Handle, order_for
from eventflow.ids import new_id
from eventflow.lags import check_place, lags, pauses, place_text
from eventflow.ledger import Ledger, who
from eventflow.migrations import check_schema
from eventflow.outbox import Undelivered, outbox_row, rider_of, traced, undelivered_of
from eventflow.payloads import PayloadCodec
from eventflow.queues import DEFAULT, IfExists, QueueRecord, delayed, settings_json
from eventflow.records import (
    Choice,
    DeadLetter,
    DeadLetterDetails,
    IncidentRecord,
    Operation,
    Overview,
    PartitionLag,
    Pause,
    Reason,
    Redelivery,
    Reprocessing,
    Status,
    WorkflowDetails,
    WorkflowRecord,
    incident_of,
)
from eventflow.registry import check_name
from eventflow.reprocessing import Wanted, plan, reprocessings
from eventflow.retry import Seconds
from eventflow.schedules import ScheduleRecord, called, make_rule
from eventflow.settings import Settings, load_settings
from eventflow.tracing import creation
from eventflow.workflows import AsyncStartable, SyncStartable, Workflow

R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Ts = TypeVarTuple("Ts")
_KEPT = 4  # connections
_PAGE = 500
_MOST_UPCOMING = 1000
_UNDELIVERED = 1000
_DROPPED = "say why: a dropped message is never handled, and who looks for it later reads the reason"
_PAUSED = "say why it is paused: whoever wonders is shown that"


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which workflows a list has: those of which all is true that is given.

    Raises:
        UsageError: a status that there is not, or a time without a zone.
        CodecError: attributes that are no plain values.

    """

    status: Status | None = None
    name: str | None = None
    queue: str | None = None
    prefix: str | None = None
    attributes: Mapping[str, object] | None = None
    parent: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in get_args(Status):
            raise UsageError(f"no status: {self.status!r}; there are {', '.join(get_args(Status))}")
        for moment in (self.created_after, self.created_before):
            if moment is not None and moment.tzinfo is None:
                raise UsageError(f"a time with a zone, not {moment!r}")
        for text in (self.name, self.queue, self.prefix, self.parent):
            if text is not None and (not isinstance(text, str) or "\0" in text):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"a text to look for, not {text!r}")

    def params(self) -> dict[str, Any]:
        """As the query has them."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.attributes is not None:
            found["attributes"] = codec_for(dict[str, Any]).named("the attributes").encode(dict(self.attributes))
        return found


class Changes(TypedDict, total=False):
    """What is to change of a message: see `Client.redeliver_edited`."""

    value: bytes | None
    headers: HeaderValues


class Pages:
    """The workflows that a filter lets through, oldest or newest first, in pages; what is started meanwhile moves none."""

    def __init__(self, ledger: Backend, wanted: Filter, *, newest_first: bool = False) -> None:
        self._ledger = ledger
        self._params = wanted.params() | {"newest": newest_first}
        self._last: WorkflowRecord | None = None
        self.more = True

    def next(self) -> list[WorkflowRecord]:
        """The next page. Blocks."""
        last = self._last
        after = {"after_time": last and last.created_at, "after_id": last and last.workflow_id}
        page = [WorkflowRecord(*row) for row in self._ledger.query("list_workflows", {**self._params, **after})]
        self.more = len(page) == _PAGE
        self._last = page[-1] if page else last
        return page


class Client:
    """The ledger from a process without the workflows' code: their handles, their list, and what people do to many.

    What is done to many workflows is done to all or, where one of them is not in a state that allows it, to none.
    """

    def __init__(
        self, database_url: str | None = None, *, schema: str = "eventflow", application: str | None = None,
        payload_codec: PayloadCodec | None = None,
    ) -> None:  # fmt: skip
        """Of the ledger at this URL; else at `DATABASE_URL`. Its values pass this codec; else what the environment says.

        `application` is whose queues it puts workflows into and changes; else `EVENTFLOW_APPLICATION`.

        Raises:
            SettingsError: there is no URL, or it, the application or the codec cannot be.

        """
        given = {"database_url": database_url, "application": application, "payload_codec": payload_codec}
        settings = load_settings(database_schema=schema, **{n: v for n, v in given.items() if v is not None})
        self._database = database_of(settings)
        self._application, self._limit, self._lease = settings.application, settings.max_payload, settings.lease
        self._kafka = settings.kafka_bootstrap_servers, settings.kafka
        self._opened: Ledger | None = None

    @classmethod
    def here(cls) -> "Client":
        """The client of the application that runs in this process: not to be entered, and without connections of its own.

        In a workflow, too, it acts at once, and a replay does it again: call it in a step.
        """
        return _Here()

    @property
    def ledger(self) -> Backend:
        """What it asks through.

        Raises:
            UsageError: it is not entered.

        """
        if self._opened is None:
            raise UsageError(
                "enter the client first: `async with Client() as client:`, or `with sync.Client() as client:`"
            )
        return self._opened

    def open(self) -> None:
        """Look whether the ledger fits. Blocks.

        Raises:
            UnavailableError, SchemaError: what is wrong with it.
            UsageError: it is open already.

        """
        if self._opened is not None:
            raise UsageError("this client has been entered already")
        with self._database.connect("client") as connection:
            check_schema(connection, self._database.schema)
        if slot.runtime is None:  # else the application's settings say how large a value may be
            limit.size = self._limit
        self._opened = Ledger(self._database, self._application, keep=_KEPT, kafka=self._kafka)

    def close(self) -> None:
        """Close its connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def handle(self, workflow_id: str, result: type[R], /) -> Handle[R]:
        """The handle of a workflow whose result is of this type; whether there is one, the first question to it tells.

        Raises:
            UsageError: what can be no workflow's id; the client is not entered.

        """
        talk.check_address(workflow_id)
        return Handle(workflow_id, codec_for(result), self.ledger)

    @overload  # by name: arguments are checked by whoever runs it
    async def enqueue(
        self, workflow: str, /, *args: object, result: type[R], kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def enqueue(
        self, workflow: str, /, *args: object, kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
    ) -> Handle[object]: ...  # fmt: skip
    @overload
    async def enqueue(
        self, workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def enqueue(
        self, workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
    ) -> Handle[R]: ...  # fmt: skip
    async def enqueue(
        self, workflow: Any, /, *args: Any, result: Any = None, kwargs: Mapping[str, object] | None = None,
        queue: str = DEFAULT, key: str | None = None, priority: int = 0, delay: Seconds | datetime | None = None,
        deduplication_id: str | None = None, debounce: Seconds | None = None, debounce_limit: Seconds | None = None,
        workflow_id: str | None = None, if_exists: IfExists = "attach", timeout: Seconds | None = None,
        attributes: Mapping[str, object] | None = None, session: AsyncBorrowed | None = None,
    ) -> Handle[Any]:  # fmt: skip
        """Put a workflow in line, by its name or by its function; some process that serves the queue runs it.

        By name, each argument is encoded by its own type, and checked by whoever runs it; `result` is the result's type.
        The other options are those of `eventflow.enqueue`.

        Raises:
            WorkflowExistsError: the id is taken.
            UsageError: no such queue, no workflow, or an option that cannot be.
            CodecError: an argument that cannot be encoded.
            UnavailableError: the server is away.

        """
        order, codec = order_for(
            workflow, args, kwargs or {}, queue, key, priority, delay, deduplication_id, debounce, debounce_limit,
            workflow_id, if_exists, timeout, attributes,
        )  # fmt: skip
        ledger = self.ledger
        placed = await (ledger.enqueue(order) if session is None else ledger.enqueue_on(session, order))
        return Handle(placed, codec if result is None else codec_for(result), ledger)

    async def publish(
        self, topic: str, value: object, /, *, key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None, session: AsyncBorrowed | None = None,
    ) -> None:  # fmt: skip
        """Publish an event, at once or, with `session`, when its transaction commits; some process that runs relays it.

        As `eventflow.publish` outside of workflows.

        Raises:
            UsageError, CodecError: as of `eventflow.publish`.
            UnavailableError: the server is away; without a session the event may have been published.

        """
        row = traced(outbox_row(topic, value, key, headers), creation(topic))
        await (self.ledger.write([rider_of(row)]) if session is None else self.ledger.publish_on(session, row))

    async def undelivered(self) -> list[Undelivered]:
        """The events that Kafka refuses, and those that wait behind such ones, in order; a thousand at most."""
        rows = await asyncio.to_thread(self.ledger.query, "read_undelivered", {"after": 0, "most": _UNDELIVERED})
        [(ledger,)] = await asyncio.to_thread(self.ledger.query, "ledger_id", {})
        return [undelivered_of(row, ledger) for row in rows]

    async def retry_undelivered(self, ids: Sequence[int] | None = None, /) -> int:
        """Have refused events tried again, and what waits behind them after them; all, where none are named. Of how many."""
        return await self._decide("retry", ids)

    async def drop_undelivered(self, ids: Sequence[int], /) -> int:
        """Have refused events dropped for good; what waits behind them goes out. Of how many that is true."""
        return await self._decide("drop", ids)

    async def _decide(self, wanted: str, ids: Sequence[int] | None) -> int:
        asked = {"wanted": wanted, "events": None if ids is None else list(ids)}
        [(count,)] = await asyncio.to_thread(self.ledger.query, "decide_undelivered", asked)
        return count

    async def queues(self) -> list[QueueRecord]:
        """The queues, with their limits, and how many wait in each."""
        rows = await asyncio.to_thread(self.ledger.query, "list_queues", {"application": self.ledger.application})
        return [QueueRecord(row[0], json.loads(row[1]), *row[2:]) for row in rows]

    async def change_queue(self, name: str, /, **limits: Any) -> None:
        """Change a queue's limits at once, over what code says and until they are changed again; None: no limit.

        `limits` are those of `queues.Queue`. Who changed it, and when, is recorded.

        Raises:
            UsageError: no such queue, or a limit that cannot be.

        """
        await self.ledger.change_queue(name, settings_json(limits, name))

    async def reset_queue(self, name: str, /) -> None:
        """Let a queue have the limits that code says. Raises as `change_queue`."""
        await self.ledger.change_queue(name, "{}", reset=True)

    async def pause_queue(self, name: str, /) -> None:
        """Let nothing of a queue begin until it is resumed; what has begun goes on. Raises as `change_queue`."""
        await self.ledger.change_queue(name, "{}", paused=True)

    async def resume_queue(self, name: str, /) -> None:
        """Let a paused queue go on. Raises as `change_queue`."""
        await self.ledger.change_queue(name, "{}", paused=False)

    async def schedules(self) -> list[ScheduleRecord]:
        """The schedules, those that code defines and those that people made."""
        asked = {"application": self.ledger.application, "name": None}
        return [ScheduleRecord.of(row) for row in await asyncio.to_thread(self.ledger.query, "list_schedules", asked)]

    async def schedule(self, name: str, /) -> ScheduleRecord:
        """One schedule.

        Raises:
            UsageError: there is none of this name.

        """
        asked = {"application": self.ledger.application, "name": [name]}
        rows = await asyncio.to_thread(self.ledger.query, "list_schedules", asked)
        if not rows:
            raise UsageError(f"there is no schedule {name!r} in application {self.ledger.application!r}")
        return ScheduleRecord.of(rows[0])

    async def upcoming(self, name: str, /, *, count: int = 10, after: datetime | None = None) -> list[datetime]:
        """The next fire times of a schedule, paused or not, in its zone: after a moment, or now. Raises as `schedule`."""
        if not 0 < count <= _MOST_UPCOMING:
            raise UsageError(f"count is from 1 to {_MOST_UPCOMING}, not {count}")
        if after is not None and after.tzinfo is None:
            raise UsageError(f"after is a time with a zone, not {after!r}")
        record = await self.schedule(name)
        if after is None:
            [(seconds,)] = await asyncio.to_thread(self.ledger.query, "ledger_time", {})
            after = datetime.fromtimestamp(seconds, UTC)
        return await asyncio.to_thread(record.upcoming, count, after)

    async def create_schedule(
        self, name: str, workflow: str | Workflow[..., Any], /, *args: object, cron: str | None = None,
        every: timedelta | None = None, timezone: str = "UTC", overlap: Overlap = "skip", catch_up: Seconds = 3600,
        jitter: Seconds = 0, start: datetime | None = None, end: datetime | None = None, timeout: Seconds | None = None,
        kwargs: Mapping[str, object] | None = None, with_fire: bool | None = None, replace: bool = False,
    ) -> None:  # fmt: skip
        """Make a schedule that is kept in the ledger, and fires wherever a process knows the workflow; no deploy.

        It starts the workflow with these arguments; with the fire before them where its first parameter is a `Fire`, which
        by name `with_fire` says. `timeout` is how many seconds each has; the others are those of `eventflow.scheduled`. With
        `replace` it takes the place of one that a person has made.

        Raises:
            UsageError: a name that is taken, no workflow, or an option that cannot be.
            CodecError: an argument that cannot be encoded.

        """
        rule = make_rule(cron, every, timezone, overlap, catch_up, jitter, start, end)
        asked = called(workflow, args, kwargs or {}, with_fire, timeout)
        definition = firing.Definition(check_name(name), rule=rule, **asked)
        application = self.ledger.application
        await self.ledger.on_schedules(lambda run: firing.create(run, application, who(), definition, replace=replace))

    async def delete_schedule(self, name: str, /) -> None:
        """Forget a schedule, and what waits in its line; what it has started goes on. Code that defines it brings it back.

        Raises:
            UsageError: there is none of this name.

        """
        asked = {"application": self.ledger.application, "name": name}

        def delete(run: RunQuery) -> None:
            firing.lock(run, self.ledger.application, name)
            run("delete_schedule", asked)

        await self.ledger.on_schedules(delete)

    async def pause_schedule(self, name: str, /, note: str = "") -> None:
        """Let a schedule start nothing until it is resumed; `note` says why. Its fire times pass. Raises as `schedule`."""
        application = self.ledger.application
        await self.ledger.on_schedules(lambda run: firing.pause(run, application, who(), name, note))

    async def resume_schedule(self, name: str, /) -> None:
        """Let a paused schedule fire again, from its next time on; what waits in its line goes on. Raises as `schedule`."""
        application = self.ledger.application
        await self.ledger.on_schedules(lambda run: firing.resume(run, application, who(), name))

    @overload
    async def trigger_schedule(self, name: str, /, *, result: type[R]) -> Handle[R]: ...
    @overload
    async def trigger_schedule(self, name: str, /) -> Handle[object]: ...
    async def trigger_schedule(self, name: str, /, *, result: Any = object) -> Handle[Any]:
        """Fire a schedule now, paused or not, whatever else runs; its fire time is this moment. Raises as `schedule`."""
        application, ledger = self.ledger.application, self.ledger
        fired = await ledger.on_schedules(lambda run: firing.trigger(run, application, who(), name))
        return Handle(fired, codec_for(result), ledger)

    async def backfill_schedule(
        self, name: str, first: datetime, last: datetime, /, *, at_once: bool = False, dry_run: bool = False
    ) -> list[datetime]:
        """Fire the fire times from one moment to another that have started nothing; which these are.

        Beside the schedule's own, one after another, in order, or all at once. Done again, it is done once. A `dry_run` only
        tells.

        Raises:
            UsageError: no such schedule, a time without a zone or to come, or more than 10,000 fire times.

        """
        if any(not isinstance(m, datetime) or m.tzinfo is None for m in (first, last)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a backfill is from one time with a zone to another, not {first!r} to {last!r}")
        application = self.ledger.application
        return await self.ledger.on_schedules(
            lambda run: firing.backfill(run, application, who(), name, first, last, at_once=at_once, dry=dry_run)
        )

    async def delay(self, workflow_ids: Sequence[str], until: Seconds | datetime, /) -> int:
        """Let workflows that wait in their queues wait until another time. See `Handle.delay`."""
        return await self.ledger.delay(workflow_ids, *delayed(until))

    def workflows(
        self, *, status: Status | None = None, name: str | None = None, queue: str | None = None,
        prefix: str | None = None, attributes: Mapping[str, object] | None = None, parent: str | None = None,
        created_after: datetime | None = None, created_before: datetime | None = None, newest_first: bool = False,
    ) -> AsyncIterator[WorkflowRecord]:  # fmt: skip
        """Workflows, oldest first: of this status, name and queue, with ids that begin so and these attributes among theirs.

        Raises:
            UsageError, CodecError: as of `Filter`.

        """
        wanted = Filter(status, name, queue, prefix, attributes, parent, created_after, created_before)
        return _each(Pages(self.ledger, wanted, newest_first=newest_first))

    async def workflow(self, workflow_id: str, /) -> WorkflowDetails:
        """A workflow with what it was given, has recorded and came to, what it has started, and what people have done to it.

        Raises:
            WorkflowNotFoundError: the ledger has none of this id.
            UnreadableError: what it was given, recorded or came to is stored under a key that is not here.

        """
        talk.check_address(workflow_id)
        return await asyncio.to_thread(read_details, self.ledger, workflow_id)

    async def why(self, subject: str, /, *, group: str | None = None) -> list[Reason]:
        """Why something does not run, in a sentence with its evidence, whatever state it is in.

        `subject` is a workflow's id, `topic/partition` or `topic/partition/offset` (an answer for each group, or for this
        one), or a key: of messages or of a queue (an answer for whatever is the first of it somewhere). How far a log goes
        is told where `KAFKA_BOOTSTRAP_SERVERS` is set and the brokers answer; when a lease runs out, by `EVENTFLOW_LEASE`.

        Raises:
            WorkflowNotFoundError: the ledger knows nothing of this name.

        """
        talk.check_address(subject)
        return await asyncio.to_thread(read_why, self.ledger, subject, group, self._lease)

    async def overview(self) -> Overview:
        """What goes on in this client's application: processes, what its groups have read, workflows, dead letters.

        How far a group is behind is told where `KAFKA_BOOTSTRAP_SERVERS` is set and the brokers answer.
        """
        return await asyncio.to_thread(read_overview, self.ledger)

    async def send_many(
        self, messages: Iterable[tuple[str, object]], /, *, topic: str = "", idempotency_key: str | None = None
    ) -> None:
        """Put many messages, pairs of a workflow's id and what it is sent, into their inboxes, in one transaction.

        The same list sent again under the same key is the same messages, number by number. The workflows need not exist
        yet. At most 10,000 messages, and 16 Mi characters of JSON; those to one workflow keep their order.

        Raises:
            UsageError: what is no such pair, too many or too much, an id, topic or key that cannot be; not entered.
            CodecError: a message is no plain value, model or dataclass.
            UnavailableError: the server is away; without a key they may have been sent.

        """
        if idempotency_key is not None:
            talk.check_text(idempotency_key, "idempotency key")
        await self.ledger.write(talk.Mail(messages, topic).riders(idempotency_key))

    async def cancel(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """Ask for workflows to end; returns of how many that is true. See `Handle.cancel`."""
        return await self.ledger.request(workflow_ids, "cancel", children=children)

    async def terminate(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """End workflows here and now; returns of how many that is true. See `Handle.terminate`."""
        return await self.ledger.request(workflow_ids, "terminate", children=children)

    async def resume(self, workflow_ids: Sequence[str], /) -> int:
        """Let parked and cancelled workflows go on. See `Handle.resume`."""
        return await self._manage("resume", workflow_ids)

    async def retry(self, workflow_ids: Sequence[str], /) -> int:
        """Run failed workflows again from the step that ended them. See `Handle.retry`."""
        return await self._manage("retry", workflow_ids)

    async def restart(self, workflow_ids: Sequence[str], /) -> int:
        """Run workflows that have ended again from the beginning. See `Handle.restart`."""
        return await self._manage("restart", workflow_ids)

    async def fork(self, workflow_ids: Sequence[str], /, step: str | None = None) -> list[str]:
        """Start a new workflow from each of these, before the step at this position; their ids. See `Handle.fork`."""
        if step is not None:
            talk.check_text(step, "position")
        fork_ids = [new_id() for _ in workflow_ids]
        await self.ledger.fork(workflow_ids, step, fork_ids)
        return fork_ids

    async def delete(self, workflow_ids: Sequence[str], /) -> int:
        """Delete workflows that have ended or are parked. See `Handle.delete`."""
        return await self._manage("forget", workflow_ids)

    # ---- dead letters ----

    def dead_letters(self, **only: Unpack[Letters]) -> AsyncIterator[DeadLetter]:
        """Messages that failed for good or are parked, the oldest first: those of which all is true that is given.

        `consumer` is the handler's name; `error_type` the class of what they failed with last, with its module or without.

        Raises:
            UsageError: what can be true of none; a key where messages are stored encrypted.

        """
        return _each(LetterPages(self.ledger, LetterFilter(**only)))

    async def dead_letter(self, workflow_id: str, /) -> DeadLetterDetails:
        """A message with what each of its attempts failed with, and what people have changed of it; whatever became of it.

        Raises:
            WorkflowNotFoundError: no message's workflow has this id.
            UnreadableError: it is stored under a key that is not here.

        """
        talk.check_address(workflow_id)
        return await asyncio.to_thread(read_letter, self.ledger, workflow_id)

    async def redeliver(self, workflow_ids: Sequence[str], /) -> int:
        """Run dead letters again as what they are: what they recorded before they failed is replayed, and not done again.

        As soon as there is room, each with all its retries; out of its former order, where it has one.

        Raises:
            WorkflowStateError: one is no dead letter; then nothing was done to any.
            WorkflowNotFoundError: the ledger has none of this id.

        """
        return await self._manage("redeliver", workflow_ids)

    async def redeliver_edited(self, workflow_id: str, /, **changes: Unpack[Changes]) -> None:
        """Run a dead letter again with another value (`value=`, bytes or None), or other headers (`headers=`).

        What it recorded before it failed stays, and so does its key, by which it is kept in order. What the message was
        is kept, and who changed it: see `dead_letter`.

        Raises:
            UsageError: nothing is to change, or to what no message can have.
            WorkflowStateError, WorkflowNotFoundError: as of `redeliver`.
            UnreadableError: as of `dead_letter`.

        """
        columns = await asyncio.to_thread(edited, self.ledger, workflow_id, changes)
        await self.ledger.manage("redeliver_edited", [workflow_id], **columns)

    async def drop(self, workflow_ids: Sequence[str], /, reason: str) -> int:
        """Have dead letters never be handled: they end as `cancelled`, with the reason, and stay to be read.

        What waits behind a parked one goes on. `resume` takes it back. Raises as `redeliver`, and `UsageError` without a
        reason.
        """
        return await self.ledger.manage("drop_letters", workflow_ids, why=_reason(reason, _DROPPED))

    async def redeliver_all(self, *, rate: float | None = None, **only: Unpack[Letters]) -> Redelivery:
        """Redeliver all that `dead_letters` lists now, the oldest first, `rate` a second at most; returns at once.

        It is in the ledger: the processes of this client's application that serve the handlers let the next ones go,
        whatever becomes of this process or of any of them. `redelivery` tells how far it is.

        Raises:
            UsageError: as of `dead_letters`, or a rate that cannot be.

        """
        wanted = LetterFilter(**only).params(self.ledger)
        asked = {"rate": check_rate(rate), "application": self.ledger.application, **wanted}
        return await self.redelivery(await self.ledger.manage("redeliver_all", (), **asked))

    async def redelivery(self, number: int, /) -> Redelivery:
        """How far the redelivery of this number is.

        Raises:
            WorkflowNotFoundError: this application has none of this number.

        """
        found = await asyncio.to_thread(redeliveries, self.ledger, number)
        if not found:
            raise WorkflowNotFoundError(f"there is no redelivery {number}")
        return found[0]

    async def redeliveries(self) -> list[Redelivery]:
        """All redeliveries of this application that people have ordered, the oldest first."""
        return await asyncio.to_thread(redeliveries, self.ledger)

    async def stop_redelivery(self, number: int, /) -> bool:
        """Let no more of a redelivery go; false where it had ended. What has gone goes on, the rest are dead letters still."""
        await self.redelivery(number)
        return bool(await self.ledger.manage("stop_redelivery", (), redelivery=number))

    # ---- consumers ----

    async def pause_consumer(
        self, group: str, topic: str | None = None, partition: int | None = None, /, *, reason: str
    ) -> None:
        """Let a consumer group read nothing more, or nothing of a topic, or of one partition of that, until it is resumed.

        It is in the ledger: each process that reads it holds it up with its next beat, and whoever is started later does,
        too. Partitions stay with who has them. What is in flight ends, and what fails is tried again as ever.
        What is paused already is so for this reason, and by this caller, from now on.

        Raises:
            UsageError: the group has never read this, or no reason is given.

        """
        asked = {**check_place(group, topic, partition), "why": _reason(reason, _PAUSED), "who": who()}
        found = await self.ledger.on_schedules(lambda run: run("pause_consumer", asked))
        if not found:
            raise UsageError(f"{place_text(group, topic, partition)}: nobody has ever read that")

    async def resume_consumer(self, group: str, topic: str | None = None, partition: int | None = None, /) -> int:
        """Let what is paused go on: a group with all its topics, a topic with its partitions, or one; of how many pauses.

        Raises:
            UsageError: it is held up by a pause of more than that, which is to be resumed.

        """
        asked = check_place(group, topic, partition)
        resumed = await self.ledger.on_schedules(lambda run: run("resume_consumer", asked))
        for pause in await self.pauses(group):
            if topic is not None and pause.topic in {None, topic} and pause.partition in {None, partition}:
                wider = place_text(pause.group, pause.topic, pause.partition)
                raise UsageError(f"{wider} is paused by {pause.who} ({pause.why}): resume that")
        return len(resumed)

    async def pauses(self, group: str | None = None, /) -> list[Pause]:
        """What people have paused, of one group or of all."""
        return await asyncio.to_thread(pauses, self.ledger, group)

    async def lag(self, group: str | None = None, topic: str | None = None, /) -> list[PartitionLag]:
        """How far behind the groups are, partition by partition: in offsets, and by the age of the first message not accepted.

        Needs `KAFKA_BOOTSTRAP_SERVERS`: it asks Kafka where the logs end, and reads that message's time. Partitions that no
        group has read yet are not in it.

        Raises:
            UnavailableError, SettingsError: Kafka does not answer, or is not named.

        """
        return await asyncio.to_thread(lags, self.ledger, group, topic)

    # ---- reprocessing ----

    async def reprocess(
        self, group: str, topic: str, /, *, since: datetime | None = None, offsets: Mapping[int, int] | None = None,
        instead: bool = False, rate: float | None = None, dry_run: bool = False,
    ) -> Reprocessing:  # fmt: skip
        """Run a topic again, as another generation of the group that has read it: its messages under ids of their own.

        From a time on, or from these offsets of these partitions; else from its beginning. Beside the live consumer, which goes
        on as it was, up to where that is now; or `instead` of it: what it has begun may end, and the new generation goes on
        from there, through what the old one would have read. Returns at once: it is in the ledger, and the processes that
        serve the consumer read it, `rate` messages a second all together, whoever of them dies; each message once. Results
        of the former generations stay. A `dry_run` only tells what it would be.

        Needs `KAFKA_BOOTSTRAP_SERVERS`. The processes read what is beside the live one in the consumer group `{group}.g2`
        (`.g3`, …), where Kafka's ACLs have to allow that.

        Raises:
            UsageError: the group has read nothing of such a topic from there on, or an option cannot be.
            WorkflowStateError: one of this topic by this group has not ended; or the group's claims, which it must have for a
                moment, were held by somebody for ten seconds: a process that hangs in a transaction, say.
            UnavailableError, SettingsError: Kafka does not answer, or is not named.

        """
        wanted = await plan(self.ledger, Wanted(group, topic, since, offsets, instead, check_rate(rate)))
        if dry_run:
            return wanted.dry(who())
        return await self.reprocessing(await self.ledger.manage("reprocess", (), **wanted.params()))

    async def reprocessing(self, number: int, /) -> Reprocessing:
        """How far the reprocessing of this number is.

        Raises:
            WorkflowNotFoundError: there is none.

        """
        return (await asyncio.to_thread(reprocessings, self.ledger, number))[0]

    async def reprocessings(self) -> list[Reprocessing]:
        """All that people have ordered, the oldest first, of whichever group."""
        return await asyncio.to_thread(reprocessings, self.ledger)

    async def stop_reprocessing(self, number: int, /) -> bool:
        """Begin nothing more of it; what was accepted goes on. False where it had ended.

        Raises:
            WorkflowNotFoundError: there is none.
            WorkflowStateError: it is the live consumer by now.

        """
        return bool(await self.ledger.manage("stop_reprocessing", (), reprocessing=number))

    # ---- incidents ----

    async def incidents(self, *, settled: bool = False) -> list[IncidentRecord]:
        """What a person should look at, newest first, at most 1,000; with `settled`, also what was settled."""
        rows = await asyncio.to_thread(self.ledger.query, "list_incidents", {"settled": settled})
        return [incident_of(*row) for row in rows]

    async def settle(self, incident_id: int, choice: Choice, /) -> None:
        """Settle an incident; what it has stopped goes on within seconds, in whichever process has the partition.

        "earliest": at the first message that was not read, and of a log that was cut off, where it was; "latest": at the end,
        and what is skipped stands in the incident; "retry": where it stood, if that can be now, else there is a new incident.
        What stops nothing is settled by "retry": it was seen.

        Raises:
            UsageError: no such incident, it is settled, or it cannot be settled so.
            UnavailableError: the server is away; it may be settled.

        """
        await self.ledger.settle(incident_id, choice)

    async def _manage(self, operation: Operation, workflow_ids: Sequence[str]) -> int:
        return await self.ledger.manage(operation, workflow_ids)


class _Here(Client):
    """The running application's."""

    def __init__(self) -> None:
        self._opened = None
        self._lease = Settings.model_fields["lease"].default

    @property
    def ledger(self) -> Backend:
        return runtime("Client.here()")

    def open(self) -> None:
        raise UsageError("Client.here() is the running application's: it is used as it is, not entered")


def _reason(why: str, otherwise: str) -> str:
    """Why a person does something.

    Raises:
        UsageError: it says nothing.

    """
    if not isinstance(why, str) or not why.strip() or "\0" in why:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(otherwise)
    return why.strip()


class _Paged(Protocol[T_co]):
    more: bool

    def next(self) -> Sequence[T_co]: ...


async def _each(pages: _Paged[T]) -> AsyncIterator[T]:
    while pages.more:
        for record in await asyncio.to_thread(pages.next):
            yield record


def each(pages: _Paged[T]) -> Iterator[T]:
    """What is on all pages, for blocking code."""
    while pages.more:
        yield from pages.next()
