"""How late schedules fire: 1,000 in a minute, spread over it and all at one instant.

    python -m benchmarks.schedules [--count 1000] [--database-url URL] [--write-page]

A child process is what is measured. Late is what passes from the fire time until the workflow's function is called. Without
a URL a local PostgreSQL is started. Prints figures as JSON, and fails where p99 is over its limit.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import eventflow
from benchmarks import databases, report
from benchmarks.measures import percentiles
from benchmarks.runs import FailedError, process
from benchmarks.services import Addresses, postgres
from eventflow import Fire
from eventflow.client import Client
from eventflow.migrations import migrate
from eventflow.settings import Settings

LATE = 250.0  # ms, p99
MINUTE, LEAD = 60.0, 3.0  # seconds
PART = "schedules"
Figures = dict[str, Any]
late: list[float] = []


@eventflow.step
async def one_step(number: int) -> int:
    return number


@eventflow.workflow(name="scheduled")
async def scheduled(fire: Fire, number: int) -> int:
    late.append(time.time() - fire.time.timestamp())
    return await one_step(number)


async def measured(url: str, count: int) -> Figures:
    """Both loads, one after the other."""
    figures: Figures = {"count": count}
    async with eventflow.running(Settings(database_url=url), consumers=False):
        client = Client.here()
        begin = _soon(count)
        for n in range(count):
            start = begin + timedelta(seconds=MINUTE * n / count)
            await client.create_schedule(
                f"spread {n}", scheduled, n, every=timedelta(days=1), start=start, end=start + timedelta(hours=1)
            )
        figures["spread"] = await _handled(count, begin, MINUTE)
        begin = _soon(count)
        for n in range(count):
            await client.create_schedule(f"at once {n}", scheduled, n, every=timedelta(days=1), start=begin)
        figures["at once"] = await _handled(count, begin, 0.0)
    return figures


def _soon(count: int) -> datetime:
    """When all are made."""
    return datetime.now(UTC) + timedelta(seconds=LEAD + count / 100)


async def _handled(count: int, begin: datetime, span: float) -> dict[str, float]:
    if datetime.now(UTC) > begin:
        raise TimeoutError("making the schedules took too long")
    until = time.monotonic() + (begin - datetime.now(UTC)).total_seconds() + span + 30
    while len(late) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(late)} of {count} were fired")
        await asyncio.sleep(0.2)
    found = {name: round(value, 1) for name, value in percentiles(late).items()}
    late.clear()
    return found


def lateness(server: str, count: int) -> Figures:
    """What a process of its own measures, on a fresh database of this server.

    Raises:
        FailedError: it failed.

    """
    command = [sys.executable, "-m", "benchmarks.schedules", "--measured", "--count", str(count)]
    with databases.fresh(server) as url:
        migrate(url)
        with process([*command, "--database-url", url]) as child:
            return child.finish(count, 300)


def tables(figures: Figures) -> list[Any]:
    """The figures, for people."""
    places = ("p50", "p90", "p99", "p99.9", "max")
    table = report.new_table(f"Late, ms: {figures['count']:,} schedules", "fire times", *places)
    for name, title in (("spread", "spread over a minute"), ("at once", "all at one instant")):
        table.add_row(title, *[f"{figures[name][place]:,.1f}" for place in places])
    return [table, report.bars_table([], bars(figures))]


def bars(figures: Figures) -> list[Figures]:
    """What must hold."""
    return [report.at_most("late, p99, spread over a minute, ms", figures["spread"]["p99"], LATE)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--database-url")
    parser.add_argument("--write-page", action="store_true", help="render this part of benchmarks/RESULTS.md")
    parser.add_argument("--measured", action="store_true", help="be the process that is measured")
    options = parser.parse_args()
    if options.measured:
        print(json.dumps(asyncio.run(measured(options.database_url, options.count))))
        return 0
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(postgres()) if options.database_url is None else None
        where = where or Addresses(options.database_url, "", "external", "not used")
        machine = report.machine(where)
        try:
            figures = lateness(where.database_url, options.count)
        except FailedError as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(figures, indent=2))
    if options.write_page:
        about = report.about({"machine": machine, "rounds": 1})
        report.fill_page(PART, [about, "", *report.markdown_tables(tables(figures))])
    missed = [bar["title"] for bar in bars(figures) if not bar["met"]]
    for title in missed:
        print(f"NOT met: {title}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
