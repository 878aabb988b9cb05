"""A family of workflows that is told to end, and is spread over processes: each of it ends by what it was asked itself."""

import pytest

from tests.conformance.colours import COLOURS
from tests.conformance.crash_app import FAMILY
from tests.conformance.test_killed import APP, SOON, insert
from tests.harness import World, pick, seeds

pytestmark = pytest.mark.crash

LONG_LEASE = SOON | {"EVENTFLOW_LEASE": "30"}
WHERE = ["asleep", "result", "first", "branches"]
IN_LINE = "select count(*) from eventflow.workflows where queue is not null"
UP = "select count(*) from eventflow.events where key = 'up'"


def begin(world: World, where: list[str]) -> list[str]:
    """Parents of both colours: some wait for their children in each way that there is when these have ended, some sleep."""
    for place in where:
        for colour in COLOURS:
            insert(world, f"leads {colour}", f"{colour} {place}", [place])
    return [f"{colour} {place}" for colour in COLOURS for place in where]


def end(world: World, parents: list[str], how: str) -> None:
    """Each ends by what it was asked, after it has cleaned up once."""
    world.sql("select eventflow.request(%s, %s, 'somebody', true)", parents, how)
    left = "select count(*) from eventflow.workflows where finished_at is null"
    world.wait(lambda: world.one(left) == 0, "all have ended", 30)
    why = "cancelled by somebody" if how == "cancel" else "terminated by somebody"
    ends = world.sql("select status::text, reason, error, count(*) from eventflow.workflows group by 1, 2, 3")
    assert ends == [("cancelled", why, None, 2 * len(parents))]
    notes = ["cleaned up 0", "told 0", "told to lead no more"] if how == "cancel" else []
    found = [note for (note,) in world.sql("select note from effects order by note")]
    assert found == [note for note in notes for _ in parents]
    world.check_no_incidents()


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_a_child_has_ended_before_its_parents_process_reads_the_request(world: World, how: str) -> None:
    """Which it does by its next beat, seconds later: what the parents know, they have asked for when they saw that end."""
    parents = begin(world, WHERE)
    slow = world.start(APP, options=["--no-queues"], **LONG_LEASE | {"EVENTFLOW_BEAT": "3"})
    world.wait(lambda: world.one(IN_LINE) == len(parents), "the parents have put their children in line")
    world.start(APP, options=["--only", FAMILY.name], **LONG_LEASE)
    world.wait(lambda: world.one(UP) == len(parents), "the children wait")
    beat = "select beat from eventflow.beats where executor = %s"
    executor = world.executor(slow)
    last = world.one(beat, executor)
    world.wait(lambda: world.one(beat, executor) > last, "it has just beaten")
    end(world, parents, how)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("who", ["the parents", "the children"])
def test_a_process_dies_while_a_family_ends(world: World, who: str, seed: int) -> None:
    """Before its workflows have recorded that they were told, or behind that; a third process goes on."""
    choices = [f"journal.{at}:{n}" for at in ("before_flush", "before_commit", "after_commit") for n in range(1, 7)]
    choices += [
        f"transactions.{at}:{n}" for at in ("before_guard", "before_commit", "after_commit") for n in (1, 2)
    ] * 3
    point = pick(seed, who, "point", choices=choices)
    soon = SOON | {"EVENTFLOW_LEASE": "1.5"}
    parents = begin(world, [pick(seed, who, "where", choices=WHERE)])
    crash = point if who == "the parents" else ""
    first = world.start(APP, options=["--no-queues"], crash=crash, **soon | {"EVENTFLOW_BEAT": "0.5"})
    world.wait(lambda: world.one(IN_LINE) == len(parents) or not first.alive, "the children are in line, or it is dead")
    world.start(APP, options=["--only", FAMILY.name], crash="" if crash else point, **soon)
    world.start(APP, **soon)
    world.wait(lambda: world.one(UP) == len(parents), "the children wait")
    end(world, parents, "cancel")
