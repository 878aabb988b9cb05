"""One workflow with all that is known of it, as people ask for it."""

import json
from typing import Any

from eventflow.codec import recorded_line
from eventflow.context import Backend
from eventflow.handles import steps_of
from eventflow.payloads import unread
from eventflow.records import RequestRecord, WorkflowDetails, WorkflowRecord

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
