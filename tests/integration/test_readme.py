"""The README's first example, as written, on real services; and its verbs from a program."""

import re
from pathlib import Path

from sqlalchemy import create_engine

from tests.harness import World

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_example(world: World, tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "app.py").write_text(code.replace('"orders"', f'"{world.topic}"'))
    with_driver = world.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(with_driver)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table entries (order_id int primary key, amount int)")
    engine.dispose()
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
    worker.process.terminate()
    assert world.wait_death(worker) == 0


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
    import os
    import subprocess
    import sys

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
