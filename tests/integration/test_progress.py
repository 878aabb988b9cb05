"""What a handler's step tells of its progress, and what it starts, when its process dies."""

from tests.harness import World


def test_a_handlers_step_goes_on_where_it_told_that_it_was(world: World) -> None:
    world.create_topic(1)
    victim = world.start("progress", HANG="yes")
    world.produce(3)
    world.wait(
        lambda: world.one("select count(*) = 3 from eventflow.checkpoints where position like '%~d' and output = '3'"),
        "each has told of page 3",
    )
    victim.kill()
    world.start("progress")
    world.wait_completed("progress")
    notes = "select note, count(*) from effects where \"group\" = 'progress' group by 1 order by 1"
    assert world.sql(notes) == [("from 0", 3), ("from 3", 3)]
    world.wait(
        lambda: (
            world.one("select count(*) from eventflow.workflows where name = 'audit' and status = 'succeeded'") == 3
        ),
        "what the steps have started has ended, once for each",
    )
    assert world.one("select count(*) from eventflow.checkpoints where position like '%~d'") == 0
    world.check("progress")
    world.check_no_incidents()
    assert world.one("select count(*) from eventflow.workflows where name = 'audit'") == 3
