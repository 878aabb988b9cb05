"""`eventflow run --processes` and `--reload`: real processes on a real ledger, killed, replaced, told to go."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventflow.migrations import migrate
from tests.integration.test_cli import environment, eventflow, wait_until

APP = """
import eventflow

@eventflow.workflow
async def {name}() -> None: ...
"""


class Supervised:
    """`eventflow run app --processes 2` and what it has started, by their pids."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.log = folder / "log"
        self._connection = psycopg.connect(url, autocommit=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventflow", "run", "app", *options], cwd=folder, stdout=out, stderr=out,
                env=environment(DATABASE_URL=url, EVENTFLOW_DRAIN="5", EVENTFLOW_LEASE="2", EVENTFLOW_BEAT="0.2"),
            )  # fmt: skip

    def pids(self, name: str = "hello") -> set[int]:
        asked = "select pid from eventflow.executors where alive and names ? %s"
        return {pid for (pid,) in self._connection.execute(asked, [name])}

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            wait_until(lambda: condition() or self.process.poll() is not None, what, 40)
        finally:
            said = self.log.read_text()
        assert condition(), said

    def close(self) -> None:
        for pid in self.pids():
            if pid != os.getpid():
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
        self.process.kill()
        self.process.wait(10)
        self._connection.close()


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    migrate(database_url)
    (tmp_path / "app.py").write_text(APP.format(name="hello"))
    made: list[Supervised] = []

    def begin(*options: str) -> Supervised:
        made.append(Supervised(tmp_path, database_url, *options))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_killed_replaced_and_told_to_go(start: Callable[..., Supervised]) -> None:
    supervised = start("--processes", "2")
    supervised.wait(lambda: len(supervised.pids()) == 2, "two run")
    killed, stays = sorted(supervised.pids())
    os.kill(killed, signal.SIGKILL)
    supervised.wait(lambda: len(supervised.pids() - {killed}) == 2, "another one is started")
    assert stays in supervised.pids()
    assert f"({killed}) was killed by SIGKILL; it is started again in 0.5 s" in supervised.log.read_text()
    supervised.wait(lambda: len(supervised.pids()) == 2, "the dead one is taken over")

    before = supervised.pids()
    fewest: list[int] = []

    def replaced() -> bool:
        fewest.append(len(supervised.pids()))
        return len(supervised.pids()) == 2 and not supervised.pids() & before

    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait(replaced, "each is replaced")
    assert min(fewest) >= 2, "never by fewer than there were"

    supervised.process.terminate()
    assert supervised.process.wait(30) == 0
    assert supervised.pids() == set()


def test_none_outlives_its_supervisor(start: Callable[..., Supervised]) -> None:
    supervised = start("--processes", "2")
    supervised.wait(lambda: len(supervised.pids()) == 2, "two run")
    supervised.process.kill()
    wait_until(lambda: not supervised.pids(), "they have drained")


def test_a_release_that_does_not_come_up_replaces_none(start: Callable[..., Supervised], tmp_path: Path) -> None:
    supervised = start("--processes", "2")
    supervised.wait(lambda: len(supervised.pids()) == 2, "two run")
    before = supervised.pids()
    (tmp_path / "app.py").write_text("this is no Python")
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait(
        lambda: "before it was ready: the others stay as they are" in supervised.log.read_text(), "it is said"
    )
    assert supervised.pids() == before
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(30) == 0


def test_a_program_that_cannot_run_is_not_started_again(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("this is no Python")
    done = eventflow("run", "app", "--processes", "2", cwd=tmp_path, DATABASE_URL=database_url)
    assert (done.returncode, "it would end so again" in done.stderr) == (2, True)


def test_reload(start: Callable[..., Supervised], tmp_path: Path) -> None:
    supervised = start("--reload")
    supervised.wait(lambda: supervised.pids(), "it runs")
    (tmp_path / "app.py").write_text("this is no Python")
    supervised.wait(
        lambda: "it is started again when a file changes" in supervised.log.read_text(), "it waits for another change"
    )
    (tmp_path / "app.py").write_text(APP.format(name="goodbye"))
    supervised.wait(lambda: supervised.pids("goodbye"), "the new code runs")
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(30) == 0
