"""Programs on one ledger: who goes on with whose work, who is refused, and what surrounds what they run."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import eventflow
from eventflow.migrations import migrate
from eventflow.registry import registry
from eventflow.settings import Settings
from tests.harness import World

PROGRAM = """
import asyncio, os
import eventflow

@eventflow.step
async def charge(order_id: int) -> int:
    print("charged", flush=True)
    return order_id

@eventflow.workflow
async def refund(order_id: int) -> str:
    charged = await charge(order_id)
    if os.environ.get("HOLD"):
        await asyncio.sleep(60)
    return f"refunded {charged}"

async def main() -> None:
    async with eventflow.running():
        handle = await eventflow.start(refund, 7, workflow_id="refund:7")
        print(await handle.result(), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_program_and_eventflow_run_recover_each_others_workflows(world: World, tmp_path: Path) -> None:
    """Started by `python app.py`, gone on with by `eventflow run app`, ended by `python app.py`; each killed but the last."""
    file = tmp_path / "app.py"
    file.write_text(PROGRAM)

    def runs_at(attempt: int) -> Callable[[], object]:
        row = "select w.attempt = %s and w.status = 'running' from eventflow.workflows w, eventflow.checkpoints c"
        return lambda: world.one(row, attempt)

    first = world.start(str(file), program=True, HOLD="yes")
    world.wait(runs_at(1), "the step is recorded")
    first.kill()
    second = world.start(str(file), HOLD="yes")
    world.wait(runs_at(2), "the second goes on with it")
    second.kill()
    third = world.start(str(file), program=True)
    assert world.wait_death(third) == 0
    assert third.text.endswith("refunded 7\n")
    assert [w.text.count("charged") for w in (first, second, third)] == [1, 0, 0]
    assert world.sql("select id, attempt, recoveries from eventflow.workflows") == [("refund:7", 3, 2)]


def test_two_programs_of_one_name_are_refused_at_start(world: World, tmp_path: Path) -> None:
    """Started at once, one of them runs; the other says from which files the name comes, and has status 2."""
    for name in ("billing", "shop"):
        (tmp_path / f"{name}.py").write_text(PROGRAM)
    workers = {name: world.start(str(tmp_path / f"{name}.py")) for name in ("billing", "shop")}
    world.wait(lambda: not all(w.alive for w in workers.values()), "one is refused")
    [(refused, worker)] = [(name, w) for name, w in workers.items() if not w.alive]
    [(winner, other)] = [(name, w) for name, w in workers.items() if name != refused]
    assert worker.process.wait() == 2
    assert worker.text == (
        f"error: the workflow name refund is registered from {winner} by process {other.pid} on {socket.gethostname()}, "
        f"and from {refused} here; set another EVENTFLOW_APPLICATION, or name=\n"
    )
    world.start(str(tmp_path / f"{refused}.py"), EVENTFLOW_APPLICATION="another")
    world.wait(lambda: world.one("select count(*) from eventflow.executors where alive") == 2, "that one may")
    assert other.alive


# ---- lifespans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_lifespans_surround_what_runs(database_url: str, monkeypatch: pytest.MonkeyPatch, colour: str) -> None:
    """In order, and in reverse; no executor is born before the last has entered, none lives when the first leaves."""
    migrate(database_url)
    trace: list[tuple[str, int]] = []

    def note(what: str) -> None:
        with psycopg.connect(database_url) as connection:
            alive = connection.execute("select count(*) from eventflow.executors where alive").fetchall()[0][0]
        trace.append((what, alive))

    def opens() -> Iterator[None]:
        note("a enters")
        yield
        note("a leaves")

    async def connects() -> AsyncIterator[None]:
        note("b enters")
        yield
        note("b leaves")

    monkeypatch.setattr(registry, "lifespans", [opens, connects])
    context = eventflow.running(Settings(database_url=database_url), consumers=False)

    async def main() -> None:
        async with context:
            note("runs")

    if colour == "async":
        asyncio.run(main())
    else:
        with context:
            note("runs")
    assert trace == [("a enters", 0), ("b enters", 0), ("runs", 1), ("b leaves", 0), ("a leaves", 0)]


LIFESPANS = """
import eventflow

@eventflow.lifespan
def first():
    print("first enters", flush=True)
    try:
        yield
    finally:
        print("first leaves", flush=True)

@eventflow.lifespan
async def opens_the_vault():
    raise RuntimeError("no such vault")
    yield

@eventflow.lifespan
def never():
    print("never enters", flush=True)
    yield

@eventflow.workflow
async def flow() -> None: ...
"""


def test_a_lifespan_that_raises_at_start_ends_the_program(world: World, tmp_path: Path) -> None:
    """By name and with its error; what had entered leaves, nothing else begins."""
    (tmp_path / "app.py").write_text(LIFESPANS)
    worker = world.start(str(tmp_path / "app.py"))
    assert world.wait_death(worker) == 1
    [complaint] = [line for line in worker.text.splitlines() if line.startswith("error")]
    assert re.fullmatch(
        r"error: the lifespan 'opens_the_vault' raised RuntimeError: no such vault \(app.py, line \d+\)", complaint
    )
    assert "Traceback" not in worker.text
    assert [line for line in worker.text.splitlines() if line.startswith(("first", "never"))] == [
        "first enters", "first leaves",
    ]  # fmt: skip
    assert world.one("select count(*) from eventflow.executors") == 0
