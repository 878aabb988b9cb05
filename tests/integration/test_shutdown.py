"""SIGTERM: running work ends or is handed over, claims and lease are let go of, the exit status is 0, nobody is charged."""

import signal
import time

import psycopg
import pytest

from tests.harness import World


def running_effects(world: World) -> int:
    return world.one("select count(*) from effects where note = 'began'")


def check_let_go(world: World, executor: int) -> None:
    assert world.one("select alive from eventflow.executors where id = %s", executor) is False
    assert world.one("select taken_by from eventflow.executors where id = %s", executor) is None
    held = world.sql("select status::text, count(*) from eventflow.workflows where executor = %s "
                     "and status in ('queued', 'running', 'waiting') group by 1", executor)  # fmt: skip
    assert held == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_running_work_ends_before_the_exit(world: World, colour: str, number: int) -> None:
    world.create_topic(2)
    worker = world.start("slow", ready=True, COLOUR=colour, PAUSE="0.5")
    executor = world.executor(worker)
    assert executor is not None
    world.produce(20)
    world.wait(lambda: running_effects(world) >= 10, "work is running")
    worker.signal(number)
    assert worker.process.wait(15) == 0, worker.text[-2000:]
    check_let_go(world, executor)
    assert world.sql("select distinct released from eventflow.claims") == [(True,)]
    assert world.sql("select distinct status::text from eventflow.workflows") == [("succeeded",)]
    began = running_effects(world)
    assert world.completed("billing") == began, "what had begun has ended"
    world.start("slow", COLOUR=colour, PAUSE="0")
    world.wait_completed("billing")
    world.check("billing")
    assert world.sql("select sum(recoveries), max(attempt), (select count(*) from effects) "
                     "from eventflow.workflows") == [(0, 1, 20)]  # fmt: skip


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_work_that_outlives_the_budget_is_handed_over(world: World, colour: str) -> None:
    """Its rows belong to nobody at once: the next owner starts them without waiting for a lease, nobody is charged."""
    world.defaults = world.defaults | {"EVENTFLOW_LEASE": "30"}
    world.create_topic(2)
    worker = world.start("slow", ready=True, COLOUR=colour, PAUSE="60", EVENTFLOW_DRAIN="0.5")
    executor = world.executor(worker)
    assert executor is not None
    world.produce(10)
    world.wait(lambda: running_effects(world) == 10, "all are running")
    began = time.monotonic()
    assert worker.stop() == 0, worker.text[-2000:]
    assert time.monotonic() - began < 5
    check_let_go(world, executor)
    assert world.sql("select distinct released from eventflow.claims") == [(True,)]
    began = time.monotonic()
    world.start("slow", COLOUR=colour, PAUSE="0")
    world.wait_completed("billing", timeout=20)
    assert time.monotonic() - began < 10, "the next owner waited for something"
    world.check("billing")
    assert world.one("select sum(recoveries) from eventflow.workflows") == 0


def test_the_next_owner_starts_at_once(world: World) -> None:
    """A peer is there: from the signal to its first message of the partitions that were left, no lease goes by."""
    world.defaults = world.defaults | {"EVENTFLOW_LEASE": "30"}
    world.create_topic(4)
    leaver = world.start("one_step", ready=True)
    stayer = world.start("one_step", ready=True)
    world.wait_owner(stayer, 2)
    leaver.signal(signal.SIGTERM)
    world.produce(100)
    began = time.monotonic()
    world.wait_completed("billing", timeout=10)
    took = time.monotonic() - began
    assert leaver.process.wait(15) == 0
    world.wait_owner(stayer, 4)
    world.check("billing")
    print(f"hand-over: {took:.2f} s")
    assert took < 3
    assert world.one("select sum(recoveries) from eventflow.workflows") == 0


def test_a_second_signal_is_not_needed_when_postgres_is_gone(private_world: World, private_postgres) -> None:
    """Nothing can be released: it gives up within its budget, and the ledger counts it as dead later."""
    world = private_world
    world.create_topic(1)
    worker = world.start("one_step", ready=True, EVENTFLOW_DRAIN="1")
    private_postgres.kill()
    worker.signal(signal.SIGTERM)
    world.wait_death(worker, 30)
    private_postgres.start()
    world.produce(20)
    world.start("one_step")
    world.wait_completed("billing")
    world.check("billing")


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_fenced_while_it_drains(world: World, colour: str) -> None:
    """What still runs can be recorded by nobody here: it leaves at once, not when its budget is over."""
    world.create_topic(2)
    worker = world.start("slow", ready=True, COLOUR=colour, PAUSE="60", EVENTFLOW_DRAIN="60")
    executor = world.executor(worker)
    world.produce(10)
    world.wait(lambda: running_effects(world) == 10, "all are running")
    worker.signal(signal.SIGTERM)
    world.wait(lambda: "leaves" in worker.text, "it drains")
    with psycopg.connect(world.database_url) as peer:  # what a peer would do, in its order: no flush is under way (R9)
        peer.execute("select from eventflow.executors where id = %s for update", (executor,))
        peer.execute("update eventflow.executors set alive = false, died_at = now() where id = %s", (executor,))
        peer.execute("update eventflow.workflows set executor = null where executor = %s", (executor,))
    assert worker.process.wait(15) == 0, worker.text[-2000:]
    world.start("slow", COLOUR=colour, PAUSE="0")
    world.wait_completed("billing")
    world.check("billing")


@pytest.mark.parametrize("hang", ["the loop", "the interpreter", "a thread"])
def test_a_process_that_hangs_past_its_budget_ends_itself(world: World, hang: str) -> None:
    """Whatever a library does: who was told to go goes, and says where it hung."""
    world.create_topic(1)
    worker = world.start("hanging", ready=True, HANG=hang, EVENTFLOW_DRAIN="0.5")
    worker.signal(signal.SIGTERM)
    assert world.wait_death(worker, 15) == 1
    assert "Timeout (" in worker.text
    assert "hanging.py" in worker.text
