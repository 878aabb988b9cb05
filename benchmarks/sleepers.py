"""100,000 workflows asleep in one process: its memory, and how late they wake when 1,000 of them are due in each second.

    python -m benchmarks.sleepers [--count 100000] [--rate 1000] [--colour async|sync] [--database-url URL]

A child process is what is measured: it starts the sleepers, lets go of them, and wakes each at its time. Without a
URL a local PostgreSQL is started. Prints figures as JSON, and fails where memory or lateness is over its limit.
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
from eventflow.migrations import migrate
from eventflow.settings import Settings

MEMORY, LATE = 400.0, 1.0  # MB, and seconds


@eventflow.workflow(name="sleeper async")
async def sleeper_async(until: datetime) -> float:
    await durable.sleep_until(until)
    return time.time()


@eventflow.workflow(name="sleeper sync")
def sleeper_sync(until: datetime) -> float:
    sync.sleep_until(until)
    return time.time()


async def measured(url: str, count: int, rate: int, colour: str) -> dict[str, Any]:
    """Start them, wait until all are asleep, and again until all are awake."""
    workflow: Any = sleeper_async if colour == "async" else sleeper_sync
    figures: dict[str, Any] = {"colour": colour, "sleepers": count, "rate": rate}
    async with eventflow.running(Settings(database_url=url, suspend_after=2.0), consumers=False):
        figures["idle MB"] = round(resident())
        lead = 20 + count / (
            2000 if colour == "async" else 600
        )  # seconds for starting them all, and for each to fall asleep
        begin, began = datetime.now(UTC) + timedelta(seconds=lead), time.monotonic()
        limit = asyncio.Semaphore(500)

        async def one(n: int) -> None:
            async with limit:
                await eventflow.start(workflow, begin + timedelta(seconds=n / rate))

        for low in range(0, count, 5000):
            await asyncio.gather(*(one(n) for n in range(low, min(low + 5000, count))))
        figures["started per s"] = round(count / (time.monotonic() - began))
        asleep = "select count(*) from eventflow.workflows where status = 'waiting' and executor is null"
        await until(url, asleep, count, lead)
        figures["all asleep, s before the first wakes"] = round((begin - datetime.now(UTC)).total_seconds(), 1)
        figures["asleep MB"] = round(resident())
        await until(
            url, "select count(*) from eventflow.workflows where status = 'succeeded'", count, 300 + 3 * count / rate
        )
        figures["woken MB"] = round(resident())
    figures["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            """select output::float8 - extract(epoch from (arguments::jsonb #>> '{args,0}')::timestamptz)::float8,
                      output::float8 from eventflow.workflows where name like 'sleeper%'"""
        ).fetchall()
    late = sorted(row[0] for row in rows)
    woken = sorted(row[1] for row in rows)
    figures["wake-ups per s"] = round(count / (woken[-1] - woken[0]))
    figures["late s"] = {name: round(late[min(int(count * share), count - 1)], 3) for name, share in SHARES.items()}
    return figures


SHARES = {"least": 0.0, "p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1.0}


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


def sleepers(server: str, count: int, rate: int, colour: str) -> dict[str, Any]:
    """What a process of its own measures, on a fresh database of this server.

    Raises:
        FailedError: it failed.

    """
    command = [sys.executable, "-m", "benchmarks.sleepers", "--measured", "--count", str(count), "--rate", str(rate)]
    with databases.fresh(server) as url:
        migrate(url)
        with process([*command, "--colour", colour, "--database-url", url]) as child:
            return child.finish(count, 600 + 6 * count / rate)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--colour", choices=["async", "sync"], default="async")
    parser.add_argument("--database-url")
    parser.add_argument("--measured", action="store_true", help="be the process that is measured")
    options = parser.parse_args()
    if options.measured:
        print(json.dumps(asyncio.run(measured(options.database_url, options.count, options.rate, options.colour))))
        return 0
    with contextlib.ExitStack() as stack:
        server = options.database_url or stack.enter_context(postgres()).database_url
        try:
            figures = sleepers(server, options.count, options.rate, options.colour)
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
