"""SIGKILL of the process that runs what a person has just had run again; each effect is there as often as it must be."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from eventflow import sync
from tests.conformance.colours import COLOURS
from tests.conformance.test_killed import APP, SOON, died_there, insert
from tests.harness import World, pick, seeds

pytestmark = pytest.mark.crash

# What is done to a failed workflow -> the effects that there are in the end, of it and of its fork.
OPERATIONS = {
    "retry": {"before": 1, "after": 1, "hello": 1},
    "restart": {"before": 2, "after": 1, "hello": 1},
    "fork": {"before": 1, "after": 1, "hello": 1},
    "resume": {"before": 1, "after": 1, "hello": 1},
}
POINTS = {
    "journal.before_commit": 3,
    "journal.after_commit": 3,
    "executor.after_step": 4,
    "transactions.before_commit": 2,
    "transactions.after_commit": 2,
    "recovery.after_claim_rows": 1,
}


def manage(world: World, operation: str) -> list[str]:
    """Do it to both, as a person with a client; the ids of those that are to go on."""
    ids = list(COLOURS)
    with sync.Client(world.database_url) as client:
        if operation == "fork":
            step = client.handle(ids[0], str).steps()[-1].position  # the one that failed
            ids = client.fork(ids, step)
        elif operation == "resume":
            client.retry(ids)
            client.terminate(ids)  # before anyone runs them
            client.resume(ids)
        else:
            getattr(client, operation)(ids)
        for workflow_id in ids:
            client.handle(workflow_id, str).send("hello")
    return ids


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_after_a_person_has_acted(world: World, operation: str, seed: int) -> None:
    point = pick(seed, operation, choices=POINTS)
    count = pick(seed, operation, "count", choices=range(1, POINTS[point] + 1))
    for colour in COLOURS:
        insert(world, f"mends {colour}", colour, [])
    first = world.start(APP, **SOON)
    failed = "select count(*) from eventflow.workflows where status = 'failed'"
    world.wait(lambda: world.one(failed) == 2, "both have failed")
    first.kill()
    world.sql("""insert into effects ("group", note, pid) values ('test', 'mended', 0)""")
    ids = manage(world, operation)
    victim = world.start(APP, crash=f"{point}:{count}", **SOON)
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    assert died_there(victim, point)
    world.start(APP, **SOON)
    ended = "select count(*) from eventflow.workflows where status = 'succeeded' and id = any(%s)"
    world.wait(lambda: world.one(ended, ids) == 2, "both have succeeded", 30)
    for colour, workflow_id in zip(COLOURS, ids, strict=True):
        found = world.sql("""select note from effects where "group" in (%s, %s)""", colour, workflow_id)
        assert Counter(note for (note,) in found) == OPERATIONS[operation]
    asked = world.sql("select workflow_id, kind, who <> '', settled from eventflow.requests where kind = %s", operation)
    assert sorted(asked) == [(colour, operation, True, True) for colour in COLOURS]
    assert world.sql("select workflow_id from eventflow.messages where not consumed") == []


# What a client asks for -> the effects that there are in the end, of each colour.
ACTS = {
    "send": {"before": 1, "after": 1, "hello": 1},
    "enqueue": {"one 1": 1, "two 1": 1},
    "deduplicate": {"one 1": 1, "two 1": 1},
    "cancel": {"told 7": 1, "cleaned up 7": 1},
    "delete": {},
}


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", ["ledger.before_commit", "ledger.after_commit"])
@pytest.mark.parametrize("act", ACTS)
def test_a_client_that_is_killed_repeats_what_it_asked_for(world: World, act: str, point: str, seed: int) -> None:
    """A program of its own; under the same key or id it is done once, whether its first commit was reached or not."""
    count = pick(seed, act, point, choices=range(1, 3))
    world.start(APP, **SOON)
    prepare(world, act)
    program = str(Path(__file__).with_name("client_app.py"))
    victim = world.start(program, program=True, ACT=act, crash=f"{point}:{count}")
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    assert died_there(victim, point)
    again = world.start(program, program=True, ACT=act)
    assert world.wait_death(again, 20) == 0, again.text
    if act == "deduplicate":
        with sync.Client(world.database_url) as client:
            client.delay([workflow_id for (workflow_id,) in world.sql("select id from eventflow.workflows")], 0)
    world.wait(lambda: world.unfinished() == 0, "all have ended", 30)
    effects = Counter(note for (note,) in world.sql("select note from effects where \"group\" <> 'test'"))
    assert effects == {note: times * len(COLOURS) for note, times in ACTS[act].items()}
    left = world.sql("select status::text, count(*) from eventflow.workflows group by 1")
    ended = {"delete": [], "cancel": [("cancelled", len(COLOURS))]}
    assert left == ended.get(act, [("succeeded", len(COLOURS))])
    assert world.sql("select workflow_id from eventflow.messages where not consumed") == []


def prepare(world: World, act: str) -> None:
    """What the client's act is about, up to where it waits for it."""
    if act == "send":
        world.sql("""insert into effects ("group", note, pid) values ('test', 'mended', 0)""")
    workflow, args = {"send": ("mends", []), "cancel": ("guards", [7]), "delete": ("sleeps", [])}.get(act, ("", []))
    for colour in COLOURS if workflow else ():
        name = {"send": "hears", "cancel": "guards", "delete": "slept"}[act]
        insert(world, f"{workflow} {colour}", f"{name} {colour}", args)
    wanted = {"send": "waiting", "cancel": "waiting", "delete": "succeeded"}.get(act)
    there = "select count(*) from eventflow.workflows where status::text = %s"
    if wanted:
        world.wait(lambda: world.one(there, wanted) == len(COLOURS), f"both are {wanted}")
    if act == "delete":
        world.sql("delete from effects")
