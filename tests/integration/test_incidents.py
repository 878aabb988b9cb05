"""A topic, a log or a cluster is not what was read: it is noticed, recorded, and stops until it is settled or as the policy says.

Nothing of it is played: topics are deleted and recreated, records deleted, a log's end is cut off while its broker is down,
and another broker, of another cluster, listens where the first one did.
"""

import json
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition

from eventflow.local import Kafka
from eventflow.records import IncidentRecord
from eventflow.sync import Client
from tests import forkserver
from tests.harness import Worker, World, few
from tests.integration.test_cli import environment

POLICIES = ["stop", "earliest", "latest"]


def incidents(world: World, kind: str, *, settled: bool = True) -> list[IncidentRecord]:
    """Those that stop something, or did, by what they are about."""
    with Client(world.database_url) as client:
        found = client.incidents(settled=settled)
    return sorted((one for one in found if one.kind == kind and one.stops), key=lambda one: one.subject)


def wait_incident(world: World, kind: str, *, settled: bool = False, count: int = 1) -> list[IncidentRecord]:
    waited = lambda: len(incidents(world, kind, settled=settled)) >= count  # noqa: E731
    world.wait(waited, f"{count} incidents: {kind}")
    return incidents(world, kind, settled=settled)


def settle(world: World, incident: IncidentRecord, choice: Any) -> None:
    with Client(world.database_url) as client:
        client.settle(incident.id, choice)


def went_on(world: World, incident: IncidentRecord) -> IncidentRecord:
    """The incident, once its partition has gone on."""

    def now() -> IncidentRecord | None:
        found = [one for one in incidents(world, incident.kind) if one.id == incident.id]
        return found[0] if found and found[0].went_on_at is not None else None

    return world.wait(now, f"what incident {incident.id} stopped goes on")  # type: ignore[return-value]


def handled(world: World, partition: int | None = None) -> int:
    return world.one("select count(*) from effects where %s::int is null or partition = %s", partition, partition)


def start(world: World, policy: str = "stop", **settings: str) -> Worker:
    fast = '{"session.timeout.ms": 2000, "topic.metadata.refresh.interval.ms": 500, "reconnect.backoff.max.ms": 250}'
    return world.start("ledger_psycopg", ready=True, ON_INCIDENT=policy, EVENTFLOW_KAFKA=fast, **settings)


# ---- a topic that was recreated ----


def test_a_topic_that_was_recreated_stands_still_until_a_person_has_settled_it(world: World) -> None:
    """By the command line, one partition from its beginning, the other from its end; the worker is not started again."""
    world.create_topic(2)
    worker = start(world)
    world.produce(100)
    world.wait_completed("ledger")
    world.delete_topic()
    world.create_topic(2)
    world.produce(60)
    ends = world.ends()
    first, second = wait_incident(world, "recreated", count=2)
    assert [first.subject, second.subject] == [f"ledger {world.topic}#2/{n}" for n in (0, 1)]
    assert world.completed("ledger") == 100, "nothing of the new topic was handled"
    assert worker.alive

    listed = [json.loads(line) for line in said(world, "list", "--json").splitlines()]
    assert {one["subject"] for one in listed if one["stops"]} == {first.subject, second.subject}
    assert f"{first.id}  STOPS  recreated  {first.subject}" in said(world, "list")
    asked = command(world, "settle", str(first.id), "earliest", given="n\n")
    assert asked.stderr.splitlines()[-1].endswith("nobody to ask whether to go on, as this is no terminal: say --yes")
    assert (asked.returncode, incidents(world, "recreated", settled=False)) == (2, [first, second]), "it asks first"
    assert said(world, "settle", str(first.id), "earliest", "--yes") == f"incident {first.id} is settled: earliest\n"
    record = json.loads(said(world, "settle", str(second.id), "latest", "--yes", "--json"))
    assert (record["choice"], record["settled_by"] != "") == ("latest", True)
    again = command(world, "settle", str(second.id), "retry", "--yes")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert f"incident {second.id} was settled by" in again.stderr
    assert "there is no incident 999" in command(world, "settle", "999", "retry", "--yes").stderr

    world.wait(lambda: handled(world, 0) == ends[0] + old(world, 0), "the first partition is read")
    assert (went_on(world, first).skipped, went_on(world, second).skipped) == (None, (0, ends[1]))
    world.send({"n": 60}, partition=1)
    world.flush()
    world.wait(lambda: handled(world, 1) == 1 + old(world, 1), "the second one goes on at its end")
    assert worker.stop() == 0
    assert incidents(world, "recreated", settled=False) == []


def old(world: World, partition: int) -> int:
    """How many messages the first topic had."""
    return world.one(
        """select count(*) from eventflow.workflows w join eventflow.claims c on c.id = w.claim
           join eventflow.sources s on s.id = c.source where s.incarnation = 1 and c.partition = %s""",
        partition,
    )


def command(world: World, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    wanted = environment(DATABASE_URL=world.database_url)
    return forkserver.command("incidents", *arguments, environment=wanted, given=given.encode())


def said(world: World, *arguments: str) -> str:
    done = command(world, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_stop_outlives_the_worker(world: World) -> None:
    world.create_topic(1)
    worker = start(world)
    world.produce(10)
    world.wait_completed("ledger")
    assert worker.stop() == 0
    world.delete_topic()
    world.create_topic(1)
    world.produce(20)
    for _ in range(2):
        worker = world.start("ledger_psycopg")
        [incident] = wait_incident(world, "recreated")
        world.wait(lambda: f"stands still until incident {incident.id} is settled" in worker.text, "it says so")
        assert worker.stop() == 0
    assert handled(world) == 10
    settle(world, incident, "earliest")
    world.start("ledger_psycopg")
    world.wait(lambda: handled(world) == 30, "it was settled while nobody ran")


def test_a_topic_that_is_deleted_stops_no_other(world: World) -> None:
    """Two topics, one consumer: the one that goes is an incident, which says what was not read; the other goes on."""
    names = [world.create_topic(1), world.create_topic(1, f"{world.topic}-b")]
    worker = start(world, TOPIC=",".join(names))
    for topic in names:
        world.send({"n": 0}, topic=topic)
    world.flush()
    world.wait(lambda: handled(world) == 2, "both are read")
    world.delete_topic(names[0])
    gone = "select subject, detail from eventflow.incidents where kind = 'deleted'"
    world.wait(lambda: world.sql(gone), "it is noticed")
    [(subject, detail)] = world.sql(gone)
    assert (subject, "read up to offset 1, and went at least to 1" in detail) == (f"ledger {names[0]}/0", True)
    for n in range(1, 4):
        world.send({"n": n}, topic=names[1])
    world.flush()
    world.wait(lambda: handled(world) == 5, "the other goes on")
    world.create_topic(1, names[0])
    world.send({"n": 9}, topic=names[0])
    world.flush()
    [incident] = wait_incident(world, "recreated")
    settle(world, incident, "earliest")
    world.wait(lambda: handled(world) == 6, "and it, when it is back and was settled")
    assert worker.stop() == 0


# ---- what retention has deleted ----


def delete_records(world: World, before: int) -> None:
    place, admin = TopicPartition(world.topic, 0, before), cast("Any", world.admin)
    admin.delete_records([place])[place].result(20)


@pytest.mark.parametrize("policy", POLICIES)
def test_records_deleted_before_they_were_read(world: World, policy: str) -> None:
    world.create_topic(1)
    worker = start(world, policy)
    world.produce(10)
    world.wait_completed("ledger")
    assert worker.stop() == 0
    world.produce(90)
    delete_records(world, 40)
    worker = world.start("ledger_psycopg", ON_INCIDENT=policy)
    if policy == "stop":
        [incident] = wait_incident(world, "retention")
        assert (incident.first_offset, "which has 40 to 100" in incident.detail) == (10, True)
        settle(world, incident, "earliest")
    [incident] = wait_incident(world, "retention", settled=True)
    now = went_on(world, incident)
    assert now.settled_by == "on_incident" or policy == "stop"
    assert now.skipped == ((10, 100) if policy == "latest" else (10, 40))
    world.produce(1)
    count = 10 + 1 + (0 if policy == "latest" else 60)
    world.wait(lambda: handled(world) == count, "it goes on")
    accepted = "select max(upper(r)) from eventflow.deltas d, unnest(d.ranges) r"
    assert worker.stop() == 0
    assert world.one(accepted) == 101


def test_records_deleted_before_they_were_read_while_the_worker_runs(world: World) -> None:
    """It has no room, so that Kafka keeps the rest; what it comes back for is gone."""
    world.create_topic(1)
    worker = world.start("slow", PAUSE="3", EVENTFLOW_MAX_IN_FLIGHT="2", ready=True)
    world.produce(50)
    full = "select count(*) = 2 and clock_timestamp() - max(at) > interval '1.2 s' from effects"
    world.wait(lambda: world.one(full), "there is no room for more than a second")
    delete_records(world, 45)
    [incident] = wait_incident(world, "retention")
    assert incident.first_offset == 2
    world.wait(lambda: world.completed("billing") == 2, "what has begun ends")
    settle(world, incident, "earliest")
    world.wait_completed("billing", 7)
    assert went_on(world, incident).skipped == (2, 45)
    assert worker.alive


# ---- a log whose end was cut off ----


def cut(world: World, broker: Kafka, folder: Path, keep: float) -> None:
    """Stop the broker, lose the end of partition 0's log, and start it: as an unclean election loses it."""
    broker.stop()
    data = folder / "kafka" / "data"
    log = data / f"{world.topic}-0" / f"{0:020}.log"
    with log.open("r+b") as file:
        file.truncate(int(log.stat().st_size * keep))
    for file in data.rglob(".kafka_cleanshutdown"):
        file.unlink()
    broker.start()
    world.forget_clients()  # the idempotent producer's sequence numbers go on where the log ended
    world.wait(lambda: world.has_partitions(1), "the partition is led")


@pytest.mark.parametrize("policy", few(POLICIES, "stop"))
def test_a_log_that_was_cut_off_under_a_worker(
    private_world: World, private_kafka: Kafka, private_root: Path, policy: str
) -> None:
    """The offsets come again, with other messages: they have ids of their own, and none is taken for one that was handled."""
    world = private_world
    world.create_topic(1)
    worker = start(world, policy)
    for n in range(50):
        world.send({"n": n})
        world.flush()  # a batch each, of which the last one that is cut through is lost whole
    world.wait_completed("ledger")
    cut(world, private_kafka, private_root, 0.6)
    [kept] = world.ends().values()
    assert 10 < kept < 50
    check_cut(world, policy, kept, worker)


def test_a_log_that_was_cut_off_while_nobody_read_it(
    private_world: World, private_kafka: Kafka, private_root: Path
) -> None:
    """And has grown past the position since: the leader's epoch of what was read tells it."""
    world = private_world
    world.create_topic(1)
    worker = start(world)
    for n in range(50):
        world.send({"n": n})
        world.flush()
    world.wait_completed("ledger")
    assert worker.stop() == 0
    cut(world, private_kafka, private_root, 0.6)
    [kept] = world.ends().values()
    world.produce(40)
    check_cut(world, "stop", kept, world.start("ledger_psycopg"), produced=40)


@pytest.mark.long
def test_what_was_read_below_the_cut_and_had_not_begun_is_not_passed_by(
    private_world: World, private_kafka: Kafka, private_root: Path
) -> None:
    world = private_world
    world.create_topic(1)
    stays = '{"session.timeout.ms": 45000, "topic.metadata.refresh.interval.ms": 500, "reconnect.backoff.max.ms": 250}'
    world.start("ordered", PAUSE="0.6", EVENTFLOW_KAFKA=stays)
    for n in range(50):
        world.send({"n": n})
        world.flush()
    world.wait(lambda: world.completed("ordered") > 0, "one is done")
    cut(world, private_kafka, private_root, 0.6)
    [kept] = world.ends().values()
    [incident] = wait_incident(world, "truncation")
    assert (incident.first_offset, world.completed("ordered") < kept) == (kept, True)
    settle(world, incident, "earliest")
    world.produce(3)
    wanted = list(range(kept + 3))
    found = """select array_agg("offset" order by "offset") from (select distinct "offset" from effects where note = 'two') t"""
    world.wait(lambda: world.one(found) == wanted, "each that is there is handled", timeout=90)
    twice = """select "offset" from effects where note = 'two' group by 1 having count(*) > 1"""
    assert world.sql(twice) == []
    world.check_order("ordered")


def test_a_cut_above_the_position_takes_what_was_accepted_with_it(
    private_world: World, private_kafka: Kafka, private_root: Path
) -> None:
    """What is sent to the offsets of messages that were accepted out of order is not taken for these."""
    world = private_world
    world.create_topic(1)
    worker = world.start("slow", PAUSE="600", EVENTFLOW_ACCEPT_AFTER="10")
    for n in range(50):
        world.send({"n": n, "do": "" if n == 2 else "quick"})
        world.flush()
    world.wait(lambda: world.completed("billing") == 49, "all others are done")
    worker.kill()
    cut(world, private_kafka, private_root, 0.6)
    [kept] = world.ends().values()
    world.start("slow", PAUSE="0", ON_INCIDENT="earliest")
    [incident] = wait_incident(world, "truncation")
    assert incident.first_offset == kept
    settle(world, incident, "earliest")
    world.produce(60, do="quick")
    world.wait(
        lambda: world.completed("billing") == 49 + 1 + 60, "those that were sent since are handled, and the one before"
    )


def check_cut(world: World, policy: str, kept: int, worker: Worker, produced: int = 0) -> None:
    if not produced:
        world.produce(40)
    end = kept + 40
    [incident] = wait_incident(world, "truncation", settled=policy != "stop")
    assert (incident.first_offset, f"cut off at offset {kept}" in incident.detail) == (kept, True)
    if policy == "stop":
        assert handled(world) == 50
        settle(world, incident, "earliest")
    now = went_on(world, incident)
    assert now.skipped in (None, *([(kept, end), (kept, now.went_on_at)] if policy == "latest" else []))
    world.produce(5)
    lost = 0 if now.skipped is None else now.skipped[1] - kept
    world.wait(lambda: handled(world) == 50 + 45 - lost, "what was sent since is handled, what was skipped is not")
    ids = world.sql("select id from eventflow.workflows where id like %s", "%:g2")
    assert len(ids) == 45 - lost
    assert world.sql("select ended, generation from eventflow.claims order by generation") == [(True, 1), (False, 2)]
    assert worker.stop() == 0


def test_a_position_before_what_was_read_is_no_truncation(private_world: World, private_kafka: Kafka) -> None:
    """One leaves who has read further than he has got, into another leader's messages: the next one begins before these."""
    world = private_world
    world.create_topic(1)
    world.produce(30)
    private_kafka.stop()
    private_kafka.start()
    world.produce(30)
    worker = world.start("ordered", ready=True, PAUSE="0.1")
    world.wait(lambda: world.completed("ordered") > 3, "some are done")
    assert worker.stop() == 0
    assert world.completed("ordered") < 30
    world.start("ordered")
    world.wait_completed("ordered")
    world.check_no_incidents()


# ---- another cluster behind the same address ----


def test_another_cluster_behind_the_same_address(
    private_world: World, private_kafka: Kafka, private_root: Path
) -> None:
    """Nothing is read of it until a person has chosen; when the first one is back before, all goes on where it was."""
    world = private_world
    world.create_topic(1)
    worker = start(world)
    world.produce(20)
    world.wait_completed("ledger")
    private_kafka.stop()
    other_root = private_root / "other"
    other_root.mkdir(mode=0o755)
    other = Kafka(other_root, port=private_kafka.port)
    try:
        other.start()
        world.forget_clients()
        world.create_topic(1)
        world.produce(30)
        [incident] = wait_incident(world, "cluster")
        assert handled(world) == 20
        settle(world, incident, "retry")
        [incident] = wait_incident(world, "cluster")
        other.stop()

        private_kafka.start()
        world.forget_clients()
        world.wait(lambda: world.has_partitions(1), "the first one is back")
        world.produce(7)
        world.wait(lambda: handled(world) == 27, "it goes on where it was", timeout=60)
        private_kafka.stop()

        other.start()
        world.forget_clients()
        settle(world, incident, "earliest")
        world.wait(lambda: handled(world) == 57, "the other one's messages are handled from the first on", timeout=60)
        assert world.sql("select incarnation, superseded, begins from eventflow.sources order by 1") == [
            (1, True, None), (2, False, "earliest"),
        ]  # fmt: skip
        assert incidents(world, "cluster", settled=False) == []
        assert worker.stop() == 0
    finally:
        other.stop()
