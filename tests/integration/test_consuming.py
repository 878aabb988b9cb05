"""Where consumers begin, how far they have come, and how much they take at once."""

from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition

from tests.harness import World


def batch(world: World, producer: Producer, count: int, *, commit: bool) -> None:
    """A Kafka transaction of so many messages per partition, committed or not; each leaves a marker in the log, too."""
    producer.begin_transaction()
    for n in range(count):
        for partition in (0, 1):
            producer.produce(world.topic, b'{"n": %d}' % n, partition=partition)
    producer.flush(20)
    producer.commit_transaction(20) if commit else producer.abort_transaction(20)


def positions(world: World, group: str) -> dict[int, int] | None:
    """Per partition where the group stands in the ledger; None while a claim has pieces, or deltas are not folded."""
    rows = world.sql("""select partition, accepted from eventflow.claims where "group" = %s""", group)
    if world.one("select count(*) from eventflow.deltas") or any(len(accepted) > 1 for _, accepted in rows):
        return None
    return {partition: accepted[0].upper for partition, accepted in rows}


def committed(world: World, group: str) -> dict[int, int]:
    places = [TopicPartition(world.topic, p) for p in (0, 1)]
    asked = world.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])
    return {p.partition: p.offset for p in asked[group].result(20).topic_partitions or ()}


def test_positions_reach_the_ends_over_gaps_and_kafka_is_told(world: World) -> None:
    """What was aborted is nobody's, between messages and after the last; a group that begins at the end sees what comes."""
    world.create_topic(2)
    producer = Producer({"bootstrap.servers": world.bootstrap_servers, "transactional.id": world.topic})
    producer.init_transactions(20)
    batch(world, producer, 3, commit=False)
    batch(world, producer, 5, commit=True)
    world.wait(lambda: world.ends() == {0: 10, 1: 10}, "messages and a marker for each batch")
    worker = world.start("positions")
    world.wait_owner(worker, 4)
    for commit in (True, False, True, False):
        batch(world, producer, 5, commit=commit)
    ends = {0: 34, 1: 34}
    world.wait(lambda: world.ends() == ends, "messages and a marker for each batch")
    world.wait_completed("billing", 2 * 15)
    world.wait_completed("latest", 2 * 10)
    for group in ("billing", "latest"):
        world.wait(lambda g=group: positions(world, g) == ends, f"{group} stands at the ends")
        world.wait(lambda g=group: committed(world, g) == ends, f"{group}'s committed offsets are kept up")
    first = """select c."group", c.partition, min(w."offset"), count(*), c.began from eventflow.workflows w
               join eventflow.claims c on c.id = w.claim group by 1, 2, 5 order by 1, 2"""
    assert world.sql(first) == [
        *(("billing", p, 4, 15, "earliest") for p in (0, 1)),
        *(("latest", p, 10, 10, "latest") for p in (0, 1)),
    ]
    world.check_no_incidents()


def test_a_pattern_reads_what_matches_and_what_comes_later(world: World) -> None:
    """In the session that there is: nothing that is read already stands still for it."""
    names = [world.create_topic(1), world.create_topic(1, f"{world.topic}-a"), world.create_topic(1, f"x{world.topic}")]
    worker = world.start("pattern", ready=True)
    for topic in names:
        world.send({"n": 1}, topic=topic)
    world.flush()
    read = """select topic, count(*) from effects group by 1 order by 1"""
    world.wait(lambda: world.sql(read) == [(name, 1) for name in sorted(names[:2])], "both are read, the third is not")
    late = world.create_topic(2, f"{world.topic}-b")
    for partition in (0, 1):
        world.send({"n": 2}, topic=late, partition=partition)
    world.flush()
    world.wait(lambda: world.one("select count(*) from effects where topic = %s", late) == 2, "the new one is read")
    epochs = """select distinct c.epoch from eventflow.claims c join eventflow.sources s on s.id = c.source where s.topic <> %s"""
    assert world.sql(epochs, late) == [(1,)], "nobody had to claim anew"
    world.check_no_incidents()
    assert worker.stop() == 0


def members(world: World, group: str) -> list[tuple[str, str | None]]:
    """Who is in the group: its id, and the one it has given itself."""
    described = world.admin.describe_consumer_groups([group])[group].result(20)
    return [(member.member_id, member.group_instance_id) for member in described.members]


def test_what_is_in_flight_is_bounded_and_costs_no_membership(world: World) -> None:
    """The bound is reached and kept; a handler may block for longer than `max.poll.interval.ms`; properties are each its own."""
    world.create_topic(1)
    worker = world.start("bounded")
    world.wait_owner(worker, 3)
    before = {group: members(world, group) for group in ("async", "sync", "blocking")}
    assert {group: given for group, [(_, given)] in before.items()} == {"async": "mine", "sync": None, "blocking": None}
    world.produce(60)
    for group, who in before.items():
        world.wait_completed(group)
        world.check(group)
        assert members(world, group) == who
    most = dict(world.sql('select "group", max(note::int) from effects group by 1'))
    assert most == {"async": 5, "sync": 4}
    assert world.sql("select distinct epoch from eventflow.claims") == [(1,)]
    assert worker.stop() == 0
