import dataclasses
import enum
import inspect
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from eventflow.codec import Arguments, codec_for, decode_error, encode_error
from eventflow.errors import CodecError, UsageError, WorkflowError


class Order(BaseModel):
    number: int


class Special(Order):
    extra: str


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 1), (str, "a\0ß"), (bytes, b"ab"), (Decimal, Decimal("1.10")), (datetime, datetime(2026, 1, 1, tzinfo=UTC)),
        (UUID, UUID(int=5)), (Colour, Colour.RED), (Order, Order(number=1)), (Point, Point(2)), (list[Order], [Order(number=3)]),
        (None, None), (int | None, None), (dict[str, Point], {"a": Point(1)}),
    ],
)  # fmt: skip
def test_round_trip(kind: Any, value: Any) -> None:
    codec = codec_for(kind)
    text = codec.encode(value)
    assert "\0" not in text
    assert codec.decode(text) == value


@pytest.mark.parametrize("value", [object(), {1: 2}, float("nan"), "\ud800", (1, 2), Order(number=1)])
def test_without_annotation_only_plain_json(value: Any) -> None:
    with pytest.raises(CodecError):
        codec_for(Any).encode(value)


def test_a_subclass_would_lose_fields() -> None:
    with pytest.raises(CodecError, match="lose fields"):
        codec_for(Order).encode(Special(number=1, extra="x"))


def test_a_result_of_another_type() -> None:
    with pytest.raises(CodecError):
        codec_for(int).encode("seven")


def call(a: int, b: Order, *rest: str, c: Decimal = Decimal(1), **more: int) -> None: ...


def test_arguments() -> None:
    arguments = Arguments(call)
    text = arguments.encode((1, Order(number=2), "x", "y"), {"c": Decimal("2.5"), "d": 4})
    assert arguments.decode(text) == ([1, Order(number=2), "x", "y"], {"c": Decimal("2.5"), "d": 4})


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {"a": 1})])
def test_arguments_that_do_not_fit(args: Any, kwargs: Any) -> None:
    with pytest.raises(UsageError):
        Arguments(call).encode(args, kwargs)


SIGNATURES: list[Any] = [
    lambda: 0, lambda a: 0, lambda a, b=1: 0, lambda a, /, b: 0, lambda a, *rest: 0, lambda *rest: 0, lambda a, *, k: 0,
    lambda a, *, k=1: 0, lambda a, b=1, /, *, k=1, **more: 0, lambda **more: 0,
]  # fmt: skip


@pytest.mark.parametrize("function", SIGNATURES)
@pytest.mark.parametrize("count", range(4))
def test_as_many_arguments_fit_as_the_signature_says(function: Any, count: int) -> None:
    arguments, args = Arguments(function), list(range(count))
    text = f'{{"args":{args},"kwargs":{{}}}}'
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        with pytest.raises(UsageError):
            arguments.encode(tuple(args), {})
        with pytest.raises(CodecError):
            arguments.decode(text)
    else:
        assert arguments.decode(arguments.encode(tuple(args), {})) == (args, {})


class ShopError(Exception):
    constructed = 0

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        ShopError.constructed += 1


def test_an_imported_exception_is_rebuilt_without_its_constructor() -> None:
    error = ShopError(7, "closed")
    before = ShopError.constructed
    again = decode_error(encode_error(error))
    assert isinstance(again, ShopError)
    assert (again.code, again.args, ShopError.constructed) == (7, (7, "closed"), before)


def test_an_unknown_exception_carries_everything() -> None:
    again = decode_error(encode_error(ShopError(1, "x")).replace("ShopError", "Vanished"))
    assert isinstance(again, WorkflowError)
    assert "Vanished" in again.type


@pytest.mark.parametrize("error", [ValueError("a\0b"), ValueError("\ud800"), ValueError(object()), KeyboardInterrupt()])
def test_no_exception_is_too_odd(error: BaseException) -> None:
    assert "\0" not in encode_error(error)
    decode_error(encode_error(error))


def test_stored_names_import_nothing() -> None:
    text = encode_error(ValueError()).replace("builtins.ValueError", "this.Zen")
    assert isinstance(decode_error(text), WorkflowError)
