from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from eventflow.errors import CodecError, UsageError
from eventflow.kafka import Headers, Message, headers_from_json, headers_json, message_reader


class Order(BaseModel):
    number: int


def read(annotation: Any, value: bytes | None, key: bytes | None = None) -> Message[Any, Any]:
    return message_reader(annotation).read(value, key, None, "orders", 1, 2, 3, 1_700_000_000_000)


def test_a_typed_message() -> None:
    message = read(Message[Order, UUID], b'{"number": 4}', str(UUID(int=1)).encode())
    assert (message.value, message.key) == (Order(number=4), UUID(int=1))
    assert (message.topic, message.partition, message.offset, message.incarnation) == ("orders", 1, 2, 3)
    assert message.timestamp == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Message[bytes], b"", b""), (Message[bytes], b"\xff", b"\xff"), (Message[str], b"a", "a"),
        (Message[Order | None], None, None), (Message, b'{"a": [1]}', {"a": [1]}), (Message[dict[str, int]], b'{"a": 1}', {"a": 1}),
    ],
)  # fmt: skip
def test_values(annotation: Any, value: bytes | None, expected: object) -> None:
    assert read(annotation, value).value == expected


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Message[Order], b""), (Message[Order], None), (Message[bytes], None), (Message[Order], b"{"),
        (Message[Order], b'{"number": "x"}'), (Message[str], b"\xff"), (Message[str], b""),
    ],
)  # fmt: skip
def test_undecodable(annotation: Any, value: bytes | None) -> None:
    with pytest.raises(CodecError, match="orders/1/2"):
        read(annotation, value)


def test_an_annotation_that_nothing_can_be_decoded_to() -> None:
    with pytest.raises(UsageError):
        message_reader(Message[object().__class__ if False else type("X", (), {})])  # type: ignore[misc]


def test_headers() -> None:
    headers = Headers.received([("a", b"1"), ("a", b"2"), ("b", None)])
    assert (headers["a"], headers.all("a"), headers["b"], list(headers)) == (b"2", [b"1", b"2"], b"", ["a", "b"])
    assert headers.text("missing") is None
    with pytest.raises(CodecError):
        Headers({"x": b"\xff"}).text("x")
    raw: list[tuple[str, bytes | None]] = [("a", b"\x00\xff"), ("b", None)]
    assert headers_from_json(headers_json(raw)) == raw


@pytest.mark.parametrize(
    "name", ["value", "key", "headers", "topic", "partition", "offset", "incarnation", "timestamp"]
)
def test_a_message_is_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Message(3, topic="orders"), name, 1)
