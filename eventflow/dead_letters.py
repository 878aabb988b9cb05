"""Dead letters as people ask for them: which there are, a page at a time, and one of them with all that is known of it.

A dead letter is the workflow of a message, failed or parked (ADR 13). What is done to them is `ledger`'s.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict, cast, get_args

from eventflow.codec import recorded_line
from eventflow.context import Backend
from eventflow.errors import CodecError, UsageError, WorkflowNotFoundError
from eventflow.kafka import headers_from_json, headers_json, moment
from eventflow.payloads import Unread, unread
from eventflow.records import (
    DeadLetter,
    DeadLetterDetails,
    Edit,
    FailedAttempt,
    RawMessage,
    Redelivery,
)
from eventflow.registry import Spec

DeadStatus = Literal["failed", "parked"]
_PAGE = 500
_FACTS, _TIMESTAMP, _ERROR = 17, 7, 14  # columns that make a letter, and two of them
HeaderValues = Mapping[str, str | bytes | None] | Iterable[tuple[str, str | bytes | None]]


class Letters(TypedDict, total=False):
    """Which dead letters people mean, as they say it by keyword: see `Client.dead_letters`."""

    consumer: str | None
    group: str | None
    topic: str | None
    partition: int | None
    key: bytes | None
    error_type: str | None
    status: DeadStatus | None
    failed_after: datetime | None
    failed_before: datetime | None


@dataclasses.dataclass(frozen=True)
class LetterFilter:
    """Which dead letters are meant: those of which all is true that is given.

    Raises:
        UsageError: what can be true of none.

    """

    consumer: str | None = None
    group: str | None = None
    topic: str | None = None
    partition: int | None = None
    key: bytes | None = None
    error_type: str | None = None
    status: DeadStatus | None = None
    failed_after: datetime | None = None
    failed_before: datetime | None = None

    def __post_init__(self) -> None:
        for text in (self.consumer, self.group, self.topic, self.error_type):
            if text is not None and (not isinstance(text, str) or not text or "\0" in text):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"a text to look for, not {text!r}")
        if self.status is not None and self.status not in get_args(DeadStatus):
            raise UsageError(f"a dead letter is failed or parked, not {self.status!r}")
        if self.key is not None and not isinstance(self.key, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a key is bytes, not {self.key!r}")
        if self.partition is not None and not 0 <= self.partition < 2**31:
            raise UsageError(f"not a partition: {self.partition!r}")
        for time in (self.failed_after, self.failed_before):
            if time is not None and time.tzinfo is None:
                raise UsageError(f"a time with a zone, not {time!r}")

    def params(self, backend: Backend) -> dict[str, Any]:
        """As the queries have them.

        Raises:
            UsageError: it asks for a key where messages are stored encrypted.

        """
        if self.key is not None and backend.encoded:
            raise UsageError("messages are stored encrypted here, their keys too: none can be found by its key")
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class LetterPages:
    """The dead letters that a filter lets through, the oldest message first, in pages.

    By when the ledger accepted the message: one that fails again meanwhile keeps its place, and new ones come behind.
    """

    def __init__(self, backend: Backend, wanted: LetterFilter) -> None:
        self._backend = backend
        self._params = wanted.params(backend)
        self._last: DeadLetter | None = None
        self.more = True

    def next(self) -> list[DeadLetter]:
        """The next page. Blocks."""
        last = self._last
        after = {"after_time": last and last.created_at, "after_id": last and last.workflow_id}
        page = [_letter(row) for row in self._backend.query("list_dead_letters", {**self._params, **after})]
        self.more = len(page) == _PAGE
        self._last = page[-1] if page else last
        return page


def _letter(row: Sequence[Any]) -> DeadLetter:
    facts = list(row)
    timestamp, error = facts[_TIMESTAMP], facts[_ERROR]
    facts[_TIMESTAMP] = moment(timestamp)
    facts[_ERROR] = error and recorded_line(error)
    return DeadLetter(*facts)


def read_letter(backend: Backend, workflow_id: str) -> DeadLetterDetails:
    """A message's workflow, with the message and its history. Blocks.

    Raises:
        WorkflowNotFoundError: no message's workflow has this id.
        UnreadableError: the message is stored under a key that is not here.

    """
    rows = backend.query("read_dead_letter", {"id": workflow_id})
    if not rows:
        raise WorkflowNotFoundError(f"no message's workflow has the id {workflow_id!r}")
    [row] = rows
    failed = [
        FailedAttempt(attempt, at, recorded_line(error), _traceback(error))
        for attempt, at, error in backend.query("read_failures", {"id": workflow_id})
    ]
    edits = [
        Edit(at, who, _message(*message)) for at, who, *message in backend.query("read_edits", {"id": workflow_id})
    ]
    return DeadLetterDetails(_letter(row[:_FACTS]), _message(*row[_FACTS - 1 :]), tuple(failed), tuple(edits))


def _traceback(error: str) -> str:
    return "" if type(error) is Unread else json.loads(error).get("traceback", "")


def _message(key: bytes | None, value: bytes | None, headers: str | None) -> RawMessage:
    unreadable = unread([headers])
    if unreadable is not None:
        raise unreadable
    return RawMessage(key, value, tuple(headers_from_json(headers) or ()))


def as_handled(details: DeadLetterDetails, spec: Spec) -> str:
    """What the handler, as this code has it, makes of a message, or why it cannot be decoded. Blocks.

    Raises:
        UnavailableError: what reading it needs does not answer: a schema registry.

    """
    letter, message = details.letter, details.message
    headers, produced = list(message.headers), letter.timestamp
    try:
        if spec.reader.prepares:
            spec.reader.prepare(message.value, message.key, headers, letter.topic)
        read = spec.reader.read(
            message.value, message.key, headers, letter.topic, letter.partition, letter.offset, letter.incarnation,
            produced and int(produced.timestamp() * 1000),
        )  # fmt: skip
    except CodecError as error:
        return str(error)
    return f"{spec.name} takes value {read.value!r}, key {read.key!r}"


def edited(backend: Backend, workflow_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A message with another value or other headers, as `redeliver_edited.sql` has it. Blocks.

    Raises:
        UsageError: nothing is to change, or to what no message can have.
        WorkflowNotFoundError, UnreadableError: as of `read_letter`.

    """
    if not changes:
        raise UsageError("nothing is to change: give value= or headers=, or use redeliver")
    message = read_letter(backend, workflow_id).message
    value = changes.get("value", message.value)
    if value is not None and not isinstance(value, bytes):
        raise UsageError(
            f"a value is bytes, or None for a tombstone, not {type(value).__name__}: encode it as its handler reads it"
        )
    headers = _headers(changes["headers"]) if "headers" in changes else message.headers
    columns = {"key": message.key, "value": value, "headers": headers_json(list(headers))}
    return {"id": [workflow_id]} | {name: None if cell is None else [cell] for name, cell in columns.items()}


def _headers(given: HeaderValues) -> list[tuple[str, bytes | None]]:
    pairs = cast("Iterable[tuple[str, str | bytes | None]]", given.items() if isinstance(given, Mapping) else given)
    headers: list[tuple[str, bytes | None]] = []
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str | bytes | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a header is a name, and text, bytes or None, not {name!r}: {value!r}")
        headers.append((name, value.encode() if isinstance(value, str) else value))
    return headers


def check_rate(rate: float | None) -> float | None:
    """How many a second.

    Raises:
        UsageError: that cannot be.

    """
    if rate is not None and not (0 < rate <= 1_000_000 and math.isfinite(rate)):
        raise UsageError(f"a rate is how many a second, above 0, not {rate!r}")
    return rate


def redeliveries(backend: Backend, number: int | None = None) -> list[Redelivery]:
    """The redeliveries of this application, or the one of this number. Blocks."""
    asked = {"application": backend.application, "redelivery": number}
    return [Redelivery(*row) for row in backend.query("read_redeliveries", asked)]
