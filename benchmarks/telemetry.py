"""What telemetry costs: throughput of messages with one step.

    python -m benchmarks.telemetry [--rounds 5] [--count 200000] [--write-page]

Without an SDK, with traces sampled at 1 % and whole, and with metrics by OpenTelemetry, each against the same code with all
calls of telemetry taken out of it (`contestants.eventflow_telemetry`), in turns. Ratios are within a round; each database is
verified.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table

from benchmarks import orders, report, verify
from benchmarks.catalogue import Contestant, Ratio, Size
from benchmarks.report import Figures
from benchmarks.runs import Run, once, rounds
from benchmarks.services import services

PART = "telemetry"
REMOVED = "telemetry-removed"


def _contestant(mode: str, title: str, size: Size = "fast") -> Contestant:
    command = (sys.executable, "-m", "benchmarks.contestants.eventflow_telemetry", "--mode", mode)
    return Contestant(f"telemetry-{mode}", title, command, size, verify.workflows, "asyncio")


CONTESTANTS = (
    _contestant("removed", "telemetry taken out of the code"),
    _contestant("off", "no SDK"),
    _contestant("sampled", "traces, 1 %"),
    _contestant("metrics", "metrics by OpenTelemetry"),
    _contestant("all", "traces, all", "slow"),
)
RATIOS = (
    Ratio("no SDK / taken out", "telemetry-off", (REMOVED,), 0.97),
    Ratio("traces, 1 % / taken out", "telemetry-sampled", (REMOVED,), 0.90),
    Ratio("metrics by OpenTelemetry / taken out", "telemetry-metrics", (REMOVED,)),
    Ratio("traces, all / taken out", "telemetry-all", (REMOVED,)),
)


def cpu_ratios(runs: Sequence[Run]) -> list[Figures]:
    """CPU time of the process per message, by that of the code without telemetry: steadier than rates on a shared machine."""
    rows: list[Figures] = []
    for ratio in RATIOS:
        found: list[float] = []
        for number in sorted({run.round for run in runs}):
            by = {run.contestant: run.report["cpu_seconds"] / run.count for run in runs if run.round == number}
            if ratio.of in by and REMOVED in by:
                found.append(by[ratio.of] / by[REMOVED])
        if found:
            rows.append({"title": ratio.title, "cpu": report.spread(found)})
    return rows


def tables(results: Figures) -> list[Table]:
    cpu = report.new_table("CPU time per message, as a ratio", "what", "median", "range")
    for row in results["cpu"]:
        found = row["cpu"]
        cpu.add_row(row["title"], f"{found['median']:.3f}", f"{found['low']:.3f} - {found['high']:.3f}")
    rates = report.rates_table("Messages per second with telemetry", "msg", results["rates"])
    return [rates, report.bars_table(results["ratios"], []), cpu]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--only", default="", help="modes, by commas")
    parser.add_argument("--write-page", action="store_true", help="render this part of benchmarks/RESULTS.md")
    asked = parser.parse_args()
    only = {f"telemetry-{mode}" for mode in asked.only.split(",") if mode}
    chosen = [c for c in CONTESTANTS if not only or c.name in only]
    console = Console()
    say: Callable[[str], None] = console.print
    with ExitStack() as end:
        where = end.enter_context(services())
        machine = report.machine(where)
        counts: dict[Size, int] = {"fast": asked.count, "slow": asked.count // 8}
        topics: dict[Size, str] = {}
        for size, count in counts.items():
            topics[size] = end.enter_context(orders.topic(where.bootstrap, orders.PARTITIONS))
            orders.fill(where.bootstrap, topics[size], count, partitions=orders.PARTITIONS, keys=0)
        runs, failures = rounds(
            chosen, asked.rounds, lambda c, n: once(where, c, topics[c.size], counts[c.size], n), say
        )
    results: Figures = {"machine": machine, "rounds": asked.rounds, "rates": report.rates(runs, CONTESTANTS)}
    results |= {"ratios": report.ratios(runs, RATIOS), "cpu": cpu_ratios(runs)}
    report.show_tables(console, tables(results))
    if asked.write_page and not failures:
        report.fill_page(PART, [report.about(results), "", *report.markdown_tables(tables(results))])
    missed = [row["title"] for row in results["ratios"] if row["met"] is False]
    for text in (*failures, *(f"NOT met: {title}" for title in missed)):
        print(text, file=sys.stderr)
    return 1 if failures or missed else 0


if __name__ == "__main__":
    sys.exit(main())
