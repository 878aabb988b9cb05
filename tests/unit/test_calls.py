"""What a call is refused for, what it is known by, and what its failure says."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow.app import App
from eventflow.codec import encode_error, recorded_line
from eventflow.errors import UsageError, WorkflowError
from eventflow.registry import TransactionSpec, innermost, is_async, registry, result_codec
from eventflow.replay import History
from eventflow.retry import Retry
from eventflow.runs import Run
from eventflow.threads import Threads
from eventflow.transactions import _pause
from tests.unit.test_runs import desk


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


async def raises_in_a_thread(error: BaseException) -> None:
    def call() -> None:
        raise error

    calls = Threads[Callable[[], None]](1, lambda call: call())
    try:
        await asyncio.wait_for(App.in_thread(SimpleNamespace(_calls=calls), call), 10)  # type: ignore[arg-type]
    finally:
        calls.stop()


async def raises_in_a_sync_workflow(error: BaseException) -> None:
    @eventflow.workflow
    def ends() -> None:
        raise error

    async with desk() as at:
        run = Run(ends.spec, "w", "a")
        run.arguments, run.future = ends.encode((), {}), asyncio.get_running_loop().create_future()
        at.executor.runs["w"], at.executor.on_told = run, lambda *_: None
        at.executor.dispatch([run])
        await asyncio.wait_for(asyncio.shield(run.future), 10)


@pytest.mark.parametrize("call", [raises_in_a_thread, raises_in_a_sync_workflow])
async def test_a_stop_iteration_reaches_who_waits_for_it(call: Callable[[BaseException], Awaitable[None]]) -> None:
    """Python 3.11 refuses to put one into a future, in a callback of which nobody hears."""
    error = StopIteration()
    with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
        await call(error)
    assert raised.value.__cause__ is error


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
