"""What stands in the ledger, as values: statuses and the machine between them, workflows, steps.

The state machine is this table and nothing else; the ledger's CHECKs hold the same one.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

Status = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "parked"]
# What people do to workflows that nobody holds: each a query of this name.
Operation = Literal[
    "resume", "retry", "restart", "forget", "redeliver", "redeliver_edited", "drop_letters", "redeliver_all", "stop_redelivery",
    "reprocess", "stop_reprocessing",
]  # fmt: skip

FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
UNFINISHED: frozenset[Status] = frozenset({"queued", "running", "waiting", "parked"})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "cancelled", "parked"}),
    "running": frozenset({"queued", "waiting", "succeeded", "failed", "cancelled", "parked"}),
    "waiting": frozenset({"queued", "running", "cancelled", "failed"}),
    "parked": frozenset({"queued", "cancelled"}),
    "failed": frozenset({"queued", "cancelled"}),
    "cancelled": frozenset({"queued"}),
    "succeeded": frozenset({"queued"}),
}


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A workflow as the ledger has it.

    Attributes:
        reason: why it is parked, or was cancelled, in words.
        parent: the workflow that started it. attributes: what it was given to be found by.
        queue: whose line it waits in, or came from.
        version: the `EVENTFLOW_APPLICATION_VERSION` of the process that runs it, or ended it, where that is known still.

    """

    workflow_id: str
    name: str
    status: Status
    attempt: int
    created_at: datetime
    reason: str | None
    finished_at: datetime | None = None
    parent: str | None = None
    attributes: dict[str, Any] | None = field(default=None, hash=False)
    queue: str | None = None
    version: str | None = None


Choice = Literal["earliest", "latest", "retry"]


@dataclass(frozen=True, slots=True)
class IncidentRecord:
    """Something that a person should look at, as the ledger has it.

    Attributes:
        kind: "recreated", "deleted" and "partitions" of a topic; "cluster"; "retention", "truncation" and "corrupt" of a
            partition's log; "overlap" and "duplicate": a guard of the ledger's fired.
        subject: the group and partition, the topic, or the workflow.
        first_at, last_at, times: when it was seen, and how often.
        stops: whether something stands still until it is settled.
        first_offset: the first one in doubt.
        choice: what comes of it; None: it is not settled. settled_by: who chose, "on_incident" where the policy did.
        went_on_at: the offset at which the partition went on; None: not yet.
        skipped: what was passed over, from which offset to which, the latter exclusive.

    """

    id: int
    kind: str
    subject: str
    detail: str
    first_at: datetime
    last_at: datetime
    times: int
    stops: bool
    first_offset: int | None
    choice: Choice | None
    settled_by: str | None
    settled_at: datetime | None
    went_on_at: int | None
    skipped: tuple[int, int] | None


def incident_of(*row: Any) -> IncidentRecord:
    """What `list_incidents.sql` has of an incident."""
    *columns, low, high = row
    return IncidentRecord(*columns, skipped=None if low is None else (low, high))


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A checkpoint as the ledger has it; `error` is the exception that it came to, as "Type: message", else None."""

    position: str
    name: str
    attempts: int
    started_at: datetime
    finished_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What a person has done to a workflow, or asked for: `kind` is "cancel", "retry", "fork" and so on; who, and when."""

    at: datetime
    kind: str
    who: str


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """A workflow with all that is known of it.

    Attributes:
        workflow: as lists have it.
        arguments: as JSON has them, under "args" and "kwargs"; None where a message is its input.
        result: as JSON has it. error: the exception that it failed with, as "Type: message"; traceback: as text.
        steps: what it has recorded, in that order. children: what it has started, the oldest first, 500 at most.
        requests: what people have done to it, the oldest first.

    """

    workflow: WorkflowRecord
    arguments: dict[str, Any] | None
    result: object
    error: str | None
    traceback: str
    steps: tuple[StepRecord, ...]
    children: tuple[WorkflowRecord, ...]
    requests: tuple[RequestRecord, ...]


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that lives, or that nobody has taken over yet.

    Attributes:
        version: its `EVENTFLOW_APPLICATION_VERSION`. silent: seconds since its last beat.
        workflows, partitions: how many it holds.

    """

    executor: int
    host: str
    pid: int
    version: str | None
    born_at: datetime
    silent: float
    workflows: int
    partitions: int


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """How far a group has read a topic.

    Attributes:
        partitions: how many it knows; read: how many of them a living process has.
        stopped: how many of them an incident stops; paused: how many a person has paused.
        behind: messages that it has not read, where Kafka tells where the logs end. unfinished: accepted, and not ended.

    """

    group: str
    topic: str
    partitions: int
    read: int
    stopped: int
    paused: int
    behind: int | None
    unfinished: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What goes on: the processes, what is read, how many workflows are in which state, dead letters by handler."""

    application: str
    processes: tuple[ProcessRecord, ...]
    groups: tuple[GroupRecord, ...]
    workflows: dict[str, int] = field(hash=False)
    dead_letters: dict[str, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something does not run, or that it does, or has: see `Client.why`.

    Attributes:
        subject: the workflow's id, `topic/partition` or `topic/partition/offset`.
        state: what the sentence says, for programs: [docs/cli.md](../docs/cli.md#why) has them all.
        text: one sentence with its evidence.
        until: when it goes on at the earliest, where that is known. behind: the workflow that it waits for, where there is one.

    """

    subject: str
    state: str
    text: str
    until: datetime | None = None
    behind: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed for good (`failed`), or is held for a person (`parked`): where it was, and what it failed with.

    Attributes:
        consumer: the handler's name.
        attempt: which run of it was the last. failures: how many of its attempts have failed.
        timestamp: when it was produced; None where Kafka does not say. created_at: when the ledger accepted it.
        error: what it failed with last, as "Type: message". reason: why it is parked, or was dropped, in words.
        key: its key, as bytes; None where it has none or where messages are stored encrypted: `Client.dead_letter` has it.

    """

    workflow_id: str
    consumer: str
    group: str
    topic: str
    incarnation: int
    partition: int
    offset: int
    timestamp: datetime | None
    status: Status
    attempt: int
    failures: int
    created_at: datetime
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    error: str | None
    reason: str | None
    key: bytes | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What one attempt of a message failed with, as "Type: message", and its traceback as text."""

    attempt: int
    at: datetime
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as Kafka had it: bytes, and headers in order, which may be there several times."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def decoded(self) -> object:
        """The value as JSON has it, else as text, else None: for people; its handler decodes it by its annotation."""
        if self.value is None:
            return None
        try:
            text = self.value.decode()
        except UnicodeDecodeError:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return text


@dataclass(frozen=True, slots=True)
class Edit:
    """That a person has changed a message: when, who, and what it was before."""

    at: datetime
    who: str
    before: RawMessage


@dataclass(frozen=True, slots=True)
class DeadLetterDetails:
    """A message's workflow with the message itself, and the history of both.

    Attributes:
        letter: where it was, and what it failed with; it is no dead letter where its status says so.
        message: as it would be handled now.
        failed: what each of its attempts failed with, the oldest first.
        edits: what people have changed of it, the oldest first; `edits[0].before` is then what Kafka had.

    """

    letter: DeadLetter
    message: RawMessage
    failed: tuple[FailedAttempt, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Redelivery:
    """Dead letters that are redelivered one after another: how far that is.

    Attributes:
        who: wanted it, and at: when. rate: how many a second; None: as soon as there is room.
        total: how many there were. redelivered: how many have gone.
        passed_over: were no dead letters any more when it was their turn, as somebody had decided on them.
        ended_at: when the last one went, or it was stopped, by whom says `stopped_by`; None: it goes on.

    """

    id: int
    who: str
    at: datetime
    rate: float | None
    total: int
    redelivered: int
    passed_over: int
    ended_at: datetime | None
    stopped_by: str | None


@dataclass(frozen=True, slots=True)
class Pause:
    """What is not read until a person says so: a group, one of its topics, or one partition of that; by whom, and why."""

    group: str
    topic: str | None
    partition: int | None
    who: str
    why: str
    at: datetime

    def holds(self, group: str, topic: str, partition: int) -> bool:
        """Whether it holds this partition up."""
        return group == self.group and self.topic in {None, topic} and self.partition in {None, partition}


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is behind in a partition.

    Attributes:
        position: up to where it has taken or accepted all. end: where the log ends; None: not known yet.
        behind: how many offsets that is, and what is in flight; a transaction's marker has an offset, too.
        seconds: how old the first message is that is not accepted, as its producer dates it; 0 where there is none.
        owner: which process reads it; None: none does. paused: by whom it is, and why.

    """

    group: str
    topic: str
    partition: int
    position: int
    end: int | None
    behind: int | None
    seconds: float | None
    owner: str | None
    paused: Pause | None


@dataclass(frozen=True, slots=True)
class ReprocessedPartition:
    """A partition of a topic that is run again: from `first` to before `past`; `done` offsets are accepted."""

    partition: int
    first: int
    past: int
    done: int


@dataclass(frozen=True, slots=True)
class Reprocessing:
    """A topic that is run again by a group, as a generation of its own.

    Attributes:
        id: None: it was only asked what it would be.
        instead: whether it has taken the live one's place, and goes on from there.
        rate: messages a second, of all processes together; None: as fast as they can.
        who: wanted it, and at: when.
        ended_at: when all of it was accepted and had ended, or it was stopped, by whom says `stopped_by`; None: it goes on.
        partitions: from where to where, and how far it is.

    """

    id: int | None
    group: str
    topic: str
    generation: int
    instead: bool
    rate: float | None
    who: str
    at: datetime
    ended_at: datetime | None
    stopped_by: str | None
    partitions: tuple[ReprocessedPartition, ...]

    @property
    def total(self) -> int:
        """How many offsets it has, and at most so many messages: a marker of a transaction, or what was compacted, is none."""
        return sum(one.past - one.first for one in self.partitions)

    @property
    def done(self) -> int:
        """How many offsets are accepted."""
        return sum(one.done for one in self.partitions)


class Rider(NamedTuple):
    """A row that is written with the next checkpoint of its workflow, or not at all: a message, an event, a child.

    Attributes:
        query: the named query that writes rows of this kind, one multi-row statement for all.
        row: the values of its columns, in the order of `journal.RIDERS`.
        seq: the number of the checkpoint that it goes with; 0: none.

    """

    query: str
    row: tuple[object, ...]
    seq: int = 0


class Checkpoint(NamedTuple):
    """What one operation of a workflow came to: `output` or `error`, both JSON, never both."""

    position: str
    seq: int
    name: str
    output: str | None
    error: str | None
    attempts: int = 1
    seconds: float = 0.0
