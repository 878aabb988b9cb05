"""What a process that goes on with another's workflow makes of its record: the same results, or a clear refusal."""

import asyncio
import json
from collections import defaultdict

import pytest

import eventflow
from eventflow import Retry, durable, sync
from eventflow.migrations import migrate
from eventflow.settings import Settings
from tests.harness import World


def test_other_code_than_was_recorded_is_parked_with_both_names(world: World) -> None:
    """Async and sync; the step of the new code does not run."""
    world.create_topic(1)
    old = world.start("changed", ready=True, CODE="old")
    world.produce(1)
    world.wait(lambda: world.one("select count(*) from eventflow.checkpoints") == 2, "both first steps are durable")
    old.kill()
    new = world.start("changed", CODE="new")
    parked = "select count(*) from eventflow.workflows where status = 'parked'"
    world.wait(lambda: world.one(parked) == 2, "both are parked")
    assert dict(world.sql("select name, reason from eventflow.workflows")) == {
        "bill": "position 1.1: 'charge' was recorded, the code now calls 'refund'",
        "ship": "position 1.1: 'weigh' was recorded, the code now calls 'measure'",
    }
    assert world.sql("select note from effects") == []
    assert new.alive
    world.produce(1)
    world.wait(lambda: world.completed("billing") == world.completed("weighing") == 1, "the next ones are done")


def test_branches_replay_the_same_whatever_ends_first(world: World) -> None:
    """Killed while branches have recorded out of order: each call finds its own record, and no recorded one runs again."""
    world.create_topic(1)
    victim = world.start("branches", ready=True, HOLD="group 3.1")
    world.produce(6)
    mixed_up = """
        select count(distinct workflow_id) from (
          select workflow_id, output, lag(output) over (partition by workflow_id order by seq) as before,
                 count(*) over (partition by workflow_id) as recorded
            from eventflow.checkpoints) as each where output < before and recorded > 12"""
    world.wait(lambda: world.one(mixed_up) == 6, "all have recorded out of order")
    victim.kill()
    recorded = dict(world.sql("select workflow_id || '#' || position, output from eventflow.checkpoints"))
    before = world.one("select max(id) from effects")
    world.start("branches")
    world.wait_completed("billing")
    world.check("billing")
    branches = [f"{kind} {n}" for kind in ("gather", "group") for n in range(4)]
    expected = [[f"{branch}.{number}" for number in range(3)] for branch in branches]
    outputs = world.sql("select output from eventflow.workflows")
    assert [json.loads(output) for (output,) in outputs] == [expected] * 6
    traces = world.sql("""select id, "offset", note from effects order by id""")
    again = {note.split(" ", 2)[2] for id_, _, note in traces if id_ > before} & recorded.keys()
    assert again == set(), "steps that ran after they were recorded"
    keys: dict[tuple[int, str], set[str]] = {}
    for _, offset, note in traces:
        kind, call, key = note.split(" ", 2)
        keys.setdefault((offset, f"{kind} {call}"), set()).add(key)
    assert all(len(each) == 1 for each in keys.values()), "an attempt after the crash has the key of the one before"
    assert len({key for each in keys.values() for key in each}) == len(keys) == 6 * 8 * 3, "each call has its own"


# ---- idempotency keys --------------------------------------------------------------------------

KEYS: dict[str, list[str]] = defaultdict(list)
TWICE = Retry(2, delay=0.01)


def called(name: str, fails: int = 0) -> None:
    """Note the key of this call; the first so many of a name fail."""
    KEYS[name].append(durable.idempotency_key())
    if len(KEYS[name]) <= fails:
        raise ValueError(f"{name} fails")


@eventflow.step
async def look() -> None:
    called("look")


@eventflow.step(retries=TWICE)
async def pay() -> None:
    called("pay", fails=5)


@eventflow.step(retries=TWICE)
def weigh() -> None:
    called("weigh", fails=5)


@eventflow.workflow(name="keys", retries=1)
async def keys() -> str:
    await look()
    await look()
    await asyncio.gather(pay(), look())
    await durable.run_step(called, "ad hoc")
    return durable.idempotency_key()


@eventflow.workflow(name="keys sync", retries=1)
def keys_sync() -> str:
    weigh()
    return durable.idempotency_key()


def test_an_idempotency_key_is_that_of_all_attempts_and_of_no_other_step(database_url: str) -> None:
    """A step's own retries and its workflow's: three and three attempts, one key."""
    migrate(database_url)
    with eventflow.running(Settings(database_url=database_url), consumers=False):
        runs = [sync.start(keys, workflow_id="one"), sync.start(keys_sync, workflow_id="two")]
        outside = [run.result(timeout=20) for run in runs]
        KEYS["another workflow"] = [sync.start(keys_sync, workflow_id="three").result(timeout=20)]
    assert (len(KEYS["pay"]), len(KEYS["weigh"])) == (6, 7)
    different = {name: len(set(each)) for name, each in KEYS.items()}
    assert different == {"look": 3, "pay": 1, "ad hoc": 1, "weigh": 2, "another workflow": 1}
    assert len({key for each in KEYS.values() for key in each} | set(outside)) == sum(different.values()) + len(outside)
    with pytest.raises(eventflow.EventflowError, match="idempotency_key"):
        durable.idempotency_key()
