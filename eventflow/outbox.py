"""Events as they are published: checked and encoded where they are given, rows of the outbox from then on. Values only.

What a handler would decode is what is published: `bytes` and `str` as they are, None as a tombstone, anything else as JSON
by its type. `relay` takes the rows to Kafka.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from eventflow.codec import codec_for, limit
from eventflow.errors import CodecError, UsageError
from eventflow.kafka import Headers, headers_from_json, headers_json
from eventflow.payloads import unread
from eventflow.records import Rider

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
OURS = "eventflow-"  # what our own headers begin with
Row = tuple[str, bytes | None, bytes | None, str | None]  # topic, key, value, headers


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An event that Kafka refuses, or one that waits behind such a one of its topic and key.

    Attributes:
        id: by which it is tried again, or dropped. event_id: what its header `eventflow-id` says.
        reason: why it is refused; of one that is only `behind` another, that.
        parked_at: when it was, last. published_at: when its transaction began.
        wanted: "retry" or "drop", where somebody has decided and the relay has not come to it yet.

    """

    id: int
    event_id: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    behind: bool
    published_at: datetime
    parked_at: datetime
    wanted: str | None


def outbox_row(
    topic: str, value: object, key: str | bytes | None, headers: Mapping[str, str | bytes] | None
) -> Row:  # fmt: skip
    """An event as the outbox has it.

    Raises:
        UsageError: a topic, key or header that cannot be.
        CodecError: a value that cannot be encoded, or an event that is too large.

    """
    check_topic(topic)
    encoded_key, encoded = _key(key), _value(topic, value)
    pairs: list[tuple[str, bytes | None]] = [*_headers(headers)]
    size = len(encoded or b"") + len(encoded_key or b"") + sum(len(n) + len(v or b"") for n, v in pairs)
    try:
        limit.check(size)
    except CodecError as error:
        raise CodecError(f"the event for {topic!r}: {error}") from None
    return topic, encoded_key, encoded, headers_json(pairs)


def traced(row: Row, trace: Mapping[str, str]) -> Row:
    """The same with the headers that carry its trace; those that were given win over them."""
    if not trace:
        return row
    topic, key, value, headers = row
    given = headers_from_json(headers) or []
    names = {name for name, _ in given}
    carried: list[tuple[str, bytes | None]] = [(n, v.encode()) for n, v in trace.items() if n not in names]
    return topic, key, value, headers_json(carried + given)


def undelivered_of(row: Sequence[Any], ledger: object) -> Undelivered:
    """Of the columns of `read_undelivered.sql`.

    Raises:
        UnreadableError: it is stored under a key that this process has not.

    """
    event, at, topic, key, value, headers, behind, reason, parked_at, wanted = row
    lost = unread([headers])
    if lost is not None:
        raise lost
    try:
        received = Headers.received(headers_from_json(headers))
    except CodecError:  # which is why it is here
        received = Headers()
    return Undelivered(event, f"{ledger}/{event}", topic, key, value, received, reason, behind, at, parked_at, wanted)


def rider_of(row: Row) -> Rider:
    """What publishes it, in the transaction that it is written in."""
    return Rider("insert_outbox", row)


def check_topic(topic: object) -> None:
    """Refuse what Kafka takes for no topic's name.

    Raises:
        UsageError: it is none.

    """
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
        raise UsageError(f"not a topic: {topic!r}; it is a text of 1 to 249 letters, digits, `.`, `_` and `-`")


def _key(key: object) -> bytes | None:
    if key is None or isinstance(key, bytes):
        return key
    if not isinstance(key, str):
        raise UsageError(f"an event's key is a text, bytes or None, not {key!r}")
    return _utf8(key, "an event's key")


def _value(topic: str, value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _utf8(value, f"the event for {topic!r}")
    return codec_for(type(value)).named(f"the event for {topic!r}").encode(value).encode()


def _headers(headers: object) -> list[tuple[str, bytes]]:
    if headers is None:
        return []
    if isinstance(headers, Headers):  # of a message that was received: what it was known by is not what this will be
        return [(name, value) for name, value in headers.items() if not name.startswith(OURS)]
    if not isinstance(headers, Mapping):
        raise UsageError(f"an event's headers are a mapping of names to texts or bytes, not {headers!r}")
    return [_header(name, value) for name, value in cast("Mapping[Any, Any]", headers).items()]


def _header(name: Any, value: Any) -> tuple[str, bytes]:
    if not isinstance(name, str) or not name or "\0" in name:
        raise UsageError(f"not a header's name: {name!r}")
    _utf8(name, "a header's name")
    if name.startswith(OURS):
        raise UsageError(f"a header's name that begins with {OURS} is eventflow's own: {name!r}")
    if isinstance(value, str):
        return name, _utf8(value, f"the header {name!r}")
    if not isinstance(value, bytes):
        raise UsageError(f"the header {name!r} is a text or bytes, not {value!r}")
    return name, value


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CodecError(f"{what} is no text: {error.reason}") from None
