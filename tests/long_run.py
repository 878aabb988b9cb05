"""A pytest plugin for `make test-crash`: hours of tests, in shards, that go on where they were interrupted.

`--shard 2/4` runs the second quarter. What has passed is written down as it passes, in `.eventflow/long-run/`, under a name
that stands for the code, the tests and the shard: the same command, given again, runs only what has not passed yet. Code
that has changed begins anew, and so does a run that went through.
"""

import hashlib
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("eventflow", "sql", "tests", "examples", "pyproject.toml", "requirements")
FOLDER = ROOT / ".eventflow" / "long-run"
_START = "LONG_RUN_START"  # how much of the file counts when the run begins, for its workers; no setting of eventflow's


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="1/1", help="which part of how many: 2/4 is the second quarter")
    parser.addoption("--passed", type=Path, default=FOLDER, help="the folder where it is written down what has passed")


def pytest_configure(config: pytest.Config) -> None:
    asked = config.getoption("shard"), config.getoption("passed")
    config.pluginmanager.register(LongRun(*asked, is_worker=hasattr(config, "workerinput")))


def part(shard: str) -> tuple[int, int]:
    """Which, and of how many.

    Raises:
        UsageError: it is not of this form.

    """
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if match is None or int(match[1]) > int(match[2]):
        raise pytest.UsageError(f"--shard is N/M with 1 <= N <= M, as in 2/4, not {shard!r}")
    return int(match[1]), int(match[2])


def belongs(nodeid: str, number: int, of: int) -> bool:
    """Whether a test is in this shard; which one a test is in depends on nothing but its name."""
    return int.from_bytes(hashlib.sha256(nodeid.encode()).digest()[:8]) % of == number - 1


def code() -> str:
    """What tells this code from any other."""
    digest = hashlib.sha256()
    for source in SOURCES:
        for file in sorted([ROOT / source, *(ROOT / source).rglob("*")]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class LongRun:
    """What has passed, and what is left."""

    def __init__(self, shard: str, folder: Path, *, is_worker: bool) -> None:
        self.number, self.of = part(shard)
        self.file = folder / f"{code()}-{self.number}-of-{self.of}.passed"
        self.is_worker = is_worker
        self._failing = set[str]()
        if not is_worker:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            os.environ[_START] = str(self.file.stat().st_size)

    def pytest_report_header(self) -> str:
        passed = len(self.file.read_text(encoding="utf-8").splitlines())
        return f"shard {self.number}/{self.of}, of which {passed} tests have passed before"

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        # All workers must come to the same: they read what stood there when the run began.
        passed = set(self.file.read_bytes()[: int(os.environ[_START])].decode().splitlines())
        kept = [item for item in items if belongs(item.nodeid, self.number, self.of) and item.nodeid not in passed]
        if len(kept) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failing.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self._failing and not self.is_worker:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if not self.is_worker and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            self.file.unlink(missing_ok=True)
