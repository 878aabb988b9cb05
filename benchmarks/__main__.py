"""`python -m benchmarks`: start the services, let everyone compete, verify, print, write JSON."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from benchmarks import catalogue, measures, orders, report
from benchmarks.catalogue import Contestant
from benchmarks.runs import FailedError, Run, once, rounds
from benchmarks.services import Addresses, services
from benchmarks.verify import MismatchError

MEASURES = ("latency", "dbos-latency", "trips", "idle")
COUNTS = {
    "fast": 200_000, "transactional": 50_000, "slow": 10_000, "dbos": 3_000, "keyed": 100_000, "hot": 100_000,
    "one partition": 50_000,
    "one partition, steps": 3_000, "one partition, dbos": 30,
}  # fmt: skip
QUICK = {
    "fast": 40_000, "transactional": 10_000, "slow": 3_000, "dbos": 1_000, "keyed": 40_000, "hot": 96_000,
    "one partition": 20_000,
    "one partition, steps": 1_000, "one partition, dbos": 10,
}  # fmt: skip
TRIPS = ("prototype", "eventflow-async", "eventflow-suspending")
Figures = dict[str, Any]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="eventflow against its rivals, in one run"
    )
    parser.add_argument("--only", default="", help="names, comma-separated; a trailing * is any end")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--rounds", type=int, help="turns of each (3; with --quick 1)")
    parser.add_argument("--count", type=int, help="messages for the fast ones (200,000)")
    parser.add_argument("--quick", action="store_true", help="one round, few messages")
    parser.add_argument("--memory", type=int, default=0, help="also watch memory over so many messages")
    parser.add_argument("--write-page", action="store_true", help="render benchmarks/RESULTS.md")
    parser.add_argument("--write-order", action="store_true", help="render the part of it that is about order")
    return parser.parse_args(arguments)


def names(only: str) -> list[str]:
    """The names given with --only.

    Raises:
        SystemExit: one fits nothing.
    """
    given = [name for name in only.split(",") if name]
    for name in given:
        if name not in MEASURES and not catalogue.contestants([name]):
            raise SystemExit(f"--only: nothing is called {name!r}; --list shows the names")
    return given


def fill_topics(
    where: Addresses, chosen: Sequence[Contestant], counts: dict[str, int], end: ExitStack
) -> dict[str, tuple[str, int]]:
    """One topic per size that is needed: name and number of orders."""
    topics: dict[str, tuple[str, int]] = {}
    for size in sorted({contestant.size for contestant in chosen}):
        partitions = 1 if size.startswith("one partition") else orders.PARTITIONS
        name = end.enter_context(orders.topic(where.bootstrap, partitions))
        orders.fill(where.bootstrap, name, counts[size], partitions=partitions, keys=orders.KEYS.get(size, 0))
        topics[size] = (name, counts[size])
    return topics


class Bench:
    """One run of the whole: collects figures and failures."""

    def __init__(self, where: Addresses, asked: argparse.Namespace, console: Console) -> None:
        self.where = where
        self.quick: bool = asked.quick
        self.memory: int = asked.memory
        self.only = names(asked.only)
        self.console = console
        self.failures: list[str] = []

    def asked(self, measure: str) -> bool:
        """Whether this measure is to be taken."""
        return not self.only or measure in self.only

    def take(self, name: str, measure: Callable[[], Figures]) -> list[Figures]:
        """One measure; a failure is noted and the rest goes on."""
        self.console.print(f"measuring {name}")
        try:
            return [measure()]
        except (FailedError, MismatchError) as error:
            self.failures.append(f"{name}: {error}")
            self.console.print(f"[red]{name}: {error}[/red]", markup=True)
            return []

    def extras(self, topic: Callable[[], tuple[str, int]]) -> Figures:
        """All that is no rate."""
        figures: Figures = {}
        if latencies := self._latencies():
            figures["latency"] = latencies
        if self.asked("trips"):
            name, count = topic()
            figures["round_trips"] = [
                taken
                for who in TRIPS
                for taken in self.take(
                    f"round trips, {who}",
                    lambda who=who: measures.round_trips(self.where, who, name, count),
                )
            ]
        if self.asked("idle"):
            for taken in self.take("idle transactions", lambda: measures.idle(self.where)):
                figures["idle"] = taken
        if self.memory:
            for taken in self.take("memory", self._memory):
                figures["memory"] = taken
        return figures

    def _latencies(self) -> list[Figures]:
        seconds = 5.0 if self.quick else 15.0
        wanted: list[tuple[Contestant, float]] = []
        if self.asked("latency"):
            wanted += [(measures.LATENCY, 20.0), (measures.LATENCY, 1000.0)]
        if self.asked("dbos-latency"):
            wanted.append((measures.DBOS_LATENCY, 20.0))
        return [
            taken
            for who, rate in wanted
            for taken in self.take(
                f"{who.name} at {rate:,.0f}/s",
                lambda who=who, rate=rate: measures.latency(self.where, who, rate, seconds),
            )
        ]

    def _memory(self) -> Figures:
        return measures.memory(self.where, self.memory, self.console.print)


def run(asked: argparse.Namespace, where: Addresses, console: Console) -> int:
    """Everything that was asked for; the exit status."""
    bench = Bench(where, asked, console)
    chosen = catalogue.contestants(bench.only)
    counts = {**(QUICK if asked.quick else COUNTS), **({"fast": asked.count} if asked.count else {})}
    how_many = asked.rounds or (1 if asked.quick else 3)
    machine = report.machine(where)
    with ExitStack() as end:
        topics = fill_topics(where, chosen, counts, end)

        def turn(contestant: Contestant, number: int) -> Run:
            return once(where, contestant, *topics[contestant.size], number)

        runs, bench.failures = rounds(chosen, how_many, turn, console.print)

        def fast() -> tuple[str, int]:
            if "fast" not in topics:
                [sample] = catalogue.contestants(["prototype"])
                topics.update(fill_topics(where, [sample], counts, end))
            return topics["fast"]

        extras = bench.extras(fast)
    results: Figures = {"machine": machine, "rounds": how_many, **extras}
    rates = report.rates(runs, catalogue.CONTESTANTS)
    results |= {"rates": rates, "ratios": [*report.ratios(runs, catalogue.RATIOS), *report.floors(rates)]}
    results |= {"bars": report.bars(results), "failures": bench.failures}
    report.show(console, results)
    console.print(f"written: {report.write('latest', results, runs)}")
    if asked.write_page:
        report.render_page(results)
    if asked.write_order:
        report.render_page(results, "order")
    for failure in bench.failures:
        console.print(f"[red]FAILED[/red] {failure}")
    return 1 if bench.failures else 0


def main() -> int:
    asked = options()
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 150)
    if asked.list:
        for contestant in catalogue.CONTESTANTS:
            console.print(f"{contestant.name:<36} {contestant.title}")
        console.print(f"measures: {', '.join(MEASURES)}; memory by --memory N")
        return 0
    with services() as where:
        return run(asked, where, console)


if __name__ == "__main__":
    sys.exit(main())
