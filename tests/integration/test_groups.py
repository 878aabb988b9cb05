"""What a consumer group does: who reads what, who joins and leaves, and what that costs those who stay."""

import json
import random
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupType, KafkaError, KafkaException

from tests.harness import Load, World

PARTITIONS = 6


def kafka(**properties: object) -> dict[str, str]:
    """What a worker is given; with a lease that is not lost on a crowded machine, for that would claim all anew."""
    given = {name.replace("_", "."): value for name, value in properties.items()}
    if given.get("group.protocol") != "consumer":
        given = {"session.timeout.ms": 6000} | given
    return {"EVENTFLOW_KAFKA": json.dumps(given), "EVENTFLOW_LEASE": "5", "EVENTFLOW_BEAT": "1"}


def described(world: World, group: str) -> Any:
    return world.admin.describe_consumer_groups([group])[group].result(20)


@pytest.fixture(autouse=True)
def empty(world: World) -> None:
    """Other tests' members of the group are gone: one of another protocol is not let in before."""

    def is_empty() -> bool:
        try:
            return not described(world, "billing").members
        except KafkaException as error:  # or its coordinator has yet to be found
            return error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND

    world.wait(is_empty, "the group is empty", 60)


def epochs(world: World, group: str) -> dict[int, tuple[int, int]]:
    """Of each partition: who has it, and under which epoch."""
    rows = world.sql(
        """select partition, coalesce((select pid from eventflow.executors e where e.id = c.owner), 0), epoch
             from eventflow.claims c where "group" = %s""",
        group,
    )
    return {partition: (pid, epoch) for partition, pid, epoch in rows}


@pytest.mark.crash
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_who_joins_takes_only_what_he_is_given(world: World, protocol: str) -> None:
    """Cooperative by default, and under KIP-848: who stays reads on; one leaves, one is killed, and each message is done once."""
    world.create_topic(PARTITIONS)
    settings = kafka(group_protocol=protocol)
    with Load(world, 200):
        first = world.start("one_step", **settings)
        world.wait_owner(first, PARTITIONS)
        begun = epochs(world, "billing")
        second = world.start("one_step", **settings)
        world.wait_owner(second, PARTITIONS // 2)
        world.wait(lambda: world.owned(first) == PARTITIONS // 2, "they share")
        shared = epochs(world, "billing")
        stayed = [p for p, (pid, _) in shared.items() if pid == first.pid]
        assert len(stayed) == PARTITIONS // 2
        assert {p: shared[p] for p in stayed} == {p: begun[p] for p in stayed}, "what stays is not claimed again"
        group = described(world, "billing")
        if protocol == "consumer":
            assert "its group.consumer.session.timeout.ms says how soon" in first.text
            assert group.type == ConsumerGroupType.CONSUMER
        else:
            assert (group.type, group.partition_assignor) == (ConsumerGroupType.CLASSIC, "cooperative-sticky")
        assert second.stop() == 0
        world.wait_owner(first, PARTITIONS)
        third = world.start("one_step", **settings)
        world.wait_owner(third, PARTITIONS // 2)
        first.kill()
        world.wait(lambda: world.owned(third) == PARTITIONS, "it takes all over", 60)
    world.wait_completed("billing")
    world.check("billing")
    world.check_no_incidents()


def test_a_static_member_that_comes_back_moves_nothing(world: World) -> None:
    """A rolling restart with `group.instance.id`: who is gone for less than the session keeps his partitions, and peers theirs."""
    world.create_topic(PARTITIONS)
    session = {"session_timeout_ms": 15000}
    stays = world.start("one_step", **kafka(group_instance_id="a", **session))
    goes = world.start("one_step", **kafka(group_instance_id="b", **session))
    world.wait(lambda: world.owned(stays) == world.owned(goes) == PARTITIONS // 2, "they share")
    before = epochs(world, "billing")
    world.produce(60)
    world.wait_completed("billing", 60)
    assert goes.stop() == 0
    back = world.start("one_step", **kafka(group_instance_id="b", **session))
    world.wait_owner(back, PARTITIONS // 2)
    after = epochs(world, "billing")
    its = {p: held for p, held in before.items() if held[0] == stays.pid}
    assert {p: after[p] for p in its} == its
    assert {p for p, (pid, _) in after.items() if pid == back.pid} == before.keys() - its.keys()
    world.produce(60)
    world.wait_completed("billing")
    world.check("billing")


def test_two_of_one_instance_id_are_told_so(world: World) -> None:
    """The older one ends and says why; nothing is done twice."""
    world.create_topic(2)
    older = world.start("one_step", ready=True, **kafka(group_instance_id="a"))
    world.produce(20)
    world.wait_completed("billing")
    world.start("one_step", **kafka(group_instance_id="a"))
    assert world.wait_death(older) == 1
    [line] = [line for line in older.text.splitlines() if line.startswith("error: ")]
    assert "bill is no member of group 'billing' as 'a' any more" in line
    assert "fenced by other consumer with same group.instance.id" in line
    world.produce(20)
    world.wait_completed("billing")
    world.check("billing")


def resident(pid: int) -> int:
    """Megabytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096 // 1024**2


def test_what_is_fetched_ahead_is_bounded(world: World) -> None:
    """A backlog of 200 MB, and handlers that do not keep up: what waits in memory is what the settings say."""
    world.create_topic(4)
    value = random.Random(1).randbytes(50_000).hex()
    for n in range(2000):
        world.send({"n": n, "pad": value}, key=str(n))
    world.flush()
    settings = kafka(queued_max_messages_kbytes=8192, fetch_message_max_bytes=1_000_000)
    worker = world.start("slow", ready=True, EVENTFLOW_MAX_IN_FLIGHT="20", **settings)
    world.wait(lambda: world.completed("billing") > 20, "it works")
    early = resident(worker.pid)
    world.wait(lambda: world.completed("billing") > 400, "it has gone on")
    assert resident(worker.pid) < early + 40
    assert resident(worker.pid) < 250
