"""Every id is derived here: pure, injective, readable. The formats are a contract and never change.

A message's workflow id is `kafka:{group}:{topic}:{incarnation}:{partition}:{offset}`, group and topic percent-escaped,
with `:g{n}` behind it from the second generation on: that of a log that was truncated, whose offsets come again. The ledger
counts `incarnation` per topic name over all (cluster id, topic id), so the id needs no cluster.

A fire time's is `schedule:{application}:{schedule}:{time}`, application and schedule percent-escaped, the time in UTC as
`2026-11-27T02:00:00Z`, with its microseconds behind the seconds where it has some.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

from eventflow.errors import UsageError

MAX_ID = 512
_MESSAGE = re.compile(
    r"kafka:([A-Za-z0-9._%~-]+):([A-Za-z0-9._%~-]+):([1-9]\d*):(0|[1-9]\d*):(0|[1-9]\d*)(?::g([2-9]|[1-9]\d+))?"
)


_FIRE = re.compile(
    r"schedule:([A-Za-z0-9._%~-]+):([A-Za-z0-9._%~-]+):"
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?!000000)\d{6})?)Z"
)


@dataclass(frozen=True, slots=True)
class MessageIdentity:
    """What a message's workflow id says."""

    group: str
    topic: str
    incarnation: int
    partition: int
    offset: int
    generation: int = 1


def _escaped(text: str) -> str:
    return quote(text, safe="")


def message_workflow_id_prefix(group: str, topic: str, incarnation: int, partition: int) -> str:
    """All of a message's workflow id but its offset, which follows.

    Raises:
        UsageError: group or topic is empty, or a number is negative.

    """
    if not group or not topic:
        raise UsageError("a message's workflow id needs a group and a topic")
    if incarnation < 1 or partition < 0:
        raise UsageError(f"not an incarnation and a partition: {incarnation}, {partition}")
    return f"kafka:{_escaped(group)}:{_escaped(topic)}:{incarnation}:{partition}:"


def message_workflow_id(
    group: str, topic: str, incarnation: int, partition: int, offset: int, generation: int = 1
) -> str:
    """The workflow id of a Kafka message.

    Raises:
        UsageError: as for the prefix; or the offset is negative, or the generation below 1.

    """
    if offset < 0 or generation < 1:
        raise UsageError(f"not an offset and a generation: {offset}, {generation}")
    prefix = message_workflow_id_prefix(group, topic, incarnation, partition)
    return f"{prefix}{offset}{message_workflow_id_suffix(generation)}"


def message_workflow_id_suffix(generation: int) -> str:
    """What follows the offset in a message's workflow id: nothing in the first generation."""
    return f":g{generation}" if generation > 1 else ""


def parse_message_workflow_id(workflow_id: str) -> MessageIdentity | None:
    """The inverse of `message_workflow_id`; None for any other id."""
    match = _MESSAGE.fullmatch(workflow_id)
    if match is None:
        return None
    group, topic, incarnation, partition, offset, generation = match.groups()
    return MessageIdentity(
        unquote(group), unquote(topic), int(incarnation), int(partition), int(offset), int(generation or 1)
    )


def schedule_workflow_id_prefix(application: str, schedule: str) -> str:
    """All of a fire time's workflow id but the time, which follows.

    Raises:
        UsageError: one of them is empty, or both together are too long for an id.

    """
    if not application or not schedule:
        raise UsageError("a fire time's workflow id needs an application and a schedule")
    prefix = f"schedule:{_escaped(application)}:{_escaped(schedule)}:"
    if len(prefix) > MAX_ID - len("2026-11-27T02:00:00.000000Z"):
        raise UsageError(f"the schedule's name is too long for its workflows' ids: {schedule!r}")
    return prefix


def schedule_workflow_id(application: str, schedule: str, time: datetime) -> str:
    """The workflow id of a schedule's fire time, which has a zone.

    Raises:
        UsageError: as for the prefix; or the time has no zone.

    """
    if time.tzinfo is None:
        raise UsageError(f"a fire time has a zone, {time!r} has none")
    return f"{schedule_workflow_id_prefix(application, schedule)}{time.astimezone(UTC).isoformat()[:-6]}Z"


def parse_schedule_workflow_id(workflow_id: str) -> tuple[str, str, datetime] | None:
    """The inverse of `schedule_workflow_id`: application, schedule, and time in UTC; None for any other id."""
    match = _FIRE.fullmatch(workflow_id)
    if match is None:
        return None
    try:
        time = datetime.fromisoformat(f"{match[3]}+00:00")
    except ValueError:
        return None
    return unquote(match[1]), unquote(match[2]), time


def check_workflow_id(workflow_id: Any) -> str:
    """An id that a person gives, as it is.

    Raises:
        UsageError: it is no text, empty, too long, reserved, or holds what people could not read.

    """
    if not isinstance(workflow_id, str):
        raise UsageError(f"a workflow id is a text, not {workflow_id!r}")
    if not workflow_id:
        raise UsageError("a workflow id cannot be empty")
    if len(workflow_id) > MAX_ID:
        raise UsageError(f"a workflow id has at most {MAX_ID} characters, this one has {len(workflow_id)}")
    if not workflow_id.isprintable():
        raise UsageError(f"a workflow id holds printable characters only: {workflow_id!r}")
    if ">" in workflow_id:
        raise UsageError(f"workflow ids with '>' are those of children: {workflow_id!r}")
    if workflow_id.startswith("kafka:"):
        raise UsageError(f"workflow ids that begin with 'kafka:' are those of messages: {workflow_id!r}")
    if workflow_id.startswith("schedule:"):
        raise UsageError(f"workflow ids that begin with 'schedule:' are those of schedules: {workflow_id!r}")
    return workflow_id


def operation_key(workflow_id: str, position: str, generation: int = 0) -> str:
    """What tells an operation of a workflow from all others: by its position, and by the run that counts positions anew."""
    return f"{workflow_id}#{position}" if not generation else f"{workflow_id}#{generation}:{position}"


def child_workflow_id(parent: str, position: str, generation: int = 0) -> str:
    """The id of the workflow that another one started at a position; injective, as ids that people give have no `>`.

    A family's ids grow with each generation; one that would be too long begins with a digest of its parent's.
    """
    place = position if not generation else f"{generation}:{position}"
    child = f"{parent}>{place}"
    if len(child) > MAX_ID:
        child = f"{hashlib.sha256(parent.encode()).hexdigest()}>{place}"
    return child


def new_ticket(milliseconds: int, randomness: bytes) -> UUID:
    """What a transaction in another database is known by there: a UUID of version 7 of these 10 random bytes.

    Later ones sort behind, to the millisecond (since 1970).
    """
    random = int.from_bytes(randomness[:10], "big")
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80
        | 7 << 76
        | (random >> 62 & 0xFFF) << 64
        | 2 << 62
        | random & (1 << 62) - 1
    )


def first_ticket(milliseconds: int) -> UUID:
    """What every ticket of this millisecond, and later, sorts behind."""
    return UUID(int=max(0, milliseconds) << 80)


def key_scope_id(claim: int, key: bytes) -> str:
    """What is kept in order by a key, as the ledger has it: a digest, since where payloads are encrypted the key is, too."""
    return f"{claim}:{hashlib.blake2b(key, digest_size=16, salt=claim.to_bytes(16, 'big', signed=True)).hexdigest()}"


def fingerprint(name: str, arguments: str) -> str:
    """What tells two starts under one id apart: the workflow's name and its encoded arguments."""
    return hashlib.sha256(f"{name}\0{arguments}".encode()).hexdigest()[:32]
