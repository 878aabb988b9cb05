"""Published events are in Kafka exactly once, in order per key, for whoever reads committed messages."""

import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from eventflow import sync
from eventflow.local import Kafka, Postgres, kafka
from tests.harness import Load, Read, Worker, World, few, pick, read_all, seeds


def wait_relayed(world: World, timeout: float = 60) -> None:
    """Wait until the outbox is empty."""
    world.wait(lambda: world.one("select count(*) from eventflow.outbox") == 0, "the outbox is empty", timeout)


def start(world: World, *, ready: bool = True, crash: str = "", stop: str = "", **settings: str) -> Worker:
    if not world.workers:
        world.create_topic(4, f"{world.topic}-out")
    return world.start("publishing", ready=ready, crash=crash, stop=stop, OUT=f"{world.topic}-out", **settings)


def start_holder(world: World, **armed: str) -> Worker:
    """A worker that relays, or has died or been frozen where it began to."""
    worker = start(world, **armed)
    publish_by_sql(world, "first")
    world.wait(
        lambda: not worker.alive or worker.frozen
        or world.one("select holder from eventflow.relay") == world.executor(worker),
        "it relays",
    )  # fmt: skip
    return worker


def numbers(events: Iterable[Read], by: str) -> list[int]:
    return [v["n"] for e in events if (v := json.loads(e.value or b"{}"))["by"] == by]


def check(world: World) -> list[Read]:
    events = read_all(world, f"{world.topic}-out")
    for by in ("step", "flow", "ledger"):
        assert Counter(numbers(events, by)) == dict.fromkeys(range(world.produced), 1), by
    ids = [event.headers["eventflow-id"] for event in events]
    assert len(set(ids)) == len(ids)
    world.check_no_incidents()
    return events


def in_order(events: list[Read]) -> None:
    """What handlers of one partition, one after another, have published under its key."""
    by_key = defaultdict[bytes, list[int]](list)
    for event in events:
        if event.key and event.key.startswith(b"flow-"):
            by_key[event.key].append(json.loads(event.value or b"")["n"])
    assert by_key
    assert all(n == sorted(n) for n in by_key.values())


def test_each_event_is_published_once(world: World) -> None:
    world.create_topic(4)
    start(world)
    world.produce(300)
    for group in ("flow", "ledger"):
        world.wait_completed(group)
    wait_relayed(world)
    in_order(check(world))


# ---- whatever dies -------------------------------------------------------------------------------

UNDER_LOAD = {  # point -> how often at most it is passed before the kill
    "relay.before_numbering": 8, "relay.in_numbering": 5, "relay.after_numbering": 5, "relay.after_produce": 5,
    "relay.before_commit": 5, "relay.after_commit": 5, "journal.before_commit": 6, "journal.after_commit": 6,
    "transactions.before_commit": 4,
}  # fmt: skip
AT_START = ("relay.after_claim", "relay.after_init", "relay.before_settling")


def finish(world: World) -> list[Read]:
    for group in ("flow", "ledger"):
        world.wait_completed(group)
    wait_relayed(world)
    return check(world)


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds(default=1))
@pytest.mark.parametrize(
    "point",
    few(UNDER_LOAD, "relay.in_numbering", "relay.after_produce", "relay.before_commit", "journal.before_commit"),
)
def test_killed_while_it_publishes(world: World, point: str, seed: int) -> None:
    count = pick(seed, point, choices=range(1, UNDER_LOAD[point] + 1))
    world.create_topic(4)
    victim = start_holder(world, crash=f"{point}:{count}")
    peer = start(world, ready=False)
    world.produce(400, over=1.5)
    assert world.wait_death(victim) == -signal.SIGKILL, count
    assert f"crash point {point}: SIGKILL" in victim.text
    in_order(finish(world))
    assert peer.alive


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds(default=1))
@pytest.mark.parametrize("point", few(AT_START, "relay.after_init"))
def test_killed_while_it_takes_the_relay_over(world: World, point: str, seed: int) -> None:
    """The first holder dies with a batch that is due, out or not out; the second while it finds out which."""
    first = pick(seed, point, choices=["relay.after_numbering", "relay.before_commit", "relay.after_commit"])
    world.create_topic(4)
    holder = start_holder(world, crash=f"{first}:{pick(seed, 'count', choices=range(1, 5))}")
    with Load(world, 200):
        world.wait_death(holder)
    taker = start(world, ready=False, crash=f"{point}:1")
    assert world.wait_death(taker) == -signal.SIGKILL
    assert f"crash point {point}: SIGKILL" in taker.text
    start(world)
    world.produce(50)
    in_order(finish(world))


@pytest.mark.crash
@pytest.mark.long
@pytest.mark.parametrize("seed", seeds())
def test_killed_again_and_again(world: World, seed: int) -> None:
    """Three workers, one of which is killed at some point of the relay or the journal, eight times."""
    world.create_topic(4)
    points = [*UNDER_LOAD, *AT_START]
    fill_up(world)
    with Load(world, 200):
        for n in range(8):
            point = pick(seed, n, choices=points)
            victim = start(world, ready=False, crash=f"{point}:{pick(seed, n, 'count', choices=range(1, 6))}")
            others = [w for w in world.workers if w.alive and w is not victim]
            pick(seed, n, "other", choices=others).kill()  # who holds the relay, every other time
            world.wait(lambda v=victim: not v.alive or world.owned(v), "it works, or is gone")
            fill_up(world)
    start(world)  # whoever has yet to come to its point may do so at any time
    in_order(finish(world))


def fill_up(world: World) -> None:
    """Three workers, and no more: each of them is to have a partition."""
    while sum(worker.alive for worker in world.workers) < 3:
        start(world)


@pytest.mark.parametrize(
    "point",
    few(
        ["relay.in_numbering", "relay.after_numbering", "relay.before_commit", "relay.after_claim"],
        "relay.before_commit",
    ),
)
def test_a_zombie_that_wakes_up_after_a_takeover(world: World, point: str) -> None:
    """Frozen with a transaction of the ledger open, with a batch that is not sent, inside its Kafka transaction."""
    world.create_topic(4)
    victim = start_holder(world, stop=f"{point}:{1 if point == 'relay.after_claim' else 3}")
    with Load(world, 100):
        world.wait(lambda: victim.frozen, "it is frozen")
    old = world.executor(victim)
    start(world)
    world.wait(lambda: not world.one("select alive from eventflow.executors where id = %s", old), "it is taken over")
    wait_relayed(world)
    victim.thaw()
    world.wait(lambda: (world.executor(victim) or 0) > (old or 0), "the zombie starts again as a new executor")
    world.produce(100)
    in_order(finish(world))
    assert all(worker.alive for worker in world.workers)


@pytest.mark.long
def test_both_servers_are_killed_and_restarted(
    private_world: World, private_kafka: Kafka, private_postgres: Postgres
) -> None:
    world = private_world
    world.create_topic(4)
    workers = [start(world), start(world)]
    with Load(world, 150):
        for server in (private_kafka, private_postgres, private_kafka):
            before = world.completed("ledger")
            world.wait(lambda n=before: world.completed("ledger") > n + 60, "messages pass")
            server.kill()
            server.start()
    in_order(finish(world))
    assert all(worker.alive for worker in workers)


def test_the_relays_sessions_are_terminated_again_and_again(world: World) -> None:
    world.create_topic(4)
    start(world)
    with Load(world, 200):
        until = time.monotonic() + 3
        while time.monotonic() < until:
            world.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'eventflow relay' and datname = current_database()"
            )
            time.sleep(0.05)
    in_order(finish(world))


def test_a_transaction_that_does_not_come_back_from_librdkafka(world: World, tmp_path: Path) -> None:
    """What is published is not held up by it for good; and when it does come back, it is too late to commit."""
    world.create_topic(4)
    found = tmp_path / "found"
    worker = start(world, LOSES="5", FOUND=str(found))
    with Load(world, 50):
        world.wait(lambda: "publishing begins anew" in worker.text, "it is given up")
    finish(world)
    assert world.one("select epoch from eventflow.relay") == 2
    sessions = """select count(*) from pg_stat_activity
                  where application_name = 'eventflow relay' and datname = current_database()"""
    assert world.one(sessions) == 2
    found.touch()
    world.wait(lambda: world.one(sessions) == 1, "the thread that was left to librdkafka ends")
    world.produce(100)
    in_order(finish(world))
    assert world.one("select epoch from eventflow.relay") == 2
    assert worker.alive


@pytest.mark.long
def test_the_broker_restarts_where_librdkafka_bootstraps_anew(private_world: World, private_kafka: Kafka) -> None:
    """With which it forgets a group's coordinator, and a transaction that waits for that one (its issue 5511)."""
    world = private_world
    world.defaults["EVENTFLOW_KAFKA"] = '{"session.timeout.ms": 2000, "metadata.recovery.strategy": "rebootstrap"}'
    world.create_topic(4)
    worker = start(world)
    with Load(world, 150):
        world.wait(lambda: world.completed("ledger") > 60, "messages pass")
        private_kafka.kill()
        private_kafka.start()
    in_order(finish(world))
    assert worker.alive


@pytest.mark.alone
def test_another_process_relays_within_ten_seconds_by_default(world: World) -> None:
    world.defaults = {}
    world.create_topic(4)
    workers = [start(world), start(world)]
    world.produce(20)
    finish(world)
    holds = world.wait(lambda: world.one("select holder from eventflow.relay"), "somebody relays")
    [holder] = [worker for worker in workers if world.executor(worker) == holds]
    holder.kill()
    at = time.monotonic()
    publish_by_sql(world, "late")
    wait_relayed(world, 10)
    assert time.monotonic() - at < 10


# ---- rows by plain SQL ---------------------------------------------------------------------------


def publish_by_sql(world: World, by: str, key: str | None = None, topic: str | None = None) -> str:
    return world.one(
        "select eventflow.publish(%s, %s, jsonb_build_object('by', %s::text, 'n', 0), '{\"a\": \"ü\"}')",
        topic or f"{world.topic}-out", key, by,
    )  # fmt: skip


def test_rows_by_plain_sql_are_published(world: World) -> None:
    world.create_topic(4)
    start(world)
    named = publish_by_sql(world, "sql", "k")
    world.sql("select eventflow.publish_bytes(%s, %s, %s)", f"{world.topic}-out", b"\x00", None)
    world.sql("insert into eventflow.outbox (topic, value) values (%s, %s)", f"{world.topic}-out", b"raw")
    wait_relayed(world)
    found = {e.key: e for e in read_all(world, f"{world.topic}-out")}
    assert json.loads(found[b"k"].value or b"") == {"by": "sql", "n": 0}
    assert found[b"k"].headers == {"a": "ü".encode(), "eventflow-id": named.encode()}
    assert found[b"\x00"].value is None
    assert found[None].value == b"raw"
    for wrong in (
        "select eventflow.publish('no topic', 'k', '1')",
        "select eventflow.publish('t', 'k', '1', '[]')",
        "select eventflow.publish('t', 'k', '1', '{\"a\": 1}')",
        "select eventflow.publish('t', 'k', '1', '{\"eventflow-id\": \"x\"}')",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            world.sql(wrong)


# ---- what Kafka refuses --------------------------------------------------------------------------


def undelivered(world: World) -> list[tuple[bytes, bool, str]]:
    return world.sql("select key, behind, reason from eventflow.undelivered order by id")


def test_what_cannot_go_out_is_parked_and_blocks_only_its_key(world: World) -> None:
    world.create_topic(4)
    out = f"{world.topic}-out"
    start(world)
    large = "select eventflow.publish(%s, %s, to_jsonb(repeat('x', 2000000)))"
    world.sql(large, out, "big")
    for key in ("big", "small", "big"):
        publish_by_sql(world, key, key)
    publish_by_sql(world, "nowhere", "k", f"{out}-not-there")
    for n in range(50):
        publish_by_sql(world, f"other {n}", f"o{n}")
    world.sql(large, out, None)
    wait_relayed(world)
    assert {e.key for e in read_all(world, out)} == {b"small", *(f"o{n}".encode() for n in range(50))}
    parked = sorted((key or b"", behind) for key, behind, _ in undelivered(world))
    assert parked == [(b"", False), (b"big", False), (b"big", True), (b"big", True), (b"k", False)]
    reasons = " ".join(reason for _, _, reason in undelivered(world))
    assert "larger than Kafka takes" in reasons
    assert "there is no such topic" in reasons
    kinds = world.sql("select kind, subject from eventflow.incidents order by 2")
    assert kinds == [("undelivered", out), ("undelivered", f"{out}-not-there")]

    # A person makes the topic, and decides.
    world.create_topic(1, f"{out}-not-there")
    with sync.Client(world.database_url) as client:
        all_of = client.undelivered()
        assert [e.key for e in all_of if e.behind] == [b"big", b"big"]
        [nowhere] = [e for e in all_of if e.key == b"k"]
        assert nowhere.headers["a"] == "ü".encode()
        assert client.retry_undelivered([nowhere.id]) == 1
        world.wait(lambda: len(undelivered(world)) == 4, "it goes out")
        assert [e.headers["eventflow-id"] for e in read_all(world, f"{out}-not-there")] == [nowhere.event_id.encode()]
        assert client.retry_undelivered() == 2  # still too large: refused again
        world.wait(
            lambda: world.one("select count(*) from eventflow.undelivered where wanted is not null") == 0,
            "refused again",
        )
        assert len(undelivered(world)) == 4
        assert client.drop_undelivered([e.id for e in all_of if not e.behind]) == 2
        world.wait(lambda: not undelivered(world), "what was behind goes out")
    wait_relayed(world)
    publish_by_sql(world, "after", "big")
    wait_relayed(world)
    values = [json.loads(e.value or b"")["by"] for e in read_all(world, out) if e.key == b"big"]
    assert values == ["big", "big", "after"]


def test_a_topic_that_may_not_be_written_to(world: World, private_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nallow.everyone.if.no.acl.found=true\n"
    monkeypatch.setattr(kafka, "_PROPERTIES", kafka._PROPERTIES + rules)
    broker = Kafka(private_root)
    broker.start()
    try:
        world.bootstrap_servers = broker.bootstrap_servers
        barred_and_let_go(world)
    finally:
        broker.stop()


def barred_and_let_go(world: World) -> None:
    world.create_topic(4)
    start(world)
    barred = world.create_topic(2, f"{world.topic}-barred")
    rule = AclBinding(
        ResourceType.TOPIC, barred, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", AclOperation.WRITE,
        AclPermissionType.DENY,
    )  # fmt: skip
    world.admin.create_acls([rule])[rule].result(20)
    for n in range(40):
        publish_by_sql(world, f"barred {n}", f"k{n % 4}", barred if n % 2 else None)
    wait_relayed(world)
    assert len(read_all(world, f"{world.topic}-out")) == 20
    assert len(undelivered(world)) == 20
    assert {reason.partition(" (")[0] for _, behind, reason in undelivered(world) if not behind} == {
        "this program may not write to the topic"
    }
    world.admin.delete_acls([AclBindingFilter(
        ResourceType.TOPIC, barred, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )])  # fmt: skip
    world.sql("update eventflow.undelivered set wanted = 'retry' where not behind")
    world.wait(lambda: not undelivered(world), "they go out")
    wait_relayed(world)
    published = read_all(world, barred)
    assert Counter(numbers_of(published)) == dict.fromkeys(range(1, 40, 2), 1)


def numbers_of(events: list[Read]) -> list[int]:
    return [int(json.loads(e.value or b"")["by"].split()[1]) for e in events]


# ---- what ledger and Kafka say of each other ---------------------------------------------------------


def forget_numbers(world: World) -> None:
    """Delete the relay's topic."""
    topic = f"eventflow-relay-{world.one('select id::text from eventflow.ledger')}"
    world.admin.delete_topics([topic])[topic].result(20)
    world.wait(lambda: topic not in world.admin.list_topics(timeout=10).topics, "the relay's topic is gone")


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param("", id="nothing due"),
        pytest.param("relay.after_numbering", id="due and not out", marks=pytest.mark.long),
        pytest.param("relay.after_commit", id="due and out"),
    ],
)
def test_numbers_that_kafka_has_forgotten(world: World, crash: str) -> None:
    """The relay's topic is gone: a batch that is due is looked for in its own, and sent only where it is not there."""
    world.create_topic(4)
    victim = start(world, ready=not crash, crash=f"{crash}:2" if crash else "")
    if crash:
        with Load(world, 50):
            world.wait_death(victim)
    else:
        world.produce(50)
        finish(world)
        victim.kill()
    forget_numbers(world)
    peer = start(world)
    world.produce(20)
    finish(world)
    peer.stop()


def test_where_the_topic_forgets_too_a_person_decides(world: World) -> None:
    """A batch is due, its number is gone, and its events may have been there: sent again, they could be there twice."""
    world.create_topic(4)
    victim = start(world, ready=False, crash="relay.after_numbering:2")
    with Load(world, 50):
        world.wait_death(victim)
    out = ConfigResource(ResourceType.TOPIC, f"{world.topic}-out")
    out.add_incremental_config(ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET))
    world.admin.incremental_alter_configs([out])[out].result(20)
    forget_numbers(world)
    start(world)
    [(detail,)] = world.wait(
        lambda: world.sql("select detail from eventflow.incidents where kind = 'relay'"), "it tells a person"
    )
    assert "may have had its events and lost them" in detail


def test_a_ledger_that_has_lost_commits_publishes_nothing(world: World) -> None:
    world.create_topic(4)
    worker = start(world)
    world.produce(50)
    finish(world)
    worker.kill()
    world.sql("delete from eventflow.outbox_batches where n = (select max(n) from eventflow.outbox_batches)")
    publish_by_sql(world, "late")
    start(world)
    [(detail,)] = world.wait(
        lambda: world.sql("select detail from eventflow.incidents where kind = 'relay'"), "it tells a person"
    )
    assert "it has lost commits" in detail
    assert world.one("select count(*) from eventflow.outbox") == 1
