"""A workflow that is called, from a program: what its caller gets, whatever becomes of the workflow and of the process.

The blocking call is made from threads, and has no part of the loop; the awaited one is made on the program's loop.
"""

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.app import App as Application
from eventflow.codec import codec_for
from eventflow.context import slot
from eventflow.errors import NotRunningError, WorkflowNotFoundError
from eventflow.settings import Settings
from tests.conformance.colours import Body, Colour, Do, both, until
from tests.conformance.conftest import App, new_database

go = threading.Event()
began: defaultdict[str, list[str]] = defaultdict(list)  # a name that a call gave, and the ids of its runs


@both
def naps(do: Do, name: str, seconds: float) -> Body[str]:
    began[name].append(durable.workflow_id())
    yield do.sleep(seconds)
    return name


@both
def fails(do: Do, name: str) -> Body[str]:
    yield do.sleep(0)
    raise LookupError(name)


def wait_for_go(name: str) -> str:
    began[name].append(durable.workflow_id())
    assert go.wait(20)
    return name


async def wait_for_go_async(name: str) -> str:
    return await asyncio.to_thread(wait_for_go, name)


@both
def stands(do: Do, name: str) -> Body[str]:
    yield do.run_step(wait_for_go_async if do.colour == "async" else wait_for_go, name)
    return name


@pytest.fixture(autouse=True)
def not_yet() -> Iterator[None]:
    go.clear()
    yield
    go.set()


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call it in a thread that holds up no exit."""
    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def call(pair: Any, colour: Colour, *args: Any) -> Any:
    """From a thread; the awaited call on the loop that the application has."""
    if colour == "sync":
        return pair[colour](*args)
    assert slot.runtime is not None
    return slot.runtime.on_loop(pair[colour](*args))


def called(pair: Any, colour: Colour, name: str, *args: Any) -> tuple[Any, str]:
    """A call that is under way, and the workflow's id."""
    future = in_thread(call, pair, colour, name, *args)
    until(lambda: began[name] or future.done())
    assert began[name], future.result(timeout=0)
    return future, began[name][0]


def test_the_result_and_the_failure(app: App, colour: Colour) -> None:
    name = str(uuid.uuid4())
    assert in_thread(call, naps, colour, name, 0.0).result(10) == name
    with pytest.raises(LookupError, match=name):
        in_thread(call, fails, colour, name).result(10)


def test_one_that_leaves_memory_meanwhile(app: App, colour: Colour) -> None:
    name = str(uuid.uuid4())
    future, workflow_id = called(naps, colour, name, 1.5)
    handle = sync.Handle(eventflow.Handle[str](workflow_id, codec_for(str)))
    until(lambda: handle.get().status == "waiting")
    assert future.result(10) == name
    assert len(began[name]) == 2, "it was woken"


def test_others_may_wait_for_it_too(app: App, colour: Colour) -> None:
    name = str(uuid.uuid4())
    future, workflow_id = called(stands, colour, name)
    handle = sync.start(stands[colour], name, workflow_id=workflow_id)
    other = in_thread(handle.result, timeout=15)
    time.sleep(0.1)
    go.set()
    assert (future.result(10), other.result(10)) == (name, name)


def test_of_a_row_that_is_gone(app: App, colour: Colour, ledger: str) -> None:
    """The incarnation ends, whose run this was; the caller is told what has become of its workflow."""
    future, workflow_id = called(stands, colour, str(uuid.uuid4()))
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute("delete from eventflow.workflows where id = %s", [workflow_id])
    go.set()
    with pytest.raises(WorkflowNotFoundError):
        future.result(10)


@pytest.fixture
def own(postgres_url: str) -> Iterator[Settings]:
    with new_database(postgres_url) as url:
        yield Settings(database_url=url, lease=1, beat=0.2, drain=0.2, threads=8)


def test_a_thread_whose_process_leaves_is_not_left_waiting(own: Settings, app: App) -> None:
    app.down()
    try:
        with eventflow.running(own, consumers=False):
            future, _ = called(stands, "sync", str(uuid.uuid4()))
        with pytest.raises(NotRunningError):
            future.result(10)
    finally:
        go.set()
        app.up()


def test_a_call_in_the_moment_in_which_the_process_leaves(
    own: Settings, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was let in before, and begins after all is over: nobody would ever see to it."""
    app.down()
    inside, left = threading.Event(), threading.Event()
    check: Callable[[Application], None] = Application._check_starting

    def late(self: Application) -> None:
        check(self)
        inside.set()
        assert left.wait(20)

    monkeypatch.setattr(Application, "_check_starting", late)
    try:
        with eventflow.running(own, consumers=False):
            future = in_thread(call, naps, "sync", "late", 0.0)
            assert inside.wait(10)
        left.set()
        with pytest.raises(NotRunningError):
            future.result(10)
    finally:
        left.set()
        monkeypatch.undo()
        app.up()
