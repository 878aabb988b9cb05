"""Tables, ratios against their bars, and JSON: only from verified runs."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import confluent_kafka
from rich.console import Console
from rich.table import Table

from benchmarks import databases
from benchmarks.catalogue import Ratio
from benchmarks.runs import Run
from benchmarks.services import Addresses

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent / "RESULTS.md"
PACKAGES = ("eventflow", "dbos", "psycopg", "confluent-kafka", "sqlalchemy", "pydantic", "uvloop")
Figures = dict[str, Any]
AT_LEAST = {  # per second, in one partition
    "order-partition": 10_000, "order-partition-pipeline": 10_000, "order-partition-batch": 10_000,
    "order-partition-steps": 500,
}  # fmt: skip


def machine(where: Addresses) -> Figures:
    """What the figures were measured on."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "load": os.getloadavg(),
        "services": where.kind,
        "versions": {
            "python": platform.python_version(),
            "postgresql": databases.server_version(where.database_url),
            "kafka": where.kafka,
            "librdkafka": confluent_kafka.libversion()[0],
            **{name: _version(name) for name in PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class Competing(Protocol):
    """Who competed: what a table says of them."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def loop(self) -> str: ...


def rates(runs: Sequence[Run], contestants: Iterable[Competing]) -> list[Figures]:
    """Per contestant: the median rate and its range, WAL, client CPU."""
    rows: list[Figures] = []
    for contestant in contestants:
        mine = [run for run in runs if run.contestant == contestant.name]
        if not mine:
            continue
        cpu = [1e6 * run.report["cpu_seconds"] / run.count for run in mine if "cpu_seconds" in run.report]
        rows.append(
            {
                "contestant": contestant.name,
                "title": contestant.title,
                "loop": contestant.loop,
                "count": mine[0].count,
                "rounds": len(mine),
                "rate": spread([run.rate for run in mine]),
                "wal_per_message": spread([run.wal_per_message for run in mine]),
                "client_us_per_message": spread(cpu) if cpu else None,
            }
        )
    return rows


def ratios(runs: Sequence[Run], wanted: Iterable[Ratio]) -> list[Figures]:
    """Each ratio within its round, then the median over rounds."""
    rows: list[Figures] = []
    for ratio in wanted:
        per_round = list(_per_round(ratio, runs))
        if per_round:
            found = spread(per_round)
            met = None if ratio.bar is None else found["median"] >= ratio.bar
            rows.append({"title": ratio.title, "ratio": found, "bar": ratio.bar, "met": met})
    return rows


def _per_round(ratio: Ratio, runs: Sequence[Run]) -> Iterable[float]:
    for number in sorted({run.round for run in runs}):
        by_name = {run.contestant: run.rate for run in runs if run.round == number}
        others = [by_name[name] for name in ratio.to if name in by_name]
        if ratio.of in by_name and others:
            yield by_name[ratio.of] / max(others)


def floors(rows: Sequence[Figures]) -> list[Figures]:
    """Rates that are to reach a number, in the form of ratios."""
    return [
        {
            "title": f"{row['title']}, per second", "ratio": row["rate"], "bar": AT_LEAST[row["contestant"]],
            "met": row["rate"]["median"] >= AT_LEAST[row["contestant"]],
        }
        for row in rows if row["contestant"] in AT_LEAST
    ]  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of several rounds: the median, and from where to where."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def bars(results: Figures) -> list[Figures]:
    """The bars that are no ratio of rates."""
    rows: list[Figures] = []
    for figures in results.get("latency", []):
        if figures["contestant"] == "eventflow-latency":
            low = figures["rate"] < 100
            name, bar = ("p50", 10.0) if low else ("p99", 50.0)
            title = f"produce to handled, {name}, {figures['rate']:,.0f}/s, ms"
            rows.append(at_most(title, figures["handled"][name], bar))
    for row in results["rates"]:
        if row["contestant"] == "eventflow-async":
            rows.append(at_most("WAL per message, B", row["wal_per_message"]["median"], 800))
    if "idle" in results:
        rows.append(at_most("idle transactions/s", results["idle"]["per_second"], 2.0))
    for figures in results.get("round_trips", []):
        if figures["contestant"] == "eventflow-async":
            rows.append(at_most("round trips per message", figures["per_message"], 0.005))
    if "memory" in results:
        second, last = (results["memory"][f"{q}_quarter_mib"] for q in ("second", "last"))
        rows.append(at_most("memory, last quarter / second", last / second, 1.05))
    return rows


def at_most(title: str, value: float, bar: float) -> Figures:
    """A bar that a figure must not be above."""
    return {"title": title, "value": value, "bar": bar, "met": value <= bar}


def tables(results: Figures) -> list[Table]:
    """Everything, for people."""
    made = [
        rates_table("Messages per second, verified", "message", results["rates"]),
        bars_table(results["ratios"], results["bars"]),
    ]
    if "latency" in results:
        made.append(_latency_table(results["latency"]))
    if "round_trips" in results:
        made.append(_trips_table(results["round_trips"]))
    return made


def new_table(title: str, *columns: str) -> Table:
    """The first column is words, the others are figures."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def rates_table(title: str, unit: str, rows: Sequence[Figures]) -> Table:
    """Rates of one kind of work, per second."""
    table = new_table(title, "contestant", "loop", f"{unit}s", "rate", "range", f"WAL B/{unit}", f"client us/{unit}")
    for row in rows:
        rate, cpu = row["rate"], row["client_us_per_message"]
        table.add_row(
            row["title"],
            row["loop"],
            f"{row['count']:,}",
            f"{rate['median']:,.0f}",
            f"{rate['low']:,.0f} - {rate['high']:,.0f}",
            f"{row['wal_per_message']['median']:,.0f}",
            f"{cpu['median']:,.1f}" if cpu else "",
        )
    return table


def bars_table(ratio_rows: Sequence[Figures], others: Sequence[Figures]) -> Table:
    """Ratios, and what else there is a bar for."""
    table = new_table("Ratios within a round, and bars", "what", "median", "range", "bar", "")
    for row in ratio_rows:
        found, bar = row["ratio"], row["bar"]
        span = f"{found['low']:.2f} - {found['high']:.2f}"
        wanted = "" if bar is None else f">= {bar:g}"
        table.add_row(row["title"], f"{found['median']:.2f}", span, wanted, _word(row["met"]))
    for row in others:
        value, bar = f"{row['value']:.4g}", f"<= {row['bar']:g}"
        table.add_row(row["title"], value, "", bar, _word(row["met"]))
    return table


def _word(met: bool | None) -> str:
    return {None: "", True: "met", False: "NOT met"}[met]


def _latency_table(rows: Sequence[Figures]) -> Table:
    table = new_table("Latency from produce, ms", "what", "rate/s", "p50", "p90", "p99", "p99.9", "max")
    for row in rows:
        for name in ("handled", "durable"):
            if name in row:
                places = [f"{row[name][p]:,.1f}" for p in ("p50", "p90", "p99", "p99.9", "max")]
                table.add_row(f"{row['contestant']}, {name}", f"{row['rate']:,.0f}", *places)
    return table


def _trips_table(rows: Sequence[Figures]) -> Table:
    table = new_table("Round trips to PostgreSQL", "contestant", "messages", "trips", "per message")
    for row in rows:
        numbers = (f"{row['messages']:,}", f"{row['trips']:,}", f"{row['per_message']:.5f}")
        table.add_row(row["contestant"], *numbers)
    return table


def as_json(results: Figures, runs: Sequence[Run]) -> str:
    """Everything, for programs."""
    return json.dumps({**results, "runs": [asdict(run) for run in runs]}, indent=1)


def write(name: str, results: Figures, runs: Sequence[Run]) -> Path:
    """Keep the results as results/{name}.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(as_json(results, runs) + "\n")
    return path


def render_page(results: Figures, part: str = "results") -> None:
    """Write these results into their part of the page."""
    lines = [about(results), "", *markdown_tables(tables(results))]
    if "memory" in results:
        lines += [_memory_sentence(results["memory"]), ""]
    fill_page(part, lines)


def fill_page(part: str, lines: Iterable[str]) -> None:
    """Replace what stands between two markers of RESULTS.md."""
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    page = PAGE.read_text()
    head, tail = page.partition(begin)[0], page.partition(end)[2]
    text = "\n".join(lines)
    PAGE.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}")


def about(results: Figures) -> str:
    """When and where these figures were measured."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured {machine['at']} on {machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, load"
        f" average {machine['load'][0]:.1f} at the start; {results['rounds']} rounds. {versions}."
    )


def markdown_tables(made: Iterable[Table]) -> list[str]:
    """The tables that have rows, as Markdown."""
    return [line for table in made if table.row_count for line in (f"### {table.title}", "", *_markdown(table), "")]


def _memory_sentence(figures: Figures) -> str:
    return (
        f"Memory over {figures['messages']:,} messages: {figures['second_quarter_mib']:.0f} MiB in"
        f" the second quarter, {figures['last_quarter_mib']:.0f} MiB in the last."
    )


def _markdown(table: Table) -> list[str]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    marks = ["---", *["---:"] * (len(columns) - 1)]
    rows = [[str(column.header) for column in table.columns], marks, *zip(*columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]


def show(console: Console, results: Figures) -> None:
    """Print the tables."""
    show_tables(console, tables(results))
    if "idle" in results:
        console.print(f"idle: {results['idle']['per_second']:.2f} transactions/s")
    if "memory" in results:
        console.print(_memory_sentence(results["memory"]))


def show_tables(console: Console, made: Iterable[Table]) -> None:
    """Print the tables that have rows."""
    for table in made:
        if table.row_count:
            console.print(table)
