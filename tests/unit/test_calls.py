"""What a call is refused for, what it is known by, and what its failure says."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow.codec import encode_error, recorded_line
from eventflow.errors import UsageError, WorkflowError
from eventflow.registry import TransactionSpec, innermost, is_async, registry, result_codec
from eventflow.replay import History
from eventflow.retry import Retry
from eventflow.transactions import _pause


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "specs", {})


def test_a_method_is_the_workflow_of_no_instance() -> None:
    class Billing:
        @eventflow.workflow
        async def refund(self, order: int) -> int:
            return order

    with pytest.raises(UsageError, match=r"Billing\.refund' is a method"):
        Billing().refund(3)
    assert registry.specs == {}


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


def test_async_steps_and_transactions_are_known_for_async() -> None:
    @eventflow.step
    async def charge(n: int) -> int:
        return n

    @eventflow.transaction
    async def book(session: AsyncSession) -> None: ...

    @eventflow.step
    def weigh(n: int) -> int:
        return n

    assert [is_async(f) for f in (charge, book, weigh)] == [True, True, False]
    assert all(inspect.iscoroutinefunction(inspect.unwrap(f)) for f in (charge, book))
    assert is_async(eventflow.step(charge)), "a step of a step"


class Scale:
    def __call__(self, n: int) -> float:
        return n / 2

    def weigh(self, n: int) -> float:
        return n / 2


def half(n: int) -> float:
    return n / 2


@pytest.mark.parametrize(
    "function", [half, wrapped(half), functools.partial(half, 1), functools.partial(wrapped(half)), Scale(), Scale().weigh]
)  # fmt: skip
def test_annotations_are_found_below_decorators_and_partials(function: Callable[..., Any]) -> None:
    assert result_codec(function).encode(1.5) == "1.5"
    with pytest.raises(eventflow.EventflowError):
        result_codec(function).encode("heavy")
    assert innermost(function).__qualname__ in {"half", "Scale.__call__", "Scale.weigh"}


class Declined(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (Declined("by\nthe bank"), f"{__name__}.Declined: by\nthe bank"),
        (WorkflowError("shop.Gone", "it is"), "eventflow.errors.WorkflowError: shop.Gone: it is"),
    ],
)
def test_a_recorded_error_in_words(error: Exception, line: str) -> None:
    assert recorded_line(encode_error(error)) == line


def test_what_failed_together_is_dropped_together() -> None:
    history, first, other = History(), ValueError("1"), ValueError("2")
    history.add("1.1", "before", "1", None, 1, 0.0)
    for position, error in (("3.1", other), ("2.1", first)):
        history.failures.append((error, history.add(position, "call", None, "{}", 1, 0.0).seq))
    wrapper = RuntimeError("around it")
    wrapper.__cause__ = other
    history.failed_together(first, [wrapper])
    assert (history.drop_failed(first) or (0, ""))[0] == 2


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)])
def test_the_pause_of_a_transaction_is_left_to_chance(
    monkeypatch: pytest.MonkeyPatch, draw: float, seconds: float
) -> None:
    monkeypatch.setattr("random.random", lambda: draw)
    policy = Retry(1, delay=2.0, jitter=0.5)
    spec = TransactionSpec("t", lambda: None, False, "connection", 0, None, policy)
    assert _pause(spec, 1) == seconds
