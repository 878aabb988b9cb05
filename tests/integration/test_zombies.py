"""A process that stops and wakes up again: its peers have taken over in the meantime, and it commits nothing (R2, R9)."""

import time

import pytest

from tests.harness import DEFAULTS, Load, Worker, World, few


def fingerprint(world: World, executor: int) -> object:
    """What a zombie could have changed: its flushes, its rows, and every attempt in the ledger."""
    return (
        world.sql("select lane, max(n) from eventflow.flushes where executor = %s group by 1 order by 1", executor),
        world.sql("select count(*) from eventflow.workflows where executor = %s", executor),
        world.sql("select count(*), sum(attempt), max(finished_at) from eventflow.workflows"),
        world.sql("select count(*) from eventflow.checkpoints"),
        world.sql("select count(*) from effects where note in ('entered', 'booked')"),
    )


def wait_taken(world: World, executor: int, timeout: float = 20) -> None:
    world.wait(
        lambda: world.one("select not alive from eventflow.executors where id = %s", executor),
        f"executor {executor} is taken over", timeout,
    )  # fmt: skip


def wakes_up_anew(world: World, zombie: Worker, old: int, group: str) -> None:
    """SIGCONT: it commits nothing as what it was, and works again as a new incarnation."""
    before = fingerprint(world, old)
    world.mark_effects(zombie)
    zombie.thaw()
    world.wait(lambda: (world.executor(zombie) or 0) > old, "the zombie starts again as a new incarnation")
    assert fingerprint(world, old) == before
    assert zombie.alive
    world.wait_owner(zombie, group=group)
    world.produce(100)
    world.wait_completed(group)


@pytest.mark.parametrize(
    ("app", "group"),
    [
        ("two_steps", "billing"), pytest.param("two_steps_sync", "billing", marks=pytest.mark.long),
        ("ledger_psycopg", "ledger"), ("ordered", "ordered"),
    ],
)  # fmt: skip
def test_frozen_with_work_in_flight(world: World, app: str, group: str) -> None:
    world.create_topic(4)
    victim = world.start(app, ready=True, PAUSE="0.1")
    old = world.executor(victim)
    assert old is not None
    world.produce(600)
    world.wait(lambda: world.completed(group), "the first is done")
    victim.freeze()
    world.start(app, PAUSE="0.01")
    wait_taken(world, old)
    world.wait_completed(group)
    wakes_up_anew(world, victim, old, group)
    world.check(group, effects=group == "ledger")
    if group != "ledger":
        world.check_steps(group)
    if group == "ordered":
        world.check_order(group)
    world.check_no_incidents()


@pytest.mark.parametrize("app", few(["one_step", "two_steps", "ordered"], "one_step"))
def test_frozen_with_a_flush_half_sent(world: World, app: str) -> None:
    """The server waits for the rest of a transaction that holds the identity: the taker ends its session (R9)."""
    half_sent_flush(world, app)


def test_frozen_with_a_flush_half_sent_on_postgres_15(debian_world: World) -> None:
    """The same where no `transaction_timeout` exists."""
    half_sent_flush(debian_world, "one_step")


def half_sent_flush(world: World, app: str) -> None:
    group = "ordered" if app == "ordered" else "billing"
    world.create_topic(4)
    victim = world.start(app, stop="journal.after_begin:3", ready=True)
    old = world.executor(victim)
    assert old is not None
    world.produce(300, over=3)
    world.wait(lambda: victim.frozen, "the worker stops with a flush half sent")
    half_sent = (
        "select count(*) from pg_stat_activity where application_name like 'eventflow journal%%' "
        "and state in ('active', 'idle in transaction') and xact_start is not null"
    )
    world.wait(lambda: world.one(half_sent), "the server has the half of it: a transaction is open", 10)
    peer = world.start(app)
    wait_taken(world, old)
    world.wait_owner(peer, 4)
    world.wait_completed(group)
    wakes_up_anew(world, victim, old, group)
    world.check(group)
    world.check_no_incidents()


@pytest.mark.parametrize("app", few(["ledger_psycopg", "ledger_session", "transactional_step"], "ledger_psycopg"))
def test_frozen_in_a_transaction(world: World, app: str) -> None:
    """Frozen between a user's statements and their commit: the effect is the taker's, once."""
    world.create_topic(4)
    victim = world.start(app, stop="transactions.before_commit:2", ready=True)
    old = world.executor(victim)
    assert old is not None
    world.produce(300, over=0.5)
    world.wait(lambda: victim.frozen, "the worker stops before a commit")
    peer = world.start(app)
    wait_taken(world, old)
    world.wait_owner(peer, 4)
    world.wait_completed("ledger")
    wakes_up_anew(world, victim, old, "ledger")
    world.check("ledger", effects=True)
    world.check_no_incidents()


def passed(world: World, ends: dict[int, int]) -> bool:
    """Whether each partition is done up to these offsets."""
    rows = world.sql(
        """select c.partition, w."offset" from eventflow.workflows w join eventflow.claims c on c.id = w.claim
           where w.status = 'succeeded'"""
    )
    return {(p, o) for p, end in ends.items() for o in range(end)} <= set(rows)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["sigkill", "sigstop"])
def test_takeover_within_ten_seconds_by_default(world: World, how: str) -> None:
    """With the defaults of a deployment: lease 5 s, session timeout 6 s."""
    world.defaults = DEFAULTS
    world.create_topic(4)
    victim = world.start("two_steps", ready=True, PAUSE="0.05")
    world.wait_owner(victim, 4)
    peer = world.start("two_steps", PAUSE="0.05")
    world.wait_owner(peer, 2)
    world.wait_owner(victim, 2)
    with Load(world, 150):
        world.wait(lambda: world.completed("billing") > 100, "messages pass")
        began = time.monotonic()
        if how == "sigkill":
            victim.kill()
        else:
            victim.freeze()
        ends = world.ends()
        world.wait(lambda: passed(world, ends), "all that was produced until then is done")
        took = time.monotonic() - began
    print(f"takeover after {how}: {took:.1f} s")
    world.wait_completed("billing")
    assert took < 10, f"the victim's work was done after {took:.1f} s"
    world.check("billing")
    world.check_steps("billing")


def test_lost_commits_are_found_by_an_idle_worker_where_the_timeline_cannot_be_read(world: World) -> None:
    """What a fail-over loses: the acknowledged numbers. The next beat ends the executor, and the next one goes on."""
    world.create_topic(2)
    world.sql(
        """create or replace function eventflow.timeline() returns text language plpgsql volatile as $$
           begin raise insufficient_privilege; end $$"""
    )
    worker = world.start("one_step", ready=True)
    first = world.executor(worker)
    assert world.one("select timeline from eventflow.executors where id = %s", first) == ""
    world.produce(50)
    world.wait_completed("billing")
    world.sql("delete from eventflow.flushes where executor = %s and lane = 0", first)
    world.wait(lambda: world.executor(worker) not in {None, first}, "it began anew")
    assert "lost commits" in worker.text
    world.produce(50)
    world.wait_completed("billing")
    world.check("billing")
