"""`running()` inside a program: it ends when it is told to, also while it enters; what is fatal is raised; a fork is refused."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import durable, sync
from eventflow.app import Running
from eventflow.context import slot
from eventflow.errors import UnavailableError
from eventflow.migrations import migrate
from eventflow.settings import Settings
from tests.harness import ROOT, Proxy, World

REVOKED = "Kafka at x: credentials revoked"


@pytest.fixture
def settings(ledger_url: str) -> Iterator[Settings]:
    yield Settings(database_url=ledger_url, drain=5)
    assert slot.runtime is None


def revoke(context: Running) -> UnavailableError:
    """What an intake does on an error that no retry can mend."""
    error = UnavailableError(REVOKED)
    incarnation = context.app._incarnation
    assert incarnation is not None
    incarnation._end(error)
    return error


def wait(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# ---- a program that is told to go while it enters ------------------------------------------------

ASYNC = "async def main():\n    async with eventflow.running(consumers=False):\n        print('entered', flush=True)\nasyncio.run(main())"
SYNC = "with eventflow.running(consumers=False):\n    print('entered', flush=True)"
PROGRAM = """
import asyncio, logging, eventflow
logging.basicConfig(level="INFO")
@eventflow.lifespan
async def clients():
    print("opened", flush=True)
    try:
        yield
    finally:
        print("closed", flush=True)
try:
{body}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Program:
    """A program of the user's own, in a process of its own."""

    def __init__(self, folder: Path, source: str, **environment: str) -> None:
        file = folder / "program.py"
        file.write_text(source)
        self.log = folder / "program.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(file)], stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.log.read_text()

    def end(self, timeout: float = 15) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it does not end: {self.text}") from None


@pytest.mark.parametrize("body", [ASYNC, SYNC], ids=["async", "sync"])
def test_one_ctrl_c_ends_a_program_that_waits_for_postgres(tmp_path: Path, body: str) -> None:
    source = PROGRAM.format(body=textwrap.indent(body, "    "))
    program = Program(tmp_path, source, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    wait(lambda: "trying again" in program.text, "it waits for Postgres")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text
    assert program.text.count("interrupted") == 1
    assert "Traceback" not in program.text


@pytest.mark.parametrize("body", [ASYNC, SYNC], ids=["async", "sync"])
def test_one_ctrl_c_ends_a_program_whose_postgres_goes_away_under_it(
    tmp_path: Path, database_url: str, body: str
) -> None:
    """The lifespans have been entered, and are left."""
    migrate(database_url)
    proxy = Proxy(database_url)
    source = PROGRAM.format(body=textwrap.indent(body, "    "))
    source = source.replace('    print("opened", flush=True)', f'    print("opened", flush=True)\n    {GO}')
    program = Program(tmp_path, source, DATABASE_URL=proxy.url, GO=str(tmp_path / "go"))
    wait(lambda: "opened" in program.text, "its lifespan is entered")
    proxy.cut(0, 0)
    (tmp_path / "go").touch()
    wait(lambda: "trying again" in program.text, "it waits for Postgres")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text
    assert "closed" in program.text
    assert "interrupted" in program.text


GO = "import os\n    while not os.path.exists(os.environ['GO']): await asyncio.sleep(0.01)"

# ---- what is fatal -------------------------------------------------------------------------------


@eventflow.workflow(name="waits")
async def waits() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("inside", [lambda: asyncio.Event().wait(), waits], ids=["anything", "a workflow"])
def test_what_is_fatal_ends_whoever_waits_inside(settings: Settings, inside: Any) -> None:
    async def main() -> int:
        context = eventflow.running(settings, consumers=False)
        with pytest.raises(UnavailableError, match=REVOKED):
            async with context:
                asyncio.get_running_loop().call_soon(revoke, context)
                await inside()
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)  # nothing is left that would interrupt the program
        return task.cancelling()

    assert asyncio.run(asyncio.wait_for(main(), 20)) == 0


def test_an_exception_of_the_users_own_wins(settings: Settings) -> None:
    async def main() -> None:
        context = eventflow.running(settings, consumers=False)
        with pytest.raises(LookupError, match="mine"):
            async with context:
                revoke(context)
                try:
                    await asyncio.Event().wait()
                finally:
                    raise LookupError("mine")

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_cancellation_of_somebody_elses_stays_one(settings: Settings) -> None:
    async def main() -> None:
        context = eventflow.running(settings, consumers=False)
        async with context:
            task = asyncio.current_task()
            assert task is not None
            context.app.failed.add_done_callback(lambda _: task.cancel())
            revoke(context)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_blocking_program_hears_of_it_at_the_next_verb_and_at_the_end(settings: Settings) -> None:
    context = eventflow.running(settings, consumers=False)
    with pytest.raises(UnavailableError, match=REVOKED) as end:
        with context:
            handle = sync.start(waits, workflow_id="one")
            heard: list[BaseException] = []

            def ask() -> None:
                try:
                    handle.result()
                except UnavailableError as error:
                    heard.append(error)

            waiting = threading.Thread(target=ask)
            waiting.start()
            error = revoke(context)
            waiting.join(20)
            assert heard == [error]
            with pytest.raises(UnavailableError, match=REVOKED):
                sync.start(waits)
            with pytest.raises(UnavailableError, match=REVOKED):
                empty()
    assert end.value is error


@eventflow.transaction
def empty(connection: psycopg.Connection[Any]) -> None: ...


def test_a_blocking_programs_own_exception_wins(settings: Settings) -> None:
    context = eventflow.running(settings, consumers=False)
    with pytest.raises(LookupError, match="mine"), context:
        revoke(context)
        wait(lambda: context.app.failed.done(), "it has failed")
        raise LookupError("mine")


# ---- the end -------------------------------------------------------------------------------------

reached, released = threading.Event(), threading.Event()


@eventflow.transaction
async def aempty(connection: psycopg.AsyncConnection[Any]) -> str:
    return "committed"


@eventflow.workflow(name="drains")
async def drains() -> list[str]:
    reached.set()
    while not released.is_set():
        await asyncio.sleep(0.01)
    return [await aempty(), await durable.run_step(str.upper, "x")]


def test_what_drains_may_still_call_everything(settings: Settings) -> None:
    reached.clear()
    released.clear()

    async def main() -> None:
        async with eventflow.running(settings, consumers=False) as _:
            await eventflow.start(drains, workflow_id="one")
            await asyncio.to_thread(reached.wait, 20)
            asyncio.get_running_loop().call_later(0.1, released.set)

    asyncio.run(main())
    with psycopg.connect(settings.database_url) as connection:
        [(status, output)] = connection.execute("select status::text, output from eventflow.workflows").fetchall()
    assert (status, output) == ("succeeded", '["committed","X"]')


@eventflow.transaction
def by_session(session: Session) -> None:
    session.execute(text("select 1"))


@eventflow.transaction
async def by_async_session(session: AsyncSession) -> None:
    await session.execute(text("select 1"))


@eventflow.workflow(name="uses lanes")
async def uses_lanes() -> None:
    await asyncio.gather(aempty(), by_async_session())
    await asyncio.gather(durable.run_step(empty), durable.run_step(by_session))  # each in a thread


@eventflow.workflow(name="uses lanes in a thread")
def uses_lanes_in_a_thread() -> None:
    sync.gather(empty, by_session)


CONNECTIONS = """select application_name from pg_stat_activity where datname = current_database()
                 and (application_name = 'eventflow transaction' or application_name like 'eventflow journal lane%')"""


def test_nothing_stays_connected_of_a_program_that_goes_on(settings: Settings) -> None:
    """Its steps have run in transactions of each kind, and each lane has had to ask what became of one."""

    async def main() -> None:
        context: Any = eventflow.running(settings, consumers=False)
        with psycopg.connect(settings.database_url, autocommit=True) as connection:

            def connected() -> list[str]:
                return [name for (name,) in connection.execute(CONNECTIONS.encode()).fetchall()]

            async with context:
                for flow in (uses_lanes, uses_lanes_in_a_thread):
                    await (await eventflow.start(flow)).result(timeout=20)
                transactions = context.app._incarnation.transactions
                places = [*transactions._places._idle, *transactions._async_places._idle]
                lanes = [*(place.lane for place in places), *(lane for lane, _ in transactions._idle_async)]
                for lane in lanes:
                    lane.connection()
                found = connected()
                assert found.count("eventflow transaction") == 6, (
                    "of async steps, of sync ones, and of these in a thread"
                )
                assert {f"eventflow journal lane {lane.number}" for lane in lanes} < set(found)
            wait(lambda: connected() == [], "all are closed")

    asyncio.run(main())


HANDLERS = """
import asyncio, os, time
from typing import Any
import eventflow, psycopg
from eventflow import Message

def held(message: Message[str]) -> bool:
    return "held" in message.value and not os.path.exists(os.environ["LATE"])

@eventflow.kafka_consumer(os.environ["TOPIC"], group="sync")
@eventflow.transaction
def enter(connection: psycopg.Connection[Any], message: Message[str]) -> None:
    while held(message):
        time.sleep(0.01)

@eventflow.kafka_consumer(os.environ["TOPIC"], group="async")
@eventflow.transaction
async def aenter(connection: psycopg.AsyncConnection[Any], message: Message[str]) -> None:
    while held(message):
        await asyncio.sleep(0.01)

async def main() -> None:
    context = eventflow.running()
    async with context:
        while not os.path.exists(os.environ["GO"]):
            await asyncio.sleep(0.01)
    print("left", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_nothing_stays_connected_of_handlers_but_while_they_run(world: World, tmp_path: Path) -> None:
    """Who runs for longer than the program drains closes his own connection."""
    file, go, late = (tmp_path / name for name in ("app.py", "go", "late"))
    file.write_text(HANDLERS)
    world.create_topic(1)
    worker = world.start(str(file), program=True, GO=str(go), LATE=str(late), EVENTFLOW_DRAIN="0.1")
    for group in ("sync", "async"):
        world.wait_owner(worker, group=group)
    world.send("one")
    world.flush()
    for group in ("sync", "async"):
        world.wait_completed(group, 1)
    world.send("held")
    world.flush()
    both = [("eventflow transaction",)] * 2
    world.wait(lambda: world.sql(f"{CONNECTIONS} and state = 'idle in transaction'") == both, "both are called")
    go.touch()
    world.wait(lambda: "left" in worker.text, "it leaves")
    world.wait(lambda: world.sql(CONNECTIONS) == both, "these alone are connected")
    late.touch()
    world.wait(lambda: world.sql(CONNECTIONS) == [], "all are closed")
    assert worker.alive


BUSY = """
import logging, time, eventflow
from eventflow import sync
logging.basicConfig(level="INFO")
@eventflow.lifespan
def clients():
    try:
        yield
    finally:
        print("closed", flush=True)
@eventflow.workflow
def busy() -> None:
    print("busy", flush=True)
    time.sleep(60)
try:
    with eventflow.running(consumers=False):
        sync.start(busy, workflow_id="one").result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_second_ctrl_c_lets_go_in_a_blocking_program_too(tmp_path: Path, settings: Settings) -> None:
    program = Program(tmp_path, BUSY, DATABASE_URL=settings.database_url, EVENTFLOW_DRAIN="60")
    wait(lambda: "busy" in program.text, "its workflow runs")
    program.process.send_signal(signal.SIGINT)
    wait(lambda: "leaves" in program.text, "it drains")
    program.process.send_signal(signal.SIGINT)
    assert program.end(20) == 0, program.text
    assert "closed" in program.text
    assert "interrupted" in program.text
    with psycopg.connect(settings.database_url) as connection:
        found = connection.execute("select status::text, executor, recoveries from eventflow.workflows").fetchall()
    assert found == [("queued", None, 0)]


# ---- fork ----------------------------------------------------------------------------------------

FORKED = """
import os, sys, eventflow
from eventflow import sync
from eventflow.errors import UsageError
@eventflow.workflow
def flow() -> int:
    return 3
def refused(call):
    try:
        call()
    except UsageError as error:
        return "forked" in str(error)
with eventflow.running(consumers=False):
    assert sync.start(flow).result() == 3
    child = os.fork()
    if child == 0:
        verbs = [lambda: sync.start(flow), flow, lambda: eventflow.running().__enter__()]
        print([refused(verb) for verb in verbs], flush=True)
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sync.start(flow).result() == 3
print("left", flush=True)
if child == 0:
    os._exit(0)
"""


def test_a_forked_child_is_refused_and_leaves(tmp_path: Path, settings: Settings) -> None:
    program = Program(tmp_path, FORKED, DATABASE_URL=settings.database_url)
    assert program.end(30) == 0, program.text
    assert "[True, True, True]" in program.text
    assert program.text.count("left") == 2
