"""A second signal while a program drains: it waits no more for what runs, and still leaves nothing behind."""

import itertools
import signal
import time

import pytest

from tests.harness import World


@pytest.mark.parametrize(
    ("colour", "first", "second"), [("async", signal.SIGINT, signal.SIGINT), ("sync", signal.SIGTERM, signal.SIGINT)]
)
def test_a_second_signal_lets_go_of_what_runs(world: World, colour: str, first: int, second: int) -> None:
    world.defaults = world.defaults | {"EVENTFLOW_LEASE": "30"}
    world.create_topic(2)
    worker = world.start("slow", ready=True, COLOUR=colour, PAUSE="60", EVENTFLOW_DRAIN="60")
    executor = world.executor(worker)
    world.produce(10)
    world.wait(lambda: world.one("select count(*) from effects where note = 'began'") == 10, "all are running")
    worker.signal(first)
    world.wait(lambda: "leaves" in worker.text, "it drains")
    assert "a second signal lets go of it at once" in worker.text
    began = time.monotonic()
    worker.signal(second)
    assert worker.process.wait(20) == 0, worker.text[-2000:]
    assert time.monotonic() - began < 10
    assert world.one("select alive from eventflow.executors where id = %s", executor) is False
    assert world.sql("select distinct released from eventflow.claims") == [(True,)]
    assert (
        world.one("select count(*) from eventflow.workflows where executor = %s and status <> 'succeeded'", executor)
        == 0
    )
    world.start("slow", COLOUR=colour, PAUSE="0")
    world.wait_completed("billing", timeout=20)
    world.check("billing")
    assert world.one("select sum(recoveries) from eventflow.workflows") == 0


def test_signals_while_it_starts_end_it(world: World) -> None:
    """However many there are."""
    worker = world.start("one_step", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    world.wait(lambda: "trying again" in worker.text, "it waits for Postgres")
    for number in itertools.repeat(signal.SIGTERM, 3):
        worker.signal(number)
    assert worker.process.wait(15) == 0, worker.text
    assert "Traceback" not in worker.text
