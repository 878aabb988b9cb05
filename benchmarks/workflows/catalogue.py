"""Each kind of work, who competes in it with which tuning, and what is compared to what."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.catalogue import Ratio

MODULE = (sys.executable, "-m")
TITLES = {
    "direct": "One step, called and awaited",
    "three": "Three steps, called and awaited",
    "queued": "One step, enqueued",
    "fan-out": "Fan-out: a parent starts children of one step, and awaits them all",
    "session": "One transactional step, by a SQLAlchemy Session",
    "psycopg": "One transactional step, by a psycopg connection",
    "latency": "One step, called and awaited, one at a time",
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One program, and the work that it does."""

    name: str  # "{work}/{system}-{colour}..."
    title: str
    loop: str
    work: str  # whose table it stands in
    asked: str  # the work that its program is asked to do
    colour: str
    callers: int
    arguments: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is eventflow's."""
        return "/eventflow" in self.name

    def command(self, dsn: str, count: int) -> list[str]:
        """The command line of one run."""
        program = f"benchmarks.contestants.{'eventflow' if self.ours else 'dbos'}_standalone"
        fast = ("--uvloop",) if self.loop == "uvloop" else ()
        return [
            *MODULE, program, "--dsn", dsn, "--count", str(count), "--work", self.asked, "--colour", self.colour,
            "--callers", str(self.callers), *self.arguments, *fast,
        ]  # fmt: skip


def _pair(
    system: str, work: str, callers: int, arguments: tuple[str, ...] = (), label: str = "", asked: str = ""
) -> list[Contestant]:
    """The same contestant in both colours."""
    title = {"eventflow": "eventflow", "dbos": "DBOS 3.4"}[system]
    mark, words = (f"-{label.replace(' ', '-')}", f", {label}") if label else ("", "")
    return [
        Contestant(f"{work}/{system}-{colour}{mark}", f"{title}, {colour}{words}", "asyncio", work, asked or work,
                   colour, callers, arguments)
        for colour in ("async", "sync")
    ]  # fmt: skip


def _uvloop(system: str, work: str, callers: int) -> list[Contestant]:
    """The async one again, on uvloop."""
    [plain] = [one for one in _pair(system, work, callers) if one.colour == "async"]
    return [Contestant(f"{plain.name}-uvloop", plain.title, "uvloop", work, work, "async", callers)]


def contestants(callers: int) -> list[Contestant]:
    """Everyone, work by work, in the order in which they take turns."""
    few = max(1, callers // 16)
    return [
        *_pair("eventflow", "direct", callers),
        *_uvloop("eventflow", "direct", callers),
        *_pair("eventflow", "direct", few, label=f"{few} callers"),
        *_pair("dbos", "direct", callers),
        *_uvloop("dbos", "direct", callers),
        *_pair("dbos", "direct", few, label=f"{few} callers"),
        *_pair("eventflow", "three", callers),
        *_uvloop("eventflow", "three", callers),
        *_pair("dbos", "three", callers),
        *_pair("eventflow", "queued", callers),
        *_uvloop("eventflow", "queued", callers),
        *_pair("eventflow", "queued", callers, ("--unlimited",), "no limit"),
        *_pair("dbos", "queued", callers),
        *_pair("dbos", "queued", callers, ("--unlimited",), "no limit"),
        *_pair("eventflow", "session", callers),
        *_pair("dbos", "session", callers, label="own transaction"),
        *_pair("dbos", "session", callers, label="datasource", asked="datasource"),
        *_pair("eventflow", "psycopg", callers),
        *_pair("dbos", "psycopg", callers, label="own transaction"),
        *_pair("eventflow", "fan-out", 1),
        *_pair("dbos", "fan-out", 1),
        *_pair("eventflow", "latency", 1),
        *_pair("dbos", "latency", 1),
    ]


def ratios(callers: int) -> list[Ratio]:
    """What is compared: within a round, to the best of DBOS's where it is not said otherwise."""
    everyone = contestants(callers)
    few = f"-{max(1, callers // 16)}-callers"

    def dbos(work: str, *, fewer: bool = False) -> tuple[str, ...]:
        return tuple(
            one.name for one in everyone if one.work == work and not one.ours and one.name.endswith(few) is fewer
        )

    def versus(work: str, what: str, bar: float | None, mark: str = "", *, fewer: bool = False) -> list[Ratio]:
        return [
            Ratio(f"{what}, {colour} / DBOS's best", f"{work}/eventflow-{colour}{mark}", dbos(work, fewer=fewer), bar)
            for colour in ("async", "sync")
        ]

    return [
        *versus("direct", "direct", 20),
        Ratio("direct, async, uvloop / DBOS's best", "direct/eventflow-async-uvloop", dbos("direct"), 20),
        *versus("direct", f"direct, {few[1:].replace('-', ' ')}", None, few, fewer=True),
        *versus("queued", "queued", 30),
        Ratio("queued, async, uvloop / DBOS's best", "queued/eventflow-async-uvloop", dbos("queued"), 30),
        *versus("three", "three steps", None),
        *versus("fan-out", "fan-out", None),
        *versus("session", "transactional step, Session", 3),
        *versus("psycopg", "transactional step, psycopg", 3),
    ]


def chosen(everyone: Sequence[Contestant], only: Sequence[str]) -> list[Contestant]:
    """Those asked for, by their work or by their name; a trailing * is any end. All when none is."""
    return [one for one in everyone if not only or any(_asked(one, name) for name in only)]


def _asked(one: Contestant, name: str) -> bool:
    return name in {one.work, one.name} or (name.endswith("*") and one.name.startswith(name[:-1]))
