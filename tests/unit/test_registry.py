"""What a declaration says of itself when it cannot work."""

from collections.abc import Callable
from typing import Any

import pytest

from eventflow import Message
from eventflow.codec import codec_for
from eventflow.errors import UsageError
from eventflow.kafka import message_reader
from eventflow.registry import ConsumerSpec, Spec, make_spec
from eventflow.retry import Retry


class Thing: ...


async def bill(message: Message[Thing]) -> None: ...
async def answer(message: Message[int]) -> Thing: ...
def refund(order: int, thing: Thing) -> None: ...
def lend() -> Thing: ...
async def fine(message: Message[int]) -> str: ...


def declare(function: Callable[..., Any]) -> Spec:
    spec = make_spec(function, None, Retry(0), 0)
    if "message" in function.__annotations__:
        spec.consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, None)
    return spec


@pytest.mark.parametrize("function", [bill, answer, refund, lend])
def test_an_annotation_in_the_way_is_one_line_with_its_place(function: Callable[..., Any]) -> None:
    with pytest.raises(UsageError) as error:
        declare(function).check()
    line = function.__code__.co_firstlineno
    assert str(error.value).startswith(f"{__file__}:{line}: {function.__name__}: ")
    assert "Thing" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_can_be_read_and_written_is_let_through() -> None:
    declare(fine).check()


@pytest.mark.parametrize("make", [lambda: message_reader(Message[Thing]), lambda: codec_for(list[Thing])])
def test_pydantics_advice_is_left_out(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert "Thing" in str(error.value)
    assert "\n" not in str(error.value)
