"""SIGKILL at every commit boundary: a worker kills itself at a named point, a peer takes over, the count comes out exact.

Each point is run with `EVENTFLOW_CRASH_SEEDS` seeds (2; `make test-crash`: 20). The seed chooses the app and how often
the point is passed before the kill. A point that is never reached fails its test: the worker must have died there.
docs/guarantees.md says what lies before and behind each point.
"""

import signal
from collections.abc import Sequence

import pytest

from tests.harness import Load, Worker, World, few_seeds, pick

pytestmark = pytest.mark.crash

STEPS = ("one_step", "two_steps", "ordered", "one_step_sync", "two_steps_sync")
TRANSACTIONS = ("ledger_psycopg", "ledger_session", "ledger_async", "ledger_pipeline", "transactional_step")
GROUP = dict.fromkeys(TRANSACTIONS, "ledger") | {"ordered": "ordered", "mixed": "mixed"}

# Point -> the apps that pass it, and how often at most it is passed before the kill.
UNDER_LOAD: dict[str, tuple[Sequence[str], int]] = {
    "journal.before_flush": (STEPS, 6),
    "journal.after_begin": (STEPS, 6),
    "journal.before_commit": (STEPS, 6),
    "journal.after_commit": (STEPS, 6),
    "consumer.after_fetch": (STEPS + TRANSACTIONS, 4),
    "executor.after_step": (STEPS, 120),
    "executor.before_finish": (STEPS, 60),
    "transactions.before_guard": (TRANSACTIONS, 6),
    "transactions.before_commit": (TRANSACTIONS, 6),
    "transactions.after_commit": (TRANSACTIONS, 6),
}
AT_START = ("lease.before_birth", "lease.after_birth", "consumer.before_claim", "consumer.after_claim")
AT_TAKEOVER = ("recovery.before_takeover", "recovery.after_takeover", "recovery.after_claim_rows")


def group_of(app: str) -> str:
    return GROUP.get(app, "billing")


def finish(world: World, app: str) -> None:
    """Everything that was produced completes, and the proof holds."""
    group = group_of(app)
    world.wait_completed(group)
    world.check(group, effects=app in TRANSACTIONS)
    if app.startswith("two_steps") or app == "ordered":
        world.check_steps(group)
    if app == "ordered":
        world.check_order(group)
    world.check_no_incidents()
    assert world.unfinished() == 0


def died_there(worker: Worker, point: str) -> bool:
    return f"crash point {point}: SIGKILL" in worker.text


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("point", UNDER_LOAD)
def test_killed_under_load(world: World, point: str, seed: int) -> None:
    apps, most = UNDER_LOAD[point]
    app = pick(seed, point, "app", choices=apps)
    count = pick(seed, point, "count", choices=range(1, most + 1))
    world.create_topic(4)
    victim = world.start(app, crash=f"{point}:{count}", ready=True)
    peer = world.start(app)
    world.produce(400, over=1.0)
    assert world.wait_death(victim) == -signal.SIGKILL, f"{app} {count}"
    assert died_there(victim, point)
    finish(world, app)
    assert peer.alive


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("point", AT_START)
def test_killed_at_start(world: World, point: str, seed: int) -> None:
    app = pick(seed, point, "app", choices=STEPS + TRANSACTIONS)
    world.create_topic(4)
    world.produce(200)
    victim = world.start(app, crash=f"{point}:1")
    assert world.wait_death(victim) == -signal.SIGKILL, app
    assert died_there(victim, point)
    world.start(app)
    finish(world, app)


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("leave", ["rebalance", "sigterm"])
def test_killed_before_release(world: World, leave: str, seed: int) -> None:
    """What the holder of a partition had started when it lost it is taken over like everything else (R8)."""
    point = "consumer.before_release"
    app = pick(seed, leave, "app", choices=STEPS + TRANSACTIONS)
    world.create_topic(4)
    victim = world.start(app, crash=f"{point}:1", ready=True)
    world.produce(200, over=0.2)
    world.start(app)
    if leave == "sigterm":
        victim.signal(signal.SIGTERM)
    world.produce(100, over=0.2)
    assert world.wait_death(victim) == -signal.SIGKILL, app
    assert died_there(victim, point)
    finish(world, app)


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("point", AT_TAKEOVER)
def test_killed_in_a_takeover(world: World, point: str, seed: int) -> None:
    """The taker dies while it takes over: a third process takes over both."""
    app = pick(seed, point, "app", choices=["two_steps", "two_steps_sync", "ordered"])
    world.create_topic(4)
    first = world.start(app, ready=True, PAUSE="2")
    world.produce(20)
    world.wait(
        lambda: world.one("select count(*) from eventflow.workflows where status = 'running'"),
        "accepted work in flight",
    )
    taker = world.start(app, crash=f"{point}:1")
    world.wait(lambda: world.executor(taker), "the taker is born")
    first.kill()
    assert world.wait_death(taker) == -signal.SIGKILL, app
    assert died_there(taker, point)
    world.start(app)
    finish(world, app)


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("app", ["two_steps_asleep", "two_steps_asleep_sync"])
def test_killed_when_it_has_woken_what_slept(world: World, app: str, seed: int) -> None:
    """Workflows that have left memory are awake in the ledger and nowhere else: a peer goes on with them."""
    point = "recovery.after_claim_woken"
    count = pick(seed, app, "count", choices=range(1, 4))
    world.create_topic(4)
    victim = world.start(app, ready=True, crash=f"{point}:{count}", EVENTFLOW_SUSPEND_AFTER="0.05")
    world.produce(60, over=1.0)
    assert world.wait_death(victim) == -signal.SIGKILL, f"{app} {count}"
    assert died_there(victim, point)
    world.start(app, EVENTFLOW_SUSPEND_AFTER="0.05")
    finish(world, app)


@pytest.mark.parametrize("seed", few_seeds())
def test_killed_again_and_again(world: World, seed: int) -> None:
    """Every worker of a chain is killed at another point, all handlers at once; the last one finishes."""
    world.create_topic(3)
    points = [
        "journal.before_commit",
        "transactions.before_commit",
        "journal.after_commit",
        "transactions.after_commit",
    ]
    world.produce(100)
    for point in points:
        count = pick(seed, point, choices=range(1, 4))
        victim = world.start("mixed", crash=f"{point}:{count}")
        with Load(world, 100):  # until it has come to its point often enough
            assert world.wait_death(victim) == -signal.SIGKILL, point
    world.start("mixed")
    for group in ("billing", "weighing", "ledger", "ordered"):
        world.wait_completed(group)
        world.check(group, effects=group == "ledger")
    world.check_order("ordered")
    world.check_no_incidents()
