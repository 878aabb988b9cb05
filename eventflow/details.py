"""One workflow with all that is known of it, and why something does not run: what people ask of the ledger."""

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from eventflow.brokers import ends_of
from eventflow.codec import recorded_line
from eventflow.context import Backend
from eventflow.errors import WorkflowNotFoundError
from eventflow.handles import steps_of
from eventflow.idempotency import (
    key_scope_id,
    message_workflow_id,
    parse_message_workflow_id,
    parse_schedule_workflow_id,
)
from eventflow.lags import pauses
from eventflow.payloads import unread
from eventflow.records import (
    Checkpoint,
    GroupRecord,
    Overview,
    ProcessRecord,
    Reason,
    RequestRecord,
    WorkflowDetails,
    WorkflowRecord,
)
from eventflow.schedules import ScheduleRecord
from eventflow.why import (
    FireFacts,
    PartitionFacts,
    WorkflowFacts,
    explain,
    explain_fire,
    explain_offset,
    explain_partition,
)

_CHILDREN: dict[str, Any] = dict.fromkeys(
    ("status", "name", "queue", "prefix", "attributes", "created_after", "created_before", "after_time", "after_id")
) | {"newest": False}


def read_details(backend: Backend, workflow_id: str) -> WorkflowDetails:
    """All of it. Blocks.

    Raises:
        WorkflowNotFoundError: there is none of this id.
        UnreadableError: some of it cannot be decoded here.

    """
    row = backend.row(workflow_id)
    arguments, output, error = row[7:10]
    unreadable = unread([arguments, output, error])
    if unreadable is not None:
        raise unreadable
    children = backend.query("list_workflows", _CHILDREN | {"parent": workflow_id})
    requests = backend.query("read_requests", {"id": workflow_id})
    return WorkflowDetails(
        WorkflowRecord(*row[:6], *row[10:]),
        None if arguments is None else json.loads(arguments),
        None if output is None else json.loads(output),
        error and recorded_line(error),
        "" if error is None else json.loads(error).get("traceback", ""),
        tuple(steps_of(backend.read("read_steps", workflow_id))),
        tuple(WorkflowRecord(*child) for child in children),
        tuple(RequestRecord(*request) for request in requests),
    )


_PLACE = re.compile(r"(?P<topic>[A-Za-z0-9._-]{1,249})/(?P<partition>\d{1,9})(?:/(?P<offset>\d{1,18}))?")
_OF_WORKFLOW = [field.name for field in dataclasses.fields(WorkflowFacts)]
_OF_PARTITION = [field.name for field in dataclasses.fields(PartitionFacts)]


def read_why(backend: Backend, subject: str, group: str | None, lease: float) -> list[Reason]:
    """Why this does not run: a workflow by its id, else `topic/partition[/offset]` for each group, else a key. Blocks.

    Raises:
        WorkflowNotFoundError: the ledger knows nothing of this name.

    """
    found = _of_workflow(backend, subject, lease)
    if found is not None:
        return [found]
    message, place = parse_message_workflow_id(subject), _PLACE.fullmatch(subject)
    reasons: list[Reason] = []
    if message is not None:
        asked = {"group": message.group, "incarnation": message.incarnation, "generation": message.generation}
        where = message.topic, message.partition, message.offset
        reasons = _of_place(backend, where, asked, lease)
    elif place is not None:
        asked = {"group": group, "incarnation": None, "generation": None}
        offset = None if place["offset"] is None else int(place["offset"])
        reasons = _of_place(backend, (place["topic"], int(place["partition"]), offset), asked, lease)
    elif (fire := _of_fire(backend, subject)) is not None:
        reasons = [fire]
    reasons = reasons or _of_key(backend, subject, lease)
    if reasons:
        return reasons
    if place is not None:
        of_group = "" if group is None else f" in group {group!r}"
        raise WorkflowNotFoundError(
            f"nobody has read {subject!r}{of_group}, and nothing unfinished has it as id or key"
        )
    raise WorkflowNotFoundError(
        f"no workflow has the id {subject!r}, and nothing that is unfinished or a dead letter has it as its key"
    )


def _of_workflow(backend: Backend, workflow_id: str, lease: float) -> Reason | None:
    rows = backend.query("why_workflow", {"id": workflow_id})
    if not rows:
        return None
    known: dict[str, Any] = dict(zip(_OF_WORKFLOW, rows[0], strict=False))
    recorded = [
        (Checkpoint(*row[:5]), row[5]) for row in backend.query("why_recorded", {"id": workflow_id})
    ] if known["finished_at"] is None else []  # fmt: skip
    return explain(WorkflowFacts(**known, recorded=recorded, lease=lease))


def _of_place(
    backend: Backend, place: tuple[str, int, int | None], asked: dict[str, Any], lease: float
) -> list[Reason]:
    topic, partition, offset = place
    asked = asked | {"topic": topic, "partition": partition, "offset": offset}
    rows = backend.query("why_partition", asked)
    end = _ends(backend, [(topic, partition)] if rows else []).get((topic, partition))
    held = pauses(backend, asked["group"])
    reasons: list[Reason] = []
    for row in rows:
        known: dict[str, Any] = dict(zip(_OF_PARTITION, row, strict=False))
        paused = next((one for one in held if one.holds(known["group"], topic, partition)), None)
        facts = PartitionFacts(**known, end=end, paused=paused, lease=lease)
        if offset is None:
            reasons.append(explain_partition(facts))
            continue
        its_id = message_workflow_id(facts.group, topic, facts.incarnation, partition, offset, facts.generation)
        reasons.append(_of_workflow(backend, its_id, lease) or explain_offset(facts, offset))
    return reasons


def _of_fire(backend: Backend, workflow_id: str) -> Reason | None:
    fire = parse_schedule_workflow_id(workflow_id)
    if fire is None:
        return None
    application, name, moment = fire
    rows = backend.query("list_schedules", {"application": application, "name": [name]})
    if not rows:
        return None
    [(seconds,)] = backend.query("ledger_time", {})
    one = ScheduleRecord.of(rows[0])
    return explain_fire(FireFacts(
        subject=workflow_id, moment=moment, now=datetime.fromtimestamp(seconds, UTC), name=name, workflow=one.workflow,
        served=one.served, paused=one.paused, note=one.note, next_fire=one.next_fire, waiting=one.waiting,
        skipped=one.skipped, missed=one.missed,
    ))  # fmt: skip


def _of_key(backend: Backend, key: str, lease: float) -> list[Reason]:
    """Of all that is first in its line with this key, whatever it is the key of."""
    data = key.encode()
    scopes = [key_scope_id(claim, data) for (claim,) in backend.query("living_claims", {})]
    rows = backend.query("why_key", {"scopes": scopes, "key": data, "text": key})
    found = [_of_workflow(backend, workflow_id, lease) for (workflow_id,) in rows]
    return [reason for reason in found if reason is not None]


def read_overview(backend: Backend) -> Overview:
    """What goes on in the backend's application. Blocks."""
    asked = {"application": backend.application}
    counts: dict[str, dict[str, int]] = {"status": {}, "dead letters": {}}
    for kind, name, count in backend.query("count_workflows", asked):
        counts[kind][name] = count
    return Overview(
        backend.application, tuple(ProcessRecord(*row) for row in backend.query("living_processes", asked)),
        tuple(_groups(backend)), counts["status"], counts["dead letters"],
    )  # fmt: skip


def _groups(backend: Backend) -> list[GroupRecord]:
    rows = backend.query("read_groups", {})
    ends = _ends(backend, sorted({(topic, partition) for _, topic, partition, *_ in rows}))
    held = pauses(backend)
    gathered: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for group, topic, partition, position, *rest in rows:
        end = ends.get((topic, partition))
        behind = None if end is None else max(0, end - (position or 0))
        paused = any(one.holds(group, topic, partition) for one in held)
        gathered.setdefault((group, topic), []).append((behind, paused, *rest))
    found: list[GroupRecord] = []
    for (group, topic), parts in gathered.items():
        known = [behind for behind, *_ in parts if behind is not None]
        found.append(GroupRecord(
            group, topic, len(parts), sum(owned for _, _, owned, _, _ in parts),
            sum(incident is not None for *_, incident, _ in parts), sum(paused for _, paused, *_ in parts),
            sum(known) if len(known) == len(parts) else None, sum(unfinished for *_, unfinished in parts),
        ))  # fmt: skip
    return found


def _ends(backend: Backend, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Where the logs end, as far as Kafka says so."""
    return ends_of(*backend.kafka, places)
