"""What is published is checked and encoded where it is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from eventflow.codec import limit
from eventflow.elsewhere import _read_riders, _write_riders
from eventflow.errors import CodecError, UsageError
from eventflow.kafka import Headers, headers_from_json
from eventflow.outbox import outbox_row, rider_of, traced


class Receipt(BaseModel):
    n: int


@dataclass
class Plain:
    n: int


def row(
    value: object, key: Any = None, headers: Any = None, topic: Any = "out", trace: Mapping[str, str] | None = None
):
    return traced(outbox_row(topic, value, key, headers), trace or {})


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (b"\xff\x00", b"\xff\x00"), ("text", b"text"), ("", b""), (None, None), ({"a": [1, None]}, b'{"a":[1,null]}'),
        (Receipt(n=1), b'{"n":1}'), (Plain(2), b'{"n":2}'), ([Receipt(n=1)], b'[{"n":1}]'), (7, b"7"), (True, b"true"),
    ],
)  # fmt: skip
def test_a_value_is_sent_as_a_handler_would_decode_it(value: object, sent: bytes | None) -> None:
    assert row(value)[2] == sent


def test_keys_and_headers() -> None:
    assert row(1, "ü")[1] == "ü".encode()
    assert row(1, b"\x00")[1] == b"\x00"
    assert row(1)[3] is None
    found = headers_from_json(row(1, headers={"a": "b", "c": b"\xff"}, trace={"traceparent": "00-1"})[3])
    assert found == [("traceparent", b"00-1"), ("a", b"b"), ("c", b"\xff")]
    assert headers_from_json(row(1, headers={"traceparent": "mine"}, trace={"traceparent": "00-1"})[3]) == [
        ("traceparent", b"mine")
    ]


def test_headers_of_a_received_message_are_handed_on_but_for_our_own() -> None:
    received = Headers.received([("a", b"1"), ("eventflow-id", b"x/1")])
    assert headers_from_json(row(1, headers=received)[3]) == [("a", b"1")]


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "x" * 250, "ü", 3, None])
def test_no_topic(topic: Any) -> None:
    with pytest.raises(UsageError, match="not a topic"):
        row(1, topic=topic)


@pytest.mark.parametrize(
    ("key", "headers", "what"),
    [
        (3, None, "an event's key"), (None, {"a": 1}, "the header 'a'"), (None, {"": "x"}, "not a header's name"),
        (None, {"eventflow-id": "x"}, "eventflow's own"), (None, {1: "x"}, "not a header's name"), (None, [1], "a mapping"),
    ],
)  # fmt: skip
def test_no_key_or_header(key: Any, headers: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        row(1, key, headers)


@pytest.mark.parametrize("value", [object(), {1: 2, "a": object()}, "\ud800"])
def test_what_cannot_be_encoded(value: object) -> None:
    with pytest.raises((CodecError, UsageError), match=r"the event for 'out'|object"):
        row(value)


def test_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "size", 1000)
    assert row(b"x" * 1000)
    with pytest.raises(CodecError, match=r"the event for 'out': it takes 1,001 bytes"):
        row(b"x" * 1001)
    with pytest.raises(CodecError, match="the event for 'out'"):
        row(b"x" * 900, "k" * 101)


def test_an_event_of_a_transaction_elsewhere_keeps_its_bytes() -> None:
    rider = rider_of(row(b"\xff", b"\x00", {"a": "b"}))
    assert _read_riders(_write_riders([rider])) == [rider]
