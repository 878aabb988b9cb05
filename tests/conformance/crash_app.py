"""Workflows that use every durable feature, in workers that are killed. Each effect is a row, in its checkpoint's commit."""

import asyncio
import os
import signal
import time
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
import eventflow.sync
from eventflow import Retry, durable
from eventflow.errors import Cancelled, WorkflowCancelledError, WorkflowTimeoutError
from eventflow.queues import Queue
from tests.conformance.colours import Body, Do, Pair, both

PAIRS = Queue("crash pairs", concurrency=2)
KEYS = Queue("crash keys", concurrency_per_key=1)
FREE = Queue("crash free")
TWO_EACH = Queue("crash two each", concurrency_per_process=2)
RATE = Queue("crash rate", rate=(3, timedelta(seconds=0.6)))
KEYS_RATE = Queue("crash rate of a key", rate_per_key=(1, timedelta(seconds=0.5)))
FAMILY = Queue("crash family")
BURSTS = Queue("crash bursts", rate=(8, timedelta(seconds=0.5)))

_EFFECT = 'insert into public.effects ("group", note, pid) values (%s, %s, %s)'


@eventflow.transaction
def effect(connection: "psycopg.Connection[Any]", note: str) -> None:
    connection.execute(
        _EFFECT,
        [durable.workflow_id(), note, os.getpid()],
    )


_BY_NAME = text('insert into public.effects ("group", note, pid) values (:workflow, :note, :pid)')


def _named(note: str) -> dict[str, object]:
    return {"workflow": durable.workflow_id(), "note": note, "pid": os.getpid()}


@eventflow.transaction
def effect_by_session(session: Session, note: str) -> None:
    session.execute(_BY_NAME, _named(note))


@eventflow.transaction
async def effect_by_async_session(session: AsyncSession, note: str) -> None:
    await session.execute(_BY_NAME, _named(note))


def _again(pair: Pair, do: Do, *args: Any) -> None:
    durable.continue_as_new(pair[do.colour].bind(*args))


@both
def sleeps(do: Do) -> Body[int]:
    by_session = effect_by_async_session if do.colour == "async" else effect_by_session
    for n in range(3):
        yield do.sleep(0.15)
        yield do.run_step(by_session, f"slept {n}")
    return 3


@both
def echoes(do: Do, count: int, to: str) -> Body[int]:
    """Sends back what it receives, and tells how much that was."""
    for n in range(1, count + 1):
        value = yield do.recv(int, timeout=60)
        yield do.run_step(effect, f"echo {value}")
        yield do.send(to, value, topic="echo")
        yield do.set_event("count", n)
    return count


@both
def talks(do: Do) -> Body[list[int]]:
    """Sends to its child and hears from it, alternately asleep."""
    found: list[int] = []
    child = yield do.start(echoes, 3, durable.workflow_id())
    for n in range(3):
        yield do.send(child.workflow_id, n)
        found.append((yield do.recv(int, topic="echo", timeout=60)))
        yield do.run_step(effect, f"heard {n}")
    count = yield do.event(child.workflow_id, "count", int, timeout=60)
    return [*found, (yield child.result), min(count, 3)]


@both
def naps(do: Do, n: int, seconds: float) -> Body[int]:
    yield do.sleep(seconds)
    yield do.run_step(effect, f"napped {n}")
    if n == 2:
        raise ValueError("2")
    return n


def _child(do: Do, n: int) -> Body[int]:
    try:
        return (yield do.call(naps, n, 0.1 * n))
    except ValueError as error:
        return -int(str(error))


@both
def parents(do: Do) -> Body[list[int]]:
    """Children in branches, one of which fails; then the first of two."""
    results = yield do.gather(*(_child(do, n) for n in range(4)))
    handles = [(yield do.start(naps, 7, 30)), (yield do.start(naps, 8, 0.1))]
    winner = yield do.first(*handles)
    yield do.run_step(effect, "first")
    return [*results, (yield winner.result)]


def _flaky() -> int:
    raise ConnectionError("always")


@both
def retries(do: Do) -> Body[str]:
    """Attempts far enough apart to be recorded."""
    try:
        yield do.run_step(_flaky, retries=Retry(2, delay=0.2, factor=30, max_delay=6, jitter=0))
    except ConnectionError as error:
        yield do.run_step(effect, "gave up")
        return str(error.__notes__[0])
    return ""


def _pages() -> int:
    """Notes where it begins, and turns a page every 0.4 s; each is told before the next."""
    page = durable.details(int) or 0
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        note = f"begins at {page}"
        connection.execute(
            _EFFECT,
            [durable.workflow_id(), note, os.getpid()],
        )
    while page < 6:
        time.sleep(0.4)
        page += 1
        durable.heartbeat(page)
    return page


@both
def pages(do: Do) -> Body[int]:
    return (yield do.run_step(_pages))


@both
def reports(do: Do, to: str, n: int) -> Body[int]:
    yield do.run_step(effect, f"child {n}")
    yield do.send(to, n)
    return n


@eventflow.step
async def starts_two(to: str) -> list[str]:
    return [(await eventflow.start(reports["async"], to, n)).workflow_id for n in (1, 2)]


@eventflow.step
def starts_two_sync(to: str) -> list[str]:
    return [eventflow.sync.start(reports["sync"], to, n).workflow_id for n in (1, 2)]


@eventflow.transaction
async def starts_two_more(connection: "psycopg.AsyncConnection[Any]", to: str) -> None:
    await connection.execute(_EFFECT, [to, "started", os.getpid()])
    for n in (3, 4):
        await eventflow.start(reports["async"], to, n)


@eventflow.transaction
def starts_two_more_sync(connection: "psycopg.Connection[Any]", to: str) -> None:
    connection.execute(_EFFECT, [to, "started", os.getpid()])
    for n in (3, 4):
        eventflow.sync.start(reports["sync"], to, n)


@both
def starts(do: Do) -> Body[int]:
    """Has a step and a transaction start others, and hears from each."""
    me = durable.workflow_id()
    awaited = do.colour == "async"
    yield do.run_step(starts_two if awaited else starts_two_sync, me)
    yield do.run_step(starts_two_more if awaited else starts_two_more_sync, me)
    total = 0
    for _ in range(4):
        total += yield do.recv(int, timeout=60)
    return total


@both
def goes_on(do: Do, n: int) -> Body[int]:
    value = yield do.recv(int, timeout=60)
    yield do.run_step(effect, f"run {n}: {value}")
    yield do.sleep(0.1)
    if n == 3:
        return n
    return _again(goes_on, do, n + 1)


@both
def feeds(do: Do, to: str) -> Body[int]:
    for n in (1, 2, 3):
        yield do.send(to, n)
        yield do.sleep(0.1)
    return 3


@both
def tells(do: Do) -> Body[None]:
    yield do.set_event("said", 5)


@both
def listens(do: Do, to: str) -> Body[int]:
    return (yield do.event(to, "said", int))


_TOLD = (asyncio.CancelledError, Cancelled)


@both
def guards(do: Do, n: int) -> Body[None]:
    """Waits for what does not come, and cleans up when it is told to end."""
    try:
        yield do.set_event("up", True)
        yield do.sleep(60)
        yield do.run_step(effect, f"slept {n}")
    except _TOLD:
        yield do.run_step(effect, f"told {n}")
        yield do.sleep(0.1)
        yield do.run_step(effect, f"cleaned up {n}")
        raise


def _ends(do: Do, how: str) -> Body[list[str]]:
    """Three children that end before their time, one after another."""
    found: list[str] = []
    for n in range(3):
        child = yield do.start(guards, n, timeout=0.4 if how == "time out" else None)
        if how != "time out":
            yield do.event(child.workflow_id, "up", bool, timeout=60)
            yield getattr(child, how)
        try:
            yield child.result
        except (WorkflowCancelledError, WorkflowTimeoutError) as error:
            found.append(type(error).__name__)
    return found


@both
def cancels(do: Do) -> Body[list[str]]:
    return (yield from _ends(do, "cancel"))


@both
def terminates(do: Do) -> Body[list[str]]:
    return (yield from _ends(do, "terminate"))


@both
def times_out(do: Do) -> Body[list[str]]:
    return (yield from _ends(do, "time out"))


def _waits_in_a_branch(_: Do, child: Any) -> Body[None]:
    yield child.result


def outlives(workflow_id: str) -> None:
    """Acts until this one has ended."""
    query = "select from eventflow.workflows where id = %s and finished_at is not null"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        while not connection.execute(query, [workflow_id]).fetchall():
            time.sleep(0.02)


@both
def leads(do: Do, where: str) -> Body[None]:
    """Waits for a child that another process runs, and cleans up when it is told to end."""
    verb: Any = eventflow.enqueue if do.colour == "async" else eventflow.sync.enqueue
    child = yield lambda: verb(guards[do.colour], 0, queue=FAMILY.name)
    try:
        if where != "asleep":
            yield do.run_step(outlives, child.workflow_id)
        if where == "first":
            yield do.first(child)
        elif where == "branches":
            yield do.gather(*(_waits_in_a_branch(do, child) for _ in range(2)))
        yield child.result
    except _TOLD:
        yield do.run_step(effect, "told to lead no more")
        raise


@eventflow.step
async def streams_in_step(n: int) -> None:
    await durable.write_stream("s", f"step {n}")


@eventflow.step
def streams_in_step_sync(n: int) -> None:
    eventflow.sync.write_stream("s", f"step {n}")


@eventflow.transaction
async def streams_in_transaction(connection: "psycopg.AsyncConnection[Any]", n: int) -> None:
    await connection.execute(_EFFECT, [durable.workflow_id(), f"streamed {n}", os.getpid()])
    await durable.write_stream("s", f"transaction {n}")


@eventflow.transaction
def streams_in_transaction_sync(connection: "psycopg.Connection[Any]", n: int) -> None:
    connection.execute(_EFFECT, [durable.workflow_id(), f"streamed {n}", os.getpid()])
    eventflow.sync.write_stream("s", f"transaction {n}")


@both
def streams(do: Do) -> Body[int]:
    """Appends by itself, in a step and in a transaction, alternately asleep; then closes."""
    awaited = do.colour == "async"
    for n in range(4):
        yield do.write_stream("s", f"workflow {n}")
        yield do.run_step(streams_in_step if awaited else streams_in_step_sync, n)
        yield do.run_step(streams_in_transaction if awaited else streams_in_transaction_sync, n)
        yield do.sleep(0.1)
    yield do.close_stream("s")
    return 4


@both
def in_queue(do: Do, n: int) -> Body[int]:
    """One that has been put in line by the test."""
    yield do.run_step(effect, f"one {n}")
    yield do.sleep(0.05)
    yield do.run_step(effect, f"two {n}")
    return n


@both
def orders(do: Do, count: int) -> Body[int]:
    """Puts others in line, and counts what they say."""
    verb: Any = eventflow.enqueue if do.colour == "async" else eventflow.sync.enqueue
    handles = []
    for n in range(count):
        handles.append((yield lambda n=n: verb(in_queue[do.colour], n, queue=PAIRS.name)))
    total = 0
    for handle in handles:
        total += yield handle.result
    yield do.run_step(effect, f"total {total}")
    return total


@both
def claims_an_id(do: Do, how: str) -> Body[int]:
    """Starts or enqueues a child under an id that must not exist."""
    verb: Any = getattr(eventflow if do.colour == "async" else eventflow.sync, how)
    child = yield lambda: verb(naps[do.colour], 7, 0.0, workflow_id="the child", if_exists="reject")
    return (yield child.result)


@both(recoveries=1)
def kills(do: Do) -> Body[None]:
    """Takes its process down with it, each time."""
    yield do.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)


@eventflow.transaction
def is_mended(connection: "psycopg.Connection[Any]") -> None:
    """Fails until the test has said that it may go on."""
    found = connection.execute("select from public.effects where note = 'mended'").fetchone()
    if found is None:
        raise LookupError("not mended yet")


@both
def mends(do: Do) -> Body[str]:
    yield do.run_step(effect, "before")
    yield do.sleep(0.05)
    yield do.run_step(is_mended)
    yield do.run_step(effect, "after")
    value = yield do.recv(str, timeout=60)
    yield do.run_step(effect, value)
    return value


@eventflow.transaction
def counted(connection: "psycopg.Connection[Any]", note: str) -> int:
    """Its number among all, in a row that each of them changes."""
    [(n,)] = connection.execute("update public.counter set n = n + 1 returning n").fetchall()
    connection.execute(_EFFECT, [durable.workflow_id(), f"{note}: {n}", os.getpid()])
    return n


@eventflow.transaction
async def counted_async(connection: "psycopg.AsyncConnection[Any]", note: str) -> int:
    [(n,)] = await (await connection.execute("update public.counter set n = n + 1 returning n")).fetchall()
    await connection.execute(_EFFECT, [durable.workflow_id(), f"{note}: {n}", os.getpid()])
    return n


def _counts(do: Do, step: Any, note: str) -> Body[int]:
    return (yield do.run_step(step, note))


@both
def shares(do: Do, count: int) -> Body[list[int]]:
    """So many at once, and as many after them, who wait for a lane together with other workflows'."""
    step = counted_async if do.colour == "async" else counted
    first = yield do.gather(*(_counts(do, step, f"first {n}") for n in range(count)))
    return first + (yield do.gather(*(_counts(do, step, f"then {n}") for n in range(count))))
