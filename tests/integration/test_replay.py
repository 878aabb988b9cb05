"""What a process that goes on with another's workflow makes of its record: the same results, or a clear refusal."""

import json

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
