"""One run: a contestant's own process on a fresh database with a fresh group, verified; and rounds of them."""

import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

import psycopg

from benchmarks import databases
from benchmarks.catalogue import Contestant
from benchmarks.services import ROOT, Addresses
from benchmarks.verify import MismatchError, Report, Verify

LIMIT = 300.0  # seconds for one run
GROUPS = itertools.count(1)  # fresh, because the topics are; short, because ids are made of them
PROTOTYPE = re.compile(r"([\d,]+) one-step workflows/s")


@dataclass(frozen=True, slots=True)
class Run:
    """A verified run."""

    contestant: str
    round: int
    rate: float
    count: int
    seconds: float
    wal_per_message: float
    load: float  # the machine's load average before it
    report: dict[str, Any]


class FailedError(Exception):
    """A contestant died, hung, or said nothing."""


@dataclass(frozen=True, slots=True)
class Child:
    """A contestant's process, and what it wrote to its standard error."""

    popen: subprocess.Popen[str]
    errors: IO[str]

    def line(self, wanted: str) -> None:
        """Wait until it prints this line."""
        output = self.popen.stdout
        while output and (line := output.readline()):
            if line.strip() == wanted:
                return
        raise FailedError(f"it never said {wanted!r}{self.complaint()}")

    def finish(self, count: int, limit: float = LIMIT) -> Report:
        """Wait for its end and read its last line.

        Raises:
            FailedError: it did not end well, or in time.
        """
        try:
            output, _ = self.popen.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise FailedError(f"no result after {limit:.0f} s{self.complaint()}") from None
        if self.popen.returncode:
            raise FailedError(f"exit status {self.popen.returncode}{self.complaint()}")
        return _read(output, count)

    def complaint(self) -> str:
        """The end of its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()[-8:]
        return ":\n    " + "\n    ".join(lines) if lines else ""


@contextmanager
def process(command: Sequence[str], stdin: int = subprocess.DEVNULL) -> Iterator[Child]:
    """A child process in a group of its own, which never outlives the block."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            yield Child(child, errors)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _environment() -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("EVENTFLOW_", "DATABASE_"))}
    return {**ours, "PYTHONPATH": str(ROOT)}


def _read(output: str, count: int) -> Report:
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if found := PROTOTYPE.search(last):
        rate = float(found[1].replace(",", ""))
        return {"rate": rate, "count": count, "seconds": count / rate}
    try:
        report: Report = json.loads(last)
    except ValueError:
        raise FailedError(f"its last line is no report: {last!r}") from None
    return report


def arguments(contestant: Contestant, dsn: str, bootstrap: str, topic: str, count: int) -> list[str]:
    """The command line of one run."""
    common = ["--dsn", dsn, "--bootstrap", bootstrap, "--topic", topic, "--count", str(count)]
    if contestant.name.startswith("prototype"):
        return [*contestant.command, *common]
    return [*contestant.command, *common, "--group", f"billing-{next(GROUPS)}"]


def verified(dsn: str, count: int, report: Report, check: Verify) -> None:
    """Read the run's database back.

    Raises:
        MismatchError: it does not hold what it must.
    """
    if report["count"] != count:
        raise MismatchError(f"reported {report['count']} of {count} messages")
    with psycopg.connect(dsn, autocommit=True) as connection:
        check(connection, count, report)


def once(where: Addresses, contestant: Contestant, topic: str, count: int, number: int) -> Run:
    """Run one contestant of the Kafka benchmark once. Raises as `compete`."""

    def command(dsn: str) -> list[str]:
        return arguments(contestant, dsn, where.bootstrap, topic, count)

    return compete(where, contestant.name, command, count, number, contestant.verify)


def compete(
    where: Addresses, name: str, command: Callable[[str], Sequence[str]], count: int, number: int, check: Verify,
    limit: float = LIMIT,
) -> Run:  # fmt: skip
    """Run a contestant's process on a fresh database, whose address `command` takes.

    Raises:
        FailedError: it died or hung.
        MismatchError: its database is wrong.
    """
    load = os.getloadavg()[0]
    with databases.fresh(where.database_url) as dsn:
        before = databases.wal(dsn)
        with process(command(dsn)) as child:
            report = child.finish(count, limit)
        written = report.pop("wal_bytes", databases.wal(dsn) - before)
        verified(dsn, count, report, check)
    return Run(
        contestant=name,
        round=number,
        rate=report.pop("rate"),
        count=report.pop("count"),
        seconds=report.pop("seconds"),
        wal_per_message=written / count,
        load=load,
        report=report,
    )


class Named(Protocol):
    """Who competes."""

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Named)


def rounds(
    contestants: Sequence[C], how_many: int, run: Callable[[C, int], Run], say: Callable[[str], None]
) -> tuple[list[Run], list[str]]:
    """Let all take turns; every second round backwards, so that a drift of the machine favours nobody."""
    done: list[Run] = []
    failures: list[str] = []
    for number in range(1, how_many + 1):
        for contestant in contestants if number % 2 else reversed(contestants):
            try:
                one = run(contestant, number)
            except (FailedError, MismatchError) as error:
                failures.append(f"{contestant.name}, round {number}: {error}")
                say(f"[red]round {number}  {contestant.name:<36} {error}[/red]")
                continue
            done.append(one)
            say(f"round {number}  {contestant.name:<36} {one.rate:>10,.0f}/s  verified")
            time.sleep(0.2)
    return done, failures
