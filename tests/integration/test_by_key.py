"""In the order of keys: one message of a key after another, through whatever happens; and no key waits for another one."""

import random
import time

import pytest

from tests.harness import World, few_seeds

KINDS = ("async", "sync", "transaction")
KEYS = 25


def produce(world: World, count: int, seed: int, *, over: float = 0.0) -> None:
    """Orders of few keys, some of them slow, some without a key, some that fail for good."""
    chance, began = random.Random(seed), time.monotonic()
    for n in range(count):
        do = chance.choices(["", "slow", "fail"], [96, 2, 2])[0]
        key = None if chance.random() < 0.05 else f"k{chance.randrange(KEYS)}"
        world.send({"n": world.produced, "do": do}, key=key)
        ahead = over * n / count - (time.monotonic() - began)
        if ahead > 0.01:
            world.producer.poll(0)
            time.sleep(ahead)
    world.flush()


def final(world: World, group: str) -> int:
    return world.one(
        """select count(*) from eventflow.workflows w join eventflow.claims c on c.id = w.claim
           where c."group" = %s and w.finished_at is not null""",
        group,
    ) or 0  # fmt: skip


def wait_final(world: World, group: str, timeout: float = 60) -> None:
    world.wait(lambda: final(world, group) == world.produced, f"all of {group} are final", timeout)


def check(world: World, group: str) -> None:
    """Each message is final once; who failed was made to fail; effects are in order, and of transactions once."""
    rows = world.sql(
        """select count(*), count(distinct w.id), count(*) filter (where w.status = 'failed'),
                  count(*) filter (where w.status = 'failed' and convert_from(w.value, 'utf8') not like '%%"fail"%%')
           from eventflow.workflows w join eventflow.claims c on c.id = w.claim where c."group" = %s""",
        group,
    )
    failed = rows[0][2]
    assert rows == [(world.produced, world.produced, failed, 0)]
    world.check_key_order(group)
    if group == "transaction":
        assert world.sql(
            """select count(*), count(distinct (partition, "offset")) from effects where "group" = 'transaction'"""
        ) == [(world.produced - failed, world.produced - failed)]


@pytest.mark.crash
@pytest.mark.parametrize("seed", few_seeds())
def test_in_order_while_workers_are_killed_frozen_and_replaced(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.create_topic(3)
    workers = [world.start("by_key", ready=True), world.start("by_key"), world.start("by_key")]
    for turn in range(5):
        produce(world, 150, seed * 100 + turn, over=1.2)
        world.lose(workers.pop(0), chance)
        workers.append(world.start("by_key"))
    for worker in world.workers:
        worker.thaw()
    for group in KINDS:
        wait_final(world, group)
        check(world, group)
    world.check_no_incidents()


@pytest.mark.parametrize("kind", KINDS)
def test_a_parked_key_waits_for_a_person_and_no_other_key_does(world: World, kind: str) -> None:
    """Also after its worker was killed; behind it stands more than may be in flight, and the position passes it."""
    world.create_topic(1)
    settings = {"KINDS": kind, "EVENTFLOW_MAX_IN_FLIGHT": "20"}
    worker = world.start("by_key", ready=True, **settings)
    for n in range(400):
        world.send({"n": n, "do": "park" if n == 40 else ""}, key="held" if n % 4 == 0 else f"k{n % 7}")
    world.flush()
    others = 300 + 10
    world.wait(lambda: world.completed(kind) == others, "all others are done")
    in_line = "select count(*) from eventflow.workflows where status = 'queued'"
    world.wait(lambda: world.one(in_line) == 89, "those behind it are in line")
    taken = world.one(f"{in_line} and executor > 0")  # from the line, with the one that was parked then
    assert taken <= 10, "no more than half of the room"
    position = "select upper(range_agg(r)) from (select unnest(accepted) r from eventflow.claims union all select unnest(ranges) from eventflow.deltas) d"
    assert world.one(position) == 400
    worker.kill()
    world.start("by_key", PARKS="no", **settings)
    for n in range(400, 440):
        world.send({"n": n}, key="held" if n % 4 == 0 else "k1")
    world.flush()
    world.wait(lambda: world.completed(kind) == others + 30, "the new ones are done, but for those of the key")
    world.wait(lambda: world.one(in_line) == 99, "these are in line, too")
    world.sql("select eventflow.resume(array(select id from eventflow.workflows where status = 'parked'), 'a test')")
    world.wait_completed(kind)
    world.check(kind, effects=kind == "transaction")
    world.check_key_order(kind)
    world.check_no_incidents()


@pytest.mark.parametrize("kind", ["async", pytest.param("sync", marks=pytest.mark.long)])
def test_a_slow_key_and_a_sleeping_one_leave_room_for_the_others(world: World, kind: str) -> None:
    """More of them than may be in flight come first; the others do not wait for them."""
    world.create_topic(1)
    for n in range(50):
        world.send({"n": n, "do": "slow"}, key="slow")
        world.send({"n": n, "do": "asleep" if n < 3 and kind == "async" else ""}, key="asleep")
    for n in range(500):
        world.send({"n": n}, key=f"k{n % 50}")
    world.flush()
    settings = {"KINDS": kind, "SLOW": "0.3", "EVENTFLOW_MAX_IN_FLIGHT": "30", "EVENTFLOW_SUSPEND_AFTER": "0.1"}
    world.start("by_key", ready=True, **settings)
    fast = """select count(*) from eventflow.workflows where status = 'succeeded' and key like 'k%%'"""
    world.wait(lambda: world.one(fast) == 500, "the others are done")
    slow = world.one("select count(*) from eventflow.workflows where status = 'succeeded' and key = 'slow'")
    assert slow < 49, "the slow ones were first"
    world.wait_completed(kind)
    world.check(kind)
    world.check_key_order(kind)


def test_messages_without_a_key_are_in_no_order(world: World) -> None:
    world.create_topic(1)
    for n in range(20):
        world.send({"n": n, "do": "slow"})
    world.flush()
    world.start("by_key", KINDS="async", SLOW="30", ready=True)
    world.wait(lambda: world.one("select count(*) from effects") == 20, "all have begun")
    assert world.one("select count(*) from eventflow.workflows where scope is not null") == 0


def test_the_lines_of_keys_are_gone_through_when_the_consumer_keeps_no_order_any_more(world: World) -> None:
    world.create_topic(1)
    worker = world.start("by_key", KINDS="async", ready=True)
    for n in range(30):
        world.send({"n": n, "do": "park" if n == 0 else ""}, key="held")
    world.flush()
    in_line = "select count(*) from eventflow.workflows where status = 'queued' and executor = 0"
    world.wait(lambda: world.one(in_line) == 29, "those behind it are in line")
    assert worker.stop() == 0
    world.start("by_key", KINDS="async", PARKS="no", ORDERING="none", ready=True)
    world.sql("select eventflow.resume(array(select id from eventflow.workflows where status = 'parked'), 'a test')")
    world.wait_completed("async")
    world.check("async")
    world.check_key_order("async")
