"""A process that runs no workflows and asks for one thing, again under the same id where it was asked to repeat it."""

import contextlib
import os

from eventflow import sync
from eventflow.errors import WorkflowNotFoundError


def act(client: sync.Client, act: str, colour: str) -> None:
    if act == "send":
        client.handle(f"hears {colour}", str).send("hello", idempotency_key="once")
    elif act == "enqueue":
        client.enqueue(f"crash_app.in_queue {colour}", 1, workflow_id=f"ordered {colour}")
    elif act == "deduplicate":
        client.enqueue(f"crash_app.in_queue {colour}", 1, deduplication_id=f"ordered {colour}", delay=60)
    elif act == "cancel":
        client.handle(f"guards {colour}", str).cancel()
    else:
        with contextlib.suppress(WorkflowNotFoundError):
            client.handle(f"slept {colour}", int).delete()


if __name__ == "__main__":
    with sync.Client() as client:
        for colour in ("async", "sync"):
            act(client, os.environ["ACT"], colour)
