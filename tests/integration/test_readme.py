"""The README's first minute as written, on services of its own and under load; what the guide says to do by hand."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from eventflow import sync
from tests.harness import World

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
APP, FIRST = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
DEV, RUN, LOOK = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_first_minute(private_root: Path) -> None:
    """Two files and three terminals, each a shell; the command `eventflow` is that of this environment."""
    (private_root / "app.py").write_text(APP)
    (private_root / "first.py").write_text(FIRST)
    services = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in services and not k.startswith("EVENTFLOW_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def terminal(block: str, log: str) -> "subprocess.Popen[str]":
        out = (private_root / log).open("w")
        return subprocess.Popen(
            ["bash", "-e", "-c", block], cwd=private_root, env=environment, stdout=out, stderr=out, text=True
        )

    def said(log: str) -> str:
        return (private_root / log).read_text()

    first = second = None
    try:
        first = terminal(f"exec {DEV}", "dev.log")
        wait(lambda: said("dev.log").count("export ") == 2, "the services run")
        addresses = dict(re.findall(r"export (\w+)=(\S+)", said("dev.log")))
        second = terminal(RUN, "run.log")
        wait(lambda: "executor 1 runs" in said("run.log") or second.poll() is not None, "the app runs")
        assert second.poll() is None, said("run.log")
        with psycopg.connect(addresses["DATABASE_URL"].strip("'"), autocommit=True) as connection:
            done = "select count(*) from eventflow.workflows where status = 'succeeded'"
            wait(lambda: connection.execute(done).fetchone() == (2,), "both handlers are done")
            [(worker,)] = connection.execute("select pid from eventflow.executors").fetchall()
        assert terminal(LOOK, "look.log").wait(30) == 0, said("look.log")
        assert said("look.log").strip() == "(7, 30)"
        assert f"It says `{said('look.log').strip()}`" in README
        os.kill(worker, signal.SIGINT)
        assert second.wait(30) == 0, said("run.log")
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 0, said("dev.log")
    finally:
        for process in (second, first):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)


def test_the_first_example_under_load(world: World, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.replace('"orders"', f'"{world.topic}"'))
    world.sql("create table entries (order_id int primary key, amount int)")
    world.create_topic(3)
    for number in range(200):
        world.send({"order_id": number, "amount": 2})
    world.flush()
    worker = world.start(str(tmp_path / "app.py"))
    world.wait_completed("billing")
    world.wait_completed("ledger")
    world.check("billing")
    world.check("ledger")
    assert world.sql("select count(*), sum(amount) from entries") == [(200, 400)]
    assert worker.stop() == 0


def test_how_the_guide_decides_on_a_parked_message(world: World) -> None:
    """Run again it is parked again, as its cause is not mended; passed over, what waits behind it goes on."""
    page = (ROOT / "docs" / "dead-ends.md").read_text()
    [look] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    world.create_topic(1)
    for n in range(5):
        world.send({"n": n, "do": "" if n else "park"})
    world.flush()
    world.start("failing")
    parked = f"kafka:ordered:{world.topic}:1:0:0"
    attempt = "select attempt from eventflow.workflows where id = %s and status = 'parked'"
    world.wait(lambda: world.one(attempt, parked) == 1, "it is parked")
    assert parked in [row[0] for row in world.sql(look.splitlines()[0])]
    with sync.Client(world.database_url) as client:
        handle = client.handle(parked, object)
        handle.resume()
        world.wait(lambda: world.one(attempt, parked) == 2, "it is parked again")
        assert world.completed("ordered") == 0
        handle.cancel()
        world.wait_completed("ordered", 4)
    world.check_order("ordered")


PROGRAM = """
import asyncio, sys
import eventflow
from eventflow import sync

@eventflow.step
async def double(n: int) -> int:
    return 2 * n

@eventflow.workflow
async def refund(order_id: int) -> str:
    return f"refunded {await double(order_id)}"

@eventflow.workflow
def refund_sync(order_id: int) -> str:
    return f"refunded {order_id}"

async def main() -> None:
    async with eventflow.running():
        handle = await eventflow.start(refund, 7, workflow_id="refund:7")
        print(await handle.result(), await refund(8))
        again = await eventflow.start(refund, 7, workflow_id="refund:7")
        print(again.workflow_id, await again.result(), (await again.get()).status, len(await again.steps()))
        try:
            await eventflow.start(refund, 8, workflow_id="refund:7")
        except eventflow.EventflowError as error:
            print(type(error).__name__)
        print(await (await eventflow.start(refund_sync, 9)).result())

asyncio.run(main())
with eventflow.running():
    print(refund_sync(10), sync.start(refund, 11).result(timeout=5))
"""


def test_workflows_from_a_program(world: World, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"DATABASE_URL": world.database_url, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "refunded 14 refunded 16",
        "refund:7 refunded 14 succeeded 1",
        "WorkflowExistsError",
        "refunded 9",
        "refunded 10 refunded 22",
    ]
    assert world.one("select count(*) from eventflow.executors where alive") == 0
