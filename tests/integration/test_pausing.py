"""Consumers that a person pauses, in whichever process, over restarts; and how far behind they are."""

import json
import re
from typing import Any

import pytest

from eventflow import sync
from eventflow.errors import UsageError
from eventflow.records import PartitionLag
from tests.harness import World
from tests.integration.test_cli import eventflow

PARTITIONS = 4


def wait_said(world: World, text: str, count: int) -> None:
    world.wait(lambda: sum(worker.text.count(text) for worker in world.workers) >= count, f"{count} times: {text}")


def behind(lags: list[PartitionLag]) -> dict[int, int | None]:
    return {lag.partition: lag.behind for lag in lags}


@pytest.mark.crash
def test_what_is_paused_stands_still_in_every_process_and_after_a_restart(world: World, client: sync.Client) -> None:
    """Its partitions stay where they are, and move; others go on. Nothing is lost, nor handled twice."""
    topic = world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 40)
    first, _ = (world.start("again", ready=True) for _ in range(2))
    for group in ("ledger", "keyed"):
        world.wait_completed(group)
    assert {(lag.behind, lag.seconds) for lag in client.lag("ledger")} == {(0, 0.0)}
    client.pause_consumer("ledger", reason="the shop is being mended")
    client.pause_consumer("keyed", topic, 1, reason="its keys are odd")
    for partition in range(PARTITIONS):
        wait_said(world, f"enter: {topic}/{partition} is paused by", 1)
    wait_said(world, f"bill: {topic}/1 is paused by", 1)
    world.fill(PARTITIONS, 80)
    world.wait_completed("keyed", 40 + 60)
    first.kill()
    last = world.start("again")
    wait_said(world, f"bill: {topic}/1 is paused by", 1)
    world.wait(lambda: world.owned(last) > 0, "it has a part of them")
    world.fill(PARTITIONS, 80)
    world.wait_completed("keyed", 40 + 120)
    assert world.completed("ledger") == 40
    assert world.one("""select count(*) from effects where "group" = 'ledger'""") == 40
    assert behind(client.lag("ledger", topic)) == dict.fromkeys(range(PARTITIONS), 40)
    found = client.lag("keyed")
    assert behind(found) == {0: 0, 1: 40, 2: 0, 3: 0}
    [paused] = [lag for lag in found if lag.paused is not None]
    assert (paused.partition, paused.position, paused.end, paused.paused and paused.paused.why) == (
        1,
        10,
        50,
        "its keys are odd",
    )
    assert paused.owner
    assert paused.seconds is not None
    assert 0 < paused.seconds < 120
    assert [(pause.group, pause.topic, pause.partition) for pause in client.pauses()] == [
        ("keyed", topic, 1), ("ledger", None, None),
    ]  # fmt: skip
    [why] = [reason for reason in client.why(f"{topic}/1") if "group keyed" in reason.text]
    assert (why.state, "its keys are odd" in why.text) == ("paused", True)
    with pytest.raises(UsageError, match=r"group 'ledger' is paused by .* \(the shop is being mended\): resume that"):
        client.resume_consumer("ledger", topic)
    assert client.resume_consumer("keyed") == 1
    world.wait_completed("keyed")
    assert world.completed("ledger") == 40, "which is paused still"
    assert client.resume_consumer("ledger") == 1
    assert client.resume_consumer("ledger") == 0
    for group in ("ledger", "keyed"):
        world.wait_completed(group)
        world.check(group)
    world.check("ledger", effects=True)
    world.check_no_incidents()


def test_what_cannot_be_paused_is_refused_by_name(world: World, client: sync.Client) -> None:
    world.create_topic(PARTITIONS)
    refusals: list[tuple[tuple[Any, ...], str, str]] = [
        (("ledgr",), "a reason", "group 'ledgr': nobody has ever read that"),
        (("ledger", None, 1), "a reason", "a partition is one of a topic, from 0, not 1 of None"),
        (("ledger", "orders", -1), "a reason", "a partition is one of a topic, from 0, not -1"),
        (("",), "a reason", "not a group and a topic"),
        (("ledger",), " ", "say why it is paused"),
    ]
    for place, reason, said in refusals:
        with pytest.raises(UsageError, match=re.escape(said)):
            client.pause_consumer(*place, reason=reason)
    assert client.lag("ledgr") == []


def test_on_the_command_line(world: World) -> None:
    topic = world.create_topic(PARTITIONS)
    world.fill(PARTITIONS, 40)
    world.start("again", ready=True)
    world.wait_completed("ledger")
    where = {"DATABASE_URL": world.database_url, "KAFKA_BOOTSTRAP_SERVERS": world.bootstrap_servers}
    paused = eventflow("consumers", "pause", "ledger", topic, "2", "--reason", "odd", "--yes", **where)
    assert paused.stdout == f"ledger {topic}/2 is paused\n"
    wait_said(world, f"enter: {topic}/2 is paused by", 1)
    world.fill(PARTITIONS, 40)
    world.wait_completed("ledger", 70)
    lines = eventflow("consumers", "list", "ledger", **where).stdout.splitlines()
    assert len(lines) == PARTITIONS
    assert re.fullmatch(rf"ledger {topic}/2 +at 10 of 20  10 behind  .* old +PAUSED by .*: odd", lines[2])
    assert re.fullmatch(rf"ledger {topic}/3 +at 20 of 20  0 behind  .*, process \d+", lines[3])
    assert eventflow("consumers", "resume", "ledger", "--yes", **where).stdout == "ledger goes on\n"
    again = eventflow("consumers", "pause", "ledger", "--reason", "odd", "--yes", "--json", **where)
    held = json.loads(again.stdout)
    assert (held["group"], held["topic"], held["partition"], held["why"]) == ("ledger", None, None, "odd")
    assert json.loads(eventflow("consumers", "resume", "ledger", "--yes", "--json", **where).stdout) == {"resumed": 1}
    world.wait_completed("ledger")
    wrong = eventflow("consumers", "pause", "ledgr", "--reason", "x", "--yes", **where)
    assert (wrong.returncode, wrong.stderr) == (2, "error: group 'ledgr': nobody has ever read that\n")
