"""Publishing events to Kafka, exactly once: with what a workflow, step or transaction commits, or with one's own commit."""

from collections.abc import Mapping

import eventflow.talk as talk
from eventflow.borrowed import AsyncBorrowed
from eventflow.context import current, refuse_in_workflow, runtime
from eventflow.operations import awaited
from eventflow.outbox import outbox_row, rider_of, traced
from eventflow.tracing import creation


async def publish(
    topic: str, value: object, /, *, key: str | bytes | None = None,
    headers: Mapping[str, str | bytes] | None = None, session: AsyncBorrowed | None = None,
) -> None:  # fmt: skip
    """Publish an event to Kafka, exactly once for consumers that read committed messages.

    In a workflow it is recorded, and a replay does not publish again; it waits for nothing. In a step it goes with the
    attempt that succeeds, in a transaction with its commit. Outside of both it is committed when this returns; with
    `session`, which has a transaction on the ledger's database, when the caller commits.

    `value`: bytes and text are sent as they are, None is a tombstone, anything else is JSON by its type. Events of one topic
    and key keep the order in which their transactions follow one another. A header `eventflow-id` says which event it is.

    Raises:
        UsageError: a topic, key or header that cannot be; `session` in a workflow.
        CodecError: a value that is no plain value, model or dataclass, or larger than `EVENTFLOW_MAX_PAYLOAD`.
        NotRunningError: outside `running()`; a process that runs nothing has `Client.publish`.

    """
    row = outbox_row(topic, value, key, headers)
    if session is not None:
        refuse_in_workflow("publish")
        await runtime("publish").publish_on(session, traced(row, creation(topic)))
    elif current.get() is None:
        await runtime("publish").write([rider_of(traced(row, creation(topic)))])
    else:
        await awaited(lambda: talk.publish(row))
