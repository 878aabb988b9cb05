"""A topic run again, as another generation of its consumer: each message once in its generation, whoever dies."""

import json
import random
import re
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from eventflow import sync
from eventflow.errors import UsageError, WorkflowNotFoundError, WorkflowStateError
from eventflow.records import Reprocessing
from tests.harness import World, seeds
from tests.integration.test_cli import eventflow

GROUPS = ("ledger", "keyed")
PARTITIONS = 4


def once_each(world: World, group: str, generation: int) -> dict[int, list[int]]:
    """The offsets of each partition that the group has completed in this generation, each once."""
    suffix = "" if generation == 1 else f":g{generation}"
    rows = world.sql(
        """select c.partition, w."offset" from eventflow.workflows w join eventflow.claims c on c.id = w.claim
            where c."group" = %s and c.generation = %s and w.status = 'succeeded' and w.id like %s
            order by 1, 2""",
        group, generation, f"kafka:{group}:%{suffix}",
    )  # fmt: skip
    found: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    for partition, offset in rows:
        found[partition].append(offset)
    assert all(len(set(offsets)) == len(offsets) for offsets in found.values())
    return found


def check_ledger(world: World, generation: int, wanted: dict[int, list[int]]) -> None:
    """A transaction's effects are there once, in the generation in which they were made."""
    rows = world.sql(
        """select partition, "offset" from effects where "group" = 'ledger' and note = %s order by 1, 2""",
        f"g{generation}",
    )
    found: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    for partition, offset in rows:
        found[partition].append(offset)
    assert found == wanted


def check_key_order(world: World, generation: int) -> None:
    """A step that was made twice was made twice in a row."""
    rows = world.sql(
        """select partition, note, "offset" from effects where "group" = 'keyed' and note like %s order by 1, 2, id""",
        f"%/g{generation}",
    )
    last: dict[tuple[int, str], int] = {}
    for partition, note, offset in rows:
        assert offset >= last.get((partition, note), -1), f"{partition} {note}: {offset} after {last[partition, note]}"
        last[partition, note] = offset


def wait_end(world: World, client: sync.Client, one: Reprocessing) -> Reprocessing:
    assert one.id is not None
    number = one.id
    return world.wait(
        lambda: found if (found := client.reprocessing(number)).ended_at else None, f"reprocessing {number} ends", 90
    )


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds(default=1))
def test_beside_the_live_one_each_message_once_whoever_dies(world: World, client: sync.Client, seed: int) -> None:
    """Workers are killed in the midst, at the flush and at random; the live consumer goes on, and its results stay."""
    chance = random.Random(seed)
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 1200)
    settings = {"EVENTFLOW_MAX_IN_FLIGHT": "50"}
    workers = [world.start("again", ready=True, **settings) for _ in range(2)]
    for group in GROUPS:
        world.wait_completed(group)
    dry = {group: client.reprocess(group, world.topic, dry_run=True) for group in GROUPS}
    assert {(one.id, one.generation, one.total) for one in dry.values()} == {(None, 2, 1200)}
    assert world.one("select count(*) from eventflow.reprocessings") == 0
    ordered = [client.reprocess(group, world.topic, rate=400) for group in GROUPS]
    with pytest.raises(
        WorkflowStateError, match=f"reprocessing {ordered[0].id} of this topic by group 'ledger' has not ended"
    ):
        client.reprocess("ledger", world.topic, instead=True)
    world.fill(PARTITIONS, 400)
    for point in ("journal.before_commit", "journal.after_commit"):
        world.wait(lambda: client.reprocessing(ordered[0].id or 0).done > 0, "it is under way")
        workers.append(world.start("again", crash=f"{point}:{chance.randint(1, 30)}", **settings))
        victim = workers.pop(chance.randrange(len(workers) - 1))
        victim.kill()
    workers.append(world.start("again", **settings))
    for one in ordered:
        ended = wait_end(world, client, one)
        assert (ended.done, ended.total, ended.stopped_by) == (1200, 1200, None)
    for group in GROUPS:
        world.wait_completed(group, 1600 + 1200)
        assert once_each(world, group, 1) == {p: list(range(400)) for p in range(PARTITIONS)}
        assert once_each(world, group, 2) == {p: list(range(300)) for p in range(PARTITIONS)}
    check_ledger(world, 1, {p: list(range(400)) for p in range(PARTITIONS)})
    check_ledger(world, 2, {p: list(range(300)) for p in range(PARTITIONS)})
    check_key_order(world, 2)
    world.check_no_incidents()


@pytest.mark.crash
def test_in_place_of_the_live_one_it_goes_on_from_there(world: World, client: sync.Client) -> None:
    """From offsets on, of two partitions: the others stay as they are; killed in the midst, and told to end when it is through."""
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 800)
    victim = world.start("again", ready=True, EVENTFLOW_MAX_IN_FLIGHT="20")
    for group in GROUPS:
        world.wait_completed(group)
    ordered = [client.reprocess(group, world.topic, offsets={0: 50, 2: 0}, instead=True, rate=300) for group in GROUPS]
    assert [(p.partition, p.first, p.past) for p in ordered[0].partitions] == [(0, 50, 200), (2, 0, 200)]
    with pytest.raises(WorkflowStateError, match="is the live consumer by now"):
        client.stop_reprocessing(ordered[0].id or 0)
    world.wait(lambda: 10 < client.reprocessing(ordered[0].id or 0).done, "it is under way")
    world.fill(PARTITIONS, 200)
    victim.kill()
    world.start("again")
    for one in ordered:
        assert wait_end(world, client, one).done == 350
    wanted = {
        1: {0: range(200), 1: range(250), 2: range(200), 3: range(250)},
        2: {0: range(50, 250), 1: range(0), 2: range(250), 3: range(0)},
    }
    for group in GROUPS:
        world.wait_completed(group, 1000 + 350)
        for generation, its in wanted.items():
            assert once_each(world, group, generation) == {p: list(offsets) for p, offsets in its.items()}
    for generation, its in wanted.items():
        check_ledger(world, generation, {p: list(offsets) for p, offsets in its.items()})
    check_key_order(world, 2)
    again = client.reprocess("ledger", world.topic, offsets={0: 240})
    assert (again.generation, again.total) == (3, 10)
    wait_end(world, client, again)
    world.check_no_incidents()


def test_what_was_accepted_out_of_order_is_run_again_and_what_was_not_is_the_live_ones(
    world: World, client: sync.Client
) -> None:
    """Two slow messages among others, and one behind: also where the live consumer dies, and begins them once more."""
    world.create_topic(1)
    slow = {0, 5, 10}
    for n in range(11):
        world.send({"n": n, "do": "" if n in slow else "quick"})
    world.flush()
    settings = {"EVENTFLOW_ACCEPT_AFTER": "10", "PAUSE": "5"}
    victim = world.start("slow", **settings)
    known = "select coalesce(range_agg(r), '{}')::text from eventflow.deltas, unnest(ranges) r"
    world.wait(lambda: world.one(known) == "{[1,5),[6,10)}" or None, "the quick ones are accepted", 5)
    one = client.reprocess("billing", world.topic, dry_run=True)
    assert [(p.first, p.past) for p in one.partitions] == [(0, 10)]
    one = client.reprocess("billing", world.topic)
    assert [(p.first, p.past, p.done) for p in one.partitions] == [(0, 10, 2)]
    victim.kill()
    world.start("slow", **settings)
    assert wait_end(world, client, one).done == 10
    world.wait_completed("billing", 11 + 8)
    assert once_each(world, "billing", 1)[0] == list(range(11))
    assert once_each(world, "billing", 2)[0] == sorted(set(range(11)) - slow)
    began = world.sql("""select "offset", count(*) from effects group by 1""")
    assert {offset for offset, times in began if times > 2} <= slow, "what is quick ran once in each generation"
    world.check_no_incidents()


def test_from_a_time_on_at_a_rate_until_it_is_stopped(world: World, client: sync.Client) -> None:
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 100)
    time.sleep(0.01)  # a time that lies between two messages
    middle = datetime.now(UTC)
    time.sleep(0.01)
    world.fill(PARTITIONS, 500)
    world.start("again", ready=True)
    for group in GROUPS:
        world.wait_completed(group)
    assert client.reprocess("keyed", world.topic, since=middle, dry_run=True).total == 500
    began = time.monotonic()
    one = client.reprocess("keyed", world.topic, since=middle, rate=50)
    number = one.id or 0
    world.wait(lambda: client.reprocessing(number).done > 20, "some are done")
    took = time.monotonic() - began
    assert client.stop_reprocessing(number)
    assert not client.stop_reprocessing(number), "it has ended"
    stopped = client.reprocessing(number)
    assert 20 < stopped.done <= 50 * took + 60, "the rate, and what each partition may begin at once"
    assert stopped.stopped_by
    assert [found.id for found in client.reprocessings()] == [number]
    second = client.reprocess("keyed", world.topic, since=middle)
    assert (second.generation, wait_end(world, client, second).done) == (3, 500)
    assert sum(map(len, once_each(world, "keyed", 3).values())) == 500
    world.check_no_incidents()


def test_it_ends_with_its_topic(world: World, client: sync.Client) -> None:
    """A topic that is recreated is another one: what was to be run again of the old one is gone, and says so."""
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 40)
    world.start("again", ready=True)
    world.wait_completed("keyed")
    one = client.reprocess("keyed", world.topic, rate=1)
    world.wait(lambda: client.reprocessing(one.id or 0).done > 0, "it is under way")
    world.delete_topic()
    world.create_topic(PARTITIONS)
    ended = wait_end(world, client, one)
    assert ended.done < ended.total
    assert ended.stopped_by == "eventflow, as the topic was recreated"


def test_what_cannot_be_run_again_is_refused(world: World, client: sync.Client) -> None:
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 40)
    refusals: list[tuple[tuple[str, str], dict[str, Any], str]] = [
        (("ledger", "a topic"), {}, "a group and a topic, not 'ledger' and 'a topic'"),
        (("ledger", world.topic), {"since": datetime(2026, 1, 1)}, "a time with a zone"),  # noqa: DTZ001
        (("ledger", world.topic), {"since": datetime.now(UTC), "offsets": {0: 1}}, "either since= a time, or offsets="),
        (("ledger", world.topic), {"offsets": {}}, "names no partition"),
        (("ledger", world.topic), {"offsets": {0: -1}}, "both from 0"),
        (("ledger", world.topic), {"rate": 0}, "a rate is how many a second"),
        (("ledger", world.topic), {}, f"group 'ledger' has read nothing of a topic '{world.topic}'"),
    ]
    for where, options, said in refusals:
        with pytest.raises(UsageError, match=re.escape(said)):
            client.reprocess(*where, **options)
    world.start("again", ready=True)
    world.wait_completed("ledger")
    with pytest.raises(
        UsageError, match=r"/0 cannot be run again from offset 10: its log begins at 0, and the group has read"
    ):
        client.reprocess("ledger", world.topic, offsets={0: 10})
    with pytest.raises(UsageError, match="has read nothing of the topic from there on"):
        client.reprocess("ledger", world.topic, since=datetime.now(UTC))
    with pytest.raises(UsageError, match=r"has read nothing of .*/7"):
        client.reprocess("ledger", world.topic, offsets={7: 0})
    with pytest.raises(WorkflowNotFoundError, match="no reprocessing 99"):
        client.stop_reprocessing(99)


def test_on_the_command_line(world: World) -> None:
    world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 40)
    world.start("again", ready=True)
    world.wait_completed("ledger")
    where = {"DATABASE_URL": world.database_url, "KAFKA_BOOTSTRAP_SERVERS": world.bootstrap_servers}
    said = eventflow("reprocess", "start", "ledger", world.topic, "--dry-run", **where)
    assert "generation 2, beside the live consumer\n    at most 40 messages" in said.stdout
    refused = eventflow("reprocess", "start", "ledger", world.topic, "--offset", "x", **where)
    assert (refused.returncode, refused.stderr) == (2, "error: --offset: PARTITION:OFFSET, such as 0:1200, not 'x'\n")
    assert eventflow("reprocess", "start", "ledger", world.topic, **where).returncode == 2, "nobody to ask"
    done = eventflow(
        "reprocess", "start", "ledger", world.topic, "--offset", "1:4", "--yes", "--wait", "--json", **where
    )
    [found] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(p["partition"], p["first"], p["past"], p["done"]) for p in found["partitions"]] == [(1, 4, 10, 6)]
    assert found["ended_at"] is not None
    listed = eventflow("reprocess", "list", "--all", **where)
    assert "6 of at most 6 messages, 100 %" in listed.stdout
    assert eventflow("reprocess", "stop", "1", "--yes", **where).stderr == "reprocessing 1 had ended\n"
    assert Counter(world.sql("""select note from effects where "group" = 'ledger'""")) == {("g1",): 40, ("g2",): 6}
    begun = eventflow("reprocess", "start", "keyed", world.topic, "--rate", "1", "--yes", "--json", **where)
    assert json.loads(begun.stdout)["ended_at"] is None
    unasked = eventflow("reprocess", "stop", "2", **where)
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert unasked.stderr.startswith(f"2  keyed {world.topic}, generation 2, beside the live consumer, 1 a second\n")
    stopped = eventflow("reprocess", "stop", "2", "--yes", **where)
    assert ("; stopped by " in stopped.stdout, stopped.stderr) == (True, "")
    assert eventflow("reprocess", "list", **where).stderr == "nothing is run again\n"
