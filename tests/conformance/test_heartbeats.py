"""What a step tells of its progress, and the next attempt reads: issue 4 §2."""

import asyncio
import functools
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import eventflow
from eventflow import Retry, durable, sync
from eventflow.codec import limit
from eventflow.database import Database
from eventflow.errors import CodecError, UsageError, WorkflowTimeoutError
from eventflow.executor import Executor
from tests.conformance.colours import COLOURS, Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names

AT_ONCE = Retry(2, delay=0.01, jitter=0)
LONG = Retry(2, delay=0.3, factor=20, max_delay=6, jitter=0)


class Page(BaseModel):
    page: int


def in_colour(do: Do, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is, or async; both are steps of the same name."""
    if do.colour == "sync":
        return function

    @functools.wraps(function)
    async def call(*args: Any) -> Any:
        return function(*args)

    del call.__wrapped__
    return call


def kept(url: str, workflow_id: str) -> list[str]:
    """What the ledger has of the progress of this workflow's steps."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "select output from eventflow.checkpoints where workflow_id = %s and position like '%%~d'", [workflow_id]
        ).fetchall()
    return [output for (output,) in rows]


def reads_pages(fails: int) -> int:
    """Fails so often, each time a page further on."""
    done = durable.details(Page)
    trace(done and done.page)
    page = 0 if done is None else done.page
    for _ in range(3):
        page += 1
        durable.heartbeat(Page(page=page))
    if page < fails * 3:
        raise ConnectionError("once more")
    return page


@both
def goes_on(do: Do, policy: str) -> Body[int]:
    trace("begins")
    retries = AT_ONCE if policy == "at once" else LONG
    return (yield do.run_step(in_colour(do, reads_pages), 2, name="reads", retries=retries))


@anyhow
@pytest.mark.parametrize("policy", ["at once", "far apart"])
def test_the_next_attempt_goes_on_from_there(app: App, ledger: str, colour: Colour, policy: str) -> None:
    handle = app.start(goes_on, colour, policy)
    assert handle.result(timeout=10) == 6
    assert [seen for seen in traced(handle.workflow_id) if seen != "begins"] == [None, 3]
    assert kept(ledger, handle.workflow_id) == []
    assert "~d" not in " ".join(step.position for step in handle.steps())


def in_a_thread() -> int:
    return reads_pages(2)


@eventflow.workflow
async def of_a_sync_step() -> int:
    return await durable.run_step(in_a_thread, retries=AT_ONCE)


async def on_the_loop() -> int:
    return reads_pages(2)


@eventflow.workflow
def of_an_async_step() -> int:
    return sync.run_step(on_the_loop, retries=AT_ONCE)


@eventflow.workflow
def with_a_limit() -> int:
    return sync.run_step(in_a_thread, retries=AT_ONCE, timeout=5)


@pytest.mark.parametrize("workflow", [of_a_sync_step, of_an_async_step, with_a_limit])
def test_steps_of_the_other_colour_and_with_a_time_limit(app: App, workflow: Any) -> None:
    handle = sync.start(workflow)
    assert handle.result(timeout=10) == 6
    assert traced(handle.workflow_id) == [None, 3]


hold = [True]


def stands_still() -> str:
    told = durable.details(dict[str, int])
    trace(("told", told))
    if told is None:
        durable.heartbeat({"page": 7})
        if hold:
            trace("holds")
    while hold:
        time.sleep(0.01)
    return f"from {told}"


async def stands_still_async() -> str:
    told = durable.details(dict[str, int])
    trace(("told", told))
    if told is None:
        durable.heartbeat({"page": 7})
        trace("holds")
        await asyncio.sleep(60)
    return f"from {told}"


@both
def stands(do: Do) -> Body[str]:
    return (yield do.run_step(stands_still if do.colour == "sync" else stands_still_async, name="stands"))


def test_it_is_durable_soon_and_another_run_reads_it(app: App, ledger: str, colour: Colour) -> None:
    hold[:] = [True]
    handle = app.start(stands, colour)
    until(lambda: kept(ledger, handle.workflow_id) == ['{"page":7}'], 5)
    assert names(handle) == []
    app.down()
    hold.clear()
    app.up()
    assert handle.result(timeout=15) == "from {'page': 7}"
    assert kept(ledger, handle.workflow_id) == []


def tells_a_lot() -> int:
    for n in range(20_000):
        durable.heartbeat(n)
    return 20_000


@both
def hurries(do: Do) -> Body[int]:
    return (yield do.run_step(in_colour(do, tells_a_lot), name="hurries"))


def test_many_of_them_are_few_writes_and_hold_nobody_up(
    app: App, ledger: str, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    keep = Executor.keep_details

    def count(self: Executor, scope: Any) -> None:
        if scope.progress.due:
            written.append(1)
        keep(self, scope)

    monkeypatch.setattr(Executor, "keep_details", count)
    began = time.monotonic()
    handle = app.start(hurries, colour)
    assert handle.result(timeout=15) == 20_000
    assert len(written) <= 2 + (time.monotonic() - began)
    assert kept(ledger, handle.workflow_id) == []


def tells_and_fails() -> None:
    trace(durable.details(int))
    durable.heartbeat(5)
    raise ValueError("for good")


@both
def gives_up(do: Do) -> Body[str]:
    for _ in range(2):
        try:
            yield do.run_step(in_colour(do, tells_and_fails), name="fails")
        except ValueError as error:
            trace(str(error))
    return "gave up"


def test_a_step_that_has_failed_leaves_nothing_to_the_next_one(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(gives_up, colour)
    assert handle.result(timeout=10) == "gave up"
    assert traced(handle.workflow_id) == [None, "for good", None, "for good"]
    assert kept(ledger, handle.workflow_id) == []


@both(retries=Retry(1, delay=0.01))
def is_retried(do: Do) -> Body[None]:
    yield do.run_step(in_colour(do, tells_and_fails), name="fails")


def test_a_retry_of_the_workflow_and_what_people_do_begin_without(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(is_retried, colour)
    for again, times in ((None, 2), (handle.retry, 4), (handle.restart, 6)):
        if again is not None:
            again()
        with pytest.raises(ValueError, match="for good"):
            until(lambda times=times: len(traced(handle.workflow_id)) == times)
            handle.result(timeout=10)
        assert traced(handle.workflow_id) == [None] * times
        assert kept(ledger, handle.workflow_id) == []


@both
def is_forked(do: Do) -> Body[int]:
    yield do.run_step(trace, "first")
    return (yield do.run_step(in_colour(do, reads_pages), 2, name="reads", retries=Retry(2, delay=5, jitter=0)))


def test_a_fork_begins_without_and_who_deletes_leaves_nothing(app: App, ledger: str, colour: Colour) -> None:
    handle = app.start(is_forked, colour)
    until(lambda: handle.get().status == "waiting")
    assert kept(ledger, handle.workflow_id) == ['{"page":3}']
    forked = handle.fork("1.2~1")
    until(lambda: forked.get().status == "waiting")
    assert traced(forked.workflow_id) == [None]
    for one in (handle, forked):
        one.terminate()
        until(lambda one=one: one.get().status == "cancelled")
        assert kept(ledger, one.workflow_id) == ['{"page":3}'], "what was kept is there until somebody decides"
        one.delete()
        assert kept(ledger, one.workflow_id) == []


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not encodable": (lambda: durable.heartbeat(object()), CodecError, "details of the step 'mistakes'"),
    "too large": (lambda: durable.heartbeat("x" * (limit.size + 1)), CodecError, "details of the step 'mistakes'"),
    "another type": (
        lambda: (durable.heartbeat("seven"), durable.details(int)), CodecError, "details of the step 'mistakes'",
    ),
}  # fmt: skip


@both
def mistakes(do: Do, what: str) -> Body[str]:
    act, kind, _ = MISTAKES[what]

    def step() -> str:
        try:
            act()
        except kind as error:
            return str(error)
        return "nothing"

    return (yield do.run_step(in_colour(do, step), name="mistakes"))


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_have_their_errors(app: App, colour: Colour, what: str) -> None:
    assert MISTAKES[what][2] in app.run(mistakes, colour, what)


@eventflow.transaction
def in_a_transaction(connection: "psycopg.Connection[Any]") -> str:
    with pytest.raises(UsageError, match="transaction"):
        durable.heartbeat(1)
    with pytest.raises(UsageError, match="transaction"):
        durable.details(int)
    return "refused"


@both
def outside_a_step(do: Do) -> Body[str]:
    with pytest.raises(UsageError, match="belongs into a step"):
        durable.heartbeat(1)
    with pytest.raises(UsageError, match="belongs into a step"):
        durable.details(int)
    return (yield do.run_step(in_a_transaction))


@pytest.mark.parametrize("colour", COLOURS)
def test_it_belongs_into_a_step(app: App, colour: Colour) -> None:
    assert app.run(outside_a_step, colour) == "refused"
    with pytest.raises(UsageError, match="belongs into a step"):
        durable.heartbeat(1)
    with pytest.raises(UsageError, match="belongs into a step"):
        durable.details(int)


def clears() -> None:
    durable.heartbeat(1)
    durable.heartbeat()
    trace(durable.details(int))


@both
def is_cleared(do: Do) -> Body[None]:
    yield do.run_step(in_colour(do, clears), name="clears")


def test_a_heartbeat_without_details_is_none(app: App, colour: Colour) -> None:
    handle = app.start(is_cleared, colour)
    handle.result(timeout=10)
    assert traced(handle.workflow_id) == [None]


def test_of_several_in_one_flush_the_newest_counts(ledger: str) -> None:
    database, me = Database(ledger), str(uuid.uuid4())
    sent = {"workflow_id": [me] * 3, "position": ["1.1~d"] * 3, "name": ["s"] * 3, "output": ["1", "2", "3"]}
    with database.connect("test") as connection:
        for _ in range(2):
            database.run(connection, "keep_details", sent)
            assert kept(ledger, me) == ["3"]


late: set[str] = set()


def hangs_once() -> int:
    """The first attempt takes too long; when it goes on at last it tells, and sends, what nobody is to hear."""
    me = durable.workflow_id()
    trace("tries")
    if traced(me).count("tries") == 1:
        until(lambda: "second" in traced(me))
        durable.heartbeat("late")
        sync.send(me, "late")
        late.add(me)
        return 1
    durable.heartbeat("second")
    trace("second")
    until(lambda: me in late)
    sync.send(me, "second")
    assert durable.details(str) == "second"
    return 2


@both
def outlives(do: Do) -> Body[list[Any]]:
    number = yield do.run_step(hangs_once, retries=Retry(1, delay=0.01), timeout=0.3)
    heard = []
    try:
        while True:
            heard.append((yield do.recv(str, timeout=0.3)))
    except WorkflowTimeoutError:
        return [number, *heard]


def test_an_attempt_whose_time_is_over_tells_nothing_more(app: App, colour: Colour) -> None:
    assert app.run(outlives, colour) == [2, "second"]
