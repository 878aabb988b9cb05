"""`eventflow why` on real processes that stand still in every way there is, killed, frozen and told to go."""

import json
import re
import time
from collections.abc import Iterator

import pytest

from eventflow import sync
from eventflow.errors import WorkflowNotFoundError
from eventflow.idempotency import message_workflow_id
from eventflow.records import Reason
from tests.harness import World
from tests.integration.test_cli import Done, complaint, eventflow
from tests.integration.test_schedules_cli import printed

SETTINGS = {"EVENTFLOW_LEASE": "1", "EVENTFLOW_BEAT": "0.2"}


@pytest.fixture
def client(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[sync.Client]:
    for name, value in (SETTINGS | {"KAFKA_BOOTSTRAP_SERVERS": world.bootstrap_servers}).items():
        monkeypatch.setenv(name, value)
    with sync.Client(world.database_url) as client:
        yield client


def command(world: World, *arguments: str) -> Done:
    servers = {"DATABASE_URL": world.database_url, "KAFKA_BOOTSTRAP_SERVERS": world.bootstrap_servers}
    return eventflow("why", *arguments, **servers, **SETTINGS)


def reason(client: sync.Client, subject: str, state: str) -> Reason:
    """The only answer, once it is of this state."""
    deadline = time.monotonic() + 20
    while True:
        try:
            found = client.why(subject)
        except WorkflowNotFoundError:
            found = []
        if [one.state for one in found] == [state]:
            return found[0]
        assert time.monotonic() < deadline, f"{subject} is {state}: {found}"
        time.sleep(0.05)


def test_whatever_stands_still_says_why(world: World, client: sync.Client) -> None:
    world.create_topic(1)
    stopping = world.create_topic(1, f"{world.topic}s")
    worker = world.start("standing", ready=True, STOPPING=stopping, EVENTFLOW_SUSPEND_AFTER="0.05", EVENTFLOW_DRAIN="0")
    client.pause_queue("closed")
    for key, do in (
        ("a", "sleep"),
        ("a", "go"),
        ("a", "go"),
        ("b", "retry"),
        ("c", "fail"),
        ("d", "park"),
        ("d", "go"),
    ):
        world.send({"do": do}, key=key)
    world.send({"do": "fail"}, topic=stopping)
    world.flush()
    for workflow_id, name, *arguments in (
        ("sleeps", "sleeps"), ("receives", "receives", None), ("receives:timed", "receives", 3600), ("parent", "parent"),
        ("listens", "listens", "sleeps"), ("retries", "retries"), ("works", "works"),
    ):  # fmt: skip
        client.enqueue(name, *arguments, workflow_id=workflow_id)
    ids = [message_workflow_id("billing", world.topic, 1, 0, offset) for offset in range(7)]

    # Messages, by their id, by where they are, and by their key.
    first = reason(client, ids[0], "sleeping")
    assert first.until is not None and f"sleeps at 1.1 until {first.until:%Y-%m-%d}" in first.text
    second = reason(client, f"{world.topic}/0/1", "behind")
    assert second.behind == ids[0]
    assert f"waits behind {ids[0]}, the message before it of its key, which is waiting until 20" in second.text
    assert "the first of 2 messages before it" in reason(client, ids[2], "behind").text
    assert reason(client, "a", "sleeping").subject == ids[0], "what is first of the key"
    retried = reason(client, ids[3], "retrying")
    assert "has failed once, the last time with ConnectionError, and is tried again, attempt 2, at" in retried.text
    assert "after one attempt: ValueError: the card is refused" in reason(client, ids[4], "dead_letter").text
    parked = reason(client, "d", "parked")
    assert "parked for a person: as if other code had recorded it; one message wait" in parked.text
    assert "which is parked for a person: as if" in reason(client, ids[6], "behind").text
    stops = message_workflow_id("stopping", stopping, 1, 0, 0)
    assert "stops its consumer: it failed for good with ValueError" in reason(client, stops, "stopped").text

    # Workflows.
    assert reason(client, "sleeps", "sleeping").until is not None
    assert "waits for a message" in reason(client, "receives", "receiving").text
    timed = reason(client, "receives:timed", "receiving")
    assert timed.until is not None and "waits for a message at 1.1 until 20" in timed.text
    assert "has messages in its inbox" not in reason(client, "receives", "receiving").text
    assert "waits for parent>1.1 to end, which is waiting" in reason(client, "parent", "child").text
    assert "waits for the event 'shipped' of sleeps" in reason(client, "listens", "event").text
    tries = reason(client, "retries", "retrying").text
    assert "has failed once in step 'call_bank' at 1.1, the last time with ConnectionError: the bank is away" in tries
    assert (
        f"runs in executor {world.executor(worker)} (process {worker.pid} on "
        in reason(client, "works", "running").text
    )

    # Queues.
    for queue, key in (("tight", None), ("closed", None), ("keyed", "k")):
        for n in range(2):
            client.enqueue("works", workflow_id=f"{queue}:{n}", queue=queue, key=key)
    client.enqueue("works", workflow_id="later", delay=3600)
    assert "queue 'closed' is paused, by " in reason(client, "closed:0", "paused").text
    assert "concurrency 1 is used up, 1 have begun and not ended" in reason(client, "tight:1", "limited").text
    assert "concurrency_per_key 1 is used up, 1 of its key 'k' have begun" in reason(client, "keyed:1", "limited").text
    assert [one.state for one in client.why("k")] == ["running", "limited"]
    assert reason(client, "later", "delayed").until is not None

    # Partitions.
    read = reason(client, f"{world.topic}/0", "reading")
    assert f"is read to its end, 7, by executor {world.executor(worker)}" in read.text
    assert "not in the log, which ends at 7" in reason(client, f"{world.topic}/0/7", "not_there").text
    [line] = printed(command(world, ids[1]))
    assert line == client.why(ids[1])[0].text or line.partition("(in")[0] in client.why(ids[1])[0].text
    answer = json.loads(printed(command(world, f"{world.topic}/0", "--group", "billing", "--json"))[0])
    assert (answer["subject"], answer["state"], answer["behind"]) == (f"{world.topic}/0", "reading", ids[0])
    assert "nothing that is unfinished or a dead letter has it" in complaint(command(world, "nobody"), 1)
    assert "nobody has read 'nothing/3'" in complaint(command(world, "nothing/3"), 1)

    screen = printed(
        eventflow("status", DATABASE_URL=world.database_url, KAFKA_BOOTSTRAP_SERVERS=world.bootstrap_servers)
    )
    lines = [" ".join(line.split()) for line in screen]
    assert "processes one process" in lines
    assert any(line.startswith(f"executor {world.executor(worker)} process {worker.pid} on ") for line in lines)
    assert f"{world.topic} group billing 1 of one partition read 0 behind 6 not ended" in lines
    assert any(
        line.startswith("closed 2 in line 0 running 0 delayed the first for ") and line.endswith("PAUSED")
        for line in lines
    )
    assert any(line.startswith("workflows") and " waiting" in line and "parked" in line for line in lines)
    assert {"dead letters 2 of bill", "schedules none"} <= set(lines)
    assert any(re.match(r"\d+ open stop", line) for line in lines), "a consumer that stands still is an incident"

    # Its process is frozen, and nobody is there to take over; then another one does, and is told to go.
    worker.freeze()
    silent = reason(client, "works", "silent")
    assert f"is held by executor {world.executor(worker)}" in silent.text and "no other process lives" in silent.text
    dead = world.executor(worker)
    worker.kill()
    second_worker = world.start("standing", ready=True, STOPPING=stopping, EVENTFLOW_DRAIN="0")
    world.wait(lambda: world.one("select not alive from eventflow.executors where id = %s", dead), "it was taken over")
    assert second_worker.stop() == 0
    assert reason(client, "works", "unserved").text.endswith("no live process serves 'works'")
    assert "nobody will wake it" in client.why("receives")[0].text
    world.send({"do": "go"}, key="z")
    world.flush()
    unread = reason(client, f"{world.topic}/0/7", "unowned")
    assert "0 messages before it: its partition is not read: no live process has it" in unread.text
    assert "its position is 7 of 8, one message to go" in reason(client, f"{world.topic}/0", "unowned").text
    world.sql(
        """insert into eventflow.incidents (kind, subject, detail, claim)
           select 'retention', 'x', 'it is gone', id from eventflow.claims where "group" = 'billing'"""
    )
    stopped = reason(client, f"{world.topic}/0", "incident").text
    assert re.search(
        r"is stopped by incident (\d+) \(retention\): it is gone; `eventflow incidents settle \1` lets it", stopped
    )
