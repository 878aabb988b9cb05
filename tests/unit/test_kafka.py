import dataclasses
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from eventflow.errors import CodecError, UnavailableError, UsageError
from eventflow.kafka import (
    Headers,
    Message,
    Unprepared,
    by_header,
    headers_from_json,
    headers_json,
    message_reader,
    moment,
)


class Order(BaseModel):
    number: int


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal


class Address(TypedDict):
    street: str


class Tree(BaseModel):
    below: "list[Tree]" = []


class Colour(Enum):
    RED = "red"


class Created(BaseModel):
    kind: Literal["created"]
    number: int


class Shipped(BaseModel):
    kind: Literal["shipped"]
    by: str


AnyOf = Annotated[Created | Shipped, Field(discriminator="kind")]
Foreign = dict[str, Any]


def read(
    annotation: Any, value: bytes | None, key: bytes | None = None, headers: Any = None, **foreign: Any
) -> Message[Any, Any]:
    return message_reader(annotation, **foreign).read(value, key, headers, "orders", 1, 2, 3, 1_700_000_000_000)


def test_a_typed_message() -> None:
    message = read(Message[Order, UUID], b'{"number": 4}', str(UUID(int=1)).encode())
    assert (message.value, message.key) == (Order(number=4), UUID(int=1))
    assert (message.topic, message.partition, message.offset, message.incarnation) == ("orders", 1, 2, 3)
    assert message.timestamp == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Message[bytes], b"", b""), (Message[bytes], b"\xff", b"\xff"), (Message[str], b"a", "a"),
        (Message[Order | None], None, None), (Message[None], None, None),
        (Message[Line], b'{"sku": "a", "price": "1.5"}', Line("a", Decimal("1.5"))),
        (Message[Address], b'{"street": "x"}', {"street": "x"}), (Message[list[int]], b"[1]", [1]), (Message[date], b'"2026-01-02"', date(2026, 1, 2)),
        (Message[AnyOf], b'{"kind": "created", "number": 1}', Created(kind="created", number=1)),
        (Message[AnyOf | None], b'{"kind": "shipped", "by": "x"}', Shipped(kind="shipped", by="x")), (Message[AnyOf | None], None, None),
        (Message, b'{"a": [1]}', {"a": [1]}), (Message[dict[str, int]], b'{"a": 1}', {"a": 1}),
    ],
)  # fmt: skip
def test_values(annotation: Any, value: bytes | None, expected: object) -> None:
    assert read(annotation, value).value == expected


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        (int, b"7", 7), (int | None, None, None), (str, b"a", "a"), (str, b"", ""), (bytes, b"\xff", b"\xff"), (bytes | None, b"", b""),
        (UUID, str(UUID(int=3)).encode(), UUID(int=3)), (Decimal, b"1.50", Decimal("1.50")), (date, b"2026-01-02", date(2026, 1, 2)),
        (bool, b"true", True), (Colour, b"red", Colour.RED), (Literal["a"], b"a", "a"), (Order, b'{"number": 4}', Order(number=4)),
        (Annotated[int, Field(ge=0)], b"4", 4), (Line, b'{"sku": "a", "price": 1}', Line("a", Decimal(1))), (Address, b'{"street": "x"}', {"street": "x"}),
        (dict[str, int], b'{"a": 1}', {"a": 1}), (tuple[int, str], b'[1, "a"]', (1, "a")), (Tree, b"{}", Tree()),
        (AnyOf, b'{"kind": "shipped", "by": "x"}', Shipped(kind="shipped", by="x")), (Any, b"a", "a"),
    ],
)  # fmt: skip
def test_keys(kind: Any, key: bytes | None, expected: object) -> None:
    """Text for what has no parts, as producers write it, and JSON for what has."""
    assert read(Message[int, kind], b"1", key).key == expected


@pytest.mark.parametrize(("kind", "key"), [(int, b"x"), (int, None), (UUID, b"\xff"), (Order, b"4"), (str, b"\xff")])
def test_keys_that_cannot_be_decoded(kind: Any, key: bytes | None) -> None:
    with pytest.raises(CodecError, match="orders/1/2 cannot be decoded"):
        read(Message[int, kind], b"1", key)


# ---- others' deserializers ---------------------------------------------------------------------------


def numbers(data: bytes, *, topic: str, headers: Headers, type: Any) -> object:
    """Binary, as Java's IntegerSerializer writes; of a certain header it says so."""
    if headers.text("broken"):
        raise ZeroDivisionError("no\nsuch number")
    assert (topic, type) == ("orders", int)
    return int.from_bytes(data, "big")


def test_a_deserializer_makes_the_values_and_another_one_the_keys() -> None:
    both: Foreign = {"deserializer": numbers, "key_deserializer": numbers}
    message = read(Message[int | None, int], b"\0\1", b"\2", [("a", b"x")], **both)
    assert (message.value, message.key, message.headers.text("a"), message.offset) == (1, 2, "x", 2)
    assert read(Message[int | None, int], None, b"\2", **both).value is None
    assert read(Message[int, str], b"\3", b"k", deserializer=numbers).key == "k"
    assert read(Message[Order, int | None], b'{"number": 1}', None, key_deserializer=numbers).key is None


@pytest.mark.parametrize(
    ("value", "key", "said"),
    [
        (None, b"\1", "it is a tombstone, and the handler's annotation does not admit None"),
        (b"\1", None, "it has no key, and the handler's annotation does not admit None"),
        (b"\1", b"\1", "numbers: ZeroDivisionError: no"),
    ],
)
def test_what_a_deserializer_does_not_make(value: bytes | None, key: bytes | None, said: str) -> None:
    with pytest.raises(CodecError) as caught:
        broken = [("broken", b"1")] if value and key else None
        read(Message[int, int], value, key, broken, deserializer=numbers, key_deserializer=numbers)
    assert str(caught.value) == f"orders/1/2 cannot be decoded: {said}"


class Remote:
    """Has to fetch something first, as one that knows a registry does."""

    def __init__(self) -> None:
        self.there: bool | None = False  # None: it can never be had

    def check(self, type: Any) -> None:
        if type is not str:
            raise UsageError(f"not {type}")

    def prepare(self, data: bytes, *, topic: str, headers: Headers) -> None:
        if self.there is False:
            raise UnavailableError("it does not answer")
        if self.there is None:
            raise ValueError("not of ours")

    def __call__(self, data: bytes, *, topic: str, headers: Headers, type: Any) -> str:
        if not self.there:
            raise UnavailableError("not here yet")
        return data.decode()


def test_what_has_to_be_fetched_first() -> None:
    remote = Remote()
    reader = message_reader(Message[str | None], remote)
    assert reader.prepares
    with pytest.raises(UnavailableError):
        reader.prepare(b"a", None, None, "orders")
    reader.prepare(None, None, None, "orders")  # of a tombstone nothing
    with pytest.raises(Unprepared):
        reader.read(b"a", None, None, "orders", 0, 0, 1, 0)
    remote.there = None
    reader.prepare(b"a", None, None, "orders")  # what is wrong with the message, reading it tells
    remote.there = True
    reader.prepare(b"a", None, None, "orders")
    assert reader.read(b"a", None, None, "orders", 0, 0, 1, 0).value == "a"
    assert not message_reader(Message[str]).prepares
    with pytest.raises(UsageError, match="not <class 'int'>"):
        message_reader(Message[int], remote)


def test_the_type_by_a_header() -> None:
    typed = by_header("type", {"order": Order, "line": Line})
    annotation: Any = Message[Order | Line | None]
    of: Any = lambda value, *headers: read(annotation, value, None, list(headers), deserializer=typed)  # noqa: E731
    assert of(b'{"number": 1}', ("type", b"order")).value == Order(number=1)
    assert of(b'{"sku": "a", "price": 1}', ("type", b"line")).value == Line("a", Decimal(1))
    assert of(None).value is None
    for headers, said in (
        ([("type", b"other")], "the header 'type' is 'other'; it must be one of: line, order"),
        ([], "the header 'type' is not there; it must be one of: line, order"),
        ([("type", b"\xff")], "the header 'type' is not UTF-8"),
        ([("type", b"order")], "number: Field required"),
    ):
        with pytest.raises(CodecError) as caught:
            of(b"{}", *headers)
        assert str(caught.value) == f"orders/1/2 cannot be decoded: {said}"


def test_the_type_by_a_header_of_what_another_deserializer_makes() -> None:
    remote = Remote()
    remote.there = True
    typed = by_header("type", {"text": str}, deserializer=remote)
    reader = message_reader(Message[str], typed)
    assert reader.prepares
    assert reader.read(b"a", None, [("type", b"text")], "orders", 0, 0, 1, 0).value == "a"


def test_by_header_is_held_to_the_annotation() -> None:
    with pytest.raises(UsageError, match="makes Line of 'line', which the handler does not take"):
        message_reader(Message[Order], by_header("type", {"order": Order, "line": Line}))
    with pytest.raises(UsageError, match="needs a type"):
        by_header("type", {})
    message_reader(Message, by_header("type", {"order": Order}))


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


@pytest.mark.parametrize("milliseconds", [None, 0, -1, 2**63 - 1, 10**17, -(2**63)])
def test_a_timestamp_that_no_calendar_has_is_none(milliseconds: int | None) -> None:
    """Its producer has set it: no list of dead letters ends for it."""
    assert moment(milliseconds) is None
    if milliseconds is not None:
        message = message_reader(Message[int]).read(b"1", None, None, "orders", 0, 0, 1, milliseconds)
        assert message.timestamp is None
    assert moment(1000) == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
