"""`python -m benchmarks.workflows`: start PostgreSQL, let everyone compete, verify, print, write JSON, check the bars."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks import report as pages
from benchmarks import sleepers
from benchmarks.measures import percentiles
from benchmarks.runs import FailedError, Run, compete, rounds
from benchmarks.services import Addresses, postgres
from benchmarks.verify import MismatchError
from benchmarks.workflows import checks, report
from benchmarks.workflows.catalogue import MODULE, TITLES, Contestant, chosen, contestants

COUNTS = {"direct": 20_000, "three": 10_000, "queued": 20_000, "session": 6_000, "psycopg": 6_000, "latency": 200}
OURS_QUICK, DBOS, DBOS_QUICK = 10, 1_500, 300  # a tenth of it; workflows of DBOS's
FAN_OUT, FAN_OUT_QUICK = 10_000, 500
ONCE = {"fan-out"}  # what takes one round
SLEEPERS, RATE = 100_000, 1000  # of eventflow, and how many are due in each second
WAITING = 10  # one of so many waits for a message
TITLED = {"sleep": "", "timeout": ", waiting for a message in vain", "message": ", waiting for a message"}
DBOS_SLEEPERS, DBOS_RATE = 2_000, 150
LIMIT = 600.0  # seconds for one run
Figures = dict[str, Any]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workflows", description="eventflow's durable workflows beside DBOS 3.4, in one run"
    )
    parser.add_argument("--only", default="", help="kinds of work or names, comma-separated; a trailing * is any end")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--rounds", type=int, help="turns of each (3; with --quick 1)")
    parser.add_argument("--callers", type=int, default=256, help="workflows that are under way at once (256)")
    parser.add_argument("--fan-out", type=int, help="children of one parent (10,000)")
    parser.add_argument(
        "--sleepers", type=int, help="of eventflow, in each colour (100,000; with --quick 2,000); a tenth as many wait"
    )
    parser.add_argument("--quick", action="store_true", help="one round, few workflows: to see that it works")
    parser.add_argument("--write-page", action="store_true", help="render this part of benchmarks/RESULTS.md")
    return parser.parse_args(arguments)


class Bench:
    """One run of the whole."""

    def __init__(self, where: Addresses, asked: argparse.Namespace, console: Console) -> None:
        self.where, self.asked, self.console = where, asked, console
        self.everyone = contestants(asked.callers)
        self.only = [name for name in asked.only.split(",") if name]
        self.rounds: int = asked.rounds or (1 if asked.quick else 3)
        self.failures: list[str] = []

    def turns(self) -> list[Run]:
        """Work after work, round after round."""
        runs: list[Run] = []
        competing = chosen(self.everyone, self.only)
        for work, title in TITLES.items():
            mine = [one for one in competing if one.work == work]
            if not mine:
                continue
            self.console.print(f"\n{title}")
            done, failed = rounds(mine, 1 if work in ONCE else self.rounds, self.turn, self.console.print)
            runs += done
            self.failures += failed
        return runs

    def turn(self, one: Contestant, number: int) -> Run:
        """One run of one contestant."""
        count = self.count(one)

        def command(dsn: str) -> list[str]:
            return one.command(dsn, count)

        return compete(self.where, one.name, command, count, number, checks.verified_by(one), LIMIT)

    def count(self, one: Contestant) -> int:
        """How many workflows it runs: those who are slower have fewer, so that each runs for seconds."""
        quick: bool = self.asked.quick
        if one.work == "fan-out":
            return self.asked.fan_out or (FAN_OUT_QUICK if quick else FAN_OUT)
        if one.ours or one.work == "latency":
            return COUNTS[one.work] // (OURS_QUICK if quick else 1)
        return DBOS_QUICK if quick else DBOS

    def sleepers(self) -> list[Figures]:
        """eventflow's in both colours and of all kinds, and a few of DBOS's, which keeps each in memory."""
        if self.only and "sleepers" not in self.only:
            return []
        count: int = self.asked.sleepers or (2_000 if self.asked.quick else SLEEPERS)
        self.console.print(f"\nSleepers: {count:,} of eventflow, {DBOS_SLEEPERS:,} of DBOS")
        rows: list[Figures] = []
        turns: dict[str, Callable[[], Figures]] = {
            f"eventflow, {colour}{title}": partial(
                self._sleepers, colour, kind, count if kind == "sleep" else count // WAITING
            )
            for kind, title in TITLED.items()
            for colour in ("async", "sync")
        }
        for title, measure in (turns | {"DBOS 3.4, async": self._dbos_sleepers}).items():
            try:
                rows.append({"title": title, **measure()})
                self.console.print(
                    f"{title}: peak {rows[-1]['peak_mib']:.0f} MiB, latest {rows[-1]['late']['max']:.2f} s"
                )
            except (FailedError, MismatchError) as error:
                self.failures.append(f"sleepers, {title}: {error}")
                self.console.print(f"[red]{title}: {error}[/red]")
        return rows

    def _sleepers(self, colour: str, kind: str, count: int) -> Figures:
        figures = sleepers.sleepers(self.where.database_url, count, RATE, colour, kind)
        late = figures["late s"]
        return {
            "sleepers": count, "rate": RATE, "started": figures["started per s"], "woken": figures["wake-ups per s"],
            "before_mib": figures["idle MB"], "asleep_mib": figures["asleep MB"], "peak_mib": figures["peak MB"],
            "late": {"p50": late["p50"], "p99": late["p99"], "max": late["most"]}, "limit": True,
        }  # fmt: skip

    def _dbos_sleepers(self) -> Figures:
        count = DBOS_SLEEPERS // (10 if self.asked.quick else 1)
        lead = 10 + count / 100  # seconds for starting them

        def command(dsn: str) -> list[str]:
            return [
                *MODULE, "benchmarks.contestants.dbos_standalone", "--dsn", dsn, "--work", "sleep", "--count", str(count),
                "--callers", str(self.asked.callers), "--rate", str(DBOS_RATE), "--lead", str(lead),
            ]  # fmt: skip

        run = compete(self.where, "sleepers/dbos-async", command, count, 1, checks.sleepers, LIMIT)
        late = percentiles(run.report["delays"])
        return {
            "sleepers": count, "rate": DBOS_RATE, "started": run.report["started_per_second"], "woken": run.rate,
            "before_mib": run.report["before_mib"], "asleep_mib": run.report["peak_mib"],
            "peak_mib": run.report["max_rss_mb"], "late": {name: late[name] / 1000 for name in ("p50", "p99", "max")},
        }  # fmt: skip


def run(asked: argparse.Namespace, where: Addresses, console: Console) -> int:
    """Everything that was asked for; the exit status."""
    bench = Bench(where, asked, console)
    machine = pages.machine(where)
    runs = bench.turns()
    figures = report.results(runs, bench.everyone, asked.callers, bench.sleepers())
    figures = {"machine": machine, "rounds": bench.rounds, "callers": asked.callers, **figures}
    figures["failures"] = bench.failures
    console.print()
    pages.show_tables(console, report.tables(figures))
    console.print(f"written: {pages.write('workflows', figures, runs)}")
    if asked.write_page:
        report.render_page(figures)
    missed = report.missed(figures)
    for failure in bench.failures:
        console.print(f"[red]FAILED[/red] {failure}")
    for bar in missed:
        console.print(f"[red]NOT met[/red] {bar}")
    return 1 if bench.failures or missed else 0


def main() -> int:
    asked = options()
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 150)
    everyone = contestants(asked.callers)
    if asked.list:
        for one in everyone:
            console.print(f"{one.name:<40} {one.title}")
        console.print("sleepers")
        return 0
    for name in filter(None, asked.only.split(",")):
        if name != "sleepers" and not chosen(everyone, [name]):
            raise SystemExit(f"--only: nothing is called {name!r}; --list shows the names")
    with postgres() as where:
        return run(asked, where, console)


if __name__ == "__main__":
    sys.exit(main())
