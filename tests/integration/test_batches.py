"""Batch handlers: one call for many messages; whose fault a failure is; order; and workers that die meanwhile."""

import random

import pytest
from confluent_kafka import Producer

from tests.harness import Worker, World, few_seeds
from tests.integration.test_consuming import batch, positions
from tests.integration.test_kept import ACCEPTED

TRANSACTIONS = ("transaction", "atransaction")
KINDS = ("plain", "plain_sync", *TRANSACTIONS)
KEPT = ("all", "slow")


def wait_final(world: World, group: str, timeout: float = 60) -> None:
    """Until all are accepted, and none of them is under way; with a row each or without."""
    open_ = """select count(*) from eventflow.workflows w join eventflow.claims c on c.id = w.claim
               where c."group" = %s and w.finished_at is null"""
    world.wait(
        lambda: world.one(ACCEPTED, group) == world.produced and world.one(open_, group) == 0,
        f"all of {group} are final", timeout,
    )  # fmt: skip


def failed(world: World, group: str) -> set[int]:
    rows = world.sql(
        """select convert_from(w.value, 'utf8')::jsonb ->> 'n' from eventflow.workflows w
           join eventflow.claims c on c.id = w.claim where c."group" = %s and w.status = 'failed'""",
        group,
    )
    return {int(n) for (n,) in rows}


def calls(world: World, group: str) -> list[tuple[int, int]]:
    """Of each call that was committed, which one of its process it was, and how many messages it had."""
    rows = world.sql("""select note from effects where "group" = %s""", group)
    made = {note.partition("|")[2] for (note,) in rows}
    return sorted((int(number), int(size)) for _, number, size in (batch.split(".") for batch in made))


def sizes(world: World, group: str) -> list[int]:
    """How many messages each batch had."""
    return [size for _, size in calls(world, group)]


@pytest.mark.parametrize(("kind", "keep"), [*((k, "all") for k in KINDS), *((k, "slow") for k in TRANSACTIONS)])
def test_a_batch_that_fails_is_split_until_one_fails_alone(world: World, kind: str, keep: str) -> None:
    """Those at fault fail like any message, after their retries; all others are done, and of a transaction once."""
    world.create_topic(1)
    for n in range(100):
        world.send({"n": n, "do": "fail" if n in {3, 50, 51} else ""})
    world.send(b"no JSON")
    world.flush()
    world.start("batches", KINDS=kind, BATCH="40", EVENTFLOW_KEEP_MESSAGES=keep, ready=True)
    wait_final(world, kind)
    assert world.sql(
        """select w."offset", w.retries, w.error like '%%are refused%%' from eventflow.workflows w
           where w.status = 'failed' order by 1"""
    ) == [(3, 1, True), (50, 1, True), (51, 1, True), (100, 0, False)]
    effects = world.sql("""select count(*), count(distinct "offset") from effects""")
    assert effects == [(97, 97)], "a call that failed had no effect"
    world.check_no_incidents()


@pytest.mark.parametrize("keep", KEPT)
def test_a_batch_is_full_or_has_waited(world: World, keep: str) -> None:
    world.create_topic(1)
    world.start("batches", KINDS="transaction", BATCH="20", EVENTFLOW_KEEP_MESSAGES=keep, ready=True)
    world.produce(200)
    wait_final(world, "transaction")
    world.check("transaction", effects=True, rows=keep == "all")
    assert max(sizes(world, "transaction")) == 20
    world.produce(1)
    wait_final(world, "transaction", timeout=3)
    assert 1 in sizes(world, "transaction")
    assert world.one("select count(*) from eventflow.workflows") == (201 if keep == "all" else 0)


@pytest.mark.parametrize("kind", TRANSACTIONS)
def test_what_was_fetched_is_read_before_the_handler_is_called(world: World, kind: str) -> None:
    """One that cannot be decoded costs the others no call."""
    world.create_topic(1)
    for n in range(8):
        world.send(b"no JSON" if n == 5 else {"n": n, "do": ""})
    world.flush()
    world.start("batches", KINDS=kind, BATCH="8", EVENTFLOW_KEEP_MESSAGES="slow", ready=True)
    wait_final(world, kind)
    assert calls(world, kind) == [(1, 7)]
    assert world.sql("""select "offset", status::text, retries from eventflow.workflows""") == [(5, "failed", 0)]
    world.check_no_incidents()


@pytest.mark.parametrize("kind", TRANSACTIONS)
def test_one_that_was_fetched_alone_fails_with_its_first_call(world: World, kind: str) -> None:
    world.create_topic(1)
    world.start("batches", KINDS=kind, RETRIES="0", EVENTFLOW_KEEP_MESSAGES="slow", ready=True)
    for do in ("fail", ""):
        world.send({"n": world.produced, "do": do})
        world.flush()
        wait_final(world, kind)
    assert failed(world, kind) == {0}
    assert calls(world, kind) == [(2, 1)], "the one that failed was the first call"
    world.check_no_incidents()


def test_gaps_between_messages_that_go_to_their_batch_as_they_were_fetched(world: World) -> None:
    """Markers of transactions, and messages that were aborted: each hole is covered, once, over a change of owners too."""
    world.create_topic(2)
    producer = Producer({"bootstrap.servers": world.bootstrap_servers, "transactional.id": world.topic})
    producer.init_transactions(20)
    for part in (1, 2):
        for _ in range(8):
            batch(world, producer, 3, commit=True)
            batch(world, producer, 2, commit=False)
        worker = world.start("batches", KINDS="transaction", BATCH="5", EVENTFLOW_KEEP_MESSAGES="slow")
        world.wait(lambda: positions(world, "transaction") == world.ends(), "it stands at the ends")
        effects = world.sql("""select count(*), count(distinct (partition, "offset")) from effects""")
        assert effects == [(part * 48, part * 48)]
        assert worker.stop() == 0
    assert world.one("select count(*) from eventflow.workflows") == 0
    world.check_no_incidents()


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_a_batch_has_messages_of_a_scope_in_order(world: World, ordering: str) -> None:
    """Also where one of them fails: what is behind it in its scope waits until that is durable."""
    world.create_topic(2)
    for n in range(600):
        world.send({"n": n, "do": "fail" if n in {100, 330} else ""}, key=f"k{n % 3}", partition=n % 2)
    world.flush()
    world.start("batches", KINDS="plain_sync transaction", ORDERING=ordering, BATCH="50", ready=True)
    for group in ("plain_sync", "transaction"):
        wait_final(world, group)
        assert failed(world, group) == {100, 330}
        if ordering == "key":
            world.check_key_order(group)
        else:
            world.check_order(group)
        assert max(sizes(world, group)) == 50, "one scope has more than one message in a batch"
    assert world.one("""select count(*) from effects where "group" = 'transaction'""") == 598
    world.check_no_incidents()


@pytest.mark.crash
@pytest.mark.parametrize("seed", few_seeds())
def test_batches_while_workers_are_killed_frozen_and_replaced(world: World, seed: int) -> None:
    chance = random.Random(f"batches {seed}")
    ordering, keep = chance.choice(["none", "partition", "key"]), chance.choice(KEPT)

    def start(*, ready: bool = False) -> Worker:
        return world.start("batches", ready=ready, ORDERING=ordering, EVENTFLOW_KEEP_MESSAGES=keep)

    world.create_topic(3)
    workers = [start(ready=True), start()]
    bad = set[int]()
    for _ in range(4):
        for _ in range(200):
            do = chance.choices(["", "slow", "fail"], [197, 1, 2])[0]
            bad |= {world.produced} if do == "fail" else set()
            world.send({"n": world.produced, "do": do}, key=f"k{chance.randrange(20)}")
        world.flush()
        before = world.one("select count(*) from effects")
        world.wait(lambda before=before: world.one("select count(*) from effects") > before, "something happens")
        world.lose(workers.pop(0), chance)
        workers.append(start())
    for worker in world.workers:
        worker.thaw()
    for group in KINDS:
        wait_final(world, group)
        assert failed(world, group) == bad
    for group in TRANSACTIONS:
        done = world.produced - len(bad)
        counts = """select count(*), count(distinct (partition, "offset")) from effects where "group" = %s"""
        assert world.sql(counts, group) == [(done, done)]
        if ordering == "key":
            world.check_key_order(group)
        elif ordering == "partition":
            world.check_order(group)
    world.check_no_incidents()
