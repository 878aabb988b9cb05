"""Schedules over several processes, which are killed at the fire instant, frozen, or have a wrong clock: one run per fire time."""

import signal
from datetime import UTC, datetime

import pytest

from eventflow.cron import Rule
from eventflow.idempotency import schedule_workflow_id
from tests.conformance.colours import COLOURS
from tests.conformance.test_killed import SOON, died_there
from tests.harness import World, few_seeds, pick, seeds

pytestmark = pytest.mark.crash

APP = "tests.conformance.schedule_app"


def first_and_last(world: World, count: int) -> tuple[datetime, datetime]:
    """Wait until so many fire times have been handled; the first and the last of all that there are."""
    world.wait(lambda: world.one("select count(*) from effects") >= count, f"{count} fires are handled")
    [(first, last)] = world.sql("select min(note)::float8, max(note)::float8 from effects")
    return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC)


def check(world: World, count: int) -> None:
    """Each fire time from the first to the last was run once, by its own workflow."""
    first_and_last(world, count)
    world.sql("update eventflow.schedules set due_at = null, paused = true")
    world.wait(lambda: world.unfinished() == 0, "all have ended")
    first, last = first_and_last(world, count)
    wanted = {schedule_workflow_id("default", "tick", time) for time in Rule(every=1.0).between(first, last)}
    rows = world.sql("select id, status::text from eventflow.workflows")
    assert {workflow_id for workflow_id, _ in rows} == wanted
    assert {status for _, status in rows} == {"succeeded"}
    notes = [note for (note,) in world.sql("select note from effects")]
    assert len(notes) == len(set(notes)) >= count


def killed(world: World, point: str, seed: int, **fires: str) -> None:
    """One of two is killed at a fire instant; the other one goes on, or another after it."""
    fires["COLOUR"] = COLOURS[(seed + POINTS.index(point)) % 2]
    victim = world.start(APP, crash=f"{point}:{pick(seed, point, choices=range(1, 3))}", **fires, **SOON)
    world.start(APP, **fires, **SOON)
    world.wait(
        lambda: not victim.alive or world.one("select count(*) from effects") >= 4, "it has died, or was never first"
    )
    if victim.alive:  # the peer was first each time: alone, it gets there
        for other in world.workers[1:]:
            other.kill()
    assert world.wait_death(victim) == -signal.SIGKILL
    assert died_there(victim, point)
    if not any(worker.alive for worker in world.workers):
        world.start(APP, **fires, **SOON)


POINTS = ["scheduler.before_fire", "scheduler.before_commit", "scheduler.after_commit"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("seed", seeds(default=1))
def test_killed_at_the_fire_instant(world: World, point: str, seed: int) -> None:
    """What the dead one had committed is taken over, what it had not is fired by the other."""
    killed(world, point, seed, EVERY="1")
    check(world, 6)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("seed", few_seeds())
def test_killed_where_fires_wait_in_line(world: World, point: str, seed: int) -> None:
    """Each takes longer than the next one is away: they run one after another, each once, in order, and none is left out."""
    killed(world, point, seed, EVERY="1", OVERLAP="buffer_all", TAKES="1.2")
    first, last = first_and_last(world, 5)
    notes = [
        float(note)
        for (note,) in world.sql("select note from effects where note::float8 <= %s order by id", last.timestamp())
    ]
    assert notes == [time.timestamp() for time in Rule(every=1.0).between(first, last)]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("seed", few_seeds())
def test_killed_where_each_fire_ends_the_one_before(world: World, point: str, seed: int) -> None:
    """No fire time is run twice, and of all no more than the last goes on; one may be passed over that comes meanwhile."""
    killed(world, point, seed, EVERY="1", OVERLAP="cancel_other", TAKES="600")
    first_and_last(world, 5)
    notes = [float(note) for (note,) in world.sql("select note from effects order by id")]
    assert notes == sorted(set(notes))
    ended = "select count(*) from eventflow.workflows where status = 'cancelled'"
    world.wait(lambda: world.one(ended) >= len(notes) - 1, "those before the last end")
    left = "select count(*) from eventflow.workflows where status <> 'cancelled'"
    assert world.sql(left) <= [(1,)]
    assert (
        world.sql(
            "select distinct status::text from eventflow.workflows where status in ('succeeded', 'failed', 'parked')"
        )
        == []
    )


@pytest.mark.parametrize("point", ["scheduler.before_commit"])
def test_frozen_before_the_commit(world: World, point: str) -> None:
    """It holds the schedule and is presumed dead: the peer ends its transaction, fires, and what it wakes up to is refused."""
    frozen = world.start(APP, stop=f"{point}:1", EVERY="1", **SOON)
    world.wait(lambda: frozen.frozen, "it is about to commit a fire")
    world.start(APP, EVERY="1", **SOON)
    first_and_last(world, 2)
    frozen.thaw()
    check(world, 5)


def test_a_commit_whose_answer_is_lost(world: World) -> None:
    """Killed is the connection and not the process: what it has committed for itself, it runs."""
    worker = world.start(APP, stop="scheduler.after_commit:1", EVERY="1", **(SOON | {"EVENTFLOW_LEASE": "30"}))
    world.wait(lambda: worker.frozen, "it has fired")
    ended = world.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'eventflow schedules'"
    )
    assert ended
    worker.thaw()
    check(world, 3)


def test_many_processes_fire_each_time_once(world: World) -> None:
    for _ in range(3):
        world.start(APP, EVERY="1", **SOON)
    check(world, 5)


@pytest.mark.parametrize("wrong", [3600.0, -3600.0])
def test_a_wrong_clock_fires_nothing_wrong(world: World, wrong: float) -> None:
    """An hour ahead, or behind: it fires when the ledger's clock says so."""
    world.start(APP, EVERY="1", CLOCK_WRONG_BY=str(wrong), **SOON)
    check(world, 3)
    late = [
        (at - datetime.fromtimestamp(float(note), UTC)).total_seconds()
        for at, note in world.sql("select at, note from effects order by at offset 1")
    ]
    assert all(0 <= seconds < 0.9 for seconds in late), late
    assert {c for (c,) in world.sql("select output from eventflow.workflows")} == {'"schedule"'}


def test_what_is_removed_from_the_code_stops_and_what_comes_back_catches_up(world: World) -> None:
    with_it = world.start(APP, EVERY="1", **SOON)
    first_and_last(world, 1)
    assert with_it.stop() == 0
    stopped = world.one("select count(*) from eventflow.workflows")
    world.sql("update eventflow.schedules set due_at = due_at - interval '2 minutes'")
    without = world.start(APP, EVENTFLOW_BEAT="0.05", **{k: v for k, v in SOON.items() if k != "EVENTFLOW_BEAT"})
    text = "schedule 'tick' is due, and no process that lives fires it: its workflow 'tick async' is gone"
    world.wait(lambda: text in without.text, "it is said")
    assert world.one("select count(*) from eventflow.workflows") == stopped
    world.start(APP, EVERY="1", **SOON)
    check(world, 4)
