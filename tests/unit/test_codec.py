import dataclasses
import enum
import inspect
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from eventflow.codec import Arguments, codec_for, decode_error, encode_error, limit
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


class Wilful(Exception):
    """One whose class makes it as no other does."""

    def __new__(cls, *, code: int) -> "Wilful":
        return super().__new__(cls, code)

    def __init__(self, *, code: int) -> None:
        super().__init__(code)


class ReadOnly(Exception):
    @property
    def code(self) -> int:
        return 7


def test_what_cannot_be_rebuilt_says_what_it_was() -> None:
    read_only = ReadOnly("x")
    read_only.__dict__["code"] = 8
    for error in (Wilful(code=3), read_only):
        again = decode_error(encode_error(error))
        assert isinstance(again, WorkflowError)
        assert type(error).__name__ in again.type


def test_what_pydantic_found_wrong_is_found_wrong_again() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, list[int]]).validate_python({"a": [1, "{b}"], "c": object()})
    again = decode_error(encode_error(caught.value))
    assert isinstance(again, ValidationError)
    known = [(e["type"], e["loc"], e["msg"]) for e in caught.value.errors()]
    assert [(e["type"], e["loc"], e["msg"]) for e in again.errors()] == known
    assert again.errors()[0]["input"] == "{b}"
    assert again.title == caught.value.title


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


# ---- how large a value may be --------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "size", 1024)


TOO_LARGE = r"it takes 1,0\d\d bytes as JSON and may take 1,024 \(EVENTFLOW_MAX_PAYLOAD\): keep what is large elsewhere"


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        (str, "x" * 1022, "x" * 1023), (Any, "x" * 1022, "x" * 1023), (str, "ä" * 511, "ä" * 512), (Any, "ä" * 511, "ä" * 512),
        (list[str], ["x" * 1020], ["x" * 1021]), (Order, Order(number=10**1000), Order(number=10**1020)),
    ],
)  # fmt: skip
def test_bytes_are_counted(small: None, kind: Any, fits: Any, does_not: Any) -> None:
    codec = codec_for(kind).named("the result of 'f'")
    assert len(codec.encode(fits).encode()) <= 1024
    with pytest.raises(CodecError, match=f"^the result of 'f': {TOO_LARGE}"):
        codec.encode(does_not)


def test_arguments_are_counted_together(small: None) -> None:
    def pair(a: str, b: str) -> None: ...

    arguments = Arguments(pair)
    arguments.encode(("x" * 400, "ä" * 200), {})
    with pytest.raises(CodecError, match=f"the arguments of .*pair: {TOO_LARGE}"):
        arguments.encode(("x" * 500, "x" * 500), {})
    with pytest.raises(CodecError, match=r"pair, argument 'b': it takes 2,002 bytes"):
        arguments.encode(("x", "x" * 2000), {})


def test_what_was_larger_before_is_still_read(small: None) -> None:
    assert codec_for(str).decode(f'"{"x" * 5000}"') == "x" * 5000


def test_an_exception_that_is_too_large_is_cut(small: None) -> None:
    text = encode_error(ShopError(7, "x" * 5000))
    assert len(text) <= 1024
    again = decode_error(text)
    assert isinstance(again, WorkflowError)
    assert again.type.endswith("ShopError")
    assert "xxx... (cut: the record took " in again.message
    assert len(encode_error(ValueError("ä" * 5000))) <= 1024


def test_the_default_limit() -> None:
    with pytest.raises(CodecError, match="may take 8,388,608"):
        codec_for(bytes).encode(b"x" * 8_388_608)
