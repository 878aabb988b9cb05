"""`start` in steps and transactions: with what these record, or not at all. API.md 2.2."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow import Retry, durable, sync
from eventflow.context import runtime
from eventflow.errors import UsageError, WorkflowTimeoutError
from eventflow.sync import Client
from tests.conformance.colours import COLOURS, Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, names

WAYS = ("step", "transaction", "step of the other colour")
failing: set[str] = set()  # ids of workflows whose steps fail


@both
def child(do: Do, n: int) -> Body[int]:
    trace(n)
    yield do.run_step(trace, "acts")
    return n


@both
def endless(do: Do) -> Body[None]:
    yield do.sleep(600)


def tried(workflow_id: str) -> int:
    """Which attempt this is."""
    trace("attempt")
    return traced(workflow_id).count("attempt")


def ends(number: int) -> None:
    if durable.workflow_id() in failing or number == 1:
        raise ConnectionError(f"attempt {number}")


@eventflow.step(name="starts")
async def in_a_step() -> list[str]:
    number = tried(durable.workflow_id())
    handles = [await eventflow.start(child["async"], number * 10 + n) for n in range(2)]
    ends(number)
    return [handle.workflow_id for handle in handles]


@eventflow.step(name="starts")
def in_a_sync_step() -> list[str]:
    number = tried(durable.workflow_id())
    handles = [sync.start(child["sync"], number * 10 + n) for n in range(2)]
    ends(number)
    return [handle.workflow_id for handle in handles]


@eventflow.transaction(name="starts")
async def in_a_transaction(session: AsyncSession) -> list[str]:
    return await in_a_step()


@eventflow.transaction(name="starts")
def in_a_sync_transaction(connection: "psycopg.Connection[Any]") -> list[str]:
    return in_a_sync_step()


def chosen(do: Do, way: str) -> Callable[..., Any]:
    awaited = (do.colour == "async") is (way != WAYS[2])
    if way == "transaction":
        return in_a_transaction if awaited else in_a_sync_transaction
    return in_a_step if awaited else in_a_sync_step


@both
def parent(do: Do, way: str) -> Body[list[str]]:
    try:
        found = yield do.run_step(chosen(do, way), retries=Retry(1, delay=0.01))
    except ConnectionError:
        return []
    yield do.sleep(0.2)
    return found


def children_of(url: str, workflow_id: str) -> list[str]:
    with Client(url) as client:
        return sorted(w.workflow_id for w in client.workflows(parent=workflow_id))


@pytest.mark.parametrize("way", WAYS)
def test_what_an_attempt_starts_begins_once_it_is_recorded(app: App, ledger: str, colour: Colour, way: str) -> None:
    handle = app.start(parent, colour, way)
    found = handle.result(timeout=10)
    assert children_of(ledger, handle.workflow_id) == sorted(found)
    assert all(one.startswith(f"{handle.workflow_id}>") for one in found)
    with Client(ledger) as client:
        assert [client.handle(one, int).result(timeout=10) for one in found] == [20, 21], (
            "those of the attempt that failed: none"
        )
    assert [traced(one) for one in found] == [[20, "acts"], [21, "acts"]]
    assert names(handle) == ["starts", "sleep"]


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_fails_starts_nothing(app: App, ledger: str, colour: Colour, way: str) -> None:
    workflow_id = f"fails {colour} {way}"
    failing.add(workflow_id)
    handle = app.start(parent, colour, way, workflow_id=workflow_id)
    assert handle.result(timeout=10) == []
    assert children_of(ledger, workflow_id) == []


def fails_the_first_time() -> None:
    trace("tries")
    if traced(durable.workflow_id()).count("tries") == 1:
        raise ValueError("once")


@both
def starts_before_it_fails(do: Do, way: str) -> Body[list[str]]:
    found = yield do.run_step(chosen(do, way), retries=Retry(1, delay=0.01))
    yield do.run_step(fails_the_first_time, name="fails")
    return found


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_restarted_workflow_finds_those_that_it_started(app: App, ledger: str, colour: Colour, way: str) -> None:
    handle = app.start(starts_before_it_fails, colour, way)
    with pytest.raises(ValueError, match="once"):
        handle.result(timeout=10)
    handle.retry()
    found = handle.result(timeout=10)
    assert len(found) == 2
    until(lambda: all(traced(one)[-1:] == ["acts"] for one in found))
    handle.restart()
    assert handle.result(timeout=10) == found
    assert children_of(ledger, handle.workflow_id) == sorted(found)
    assert [traced(one) for one in found] == [[20, "acts"], [21, "acts"]], "they ran once"
    assert app.run(child, colour, 5) == 5, "the executor goes on"


@both
def starts_and_fails(do: Do) -> Body[int]:
    result = yield do.call(child, 1)
    yield do.run_step(fails_the_first_time, name="fails")
    return result


def test_a_child_of_a_restarted_workflow_is_the_one_that_ran(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(starts_and_fails, colour)
    with pytest.raises(ValueError, match="once"):
        handle.result(timeout=10)
    handle.retry()
    assert handle.result(timeout=10) == 1
    handle.restart()
    assert handle.result(timeout=10) == 1
    [found] = children_of(ledger, handle.workflow_id)
    assert traced(found) == [1, "acts"]
    assert app.run(child, colour, 5) == 5, "the executor goes on"


# ---- transactions outside a workflow -----------------------------------------------------------------


@eventflow.transaction
async def outside_async(session: AsyncSession, n: int, *, fails: bool) -> str:
    handle = await eventflow.start(child["async"], n, attributes={"of": "outside"}, timeout=30)
    if fails:
        raise ConnectionError("rolled back")
    return handle.workflow_id


@eventflow.transaction
def outside_sync(connection: "psycopg.Connection[Any]", n: int, *, fails: bool) -> str:
    handle = sync.start(child["sync"], n, attributes={"of": "outside"}, timeout=30)
    if fails:
        raise ConnectionError("rolled back")
    return handle.workflow_id


def outside(colour: Colour, n: int, *, fails: bool = False) -> str:
    if colour == "sync":
        return outside_sync(n, fails=fails)
    return runtime("test").on_loop(outside_async(n, fails=fails))


def test_a_transaction_outside_a_workflow_starts_what_it_commits(app: App, ledger: str, colour: Colour) -> None:
    found = outside(colour, 3)
    until(lambda: traced(found) == [3, "acts"])
    with Client(ledger) as client:
        assert client.handle(found, int).result(timeout=10) == 3
        record = client.handle(found, int).get()
        assert (record.parent, record.attributes) == (None, {"of": "outside"})
        before = len(list(client.workflows(attributes={"of": "outside"})))
        with pytest.raises(ConnectionError):
            outside(colour, 4, fails=True)
        assert len(list(client.workflows(attributes={"of": "outside"}))) == before


# ---- what it has of its parent, and what is refused -----------------------------------------------------


@eventflow.step
async def starts_endless() -> str:
    return (await eventflow.start(endless["async"])).workflow_id


@eventflow.step
def starts_endless_sync() -> str:
    return sync.start(endless["sync"]).workflow_id


@both(timeout=0.5)
def short(do: Do) -> Body[None]:
    yield do.run_step(starts_endless if do.colour == "async" else starts_endless_sync)
    yield do.sleep(60)


def test_it_has_no_more_time_than_its_parent(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(short, colour)
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=10)
    [found] = children_of(ledger, handle.workflow_id)
    with Client(ledger) as client, pytest.raises(WorkflowTimeoutError):
        client.handle(found, object).result(timeout=10)


async def refused_async(what: str) -> str:
    with pytest.raises(UsageError, match="step or transaction"):
        if what == "id":
            await eventflow.start(child["async"], 1, workflow_id="mine")
        elif what == "call":
            await child["async"](1)
        else:
            await (await eventflow.start(child["async"], 1)).result()
    return "refused"


def refused_sync(what: str) -> str:
    with pytest.raises(UsageError, match="step or transaction"):
        if what == "id":
            sync.start(child["sync"], 1, workflow_id="mine")
        elif what == "call":
            child["sync"](1)
        else:
            sync.start(child["sync"], 1).result()
    return "refused"


@both
def does_wrong(do: Do, what: str) -> Body[str]:
    return (yield do.run_step(refused_async if do.colour == "async" else refused_sync, what, name="wrong"))


@pytest.mark.parametrize("what", ["id", "call", "await"])
@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_refused_there(app: App, colour: Colour, what: str) -> None:
    assert app.run(does_wrong, colour, what) == "refused"
