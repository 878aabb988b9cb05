"""A run that takes long is one run: what looks for forgotten rows (R10b) must not take it for one of them."""

import pytest

from tests.harness import World

QUICK = {"EVENTFLOW_BEAT": "0.05", "EVENTFLOW_LEASE": "2"}  # it looks every 30 beats


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_slow_handler_is_not_started_twice(world: World, colour: str) -> None:
    world.create_topic(2)
    worker = world.start("slow", ready=True, COLOUR=colour, PAUSE="5", **QUICK)
    world.produce(6)
    world.wait_completed("billing", timeout=30)
    world.check("billing")
    assert world.one("select count(*) from effects where note = 'began'") == 6
    assert "carried our id" not in worker.text
    assert world.one("select sum(recoveries) + max(attempt) from eventflow.workflows") == 1
