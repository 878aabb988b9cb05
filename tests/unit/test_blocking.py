"""A call that would block the event loop of its thread is refused at once, and says what to call instead."""

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

import eventflow
from eventflow import Handle, sync
from eventflow.codec import codec_for
from eventflow.context import current, slot
from eventflow.errors import BlockingCallError
from eventflow.registry import Registry, registry
from eventflow.replay import Branch


class Idle:
    """A running application that is never to be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"it went on, to {name}")


@pytest.fixture(autouse=True)
def running_application(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(slot, "runtime", Idle())
    monkeypatch.setattr(slot, "pid", os.getpid())
    monkeypatch.setattr(registry, "specs", {})
    return registry


handle: Any = sync.Handle(Handle("some id", codec_for(int)))


def sync_workflow() -> Any:
    @eventflow.workflow
    def blocking() -> None: ...

    return blocking


def in_a_workflow() -> None:
    """As if this task were an async workflow's."""
    executor = SimpleNamespace(home=asyncio.current_task)
    current.set(Branch(SimpleNamespace(executor=executor, workflow_id="w"), asyncio.current_task()))


def sync_step_in_a_workflow() -> None:
    @eventflow.step
    def weigh() -> None:
        raise AssertionError("it ran")

    in_a_workflow()
    weigh()


@eventflow.transaction
def book(connection: psycopg.Connection[Any]) -> None:
    raise AssertionError("it ran")


def sync_transaction_in_a_workflow() -> None:
    in_a_workflow()
    cast("Callable[[], None]", book)()


def with_running() -> None:
    with eventflow.running():
        raise AssertionError("it went in")


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "a sync workflow": (lambda: sync_workflow()(), r"await eventflow\.start"),
    "a sync step in a workflow": (sync_step_in_a_workflow, r"'.*weigh'.*await eventflow\.durable\.run_step"),
    "a sync transaction": (cast("Any", book), r"'book'.*await eventflow\.durable\.run_step"),
    "a sync transaction in a workflow": (sync_transaction_in_a_workflow, r"'book'.*await eventflow\.durable\.run_step"),
    "sync.start": (lambda: sync.start(sync_workflow()), r"await eventflow\.start"),
    "result": (handle.result, r"await eventflow\.Handle\.result"),
    "result in time": (lambda: handle.result(timeout=1), r"await eventflow\.Handle\.result"),
    "get": (handle.get, r"await eventflow\.Handle\.get"),
    "steps": (handle.steps, r"await eventflow\.Handle\.steps"),
    "with running()": (with_running, r"async with"),
}


@pytest.mark.parametrize("what", list(CALLS))
async def test_a_blocking_call_on_a_loops_thread(what: str) -> None:
    call, instead = CALLS[what]
    with pytest.raises(BlockingCallError, match=instead):
        call()
