"""Tables of the standalone benchmark, its bars, and its part of RESULTS.md: only from verified runs."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks import report, sleepers
from benchmarks.measures import percentiles
from benchmarks.runs import Run
from benchmarks.workflows.catalogue import TITLES, Contestant, ratios

Figures = dict[str, Any]
LATENCY, FAN_OUT = 5.0, 400.0  # ms; MiB, as for the sleepers


def results(runs: Sequence[Run], everyone: Sequence[Contestant], callers: int, asleep: Sequence[Figures]) -> Figures:
    """All figures of one benchmark, and which bars are met."""
    figures: Figures = {
        "rates": {
            work: report.rates([run for run in runs if _work(run) == work], everyone)
            for work in TITLES
            if work != "latency"
        },
        "latency": _latencies(runs, everyone),
        "fan_out": _fan_outs(runs, everyone),
        "sleepers": list(asleep),
        "ratios": report.ratios(runs, ratios(callers)),
    }
    return figures | {"bars": _bars(figures)}


def _work(run: Run) -> str:
    return run.contestant.partition("/")[0]


def _latencies(runs: Sequence[Run], everyone: Sequence[Contestant]) -> list[Figures]:
    """Of all rounds together."""
    rows: list[Figures] = []
    for one in everyone:
        delays = [delay for run in runs if run.contestant == one.name for delay in run.report.get("delays", ())]
        if one.work == "latency" and delays:
            rows.append({"contestant": one.name, "title": one.title, "calls": len(delays), **percentiles(delays)})
    return rows


def _fan_outs(runs: Sequence[Run], everyone: Sequence[Contestant]) -> list[Figures]:
    """The round that took most memory."""
    rows: list[Figures] = []
    for one in everyone:
        mine = [run for run in runs if run.contestant == one.name]
        if one.work == "fan-out" and mine:
            most = max(mine, key=lambda run: run.report["peak_mib"])
            memory = {name: most.report[name] for name in ("before_mib", "peak_mib")}
            rows.append({"contestant": one.name, "title": one.title, "children": most.count, **memory})
    return rows


def _bars(figures: Figures) -> list[Figures]:
    rows: list[Figures] = []
    for row in figures["latency"]:
        if "/eventflow" in row["contestant"]:
            rows.append(report.at_most(f"p50 of a one-step workflow, idle, {row['title']}, ms", row["p50"], LATENCY))
    for row in figures["fan_out"]:
        if "/eventflow" in row["contestant"]:
            title = f"memory of a fan-out of {row['children']:,}, {row['title']}, MiB"
            rows.append(report.at_most(title, row["peak_mib"], FAN_OUT))
    for row in figures["sleepers"]:
        if "limit" in row:
            what = f"{row['sleepers']:,} sleepers, {row['title']}"
            rows.append(report.at_most(f"memory of {what}, MiB", row["peak_mib"], sleepers.MEMORY))
            rows.append(
                report.at_most(f"{what}, latest wake-up at {row['rate']:,}/s, s", row["late"]["max"], sleepers.LATE)
            )
    return rows


def missed(figures: Figures) -> list[str]:
    """The bars that are not met."""
    return [row["title"] for row in [*figures["ratios"], *figures["bars"]] if row["met"] is False]


# ---- tables ----------------------------------------------------------------------------------------


def tables(figures: Figures) -> list[Table]:
    """Everything, for people."""
    rates = [
        report.rates_table(
            f"{TITLES[work]}: per second, verified", "child workflow" if work == "fan-out" else "workflow", rows
        )
        for work, rows in figures["rates"].items()
        if rows
    ]
    return [
        *rates,
        _latency_table(figures["latency"]),
        _memory_table(figures["fan_out"]),
        _sleepers_table(figures["sleepers"]),
        report.bars_table(figures["ratios"], figures["bars"]),
    ]


def _latency_table(rows: Sequence[Figures]) -> Table:
    places = ("p50", "p90", "p99", "max")
    table = report.new_table(f"{TITLES['latency']}: ms", "contestant", "calls", *places)
    for row in rows:
        table.add_row(row["title"], f"{row['calls']:,}", *[f"{row[place]:,.1f}" for place in places])
    return table


def _memory_table(rows: Sequence[Figures]) -> Table:
    table = report.new_table(
        "Fan-out: resident memory, MiB", "contestant", "children", "before", "peak", "KiB per child"
    )
    for row in rows:
        before, peak = row["before_mib"], row["peak_mib"]
        each = f"{(peak - before) * 1024 / row['children']:.1f}"
        table.add_row(row["title"], f"{row['children']:,}", f"{before:.0f}", f"{peak:.0f}", each)
    return table


def _sleepers_table(rows: Sequence[Figures]) -> Table:
    table = report.new_table(
        "Asleep, and woken at a steady rate", "contestant", "sleepers", "due/s", "started/s", "woken/s", "before MiB",
        "asleep MiB", "peak MiB", "late p50, s", "p99", "max",
    )  # fmt: skip
    for row in rows:
        late = row["late"]
        table.add_row(
            row["title"], f"{row['sleepers']:,}", f"{row['rate']:,}", f"{row['started']:,.0f}", f"{row['woken']:,.0f}",
            f"{row['before_mib']:.0f}", f"{row['asleep_mib']:.0f}", f"{row['peak_mib']:.0f}",
            *[f"{late[place]:.3f}" for place in ("p50", "p99", "max")],
        )  # fmt: skip
    return table


def render_page(figures: Figures) -> None:
    """Write these results into their part of the page."""
    report.fill_page("workflows", [report.about(figures), "", *report.markdown_tables(tables(figures))])
