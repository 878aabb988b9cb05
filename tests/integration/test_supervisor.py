"""`eventflow run --processes` and `--reload`: real processes on a real ledger, killed, replaced, told to go."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventflow import sync
from eventflow.migrations import migrate
from eventflow.supervisor import supervised
from tests.harness import Load, World
from tests.integration.test_cli import environment, eventflow, wait_until
from tests.integration.test_health import free_port

APP = """
import eventflow

@eventflow.workflow
async def {name}() -> str:
    return "done"
"""
BROKEN = "this is no Python"
REFUSED = "before it was ready: the others stay as they are"


class Supervised:
    """`eventflow run app --processes 2` and what it has started, by their pids; with a port they tell of their health."""

    def __init__(self, folder: Path, url: str, *options: str, port: int | None = None) -> None:
        self.log, self.port = folder / "log", port
        more = {} if port is None else {"EVENTFLOW_HTTP_PORT": str(port)}
        self._connection = psycopg.connect(url, autocommit=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventflow", "run", "app", *options], cwd=folder, stdout=out, stderr=out,
                env=environment(DATABASE_URL=url, EVENTFLOW_DRAIN="5", EVENTFLOW_LEASE="2", EVENTFLOW_BEAT="0.2", **more),
            )  # fmt: skip

    def pids(self, name: str = "hello") -> set[int]:
        asked = "select pid from eventflow.executors where alive and names ? %s"
        return {pid for (pid,) in self._connection.execute(asked, [name])}

    def both(self) -> bool:
        """Whether two run, and each answers at its port."""
        ports = () if self.port is None else (self.port, self.port + 1)
        return len(self.pids()) == 2 and all(answers(port) for port in ports)

    def says(self, what: str) -> None:
        self.wait(lambda: what in self.log.read_text(), f"it says {what!r}")

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


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
        return answer.status == 200
    return False


def listen(port: int) -> socket.socket | None:
    with contextlib.suppress(OSError):
        return socket.create_server(("127.0.0.1", port))


def two_ports() -> int:
    """The first of two that are free, one after the other."""
    while True:
        port = free_port()
        if (taken := listen(port + 1)) is not None:
            taken.close()
            return port


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    migrate(database_url)
    (tmp_path / "app.py").write_text(APP.format(name="hello"))
    made: list[Supervised] = []

    def begin(*options: str, port: int | None = None) -> Supervised:
        made.append(Supervised(tmp_path, database_url, *options, port=port))
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
    assert supervised.process.wait(30) == 0, supervised.log.read_text()[-1500:]
    assert supervised.pids() == set()


def test_none_outlives_its_supervisor(start: Callable[..., Supervised]) -> None:
    supervised = start("--processes", "2")
    supervised.wait(lambda: len(supervised.pids()) == 2, "two run")
    supervised.process.kill()
    wait_until(lambda: not supervised.pids(), "they have drained", timeout=60)


@pytest.mark.parametrize("with_port", [False, True], ids=["", "with a port"])
def test_a_release_that_does_not_come_up_replaces_none(
    start: Callable[..., Supervised], tmp_path: Path, with_port: bool
) -> None:
    """But where it is to have the port of the one before it: that one has left, and its place is tried again."""
    supervised = start("--processes", "2", port=two_ports() if with_port else None)
    supervised.wait(supervised.both, "two run")
    before = supervised.pids()
    (tmp_path / "app.py").write_text(BROKEN)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.says(REFUSED)
    if supervised.port is None:
        assert supervised.pids() == before
    else:
        supervised.says("ended with status 2; it is started again in 1 s")
        assert len(supervised.pids()) == len(supervised.pids() & before) == 1
        assert (answers(supervised.port), answers(supervised.port + 1)) == (False, True)
    (tmp_path / "app.py").write_text(APP.format(name="hello"))
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait(lambda: supervised.both() and not supervised.pids() & before, "the one after it replaces each")
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(30) == 0
    assert supervised.log.read_text().count(REFUSED) == 1


def test_one_that_dies_after_a_refused_release_leaves_the_others(
    start: Callable[..., Supervised], database_url: str, tmp_path: Path
) -> None:
    """Its place has the release that does not come up: it is tried again, and the other one goes on."""
    supervised = start("--processes", "2")
    supervised.wait(supervised.both, "two run")
    (tmp_path / "app.py").write_text(BROKEN)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.says(REFUSED)
    killed, stays = supervised.pids()
    os.kill(killed, signal.SIGKILL)
    supervised.says("ended with status 2; it is started again in 2 s")
    supervised.wait(lambda: supervised.pids() == {stays}, "the dead one is taken over")
    with sync.Client(database_url) as client:
        assert client.enqueue("hello", result=str).result(timeout=30) == "done"
    (tmp_path / "app.py").write_text(APP.format(name="hello"))
    supervised.wait(supervised.both, "it comes up")
    assert stays in supervised.pids()
    supervised.process.terminate()
    assert supervised.process.wait(30) == 0


def test_a_port_that_is_taken_when_one_is_started_again_leaves_the_others(start: Callable[..., Supervised]) -> None:
    port = two_ports()
    supervised = start("--processes", "2", port=port)
    supervised.wait(supervised.both, "two run")
    killed, stays = supervised.pids()
    os.kill(killed, signal.SIGKILL)
    taken: list[socket.socket] = []

    def take() -> bool:
        taken.extend(one for one in (listen(port), listen(port + 1)) if one is not None)
        return taken != []

    wait_until(take, "its port is free")
    supervised.says("ended with status 2; it is started again in 1 s")
    supervised.wait(lambda: supervised.pids() == {stays}, "the dead one is taken over")
    for one in taken:
        one.close()
    supervised.wait(supervised.both, "it comes up")
    assert stays in supervised.pids()
    supervised.process.terminate()
    assert supervised.process.wait(30) == 0


def test_replaced_under_load_each_message_is_handled_once(world: World) -> None:
    """By processes that end what they have begun: nothing is left that another one would take over."""
    world.defaults = world.defaults | {"EVENTFLOW_LEASE": "60"}
    world.create_topic(4)
    supervisor = world.start("slow", options=["--processes", "2"], PAUSE="0.2")

    def pids() -> set[int]:
        return {pid for (pid,) in world.sql("select pid from eventflow.executors where alive")}

    def at_work() -> bool:
        return len(pids()) == 2 and pids() <= {pid for (pid,) in world.sql("select distinct pid from effects")}

    with Load(world, 100):
        world.wait(at_work, "two are at work")
        for _ in range(2):
            before = pids()
            supervisor.signal(signal.SIGHUP)
            world.wait(lambda before=before: at_work() and not pids() & before, "each is replaced, and at work")
    world.wait_completed("billing")
    assert supervisor.stop() == 0
    world.check("billing", effects=True)
    executors = "select count(*), count(*) filter (where alive or taken_by is not null) from eventflow.executors"
    assert world.sql(executors) == [(6, 0)]
    assert world.sql("select sum(recoveries), max(attempt) from eventflow.workflows") == [(0, 1)]
    world.check_no_incidents()


def test_a_program_that_cannot_run_is_not_started_again(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BROKEN)
    done = eventflow("run", "app", "--processes", "2", cwd=tmp_path, DATABASE_URL=database_url)
    assert (done.returncode, "it would end so again" in done.stderr) == (2, True)


def test_reload(start: Callable[..., Supervised], tmp_path: Path) -> None:
    supervised = start("--reload")
    supervised.wait(lambda: supervised.pids(), "it runs")
    (tmp_path / "app.py").write_text(BROKEN)
    supervised.wait(
        lambda: "it is started again when a file changes" in supervised.log.read_text(), "it waits for another change"
    )
    (tmp_path / "app.py").write_text(APP.format(name="goodbye"))
    supervised.wait(lambda: supervised.pids("goodbye"), "the new code runs")
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(30) == 0


def test_who_becomes_ready_when_his_supervisor_is_gone_leaves_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half entered, he would stand in the ledger as alive, for nobody to take over from."""
    told: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    monkeypatch.setattr(os, "kill", lambda pid, number: told.put((pid, number)))
    ours, theirs = socket.socketpair()
    ready = supervised(theirs.detach())
    ours.close()
    ready()
    assert told.get(timeout=5) == (os.getpid(), signal.SIGTERM)
