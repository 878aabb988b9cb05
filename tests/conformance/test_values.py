"""What goes in and comes out: by annotation, live and through a replay; and exceptions, which are never pickled. Issue 4 §1."""

import enum
import json
import sys
import types
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel, ConfigDict

import eventflow
from eventflow import Retry, sync
from eventflow.errors import CodecError, UsageError, WorkflowError
from tests.conformance.colours import Body, Colour, Do, both, trace, traced
from tests.conformance.conftest import App, anyhow

T = TypeVar("T")


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Item(BaseModel):
    price: Decimal
    size: Size


class Box(BaseModel, Generic[T]):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    content: T
    packed: datetime


@dataclass(frozen=True)
class Order:
    key: UUID
    items: dict[str, Item]
    raw: bytes
    due: date | None
    wait: timedelta
    pair: tuple[int, str] = (1, "a")


Goods = Box[list[Order]]
ORDER = Order(
    UUID(int=7), {"x": Item(price=Decimal("0.10"), size=Size.LARGE)}, b"\x00\xff", date(2026, 2, 28), timedelta(hours=1)
)
GOODS = Goods(content=[ORDER], packed=datetime(2026, 3, 1, 12, tzinfo=UTC))


@eventflow.step
async def unpack(goods: Goods) -> list[Order]:
    return goods.content


@eventflow.step
def unpack_sync(goods: Goods) -> list[Order]:
    return goods.content


@both
def hands_on(do: Do, goods: Goods, sizes: set[Size]) -> Body[dict[UUID, Order]]:
    """Through a step, a message, an event and a stream, asleep between them."""
    trace("begins")
    assert isinstance(goods.content[0].items["x"], Item)
    orders = yield do.run_step(unpack if do.colour == "async" else unpack_sync, goods)
    yield do.sleep(0.2)
    assert orders == goods.content
    assert sizes == {Size.SMALL}
    yield do.set_event("goods", goods)
    yield do.write_stream("orders", orders[0])
    message = yield do.recv(Goods)
    assert message == goods
    return {one.key: one for one in orders}


@anyhow
def test_values_come_back_as_they_were(app: App, colour: Colour) -> None:
    handle = app.start(hands_on, colour, GOODS, {Size.SMALL})
    assert handle.event("goods", Goods, timeout=10) == GOODS
    app.asleep(handle)
    handle.send(GOODS)
    assert handle.result(timeout=15) == {ORDER.key: ORDER}
    assert list(handle.stream("orders", Order)) == [ORDER]
    if app.leaves:
        assert traced(handle.workflow_id).count("begins") > 1


def test_what_does_not_fit_is_refused_where_it_is_given(app: App, colour: Colour) -> None:
    for wrong, words in (((GOODS,), "sizes"), ((1, {Size.SMALL}), "goods"), ((GOODS, {"huge"}), "sizes")):
        with pytest.raises((UsageError, CodecError), match=words):
            sync.start(hands_on[colour], *wrong)


@both
def gives_bytes(do: Do, raw: bytes, some: list[Order]) -> Body[Order]:
    yield do.sleep(0.05)
    assert raw == some[0].raw
    message = yield do.recv(Order)
    assert message == some[0]
    return message


def test_bytes_need_be_no_text(app: App, colour: Colour) -> None:
    """Of its own, in a list, and in a dataclass that has no configuration."""
    raw = bytes(range(256))
    handle = app.start(gives_bytes, colour, raw, [replace(ORDER, raw=raw)])
    handle.send(replace(ORDER, raw=raw))
    assert handle.result(timeout=10).raw == raw


class Unconfigured(BaseModel):
    raw: bytes


def test_a_model_that_cannot_keep_its_bytes_is_told_what_to_say(app: App, colour: Colour) -> None:
    handle = app.start(gives_bytes, colour, b"", [ORDER])
    with pytest.raises(CodecError, match="ConfigDict.ser_json_bytes='base64', val_json_bytes='base64'"):
        handle.send(Unconfigured(raw=b"\xff"))
    handle.terminate()


# ---- exceptions --------------------------------------------------------------------------------------

made: list[object] = []


class Refused(Exception):
    """Its constructor does what must not happen again."""

    def __init__(self, code: int, reason: str) -> None:
        made.append(code)
        super().__init__(code, reason)
        self.code = code
        self.opaque = object()


def raise_it(how: str) -> None:
    trace("acts")
    if how == "known":
        raise Refused(7, "too late")
    module = types.ModuleType("conformance_gone")
    exec("class Gone(Exception):\n    pass", module.__dict__)
    raise module.Gone("with words")


@both
def raises(do: Do, how: str) -> Body[None]:
    trace("begins")
    try:
        yield do.run_step(raise_it, how)
    except Exception as error:
        first = error
    yield do.sleep(0.1)
    raise first


@anyhow
def test_an_exception_is_raised_again_without_its_constructor(app: App, ledger: str, colour: Colour) -> None:
    made.clear()
    handle = app.start(raises, colour, "known")
    with pytest.raises(Refused) as found:
        handle.result(timeout=15)
    with sync.Client(ledger) as client, pytest.raises(Refused, match="too late") as read:
        client.handle(handle.workflow_id, type(None)).result()
    for error in (found.value, read.value):
        assert (error.args, error.code) == ((7, "too late"), 7)
    assert not hasattr(read.value, "opaque"), "what is no plain data is not kept"
    assert made == [7], "made once, by who raised it"
    assert traced(handle.workflow_id).count("acts") == 1
    with psycopg.connect(ledger) as connection:
        [[text]] = connection.execute("select error from eventflow.workflows where id = %s", [handle.workflow_id])
    assert "raise_it" in json.dumps(json.loads(text)), "its traceback is text"


def test_an_exception_that_cannot_be_rebuilt_says_all_of_it(app: App, ledger: str, colour: Colour) -> None:
    assert "conformance_gone" not in sys.modules
    handle = app.start(raises, colour, "unknown")
    with sync.Client(ledger) as client:
        with pytest.raises(Exception, match="with words"):
            handle.result(timeout=15)
        with pytest.raises(WorkflowError) as found:
            client.handle(handle.workflow_id, type(None)).result(timeout=5)
    error: Any = found.value
    assert (error.type.endswith("Gone"), error.message, "raise_it" in error.traceback) == (True, "with words", True)
    assert "conformance_gone" not in sys.modules, "nothing is imported by a stored name"


# ---- which failures are tried again ------------------------------------------------------------------


def fails_as(kind: str) -> None:
    trace(kind)
    raise {"connection": ConnectionError, "value": ValueError}[kind](kind)


@both
def tries(do: Do, kind: str, by: str) -> Body[None]:
    only: Any = (ConnectionError,) if by == "types" else lambda error: isinstance(error, ConnectionError)
    yield do.run_step(fails_as, kind, retries=Retry(2, delay=0.01, max_delay=0.02, jitter=1.0, retry_if=only))


@pytest.mark.parametrize("by", ["types", "a function"])
def test_only_what_the_policy_wants_is_tried_again(app: App, colour: Colour, by: str) -> None:
    for kind, attempts in (("connection", 3), ("value", 1)):
        handle = app.start(tries, colour, kind, by)
        with pytest.raises((ConnectionError, ValueError)):
            handle.result(timeout=10)
        assert traced(handle.workflow_id) == [kind] * attempts
