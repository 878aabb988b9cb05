"""Postgres and Kafka go away and come back, connections are cut at any byte: every message completes exactly once."""

import random
import signal
import time

import pytest

from eventflow.local import Postgres
from eventflow.settings import masked
from tests.harness import Load, Proxy, World, few_seeds

GROUPS = ("billing", "weighing", "ledger", "ordered")


def finish(world: World, timeout: float = 90) -> None:
    for group in GROUPS:
        world.wait_completed(group, timeout=timeout)
    for group in GROUPS:
        world.check(group, effects=group == "ledger")
    world.check_order("ordered")
    world.check_no_incidents()


def test_postgres_killed_and_restarted_under_load(private_world: World, private_postgres) -> None:
    world = private_world
    world.create_topic(3)
    workers = [world.start("mixed", ready=True), world.start("mixed", ready=True)]
    with Load(world, 150):
        for away in (0.0, 2.5):  # shorter and longer than the lease
            before = world.completed("billing")
            world.wait(lambda n=before: world.completed("billing") > n + 100, "messages pass")
            private_postgres.kill()
            time.sleep(away)
            private_postgres.start()
        before = world.completed("billing")
        world.wait(lambda: world.completed("billing") > before + 100, "messages pass again")
    finish(world)
    assert all(worker.alive for worker in workers)


def test_broker_killed_and_restarted_under_load(private_world: World, private_kafka) -> None:
    world = private_world
    world.create_topic(3)
    workers = [world.start("mixed", ready=True), world.start("mixed", ready=True)]
    with Load(world, 150):
        world.wait(lambda: world.completed("billing") > 100, "messages pass")
        private_kafka.kill()
        private_kafka.start()
        before = world.completed("billing")
        world.wait(lambda: world.completed("billing") > before + 100, "messages pass again")
    finish(world)
    assert all(worker.alive for worker in workers)


@pytest.mark.parametrize(
    "role", ["journal", *(pytest.param(r, marks=pytest.mark.long) for r in ("lease", "consumer", ""))]
)
def test_sessions_are_terminated_again_and_again(world: World, role: str) -> None:
    """An administrator (or a fail-over) ends sessions at random moments of a flush; '' ends those of all roles."""
    world.create_topic(3)
    workers = [world.start("mixed", ready=True), world.start("mixed", ready=True)]
    chance, ended = random.Random(role), 0
    with Load(world, 200):
        for _ in range(3):  # a third worker comes and goes, or there would be no claims to disturb
            guest, until = world.start("mixed"), time.monotonic() + 2
            while time.monotonic() < until:
                ended += len(
                    world.sql(
                        """select pg_terminate_backend(pid) from pg_stat_activity
                           where datname = current_database() and application_name like %s""",
                        f"eventflow {role}%",
                    )
                )
                time.sleep(chance.uniform(0.005, 0.25))
            guest.signal(signal.SIGTERM)
    assert ended > 10, f"only {ended} sessions were there to be ended"
    finish(world)
    assert all(worker.alive for worker in workers)


@pytest.mark.parametrize("seed", few_seeds())
@pytest.mark.parametrize("app", ["two_steps", "ledger_psycopg", "ledger_session", "transactional_step"])
def test_connections_cut_at_any_byte(world: World, app: str, seed: int) -> None:
    """Half a flush arrives, or a flush commits and its answer is lost: the flush number settles it (R3)."""
    group = "billing" if app == "two_steps" else "ledger"
    proxy = Proxy(world.database_url, seed)
    try:
        world.create_topic(3)
        worker = world.start(app, DATABASE_URL=proxy.url, ready=True)
        proxy.cut(1_000, 40_000)
        world.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name like 'eventflow%%'"
        )  # what is open already would never be cut
        with Load(world, 300):
            world.wait(lambda: proxy.cuts >= 10, "connections are cut")
        proxy.heal()
        world.wait_completed(group)
        print(f"{proxy.cuts} connections cut")
        world.check(group, effects=group == "ledger")
        if app == "two_steps":
            world.check_steps(group)
        world.check_no_incidents()
        assert worker.alive
    finally:
        proxy.close()


@pytest.mark.parametrize("app", ["two_steps", "ledger_session"])
def test_a_worker_that_cannot_reach_postgres_gives_its_partitions_to_peers(world: World, app: str) -> None:
    """Kafka it still reaches, so Kafka would let it keep them: it leaves the group by itself (R10d)."""
    group = "billing" if app == "two_steps" else "ledger"
    proxy = Proxy(world.database_url)
    try:
        world.create_topic(4)
        cut_off = world.start(app, DATABASE_URL=proxy.url, ready=True)
        peer = world.start(app, ready=True)
        world.wait_owner(cut_off, 2)
        world.wait_owner(peer, 2)
        with Load(world, 100):
            world.wait(lambda: world.completed(group) > 100, "messages pass")
            proxy.block()
            world.wait_owner(peer, 4)
            before = world.completed(group)
            world.wait(lambda: world.completed(group) > before + 200, "messages pass without it")
            proxy.unblock()
            world.wait_owner(cut_off, 1)
        world.wait_completed(group)
        world.check(group, effects=group == "ledger")
        world.check_no_incidents()
        assert "leaves its group" in cut_off.text
        assert cut_off.alive
    finally:
        proxy.close()


def test_database_away_at_start(private_world: World, private_postgres) -> None:
    """It says what it cannot reach, without the password, and starts when the server is there."""
    world = private_world
    world.create_topic(2)
    world.produce(50)
    private_postgres.kill()
    worker = world.start("one_step", EVENTFLOW_LOG_LEVEL="debug")  # where every attempt is seen
    refused = f"Postgres at {masked(world.database_url)}: connection failed: "
    world.wait(lambda: worker.text.count(refused) >= 3, "it says what it misses, and tries again and again")
    assert sum("WARNING" in line for line in worker.text.splitlines() if refused in line) == 1
    assert worker.alive, worker.text
    private_postgres.start()
    world.wait_completed("billing")
    world.check("billing")


def test_broker_away_at_start(private_world: World, private_kafka) -> None:
    world = private_world
    world.create_topic(2)
    world.produce(50)
    private_kafka.kill()
    worker = world.start("one_step")
    world.wait(lambda: f"{no_answer(world)}; trying again" in worker.text, "it says what it misses")
    assert worker.alive, worker.text
    private_kafka.start()
    world.wait_completed("billing")
    world.check("billing")


def no_answer(world: World) -> str:
    return f"WARNING eventflow.consumer: Kafka at {world.bootstrap_servers} does not answer"


def test_an_idle_worker_says_what_went_away_and_does_not_flood_its_log(
    private_world: World, private_postgres, private_kafka
) -> None:
    """Four handlers, each with two clients of Kafka's: it was 80 lines a second. Of Postgres nothing at all was said."""
    world = private_world
    world.create_topic(2)
    worker = world.start("mixed")
    world.wait_owner(worker, 2 * len(GROUPS))

    before = len(worker.text.splitlines())
    private_kafka.kill()
    world.wait(lambda: no_answer(world) in worker.text, "it names Kafka")
    until = time.monotonic() + 10  # no guess: so long is what is measured
    world.wait(lambda: time.monotonic() > until or not worker.alive, "ten seconds have passed")
    lines = worker.text.splitlines()[before:]
    assert len(lines) <= 12, "\n".join(lines)
    assert sum(no_answer(world) in line for line in lines) == 1
    private_kafka.start()
    world.produce(20)
    world.wait_completed("billing")
    world.wait_completed("ledger")

    private_postgres.kill()
    away = f"WARNING eventflow.recovery: Postgres at {masked(world.database_url)}: "
    world.wait(lambda: away in worker.text, "it names Postgres")
    private_postgres.start()
    back = f"INFO    eventflow.recovery: Postgres at {masked(world.database_url)}: answers again"
    world.wait(lambda: back in worker.text, "it says that Postgres is back")
    world.produce(20)
    finish(world)
    assert "***" in masked(world.database_url)
    assert worker.alive


def test_postgres_is_killed_while_a_process_starts(private_world: World, private_postgres: Postgres) -> None:
    """After its first look at it: it waits as it would have before, and begins when all of it can be done."""
    world = private_world
    world.create_topic(1)
    worker = world.start("one_step", stop="ledger.before_commit")
    world.wait(lambda: worker.frozen, "it stands still in the middle of its start")
    private_postgres.kill()
    worker.thaw()
    world.wait(lambda: "trying again" in worker.text, "it says what it misses")
    assert worker.alive
    private_postgres.start()
    world.produce(3)
    world.wait_completed("billing")
