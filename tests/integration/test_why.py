"""`eventflow why` on real processes that stand still in every way there is, killed, frozen and told to go."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from eventflow import sync
from eventflow.errors import WorkflowNotFoundError
from eventflow.idempotency import message_workflow_id, schedule_workflow_id
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


def test_what_every_process_leaves_out_is_served_by_none(world: World, client: sync.Client) -> None:
    """All know the workflow; by `--only` one queue is served, and no schedule is fired."""
    settings = {"STOPPING": f"{world.topic}s"}
    databases = {"DATABASE_URL": world.database_url}
    client.create_schedule("nightly", "sleeps", every=timedelta(hours=6))
    world.sql("update eventflow.schedules set due_at = due_at - interval '1 day'")
    some = world.start("standing", options=["--only", "tight"], EVENTFLOW_SUSPEND_AFTER="0.05", **settings)
    late = (
        "schedule 'nightly' is due, and no process that lives fires it: its workflow 'sleeps' is gone from the code, or"
    )
    world.wait(lambda: late in some.text, "it is said")
    client.enqueue("works", workflow_id="left", queue="keyed")
    client.enqueue("receives", None, workflow_id="asleep", queue="tight")
    reason(client, "asleep", "receiving")
    left = reason(client, "left", "unserved")
    assert left.text.endswith("no live process serves queue 'keyed', of those that know 'works'")
    fire = schedule_workflow_id("default", "nightly", datetime.now(UTC) - timedelta(hours=1))
    assert "no live process that knows 'sleeps' serves it" in reason(client, fire, "unserved").text
    [line] = printed(eventflow("schedules", "list", **databases))
    assert line.endswith("  no living process fires it")
    shown = printed(eventflow("schedules", "show", "nightly", **databases))
    assert "workflow   sleeps, which no living process fires" in shown
    screen = printed(eventflow("status", **databases))
    assert any("nightly" in line and "no live process fires it" in line for line in screen)

    others = world.start("standing", options=["--only", "default"], **settings)
    world.wait(lambda: late in others.text, "it is said again")
    assert reason(client, "left", "unserved").text == left.text
    assert some.stop() == 0
    assert "no live process serves queue 'tight'" in reason(client, "asleep", "receiving").text

    for topic in (world.topic, settings["STOPPING"]):
        world.create_topic(1, topic)
    whole = world.start("standing", **settings)
    reason(client, "left", "running")
    world.wait(lambda: client.schedule("nightly").served, "it is fired here")
    assert "no living process" not in printed(eventflow("schedules", "list", **databases))[0]
    assert "no process that lives fires it" not in whole.text
    assert "has started nothing that is still here" in reason(client, fire, "skipped").text


def test_what_has_ended_and_what_goes_on_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.create_topic(1)
    settings = SETTINGS | {"EVENTFLOW_LEASE": "8", "EVENTFLOW_SUSPEND_AFTER": "0.05", "STOPPING": f"{world.topic}s"}
    world.create_topic(1, settings["STOPPING"])
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    worker = world.start("standing", ready=True, **settings)
    peer = world.start("standing", options=["--only", "tight"], **settings)
    for key in "ab":
        world.send({"do": "fail"}, key=key)
    world.flush()
    with sync.Client(world.database_url) as client:
        client.enqueue("ends", workflow_id="well", kwargs={"well": True})
        client.enqueue("ends", workflow_id="badly", kwargs={"well": False})
        for workflow_id, name, *arguments in (
            ("called-off", "sleeps"), ("sleeps", "sleeps"), ("waits", "waits", "sleeps"), ("receives", "receives", None),
            ("works", "works"),
        ):  # fmt: skip
            client.enqueue(name, *arguments, workflow_id=workflow_id)

        # Ended, or for a person.
        assert "succeeded at 20" in reason(client, "well", "done").text
        assert ": ValueError: it cannot be; `eventflow workflows retry` runs" in reason(client, "badly", "failed").text
        reason(client, "called-off", "sleeping")
        client.cancel(["called-off"])
        assert "was ended at 20" in reason(client, "called-off", "cancelled").text
        ids = [message_workflow_id("billing", world.topic, 1, 0, offset) for offset in range(2)]
        for one in ids:
            reason(client, one, "dead_letter")
        redelivery = client.redeliver_all(rate=0.001)
        in_turn = f"is a dead letter, and redelivery {redelivery.id} lets it go in its turn"
        assert in_turn in reason(client, ids[1], "redelivery").text
        both = reason(client, "waits", "waiting").text
        assert "waits for waits>1.1 to end, which is " in both and "and waits for the event 'shipped' of sleeps" in both

        # Its process is frozen, and its lease runs; a peer lives that serves another queue.
        reason(client, "receives", "receiving")
        reason(client, "works", "running")
        world.wait(lambda: world.executor(peer), "the peer lives")
        worker.freeze()
        world.send({"do": "go"}, key="z")
        world.flush()
        unread = reason(client, f"{world.topic}/0/2", "unread").text
        assert f"0 messages before it: its partition is read by executor {world.executor(worker)} " in unread
        for n in range(2):
            client.enqueue("works", workflow_id=f"next:{n}")
        client.handle("receives", object).send("x", topic="paid")
        taken = "the one process that knows it takes"
        assert f"is the next in queue 'default': {taken} it within a beat" in reason(client, "next:0", "free").text
        assert f"behind 1 others, and {taken} from it as there is room" in reason(client, "next:1", "in_line").text
        assert f"is woken, as something has come for it: {taken}" in reason(client, "receives", "free").text
        silent = reason(client, "works", "silent")
        assert silent.until is not None
        assert re.search(r"has been silent for .+: its lease runs out in .+ s, and a peer takes over", silent.text)
