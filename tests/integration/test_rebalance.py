"""Workers come and go, positions are tampered with in Kafka, topics begin anew: every message completes exactly once."""

import random
import signal
import time

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from tests.harness import Load, Worker, World

GROUPS = ("billing", "weighing", "ledger", "ordered")


def finish(world: World) -> None:
    for group in GROUPS:
        world.wait_completed(group)
    for group in GROUPS:
        world.check(group, effects=group == "ledger")
    world.check_order("ordered")
    world.check_no_incidents()


@pytest.mark.parametrize("how", [pytest.param("kill", marks=pytest.mark.long), "mixed"])
def test_three_workers_join_and_leave_every_second(world: World, how: str) -> None:
    world.create_topic(4)
    chance = random.Random(how)
    workers = [world.start("mixed", ready=True), world.start("mixed"), world.start("mixed")]
    leaving: list[Worker] = []
    with Load(world, 150):
        for turn in range(10):
            due = time.monotonic() + 1
            worker = workers.pop(0)
            if how == "kill" or chance.random() < 0.5:
                worker.kill()
            else:
                worker.signal(signal.SIGTERM)
                leaving.append(worker)
            workers.append(world.start("mixed"))
            assert all(w.alive for w in workers), f"a worker died by itself in turn {turn}"
            time.sleep(max(0.0, due - time.monotonic()))
    finish(world)
    for worker in leaving:
        status = worker.process.wait(30)
        assert status == 0 or (status == -signal.SIGTERM and "runs" not in worker.text), "it had begun"


@pytest.mark.alone
@pytest.mark.parametrize(
    ("app", "group"),
    [
        ("ledger_psycopg", "ledger"),
        ("two_steps_sync", "billing"),
    ],
)
def test_rolling_restart_under_load(world: World, app: str, group: str) -> None:
    """Three workers are replaced one by one under load: no message stands still for more than a second."""
    world.create_topic(6)
    workers = [world.start(app, ready=True) for _ in range(3)]
    for worker in workers:
        world.wait_owner(worker, 2)
    with Load(world, 100):
        world.wait(lambda: world.completed(group) > 100, "messages pass")
        for old in list(workers):
            new = world.start(app)
            workers.append(new)
            world.wait_owner(new)
            assert old.stop() == 0
        before = world.completed(group)
        world.wait(lambda: world.completed(group) > before + 100, "messages pass")
    world.wait_completed(group)
    world.check(group, effects=group == "ledger")
    world.check_no_incidents()
    [(worst, p50)] = world.sql(
        """select max(took), percentile_cont(0.5) within group (order by took) from (
             select extract(epoch from finished_at) - timestamp / 1000.0 as took from eventflow.workflows
           ) as each"""
    )
    print(f"rolling restart of {app}: worst {worst:.3f} s, median {p50:.4f} s")
    assert worst < 1.0, f"a message stood still for {worst:.2f} s"
    assert world.one("select sum(recoveries) from eventflow.workflows") == 0


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_what_has_begun_before_a_rebalance_is_not_begun_again_after_it(world: World, colour: str) -> None:
    """Accepted before its partition is let go of, it stays with who began it (R8)."""
    world.create_topic(4)
    settings = {"COLOUR": colour, "PAUSE": "5", "EVENTFLOW_ACCEPT_AFTER": "10", "EVENTFLOW_LEASE": "10"}
    first = world.start("slow", ready=True, **settings)
    world.wait_owner(first, 4)
    world.produce(12)
    world.wait(lambda: world.one("select count(*) from effects") == 12, "all have begun")
    second = world.start("slow", **settings)
    world.wait_owner(second, 2)
    assert world.completed("billing") == 0, "they ended before the rebalance"
    world.wait_completed("billing")
    world.check("billing")
    assert world.sql("select count(*), count(distinct pid) from effects") == [(12, 1)]
    assert world.sql("select sum(recoveries), max(attempt) from eventflow.workflows") == [(0, 1)]


def stopped_group(world: World, app: str = "ledger_psycopg", group: str = "ledger") -> None:
    """Process some messages, and stop the workers cleanly."""
    worker = world.start(app, ready=True)
    world.produce(200)
    world.wait_completed(group)
    assert worker.stop() == 0


def test_committed_offsets_deleted(world: World) -> None:
    """Kafka's committed offsets are advisory: without them the ledger still knows where to go on."""
    world.create_topic(3)
    stopped_group(world)
    world.admin.delete_consumer_groups(["ledger"])["ledger"].result(20)
    world.produce(200)
    world.start("ledger_psycopg")
    world.wait_completed("ledger")
    world.check("ledger", effects=True)
    world.check_no_incidents()


@pytest.mark.parametrize("where", ["beginning", "end"])
def test_committed_offsets_reset(world: World, where: str) -> None:
    """Reset to the beginning nothing is done again; to the end, nothing is skipped."""
    world.create_topic(3)
    stopped_group(world)
    world.produce(200)
    offsets = {p: 0 if where == "beginning" else end for p, end in world.ends().items()}
    places = [TopicPartition(world.topic, p, offset) for p, offset in offsets.items()]
    world.wait(lambda: altered(world, places), "the offsets are altered")
    world.start("ledger_psycopg")
    world.wait_completed("ledger")
    world.check("ledger", effects=True)
    world.check_no_incidents()


def altered(world: World, places: list[TopicPartition]) -> bool:
    request = [ConsumerGroupTopicPartitions("ledger", places)]
    try:
        result = world.admin.alter_consumer_group_offsets(request)["ledger"].result(20)
    except Exception as error:
        print(f"not yet: {error}")  # the group is not empty yet
        return False
    return all(place.error is None for place in result.topic_partitions)


@pytest.mark.parametrize("running", [True, False], ids=["while running", "while stopped"])
@pytest.mark.parametrize("again", [100, 500], ids=["shorter", "longer"])
def test_topic_deleted_and_recreated(world: World, running: bool, again: int) -> None:
    """The new topic's messages are new messages, whatever their offsets; the old ones stay done."""
    world.create_topic(2)
    worker = world.start("ledger_psycopg", ready=True, ON_INCIDENT="earliest")
    world.produce(300)
    world.wait_completed("ledger")
    world.check("ledger", effects=True)
    if not running:
        assert worker.stop() == 0
    world.sql("update effects set topic = 'old'")
    world.delete_topic()
    world.create_topic(2)
    world.produce(again)
    if not running:
        world.start("ledger_psycopg", ON_INCIDENT="earliest")
    wait_new(world, again)
    assert world.sql("select incarnation, superseded from eventflow.sources order by 1") == [
        (1, True), (2, False),
    ]  # fmt: skip
    assert world.one("select count(*) from effects where topic = 'old'") == 300
    if not running:
        world.check("ledger", effects=True)


def test_topic_recreated_under_two_workers(world: World) -> None:
    """One of them notices first and leaves; the other is given its partitions under an id that is no more."""
    world.create_topic(4)
    workers = [world.start("ledger_psycopg", ready=True, ON_INCIDENT="earliest") for _ in range(2)]
    for worker in workers:
        world.wait_owner(worker, 2)
    world.produce(100)
    world.wait_completed("ledger")
    world.sql("update effects set topic = 'old'")
    world.delete_topic()
    world.create_topic(4)
    world.produce(200)
    wait_new(world, 200)
    assert all(worker.stop() == 0 for worker in workers)


def test_a_scope_that_is_blocked_goes_on_although_the_bound_is_reached(world: World) -> None:
    """The first message belonged to a dead worker; behind it waits more than may be in flight."""
    world.create_topic(1)
    first = world.start("ordered", ready=True, PAUSE="1", EVENTFLOW_MAX_IN_FLIGHT="5")
    world.produce(40)
    world.wait(lambda: world.one("select count(*) from eventflow.workflows where status = 'running'") > 0, "one runs")
    first.kill()
    world.start("ordered", EVENTFLOW_MAX_IN_FLIGHT="5")
    world.wait_completed("ordered")
    world.check("ordered")
    world.check_order("ordered")


def test_a_partition_that_went_while_it_was_paused_is_read_when_it_comes_back(world: World) -> None:
    """Short of room for a while, a worker pauses everything; a peer takes a partition meanwhile and gives it back."""
    world.create_topic(2)
    worker = world.start("slow", PAUSE="5", EVENTFLOW_MAX_IN_FLIGHT="2")
    world.wait_owner(worker, 2)
    for partition in (0, 1):
        world.send({"n": 0}, partition=partition)
    world.flush()
    full = "select count(*) = 2 and clock_timestamp() - max(at) > interval '1.2 s' from effects"
    world.wait(lambda: world.one(full), "there is no room for more than a second")
    peer = world.start("slow")
    world.wait_owner(peer)
    assert peer.stop() == 0
    world.wait_owner(worker, 2)
    world.wait_completed("billing")
    for partition in (0, 1):
        world.send({"n": 1, "do": "quick"}, partition=partition)
    world.flush()
    world.wait_completed("billing", timeout=5)
    world.check("billing")


def wait_new(world: World, count: int) -> None:
    """Every message of the new topic has been handled once: also those that were read as the old one's, before it was noticed."""
    new = "select count(*) from effects where topic = %s"
    assert sum(world.ends().values()) == count, "what was reported as delivered is not in the log"
    try:
        world.wait(lambda: world.one(new, world.topic) >= count, "the new topic's messages are done")
    except AssertionError as error:
        places = world.sql("""select partition, "offset" from effects where topic = %s""", world.topic)
        missing = {(p, o) for p, end in world.ends().items() for o in range(end)} - set(places)
        raise AssertionError(f"{error}; ends {world.ends()}, without effect {sorted(missing)}") from None
    ends = sum(world.ends().values())
    covered = """select sum(upper(c.accepted) + coalesce((select sum(upper(r) - lower(r)) from eventflow.deltas d, unnest(d.ranges) r
                 where d.claim = c.id), 0)) from eventflow.claims c join eventflow.sources s on s.id = c.source
                 where s.incarnation = 2"""
    world.wait(lambda: world.one(covered) == ends, "its positions are at its end")
    twice = """select partition, "offset", count(*) from effects where topic = %s group by 1, 2 having count(*) > 1"""
    assert world.sql(twice, world.topic) == []
    assert world.one(new, world.topic) == count


def test_partitions_added(world: World) -> None:
    """Partitions added later are read from their beginning."""
    from confluent_kafka.admin import NewPartitions

    world.create_topic(1)
    world.start("ledger_psycopg", ready=True, EVENTFLOW_KAFKA='{"topic.metadata.refresh.interval.ms": 500}')
    world.produce(100)
    world.admin.create_partitions([NewPartitions(world.topic, 3)])[world.topic].result(20)
    world.wait(lambda: world.has_partitions(3), "the partitions exist")
    known = lambda: len(world.producer.list_topics(world.topic, 5).topics[world.topic].partitions)  # noqa: E731
    world.wait(lambda: known() == 3, "the producer knows them")
    for n in range(100):
        world.send({"n": n}, partition=1 + n % 2)
    world.flush()
    world.wait_completed("ledger")
    world.check("ledger", effects=True)
    assert world.sql("select kind, subject, settled_by, skipped from eventflow.incidents order by 2") == [
        ("partitions", f"ledger {world.topic}/{n}", "eventflow", None) for n in (1, 2)
    ]


@pytest.mark.parametrize("committed", [None, 40])
def test_where_a_group_begins(world: World, committed: int | None) -> None:
    """The ledger has never seen it: at the group's committed offset, for a team that moves over, else at the start."""
    world.create_topic(1)
    world.produce(100)
    if committed is not None:
        places = [TopicPartition(world.topic, 0, committed)]
        world.wait(lambda: altered(world, places), "the offset is committed")
    world.start("ledger_psycopg")
    world.wait_completed("ledger", 100 - (committed or 0))
    rows = world.sql('select min("offset"), count(*) from eventflow.workflows')
    assert rows == [(committed or 0, 100 - (committed or 0))]
    assert world.one("select began from eventflow.claims") == ("committed" if committed else "earliest")
