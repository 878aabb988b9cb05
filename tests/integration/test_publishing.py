"""Published events are in Kafka exactly once, in order per key, for whoever reads committed messages."""

import asyncio
import itertools
import json
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
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

import eventflow
from eventflow import relay, slots, sync
from eventflow.local import Kafka, Postgres, kafka
from eventflow.numbering import Batch, Event, MismatchError
from eventflow.settings import Settings
from eventflow.slots import NotSentError, Slots
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


def publish_large(world: World, key: str | None, size: int = 2_000_000) -> None:
    world.sql("select eventflow.publish(%s, %s, to_jsonb(repeat('x', %s)))", f"{world.topic}-out", key, size)


def test_one_that_is_too_large_in_the_midst_of_many(world: World) -> None:
    """Kafka refuses it while the others of its batch are still handed over; those before it with its key go out."""
    world.create_topic(4)
    world.create_topic(4, f"{world.topic}-out")
    with psycopg.connect(world.database_url) as connection:
        publish = "select eventflow.publish(%s, %s, to_jsonb(%s::int))"
        connection.cursor().executemany(publish, [(f"{world.topic}-out", f"k{n % 3}", n) for n in range(10)])
        connection.execute("select eventflow.publish(%s, 'k0', to_jsonb(repeat('x', 2000000)))", [f"{world.topic}-out"])
        connection.cursor().executemany(publish, [(f"{world.topic}-out", f"k{n % 3}", n) for n in range(10, 4000)])
    world.start("publishing", OUT=f"{world.topic}-out")
    wait_relayed(world)
    out = {(e.key, int(e.value or b"")) for e in read_all(world, f"{world.topic}-out")}
    assert out == {(f"k{n % 3}".encode(), n) for n in range(4000) if n < 10 or n % 3}
    assert Counter((key, behind) for key, behind, _ in undelivered(world)) == {
        (b"k0", False): 1,
        (b"k0", True): len([n for n in range(10, 4000) if n % 3 == 0]),
    }


class OneByOne(list[Event]):
    """Events of which the second one is given when Kafka has refused the first."""

    def __init__(self, events: list[Event], producer: Callable[[], Producer]) -> None:
        super().__init__(events)
        self._producer = producer

    def __iter__(self) -> Iterator[Event]:
        first, *rest = super().__iter__()
        yield first
        until = time.monotonic() + 20
        while not self._producer().poll(0.1):  # only what is refused is told
            assert time.monotonic() < until
        yield from rest


def test_the_first_is_refused_while_the_others_are_handed_over(world: World) -> None:
    out = world.create_topic(1, f"{world.topic}-out")
    ours = Slots(world.bootstrap_servers, {}, world.topic, "eventflow-relay")
    ours.cluster()
    ours.open([0])
    large, fine = Event(1, out, None, b"x" * 2_000_000, []), Event(2, out, None, b"fine", [])
    with pytest.raises(NotSentError) as refused:
        ours.send(Batch(1, 0, "x", 2, datetime.now(UTC)), OneByOne([large, fine], lambda: ours._producers[0]))
    assert list(refused.value.guilty) == [1]
    ours.send(Batch(1, 0, "y", 1, datetime.now(UTC)), [fine])
    assert ours.numbers([0]) == {0: (1, "y")}
    ours.close()


def test_what_is_tried_again_stays_before_what_is_new(world: World) -> None:
    """Kafka refuses one of those that a person lets go of, so that their batch is taken back, while others come behind them."""
    world.create_topic(4)
    start(world)
    out = f"{world.topic}-out"
    for _ in range(3):
        publish_large(world, "mended", 1_500_000)
        publish_large(world, "bad", 3_000_000)
    publish_by_sql(world, "0", "mended")
    wait_relayed(world)
    assert len(undelivered(world)) == 7
    topic = ConfigResource(ResourceType.TOPIC, out)
    larger = ConfigEntry("max.message.bytes", "2000000", incremental_operation=AlterConfigOpType.SET)
    topic.add_incremental_config(larger)
    world.admin.incremental_alter_configs([topic])[topic].result(20)
    world.sql("update eventflow.undelivered set wanted = 'retry'")
    over = threading.Event()

    def publish() -> int:
        publish = "select eventflow.publish(%s, 'mended', jsonb_build_object('by', %s::text))"
        with psycopg.connect(world.database_url, autocommit=True) as connection:
            for n in itertools.count(1):
                connection.execute(publish, [out, str(n)])
                if over.is_set():
                    return n
        raise AssertionError

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(publish)
        try:
            world.wait(
                lambda: Counter(key for key, _, _ in undelivered(world)) == {b"bad": 3}, "what is mended goes out"
            )
        finally:
            over.set()
    wait_relayed(world)
    world.wait(lambda: len(undelivered(world)) == 3, "nothing else is parked")
    values = [json.loads(e.value or b"") for e in read_all(world, out) if e.key == b"mended"]
    expected = ["large"] * 3 + [str(n) for n in range(last.result() + 1)]
    assert [v["by"] if isinstance(v, dict) else "large" for v in values] == expected


def test_rows_that_no_event_can_be_made_of(world: World) -> None:
    world.create_topic(4)
    start(world)
    out = f"{world.topic}-out"
    insert = "insert into eventflow.outbox (topic, key, value, headers) values (%s, %s, %s, %s)"
    for headers in ("no JSON", "7", '["ab"]', '[["a", "no base64"]]', '[[1, "eA=="]]', '[["a\\u0000", "eA=="]]'):
        world.sql(insert, out, b"k", b"v", headers)
    world.sql(insert, "x" * 600, b"k", b"v", None)
    relays = f"eventflow-relay-{world.one('select id::text from eventflow.ledger')}"
    world.sql(insert, relays, b"k", b"v", None)
    publish_by_sql(world, "fine", "other")
    wait_relayed(world)
    assert [e.key for e in read_all(world, out)] == [b"other"]
    reasons = [reason for _, _, reason in undelivered(world)]
    assert sum("these headers are no JSON" in r or r.startswith("behind") or "NUL" in r for r in reasons) == 6
    assert any("not a topic" in r for r in reasons)
    assert any("the relay's own" in r for r in reasons)
    with sync.Client(world.database_url) as client:
        assert len(client.undelivered()) == 8


def test_what_nobody_has_thought_of_ends_no_relay(world: World) -> None:
    """What is raised where nothing should be is said, with an incident, and publishing goes on once it is over."""
    world.create_topic(4)
    worker = start(world, RAISES="3")
    world.produce(50)
    finish_but_incidents(world)
    assert "publishing failed; another process may try" in worker.text
    [(detail,)] = world.sql("select detail from eventflow.incidents where kind = 'relay'")
    assert detail == "publishing failed: RuntimeError: of the test"


def finish_but_incidents(world: World) -> None:
    for group in ("flow", "ledger"):
        world.wait_completed(group)
    wait_relayed(world)


async def test_a_program_that_publishes_and_leaves_at_once(world: World) -> None:
    """It is the first one of its ledger: topic and producers are made while it leaves."""
    out = world.create_topic(1, f"{world.topic}-out")
    settings = Settings(database_url=world.database_url, kafka_bootstrap_servers=world.bootstrap_servers)
    async with eventflow.running(settings, consumers=False):
        await eventflow.publish(out, b"last words")
    assert [e.value for e in read_all(world, out)] == [b"last words"]


async def test_a_batch_that_takes_too_long_is_halved(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brokers end a transaction after ten seconds; with a slow way to them, fewer events have to be in one."""
    out = world.create_topic(1, f"{world.topic}-out")
    send = Slots._send

    def sent(self: Slots, batch: Batch, events: Sequence[Event]) -> None:
        if len(events) > 4:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        send(self, batch, events)

    monkeypatch.setattr(Slots, "_send", sent)
    monkeypatch.setattr(relay, "_SLOW", 0.0)
    for n in range(30):
        publish_by_sql(world, str(n), "k", out)
    settings = Settings(database_url=world.database_url, kafka_bootstrap_servers=world.bootstrap_servers)
    async with eventflow.running(settings, consumers=False):
        await eventflow.publish(out, b"{}")
        await asyncio.to_thread(wait_relayed, world)
    assert [json.loads(e.value or b"")["by"] for e in read_all(world, out) if e.key == b"k"] == [
        str(n) for n in range(30)
    ]


@pytest.mark.parametrize("described", [False, True], ids=["unseen", "seen"])
def test_a_topic_that_may_not_be_written_to(
    world: World, private_root: Path, monkeypatch: pytest.MonkeyPatch, described: bool
) -> None:
    """Whether it is known before anything is sent depends on whether the topic may be described."""
    rules = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nallow.everyone.if.no.acl.found=true\n"
    monkeypatch.setattr(kafka, "_PROPERTIES", kafka._PROPERTIES + rules)
    broker = Kafka(private_root)
    broker.start()
    try:
        world.bootstrap_servers = broker.bootstrap_servers
        barred_and_let_go(world, described)
    finally:
        broker.stop()


def barred_and_let_go(world: World, described: bool) -> None:
    world.create_topic(4)
    start(world)
    barred = world.create_topic(2, f"{world.topic}-barred")
    rules = [
        AclBinding(
            ResourceType.TOPIC, barred, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission
        )
        for operation, permission in [
            (AclOperation.WRITE, AclPermissionType.DENY),
            (AclOperation.READ, AclPermissionType.ALLOW),
            (AclOperation.ALTER, AclPermissionType.ALLOW),
        ][: 3 if described else 1]
    ]
    for made in world.admin.create_acls(rules).values():
        made.result(20)
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


def test_whether_a_batch_is_out_beside_another_programs_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is shown what is committed behind one that is open: until it ends, the answer is not no."""
    monkeypatch.setattr(slots, "_SCAN", 1.0)
    out = world.create_topic(1, f"{world.topic}-out")
    other = Producer({"bootstrap.servers": world.bootstrap_servers, "transactional.id": world.topic})
    other.init_transactions()
    other.begin_transaction()
    other.produce(out, b"another program's")
    other.flush()
    ours = Slots(world.bootstrap_servers, {}, world.topic, "eventflow-relay")
    ours.cluster()
    ours.open([0])
    batch, events = Batch(1, 0, "x", 1, datetime.now(UTC)), [Event(7, out, None, b"ours", [])]
    assert not ours.is_out(Batch(1, 0, "x", 1, datetime.now(UTC) + timedelta(hours=2)), events)  # nothing came since
    ours.send(batch, events)
    with pytest.raises(MismatchError, match="cannot be read to its end"):
        ours.is_out(batch, events)
    other.abort_transaction()
    monkeypatch.setattr(slots, "_SCAN", 30.0)
    assert ours.is_out(batch, events)
    assert not ours.is_out(batch, [Event(8, out, None, b"not ours", [])])
    ours.close()


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
