"""`run_step` and `sync.gather`: what runs is what was handed in, under its name and at its position, and is found again."""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Retry, durable, sync
from eventflow.errors import UsageError
from eventflow.settings import Settings

TABLE = "create table notes (note text, thread text)"
INSERT = "insert into notes values (:note, :thread)"
calls: list[str] = []


@pytest.fixture
def settings(ledger_url: str) -> Iterator[Settings]:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    calls.clear()
    yield Settings(database_url=ledger_url, drain=5)


def notes(settings: Settings) -> list[str]:
    with psycopg.connect(settings.database_url) as connection:
        return [row[0] for row in connection.execute("select note from notes order by 1")]


def shouting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as users write them."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        calls.append(f"around {function.__name__}")
        return f"{function(*args)}!"

    return call


def ashouting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any) -> Any:
        calls.append(f"around {function.__name__}")
        return f"{await function(*args)}!"

    return call


@eventflow.transaction
def note(session: Session, what: str) -> str:
    session.execute(text(INSERT), {"note": what, "thread": threading.current_thread().name})
    if what == "bad":
        raise ValueError(what)
    return what


@eventflow.transaction
async def anote(session: AsyncSession, what: str) -> str:
    await session.execute(text(INSERT), {"note": what, "thread": threading.current_thread().name})
    return what


class Notes:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @eventflow.transaction(name="kept")
    def keep(self, connection: psycopg.Connection[Any], what: str) -> str:
        connection.execute("insert into notes values (%s)", [self.prefix + what])
        return self.prefix + what


@shouting
@eventflow.step(name="above", retries=1)
def above(what: str) -> str:
    return what


@eventflow.step(name="below", retries=Retry(1, delay=0))
@shouting
def below(what: str) -> str:
    calls.append(what)
    if calls.count(what) == 1:
        raise ConnectionError(what)
    return what


@eventflow.step(name="awaited")
@ashouting
async def awaited(what: str) -> str:
    await asyncio.sleep(0)
    return what


@shouting
def plain(what: str) -> str:
    return what


@eventflow.workflow(name="run_step async")
async def by_async() -> list[str]:
    return [
        await durable.run_step(note, "sync"),
        await durable.run_step(anote, "async"),
        await durable.run_step(Notes("my ").keep, "method", name="renamed"),
        await durable.run_step(above, "above"),
        await durable.run_step(below, "below"),
        await durable.run_step(awaited, "awaited"),
        await durable.run_step(plain, "plain"),
        await durable.run_step(lambda: awaited("lambda"), name="lambda"),
        await durable.run_step(partial(plain, "partial"), name="partial"),
    ]


@eventflow.workflow(name="run_step sync")
def by_sync() -> list[str]:
    return [
        sync.run_step(note, "sync"),
        sync.run_step(anote, "async"),
        sync.run_step(Notes("my ").keep, "method", name="renamed"),
        sync.run_step(above, "above"),
        sync.run_step(below, "below"),
        sync.run_step(awaited, "awaited"),
        sync.run_step(plain, "plain"),
        sync.run_step(lambda: awaited("lambda"), name="lambda"),
        sync.run_step(partial(plain, "partial"), name="partial"),
    ]


@pytest.mark.parametrize("flow", [by_async, by_sync], ids=["async", "sync"])
def test_what_is_handed_in_is_what_runs(settings: Settings, flow: Any) -> None:
    async def main() -> tuple[list[str], list[Any]]:
        async with eventflow.running(settings, consumers=False):
            handle = await eventflow.start(flow, workflow_id="one")
            result = await asyncio.wait_for(handle.result(), 20)
            return result, await handle.steps()

    result, steps = asyncio.run(main())
    shouted = ["above!", "below!", "awaited!", "plain!", "awaited!"]
    assert result == ["sync", "async", "my method", *shouted[:4], "lambda!", "partial!"]
    assert notes(settings) == ["async", "my method", "sync"]
    assert [(s.position, s.name, s.attempts) for s in steps] == [
        ("1.1", "note", 1), ("1.2", "anote", 1), ("1.3", "renamed", 1), ("1.4", "above", 1), ("1.5", "below", 2),
        ("1.6", "awaited", 1), ("1.7", "plain", 1), ("1.8", "lambda", 1), ("1.9", "partial", 1),
    ]  # fmt: skip
    assert [c for c in calls if c.startswith("around")].count("around plain") == 2


fails = {"left": 0}


@eventflow.step(name="flaky")
def flaky() -> str:
    if fails["left"]:
        fails["left"] -= 1
        raise ConnectionError("not yet")
    return "at last"


@eventflow.workflow(name="again async", retries=Retry(2, delay=0))
async def again_async() -> str:
    await durable.run_step(note, "once")
    return await durable.run_step(flaky)


@eventflow.workflow(name="again sync", retries=Retry(2, delay=0))
def again_sync() -> str:
    sync.run_step(anote, "once")
    return sync.run_step(flaky)


@pytest.mark.parametrize("flow", [again_async, again_sync], ids=["async", "sync"])
def test_a_transaction_run_as_a_step_is_found_again(settings: Settings, flow: Any) -> None:
    fails["left"] = 2

    async def main() -> str:
        async with eventflow.running(settings, consumers=False):
            return await asyncio.wait_for((await eventflow.start(flow, workflow_id="one")).result(), 20)

    assert asyncio.run(main()) == "at last"
    assert notes(settings) == ["once"]


@eventflow.transaction(retries=Retry(2, delay=0.01))
def refused(connection: psycopg.Connection[Any]) -> None:
    calls.append("refused")
    raise LookupError("no such account")


@eventflow.workflow(name="refused")
async def ask() -> None:
    await durable.run_step(refused)


def test_a_transaction_that_fails_says_how_often_and_for_how_long(settings: Settings) -> None:
    async def main() -> tuple[BaseException | None, Any]:
        async with eventflow.running(settings, consumers=False):
            handle = await eventflow.start(ask, workflow_id="one")
            [failure] = await asyncio.wait_for(asyncio.gather(handle.result(), return_exceptions=True), 20)
            return failure, (await handle.steps())[0]  # type: ignore[return-value]

    failure, step = asyncio.run(main())
    assert isinstance(failure, LookupError)
    assert failure.__notes__ == ["eventflow: transaction 'refused' failed in each of 3 attempts"]
    assert calls == ["refused"] * 3
    assert (step.attempts, step.error) == (3, "LookupError: no such account")
    assert (step.finished_at - step.started_at).total_seconds() > 0.015


@eventflow.transaction
def note_slowly(session: Session, what: str) -> None:
    session.execute(text(INSERT), {"note": what, "thread": ""})
    session.execute(text("select pg_sleep(0.5)"))


@eventflow.workflow(name="interrupted in a thread")
async def interrupted() -> None:
    for _ in range(4):  # more than there are connections
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await durable.run_step(note_slowly, "late")
    await durable.run_step(note, "in time")


def test_a_cancelled_transaction_in_a_thread_is_rolled_back(settings: Settings) -> None:
    async def main() -> None:
        async with eventflow.running(settings, consumers=False):
            await asyncio.wait_for(interrupted(), 20)

    asyncio.run(main())
    assert notes(settings) == ["in time"]


# ---- the wrong colour ----------------------------------------------------------------------------


@eventflow.workflow(name="child")
async def child() -> None: ...


@eventflow.workflow(name="wrong colours")
def wrong_colours() -> list[str]:
    said: list[str] = []
    for call in (partial(awaited, "x"), partial(anote, "x"), partial(durable.run_step, plain, "x"), child):
        with pytest.raises(UsageError) as refused:
            call()
        said.append(str(refused.value))
    with pytest.raises(UsageError) as refused:
        asyncio.run(_in_a_loop_of_its_own())
    return [*said, str(refused.value), *_in_a_thread(lambda: below("x"))]


async def _in_a_loop_of_its_own() -> None:
    await awaited("x")


def _in_a_thread(call: Callable[[], Any]) -> list[str]:
    said: list[str] = []

    def work() -> None:
        try:
            call()
        except UsageError as error:
            said.append(str(error))

    context = copy_context()
    thread = threading.Thread(target=context.run, args=(work,))
    thread.start()
    thread.join()
    return said


def test_the_wrong_colour_is_said_at_the_call(settings: Settings, recwarn: pytest.WarningsRecorder) -> None:
    async def main() -> list[str]:
        async with eventflow.running(settings, consumers=False):
            return await asyncio.wait_for((await eventflow.start(wrong_colours)).result(), 20)

    said = asyncio.run(main())
    for index, name in ((0, "awaited"), (1, "anote"), (2, "run_step"), (4, "awaited")):
        assert name in said[index]
        assert "sync.run_step" in said[index]
    assert "child" in said[3]
    assert "sync.gather" in said[5]
    assert [str(w.message) for w in recwarn if "never awaited" in str(w.message)] == []


@shouting
@eventflow.transaction
def hidden(session: Session, what: str) -> str:
    return what


@shouting
@eventflow.transaction
def hidden_handler(session: Session, message: eventflow.Message[str]) -> None: ...


@eventflow.workflow(name="hidden transaction")
async def with_hidden() -> str:
    with pytest.raises(UsageError, match="'hidden' below @transaction") as refused:
        await durable.run_step(hidden, "x")
    return str(refused.value)


def test_a_decorator_above_a_transaction_is_refused(settings: Settings) -> None:
    async def main() -> str:
        async with eventflow.running(settings, consumers=False):
            return await asyncio.wait_for(with_hidden(), 20)

    assert "below" in asyncio.run(main())
    with pytest.raises(UsageError, match="'hidden_handler' below @transaction"):
        eventflow.kafka_consumer("t", group="g")(hidden_handler)


# ---- gather --------------------------------------------------------------------------------------

meeting = threading.Barrier(3)


@eventflow.step(name="meet")
def meet(what: str) -> str:
    meeting.wait(10)  # all three run at a time, or none ends
    calls.append(what)
    return what


@eventflow.step(name="number")
def number(n: int) -> int:
    calls.append(f"number {n}")
    return n


def pair(n: int) -> int:
    return number(n) + sum(sync.gather(partial(number, n + 1), partial(number, n + 2)))


@eventflow.workflow(name="gathers", retries=Retry(1, delay=0))
def gathers() -> list[Any]:
    met = sync.gather(*(partial(meet, w) for w in "abc"))
    nested = sync.gather(partial(pair, 10), partial(sync.run_step, awaited, "x"), partial(note, "in a branch"))
    sync.run_step(flaky)
    return [met, nested, sync.gather()]


def test_gathered_calls_are_branches_and_are_found_again(settings: Settings) -> None:
    fails["left"] = 1

    async def main() -> tuple[Any, list[Any]]:
        async with eventflow.running(settings, consumers=False):
            handle = await eventflow.start(gathers, workflow_id="one")
            return await asyncio.wait_for(handle.result(), 30), await handle.steps()

    result, steps = asyncio.run(main())
    assert result == [["a", "b", "c"], [33, "x!", "in a branch"], []]
    assert sorted((s.position, s.name) for s in steps) == [
        ("1.1", "flaky"), ("2.1", "meet"), ("3.1", "meet"), ("4.1", "meet"), ("5.1", "number"), ("5/2.1", "number"),
        ("5/3.1", "number"), ("6.1", "awaited"), ("7.1", "note"),
    ]  # fmt: skip
    assert sorted(c for c in calls if c in "abc" or c.startswith("number")) == [
        "a", "b", "c", "number 10", "number 11", "number 12",
    ]  # fmt: skip
    assert notes(settings) == ["in a branch"]


@eventflow.workflow(name="wide")
def wide(depth: int) -> int:
    return _tree(depth)


def _tree(depth: int) -> int:
    if depth == 0:
        return number(1)
    return sum(sync.gather(*[partial(_tree, depth - 1)] * 3))


def test_nested_gathers_go_on_with_few_threads(settings: Settings) -> None:
    """Each waits for its calls; were they only made by threads of the pool, all of which wait, none would be."""

    async def main() -> int:
        few = settings.model_copy(update={"threads": 2})
        async with eventflow.running(few, consumers=False):
            return await asyncio.wait_for((await eventflow.start(wide, 3)).result(), 30)

    assert asyncio.run(main()) == 27


@eventflow.step(name="break")
def breaks(n: int) -> int:
    calls.append(f"break {n}")
    if n and calls.count(f"break {n}") == 1:
        raise ValueError(n)
    return n


@eventflow.workflow(name="broken", retries=Retry(1, delay=0))
def broken() -> list[int]:
    return sync.gather(*(partial(breaks, n) for n in (0, 1, 2)))


def test_what_failed_together_is_tried_again_together(settings: Settings) -> None:
    """One retry is enough, however many of the calls failed."""

    async def main() -> list[int]:
        async with eventflow.running(settings, consumers=False):
            return await asyncio.wait_for((await eventflow.start(broken)).result(), 30)

    assert asyncio.run(main()) == [0, 1, 2]


@eventflow.workflow(name="first")
def first() -> str:
    with pytest.raises(ValueError, match="1"):
        sync.gather(partial(breaks, 0), partial(breaks, 1), partial(breaks, 2))
    return "caught"


def test_the_first_failure_in_order_is_raised(settings: Settings) -> None:
    async def main() -> str:
        async with eventflow.running(settings, consumers=False):
            return await asyncio.wait_for((await eventflow.start(first)).result(), 30)

    assert asyncio.run(main()) == "caught"
    assert sorted(calls) == ["break 0", "break 1", "break 2"]
