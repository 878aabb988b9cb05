"""100,000 workflows asleep in one process: its memory, and how late they wake when 1,000 of them are due in each second.

    python -m benchmarks.sleepers [--count 100000] [--rate 1000] [--colour async|sync] [--kind KIND] [--database-url URL]

Kinds: they `sleep`; or they wait for a message, until it does not come in time (`timeout`), or until it comes (`message`,
late is what passes from the send). A child process is what is measured: it starts the sleepers, lets go of them, and
wakes each at its time; it sends the messages, too. Without a URL a local PostgreSQL is started. Prints figures as JSON, and
fails where memory or lateness is over its limit.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

import eventflow
from benchmarks import databases
from benchmarks.contestants.common import resident
from benchmarks.runs import FailedError, process
from benchmarks.services import postgres
from eventflow import durable, sync
from eventflow.errors import WorkflowTimeoutError
from eventflow.migrations import migrate
from eventflow.settings import Settings

MEMORY, LATE = 400.0, 1.0  # MB, and seconds
KINDS = ("sleep", "timeout", "message")


@eventflow.workflow(name="sleeper async")
async def sleeper_async(until: datetime) -> tuple[float, float]:
    await durable.sleep_until(until)
    return until.timestamp(), time.time()


@eventflow.workflow(name="sleeper sync")
def sleeper_sync(until: datetime) -> tuple[float, float]:
    sync.sleep_until(until)
    return until.timestamp(), time.time()


@eventflow.workflow(name="waiter async")
async def waiter_async(until: datetime) -> tuple[float, float]:
    try:
        return await durable.recv(float, timeout=until - durable.now()), time.time()
    except WorkflowTimeoutError:
        return until.timestamp(), time.time()


@eventflow.workflow(name="waiter sync")
def waiter_sync(until: datetime) -> tuple[float, float]:
    try:
        return sync.recv(float, timeout=until - durable.now()), time.time()
    except WorkflowTimeoutError:
        return until.timestamp(), time.time()


WORKFLOWS: dict[tuple[str, bool], Any] = {
    ("async", False): sleeper_async, ("sync", False): sleeper_sync, ("async", True): waiter_async, ("sync", True): waiter_sync,
}  # fmt: skip


async def measured(url: str, count: int, rate: int, colour: str, kind: str) -> dict[str, Any]:
    """Start them, wait until all are asleep, and again until all are awake."""
    workflow = WORKFLOWS[colour, kind != "sleep"]
    figures: dict[str, Any] = {"colour": colour, "kind": kind, "sleepers": count, "rate": rate}
    async with eventflow.running(Settings(database_url=url, suspend_after=2.0), consumers=False):
        figures["idle MB"] = round(resident())
        # Seconds for starting them all, and for each to fall asleep.
        lead = min(20, 5 + count / 100) + count / (2000 if colour == "async" else 600)
        begin, began = datetime.now(UTC) + timedelta(seconds=lead), time.monotonic()
        limit = asyncio.Semaphore(500)

        async def one(n: int) -> eventflow.Handle[Any]:
            async with limit:
                due = begin + timedelta(seconds=n / rate)
                return await eventflow.start(workflow, due + (LONG if kind == "message" else timedelta()))

        handles: list[eventflow.Handle[Any]] = []
        for low in range(0, count, 5000):
            started = await asyncio.gather(*(one(n) for n in range(low, min(low + 5000, count))))
            handles += started if kind == "message" else []
        figures["started per s"] = round(count / (time.monotonic() - began))
        asleep = "select count(*) from eventflow.workflows where status = 'waiting' and executor is null"
        await until(url, asleep, count, lead)
        figures["all asleep, s before the first wakes"] = round((begin - datetime.now(UTC)).total_seconds(), 1)
        figures["asleep MB"] = round(resident())
        if kind == "message":
            await wake(handles, begin, rate)
        await until(
            url, "select count(*) from eventflow.workflows where status = 'succeeded'", count, 300 + 3 * count / rate
        )
        figures["woken MB"] = round(resident())
    figures["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    with psycopg.connect(url) as connection:
        rows = connection.execute("select output::jsonb from eventflow.workflows").fetchall()
    late = sorted(woken - due for [(due, woken)] in rows)
    woken = sorted(woken for [(_, woken)] in rows)
    figures["wake-ups per s"] = round(count / (woken[-1] - woken[0]))
    figures["late s"] = {name: round(late[min(int(count * share), count - 1)], 3) for name, share in SHARES.items()}
    return figures


LONG = timedelta(hours=1)  # for which no message comes to who waits for one
SHARES = {"least": 0.0, "p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1.0}


async def wake(handles: list[eventflow.Handle[Any]], begin: datetime, rate: int) -> None:
    """Send each the time, when it is due."""
    async with asyncio.TaskGroup() as sends:
        for n, handle in enumerate(handles):
            await asyncio.sleep(max(0.0, begin.timestamp() + n / rate - time.time()))
            sends.create_task(handle.send(time.time()))


async def until(url: str, query: str, wanted: int, timeout: float) -> None:
    """Ask once a second, on a connection of its own."""
    deadline = time.monotonic() + timeout
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            row = await (await connection.execute(query.encode())).fetchone()
            if row is not None and row[0] >= wanted:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{row} of {wanted}: {query}")
            await asyncio.sleep(1)


def sleepers(server: str, count: int, rate: int, colour: str, kind: str = "sleep") -> dict[str, Any]:
    """What a process of its own measures, on a fresh database of this server.

    Raises:
        FailedError: it failed.

    """
    command = [sys.executable, "-m", "benchmarks.sleepers", "--measured", "--count", str(count), "--rate", str(rate)]
    with databases.fresh(server) as url:
        migrate(url)
        with process([*command, "--colour", colour, "--kind", kind, "--database-url", url]) as child:
            return child.finish(count, 600 + 6 * count / rate)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--colour", choices=["async", "sync"], default="async")
    parser.add_argument("--kind", choices=KINDS, default="sleep")
    parser.add_argument("--database-url")
    parser.add_argument("--measured", action="store_true", help="be the process that is measured")
    options = parser.parse_args()
    if options.measured:
        asked = options.database_url, options.count, options.rate, options.colour, options.kind
        print(json.dumps(asyncio.run(measured(*asked))))
        return 0
    with contextlib.ExitStack() as stack:
        server = options.database_url or stack.enter_context(postgres()).database_url
        try:
            figures = sleepers(server, options.count, options.rate, options.colour, options.kind)
        except FailedError as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(figures, indent=2))
    if figures["peak MB"] >= MEMORY or figures["late s"]["most"] > LATE:
        print(f"over its limit: {MEMORY:g} MB, {LATE:g} s late at most", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
