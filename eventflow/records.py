"""What stands in the ledger, as values: statuses and the machine between them, workflows, steps.

The state machine is this table and nothing else; the ledger's CHECKs hold the same one.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

Status = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "parked"]

FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
UNFINISHED: frozenset[Status] = frozenset({"queued", "running", "waiting", "parked"})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "cancelled", "parked"}),
    "running": frozenset({"queued", "waiting", "succeeded", "failed", "cancelled", "parked"}),
    "waiting": frozenset({"queued", "running", "cancelled", "failed"}),
    "parked": frozenset({"queued", "cancelled"}),
    "failed": frozenset({"queued"}),
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


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A checkpoint as the ledger has it; `error` is the exception that it came to, as "Type: message", else None."""

    position: str
    name: str
    attempts: int
    started_at: datetime
    finished_at: datetime | None
    error: str | None


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
