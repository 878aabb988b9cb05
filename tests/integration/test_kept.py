"""`EVENTFLOW_KEEP_MESSAGES=slow`: what succeeds at once leaves no row, and is handled exactly once all the same."""

import json
import signal
from collections import Counter

import pytest

from tests.harness import World, few_seeds, pick, read_all

SLOW = {"EVENTFLOW_KEEP_MESSAGES": "slow", "EVENTFLOW_ACCEPT_AFTER": "10"}
ACCEPTED = """select coalesce(sum(upper(r) - coalesce(lower(r), 0)), 0) from eventflow.claims c join (
                select id, unnest(accepted) from eventflow.claims union all select claim, unnest(ranges) from eventflow.deltas
              ) as a (id, r) using (id) where c."group" = %s"""
ROWS = """select count(*) from eventflow.workflows w join eventflow.claims c on c.id = w.claim where c."group" = %s"""


def wait_handled(world: World, group: str, count: int | None = None) -> None:
    wanted = world.produced if count is None else count
    world.wait(
        lambda: world.one(ACCEPTED, group) == wanted and world.unfinished() == 0, f"{group}: {wanted} accepted and over"
    )


@pytest.mark.parametrize(("app", "group"), [("one_step_sync", "billing"), ("ledger_psycopg", "ledger")])
def test_what_succeeds_at_once_leaves_no_row(world: World, app: str, group: str) -> None:
    """And is known by a later process: only what came since is handled."""
    world.create_topic(4)
    worker = world.start(app, ready=True, **SLOW)
    world.produce(200)
    wait_handled(world, group)
    assert worker.stop() == 0
    world.produce(100)
    world.start(app, **SLOW)
    wait_handled(world, group)
    assert world.one(ROWS, group) == 0
    world.check(group, effects=group == "ledger", rows=False)
    world.check_no_incidents()


def test_what_runs_for_longer_is_kept(world: World) -> None:
    world.create_topic(1)
    world.start("slow", ready=True, PAUSE="0.5", EVENTFLOW_KEEP_MESSAGES="slow")
    world.send({"n": 0, "do": ""})
    world.flush()
    world.wait_completed("billing", 1)


def test_what_fails_is_kept_whole(world: World) -> None:
    world.create_topic(1)
    for n in range(30):
        world.send({"n": n, "do": "fail" if n in {3, 17} else ""})
    world.flush()
    world.start("batches", KINDS="transaction plain", BATCH="10", ready=True, **SLOW)
    for group in ("transaction", "plain"):
        wait_handled(world, group)
        failed = """select w."offset", w.status::text, w.value is not null, w.error like '%%are refused%%' from eventflow.workflows w
                    join eventflow.claims c on c.id = w.claim where c."group" = %s order by 1"""
        world.wait(lambda g=group: world.one(ROWS + " and w.finished_at is not null", g) == 2, "both have failed")
        assert world.sql(failed, group) == [(3, "failed", True, True), (17, "failed", True, True)]


@pytest.mark.crash
@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("point", ["transactions.before_commit", "transactions.after_commit", "consumer.after_fetch"])
def test_killed_around_a_commit_that_keeps_no_row(world: World, point: str, seed: int) -> None:
    count = pick(seed, point, choices=range(1, 5))
    app = pick(seed, point, "app", choices=["ledger_psycopg", "ledger_session", "ledger_async"])
    world.create_topic(4)
    victim = world.start(app, crash=f"{point}:{count}", ready=True, **SLOW)
    peer = world.start(app, **SLOW)
    world.produce(400, over=1.0)
    assert world.wait_death(victim) == -signal.SIGKILL
    wait_handled(world, "ledger")
    world.check("ledger", effects=True, rows=False)
    world.check_no_incidents()
    assert peer.alive


@pytest.mark.crash
@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("point", ["journal.before_commit", "journal.after_commit"])
def test_what_is_published_goes_with_the_position(world: World, point: str, seed: int) -> None:
    """It is not the row that says that an event was written."""
    out = world.create_topic(1, f"{world.topic}-out")
    world.create_topic(4)
    victim = world.start(
        "publishing", crash=f"{point}:{pick(seed, point, choices=range(1, 4))}", ready=True, OUT=out, **SLOW
    )
    world.start("publishing", OUT=out, **SLOW)
    world.produce(200, over=1.0)
    assert world.wait_death(victim) == -signal.SIGKILL
    for group in ("flow", "ledger"):
        wait_handled(world, group)
    world.wait(lambda: world.one("select count(*) from eventflow.outbox") == 0, "all is published")
    found = Counter((v["by"], v["n"]) for v in (json.loads(event.value or b"") for event in read_all(world, out)))
    assert found == Counter((by, n) for by in ("step", "flow", "ledger") for n in range(world.produced))
