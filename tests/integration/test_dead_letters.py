"""Dead letters: kept whole with what each attempt failed with, listed, shown, redelivered, edited, dropped."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer

from eventflow import sync
from eventflow.errors import UsageError, WorkflowNotFoundError, WorkflowStateError
from eventflow.records import DeadLetter
from tests.harness import World

GROUPS = {"async": "abill", "sync": "bill", "ledger": "enter"}
BAD = b"{not json"
by_offset = attrgetter("offset")


def fill(world: World, *failing: int, count: int = 10, partitions: int = 1) -> None:
    """Messages, of which these fail, and the last cannot be decoded."""
    world.create_topic(partitions)
    for n in range(count):
        world.send({"n": n, "do": "fail" if n in failing else ""}, key=f"k{n}", partition=n % partitions)
    world.producer.produce(
        world.topic, BAD, b"\x00\xff", 0, headers=[("trace", b"abc"), ("trace", b"\x00"), ("none", None)]
    )
    world.produced += 1
    world.flush()


def mend(world: World) -> None:
    world.sql("""insert into effects ("group", note, pid) values ('test', 'mended', 0)""")


def wait_letters(world: World, client: sync.Client, count: int, **only: Any) -> list[DeadLetter]:
    return world.wait(
        lambda: found if len(found := list(client.dead_letters(**only))) == count else None, f"{count} dead letters"
    )


def effects(world: World, group: str, offset: int) -> Counter[str]:
    rows = world.sql('select note from effects where "group" = %s and "offset" = %s', group, offset)
    return Counter(note for (note,) in rows)


def test_what_fails_for_good_is_kept_whole_and_can_be_redelivered(world: World) -> None:
    """Each group keeps it apart; what a step had done before is not done again, what a transaction had not, is done once."""
    fill(world, 3, 5)
    world.start("letters", RETRIES="2")
    with sync.Client(world.database_url) as client:
        wait_letters(world, client, 3 * len(GROUPS))
        for group, name in GROUPS.items():
            third, fifth, bad = sorted(client.dead_letters(group=group), key=by_offset)
            assert (third.consumer, third.topic, third.incarnation, third.partition, third.offset) == (
                name,
                world.topic,
                1,
                0,
                3,
            )
            assert (third.status, third.attempt, third.failures, third.key) == ("failed", 3, 3, b"k3")
            assert (third.error, third.reason) == ("letters.RefusedError: order 3 is refused", None)
            assert third.first_failed_at is not None
            assert third.last_failed_at is not None
            assert third.created_at <= third.first_failed_at < third.last_failed_at
            assert (bad.offset, bad.failures, bad.key) == (10, 1, b"\x00\xff"), "what cannot be decoded is not retried"
            assert (bad.error or "").startswith("eventflow.errors.CodecError: ")
            check_details(client, third, bad)
            letters = [letter.workflow_id for letter in (third, fifth)]
            mend(world)
            assert client.redeliver(letters) == 2
        for group in GROUPS:
            world.wait_completed(group, 10)
            for offset in (3, 5):
                once = {"booked": 1} if group == "ledger" else {"charged": 1, "booked": 1}
                assert effects(world, group, offset) == once
        assert [letter.offset for letter in client.dead_letters()] == [10] * len(GROUPS)
        details = client.dead_letter(f"kafka:async:{world.topic}:1:0:3")
        assert (details.letter.status, details.letter.attempt, len(details.failed)) == ("succeeded", 4, 3), (
            "its history stays"
        )
    asked = world.sql("select kind, count(*) from eventflow.requests where who like '%@%, process %' group by 1")
    assert asked == [("redeliver", 2 * len(GROUPS))]
    world.check_no_incidents()


def check_details(client: sync.Client, failed: DeadLetter, bad: DeadLetter) -> None:
    """One that a handler refused, and one that cannot be decoded, with the bytes that Kafka had."""
    details = client.dead_letter(failed.workflow_id)
    assert details.letter == failed
    assert json.loads(details.message.value or b"") == details.message.decoded() == {"n": 3, "do": "fail"}
    assert [(one.attempt, one.error) for one in details.failed] == [(n, failed.error) for n in (1, 2, 3)]
    assert [one.at for one in details.failed] == sorted(one.at for one in details.failed)
    assert "raise RefusedError" in details.failed[0].traceback
    assert details.edits == ()
    message = client.dead_letter(bad.workflow_id).message
    assert (message.key, message.value, message.decoded()) == (b"\x00\xff", BAD, BAD.decode())
    assert message.headers == (("trace", b"abc"), ("trace", b"\x00"), ("none", None))


def test_edited_dropped_and_refused(world: World) -> None:
    fill(world, 3, 5)
    world.start("letters")
    with sync.Client(world.database_url) as client:
        _, fifth, bad = sorted(wait_letters(world, client, 3, group="async"), key=by_offset)
        client.redeliver_edited(bad.workflow_id, value=b'{"n": 11, "pad": "by hand"}')
        world.wait_completed("async", 9)
        assert effects(world, "async", 10) == {"charged": 1, "booked by hand": 1}
        details = client.dead_letter(bad.workflow_id)
        [edit] = details.edits
        assert (edit.before.value, edit.before.key, len(edit.before.headers)) == (BAD, b"\x00\xff", 3)
        assert (details.message.key, details.message.headers) == (edit.before.key, edit.before.headers), "these stay"
        client.redeliver_edited(fifth.workflow_id, headers={"who": "ada"})
        world.wait(lambda: client.dead_letter(fifth.workflow_id).letter.failures == 4, "it has failed again")
        details = client.dead_letter(fifth.workflow_id)
        assert details.message.headers == (("who", b"ada"),)
        assert [one.attempt for one in details.failed] == [1, 2, 3, 4]

        assert client.drop([fifth.workflow_id], "a duplicate of order 4") == 1
        [third] = client.dead_letters(group="async")
        dropped = client.dead_letter(fifth.workflow_id).letter
        assert dropped.status == "cancelled"
        assert (dropped.reason or "").startswith("dropped by ")
        assert (dropped.reason or "").endswith(": a duplicate of order 4")
        with pytest.raises(
            WorkflowStateError, match="is cancelled: redeliver is for workflows that are failed or parked"
        ):
            client.redeliver([third.workflow_id, fifth.workflow_id])
        with pytest.raises(WorkflowNotFoundError):
            client.drop([third.workflow_id, "kafka:no:such:1:0:0"], "why not")
        assert [one.workflow_id for one in client.dead_letters(group="async")] == [third.workflow_id], "all or none"
        mend(world)
        client.resume([fifth.workflow_id])  # taken back
        world.wait_completed("async", 10)
        with pytest.raises(UsageError, match="say why"):
            client.drop([third.workflow_id], " ")
        with pytest.raises(UsageError, match="nothing is to change"):
            client.redeliver_edited(third.workflow_id)
        with pytest.raises(UsageError, match="a value is bytes"):
            client.redeliver_edited(third.workflow_id, value="text")  # type: ignore[arg-type]
    kinds = world.sql("select kind, count(*) from eventflow.requests group by 1 order by 1")
    assert kinds == [("drop", 1), ("edit", 2), ("resume", 1)]


def test_a_workflow_that_is_no_messages_is_no_dead_letter(world: World) -> None:
    world.sql(
        "insert into eventflow.workflows (id, name, application, status, finished_at) values ('mine', 'w', 'default', 'failed', now())"
    )
    with sync.Client(world.database_url) as client:
        assert list(client.dead_letters()) == []
        with pytest.raises(WorkflowStateError, match="'mine' is no message's"):
            client.redeliver(["mine"])
        with pytest.raises(WorkflowNotFoundError, match="no message's workflow has the id 'mine'"):
            client.dead_letter("mine")


# ---- lists -----------------------------------------------------------------------------------------

LETTERS = """
with source as (
  insert into eventflow.sources (topic, incarnation, cluster_id, topic_id) values ('orders', 1, 'c', 'i') returning id
), claim as (
  insert into eventflow.claims ("group", source, partition, owner, accepted, in_flight, verified, began)
  select 'billing', id, p, 0, '{(,1000)}', 1, 0, 'earliest' from source, generate_series(0, 1) p returning id, partition
), made as (
  insert into eventflow.workflows (id, name, application, status, claim, "offset", timestamp, created_at, finished_at, key, value, error)
  select format('kafka:billing:orders:1:%s:%s', partition, n), 'bill', 'default', 'failed', claim.id, n, 1000 * n,
         '2026-01-01 00:00Z'::timestamptz + make_interval(secs => n / 7), now(), 'k', 'v', '{"type": "builtins.KeyError", "message": "x"}'
    from claim, generate_series(1, 600) n returning id, "offset"
)
insert into eventflow.failures (workflow_id, attempt, at, type, error)
select id, 1, '2026-01-02 00:00Z'::timestamptz + make_interval(secs => "offset"),
       case when "offset" % 2 = 0 then 'builtins.KeyError' else 'shop.errors.OutOfStock' end, '{"type": "x", "message": "y"}'
  from made
"""


def test_pages_are_stable_and_filters_filter(world: World) -> None:
    """1,200 letters on three pages, many of one moment; what changes meanwhile moves none of the others."""
    world.sql(LETTERS)
    with sync.Client(world.database_url) as client:
        listed = client.dead_letters()
        first = [next(listed) for _ in range(3)]
        gone = [f"kafka:billing:orders:1:{n % 2}:{100 + n}" for n in range(50)]
        client.drop(gone[:10], "gone")  # on the page that was read
        world.sql(
            "delete from eventflow.workflows where id = any(%s)",
            ["kafka:billing:orders:1:1:599", "kafka:billing:orders:1:0:598"],
        )
        ids = [letter.workflow_id for letter in (*first, *listed)]
        assert len(ids) == len(set(ids))
        assert len(ids) in {1198, 1188}, "a page is read at once"
        when = datetime(2026, 1, 2, 0, 5, tzinfo=UTC)
        cases: list[tuple[dict[str, Any], int]] = [
            ({"consumer": "bill"}, 1188), ({"consumer": "bil"}, 0), ({"group": "billing", "topic": "orders", "partition": 1}, 594),
            ({"topic": "order"}, 0), ({"error_type": "OutOfStock"}, 594), ({"error_type": "shop.errors.OutOfStock"}, 594),
            ({"error_type": "KeyError", "partition": 0}, 294), ({"error_type": "Error"}, 0), ({"status": "parked"}, 0),
            ({"key": b"k"}, 1188), ({"key": b"K"}, 0),
            ({"failed_before": when}, 588), ({"failed_after": when, "failed_before": when + timedelta(seconds=1)}, 2),
        ]  # fmt: skip
        for only, count in cases:
            assert len(list(client.dead_letters(**only))) == count, only
        letter = next(client.dead_letters(partition=1))
        assert letter.timestamp == datetime.fromtimestamp(letter.offset, UTC)
        wrong: list[dict[str, Any]] = [
            {"status": "succeeded"}, {"partition": -1}, {"key": "k"}, {"group": ""}, {"failed_after": datetime(2026, 1, 1)},
        ]  # fmt: skip
        for only in wrong:
            with pytest.raises(UsageError):
                client.dead_letters(**only)
    assert world.one("select count(*) from eventflow.dead_letters(consumer => 'bill', of_partition => 1)") == 594


# ---- many, at a rate -------------------------------------------------------------------------------


def released(world: World) -> list[float]:
    """When each letter was let go, in seconds."""
    rows = world.sql(
        "select extract(epoch from at)::float8 from eventflow.requests where kind = 'redeliver' order by at"
    )
    return [at for (at,) in rows]


def check_rate(times: list[float], rate: float) -> None:
    """In no stretch of time more have gone than the rate allows, and a tenth of a second's worth; their times are some ms off."""
    allowed = max(1.0, rate / 10)
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate * (times[last] - times[first] + 0.05) + allowed, (first, last, times)


@pytest.mark.crash
@pytest.mark.parametrize(
    "point", ["recovery.before_redeliver", "recovery.after_redeliver", pytest.param("", marks=pytest.mark.long)]
)
def test_redelivery_at_a_rate_goes_on_whoever_dies(world: World, point: str) -> None:
    """It is in the ledger: neither who ordered it nor any process that lets letters go is needed for it to end, at its rate."""
    failing = range(1, 31)
    fill(world, *failing, count=32)
    first = world.start("letters", RETRIES="0")
    with sync.Client(world.database_url) as client:
        wait_letters(world, client, 3 * 31)
        first.stop()
        mend(world)
        ordered = client.redeliver_all(rate=15, group="async", error_type="RefusedError")
        assert (ordered.total, ordered.redelivered, ordered.ended_at, ordered.rate) == (30, 0, None, 15)
        client.drop([f"kafka:async:{world.topic}:1:0:30"], "decided on meanwhile")
        victim = world.start("letters", crash=f"{point}:3" if point else "")
        if point:
            world.wait_death(victim)
            assert client.redelivery(ordered.id).redelivered == (2 if point.endswith("before_redeliver") else 3)
            world.start("letters")
        world.start("letters")
        done = world.wait(lambda: one if (one := client.redelivery(ordered.id)).ended_at else None, "all have gone")
        assert (done.redelivered, done.passed_over, done.stopped_by) == (29, 1, None)
        world.wait_completed("async", 31)
        times = released(world)
        assert len(times) == 29, "each went once"
        check_rate(times, 15)
        for offset in failing[:-1]:
            found = effects(
                world, "async", offset
            )  # what is in no step may be done again by who goes on where one died
            assert (found["charged"], found["booked"] >= 1) == (1, True)
        assert len(list(client.dead_letters(group="sync"))) == 31, "others were not meant"
        assert client.redeliveries() == [done]


def test_a_redelivery_is_stopped_and_waits_for_who_serves_it(world: World) -> None:
    world.sql(LETTERS)
    with sync.Client(world.database_url) as client, sync.Client(world.database_url, application="other") as other:
        nothing = client.redeliver_all(topic="nowhere")
        assert (nothing.total, nothing.ended_at is not None) == (0, True)
        ordered = client.redeliver_all(partition=1)
        assert (ordered.total, ordered.rate) == (600, None)
        with pytest.raises(WorkflowNotFoundError):
            other.redelivery(ordered.id)
        assert other.redeliver_all().total == 0, "those of another application"
        due = "select gone, next_in from eventflow.redeliver_due('default', %s, 100)"
        assert world.sql(due, ["another"]) == [(0, None)], "nobody serves them"
        assert world.sql(due, ["bill"]) == [(100, 0.0)]
        assert client.stop_redelivery(ordered.id)
        assert not client.stop_redelivery(ordered.id)
        stopped = client.redelivery(ordered.id)
        assert (stopped.redelivered, bool(stopped.stopped_by)) == (100, True)
        assert len(list(client.dead_letters(partition=1))) == 500
        assert world.one("select count(*) from eventflow.redelivery_items") == 0
        oldest = "select max(\"offset\"), count(*) from eventflow.workflows where status = 'queued'"
        assert world.sql(oldest) == [(100, 100)], "the oldest went first"
        for rate in (0, -1, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="a rate is how many a second"):
                client.redeliver_all(rate=rate)


def test_two_who_let_letters_go_keep_one_rate(world: World) -> None:
    """Time that nobody used is not made good for, and two sessions at once never let one letter go twice."""
    world.sql(LETTERS)
    with sync.Client(world.database_url) as client:
        ordered = client.redeliver_all(rate=50)
        world.sql("update eventflow.redeliveries set counted_at = now() - interval '1 hour'")
        due = "select gone from eventflow.redeliver_due('default', '{bill}', 1000)"
        assert world.one(due) == 5, "an hour later it is a tenth of a second's worth"
        assert world.one(due) <= 1
        with psycopg.connect(world.database_url) as session:
            session.execute("select 1 from eventflow.redeliveries where id = %s for update", [ordered.id])
            assert world.one(due) == 0, "a peer sees to it"


# ---- retries, and what becomes of what fails for good ---------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize(
    "point", ["journal.after_commit", pytest.param("journal.before_commit", marks=pytest.mark.long)]
)
def test_retries_are_durable_and_hold_up_nobody(world: World, point: str) -> None:
    """A process that dies between two attempts takes no error with it, and whoever goes on counts on; 0.4 s, then 0.8 s."""
    world.create_topic(1)
    world.send({"n": 0, "do": "fail"})
    world.send({"n": 1, "do": "hopeless"})
    world.flush()
    victim = world.start("letters", RETRIES="2", DELAY="0.4", ready=True)
    tried = "select count(*) from eventflow.failures"
    world.wait(lambda: world.one(tried) >= 3, "the first attempts have failed")
    victim.kill()
    second = world.start("letters", RETRIES="2", DELAY="0.4", crash=f"{point}:4")
    world.produce(50)
    world.wait_death(second)
    world.start("letters", RETRIES="2", DELAY="0.4")
    with sync.Client(world.database_url) as client:
        wait_letters(world, client, 6)
        for group in GROUPS:
            world.wait_completed(group, 50)
            for letter in client.dead_letters(group=group, error_type="RefusedError"):
                failed = client.dead_letter(letter.workflow_id).failed
                assert len(failed) == 3
                assert [one.attempt for one in failed] == sorted({one.attempt for one in failed})
                waits = [(b.at - a.at).total_seconds() for a, b in zip(failed, failed[1:], strict=False)]
                assert waits[0] >= 0.38
                assert waits[1] >= 0.78, "the delay doubles"
            [hopeless] = client.dead_letters(group=group, error_type="HopelessError")
            assert hopeless.failures == 1, "retry_if has said no"
    world.check_no_incidents()


@pytest.mark.parametrize("ordering", ["partition", "none"])
def test_park_key_holds_its_scope_until_a_person_decides(world: World, ordering: str) -> None:
    fill(world, 2, 5, count=8, partitions=2)
    settings = {"ON_FAILURE": "park_key", "ORDERING": ordering}
    worker = world.start("letters", **settings)
    with sync.Client(world.database_url) as client:
        # In order, partition 0 stands at its second message, partition 1 at its third; else only what has failed does.
        there = {(0, 1), (1, 2)} if ordering == "partition" else {(0, 1), (1, 2), (0, 4)}
        for group in GROUPS:
            letters = wait_letters(world, client, len(there), group=group, status="parked")
            assert {(letter.partition, letter.offset) for letter in letters} == there
            world.wait_completed(group, 3 if ordering == "partition" else 6)
            refused = next(letter for letter in letters if letter.partition == 1)
            assert (refused.reason, refused.failures) == ("it failed for good: RefusedError", 2)
            assert refused.error == "letters.RefusedError: order 5 is refused"
        assert worker.stop() == 0
        world.start("letters", ready=True, **settings)
        world.send({"n": 9}, partition=1)
        world.flush()
        if ordering == "none":
            for group in GROUPS:
                world.wait_completed(group, 7)
            return
        for group in GROUPS:
            first, second = (f"kafka:{group}:{world.topic}:1:{place}" for place in ("0:1", "1:2"))
            assert world.completed(group) == 3, "after a restart, too"
            client.drop([first], "never mind")
            world.wait(
                lambda f=first: f.replace("0:1", "0:4") in {one.workflow_id for one in client.dead_letters()},
                "the next one",
            )
            mend(world)
            client.redeliver([second])
            world.wait_completed(group, 3 + 2 + 3)
            world.sql("delete from effects where note = 'mended'")
        for group in GROUPS:
            notes = world.sql(
                """select "offset" from effects where "group" = %s and partition = 1 and note = 'booked' order by id""",
                group,
            )
            assert [offset for (offset,) in notes] == [0, 1, 2, 3, 4], "in order"
    world.check_no_incidents()


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_what_follows_a_success_that_the_ledger_refuses_waits_too(world: World, ordering: str) -> None:
    """It had its turn, and may have begun: it is decided anew, behind what is parked now (R15)."""
    world.create_topic(1)
    refused = "status <> 'succeeded' or value not like '%poison%'::bytea"
    world.sql(f"alter table eventflow.workflows add constraint refused check ({refused})")
    for n in range(8):
        world.send({"n": n, "do": "poison" if n == 1 else ""}, key="k")
    world.flush()
    worker = world.start("letters", ON_FAILURE="park_key", ORDERING=ordering)
    with sync.Client(world.database_url) as client:
        for group in ("async", "sync"):
            [letter] = wait_letters(world, client, 1, group=group, status="parked")
            assert letter.offset == 1
            assert world.completed(group) == 1
            client.drop([letter.workflow_id], "never mind")
            world.wait_completed(group, 7)
            notes = world.sql(
                """select "offset" from effects where "group" = %s and note = 'booked' order by id""", group
            )
            assert [offset for (offset,) in notes] == list(range(8)), "each once, in order"
    assert worker.alive
    world.check_no_incidents()


@pytest.mark.parametrize("kind", ["term", "kill"])
def test_stop_lets_go_of_nothing_and_tries_again_after_a_restart(world: World, kind: str) -> None:
    """The consumer that met it fetches nothing more, with an incident; other consumers, in this process too, go on."""
    world.create_topic(1)
    for n in range(3):
        world.send({"n": n, "do": "fail" if n == 1 else ""})
    world.flush()
    worker = world.start("letters", ON_FAILURE="stop", ORDERING="partition", RETRIES="1")
    incidents = "select kind, subject, detail from eventflow.incidents order by subject"
    found = world.wait(lambda: rows if len(rows := world.sql(incidents)) == 3 else None, "three incidents")
    names = {"async": "abill", "sync": "bill", "ledger": "enter"}
    assert found == [
        ("stopped", f"kafka:{group}:{world.topic}:1:0:1", f"{names[group]} stands still: RefusedError")
        for group in sorted(names)
    ]
    other = world.start("one_step", ready=True, EVENTFLOW_APPLICATION="other")  # it has a `bill`, too
    world.produce(5)
    world.wait_completed("billing", 8)
    state = """select c."group", w.status::text, w.executor is not null, w.retries from eventflow.workflows w
               join eventflow.claims c on c.id = w.claim where w."offset" = 1 and c."group" <> 'billing' order by 1"""
    assert world.sql(state) == [(group, "queued", True, 0) for group in sorted(names)], (
        "kept, and held by who stands still"
    )
    for group in names:
        assert world.completed(group) == 1
    other.stop()
    if kind == "term":
        assert worker.stop() == 0
    else:
        worker.kill()
    world.start("letters", ON_FAILURE="stop", ORDERING="partition", RETRIES="1")
    again = "select count(*) from eventflow.failures"
    world.wait(lambda: world.one(again) == 12, "each was tried twice more")
    world.wait(lambda: world.one("select min(times) from eventflow.incidents") == 2, "and stopped again")
    with sync.Client(world.database_url) as client:
        client.terminate(
            [f"kafka:{group}:{world.topic}:1:0:1" for group in names]
        )  # given up by a person: it goes on at once
    for group in names:
        world.wait_completed(group, 7)
        assert effects(world, group, 1) == ({} if group == "ledger" else {"charged": 1}), "its step is not done again"


# ---- forwarded to a topic ------------------------------------------------------------------------


@pytest.mark.crash
def test_dead_letters_are_published_exactly_once(world: World) -> None:
    """In the commit that makes them dead letters, with what each failed with; one dies around that commit."""
    dead = world.create_topic(1, f"{world.topic}-dead")
    fill(world, 1, 2, count=4)
    for point in ("journal.before_commit", "journal.after_commit"):
        victim = world.start("letters", crash=f"{point}:4", DEAD=dead, RETRIES="1")
        world.wait_death(victim)
    world.start("letters", DEAD=dead, RETRIES="1")
    with sync.Client(world.database_url) as client:
        wait_letters(world, client, 9)
    world.wait(lambda: world.one("select count(*) from eventflow.outbox") == 0, "all are out")
    consumer = Consumer({
        "bootstrap.servers": world.bootstrap_servers, "group.id": dead, "auto.offset.reset": "earliest",
        "isolation.level": "read_committed", "enable.partition.eof": True,
    })  # fmt: skip
    consumer.subscribe([dead])
    events: list[Any] = []
    while (message := world.wait(lambda: consumer.poll(0.1), "the topic's end")).error() is None:
        events.append(message)
    consumer.close()
    found = {}
    for event in events:
        headers = dict(event.headers())
        found[headers["eventflow-group"].decode(), int(headers["eventflow-offset"])] = (event, headers)
    assert len(events) == 9
    assert found.keys() == {(group, offset) for group in GROUPS for offset in (1, 2, 4)}
    event, headers = found["async", 1]
    assert (event.key(), json.loads(event.value())) == (b"k1", {"n": 1, "do": "fail"})
    assert headers["eventflow-error"] == b"letters.RefusedError"
    assert headers["eventflow-error-message"] == b"order 1 is refused"
    assert headers["eventflow-topic"] == world.topic.encode()
    assert headers["eventflow-workflow-id"] == f"kafka:async:{world.topic}:1:0:1".encode()
    event, headers = found["ledger", 4]
    assert (event.key(), event.value(), headers["none"]) == (b"\x00\xff", BAD, None)
    assert [value for name, value in event.headers() if name == "trace"] == [b"abc", b"\x00"]


# ---- in order ------------------------------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize(("ordering", "workers"), [("partition", 1), ("partition", 2), ("key", 2)])
def test_redelivered_in_order_they_take_turns_with_what_else_is_there(
    world: World, ordering: str, workers: int
) -> None:
    """One at a time within the scope, while others come, and while a worker joins and another one is killed."""
    settings = {"ORDERING": ordering, "RETRIES": "0", "PAUSE": "0.01"}
    failing = range(0, 24, 3)
    world.create_topic(2)
    for n in range(24):
        world.send({"n": n, "do": "fail" if n in failing else ""}, key=f"k{n % 4}", partition=n % 2)
    world.flush()
    victim, *_ = [world.start("letters", ready=True, **settings) for _ in range(workers)]
    with sync.Client(world.database_url) as client:
        ids = [one.workflow_id for one in wait_letters(world, client, 3 * len(failing))]
        mend(world)
        for n in range(24, 84):
            world.send({"n": n}, key=f"k{n % 4}", partition=n % 2)
        world.flush()
        assert client.redeliver(ids) == len(ids)
        world.start("letters", **settings)
        booked = "select count(*) from effects where note = 'booked' and \"offset\" < 12"
        world.wait(lambda: world.one(booked) > 3 * (24 - len(failing)) + 3, "some were redelivered")
        victim.kill()
        for group in GROUPS:
            world.wait_completed(group, 84)
    for group in ("async", "sync"):
        check_turns(world, group, ordering, victim.pid)
    world.check_no_incidents()


def check_turns(world: World, group: str, ordering: str, killed: int) -> None:
    """In no scope did a handler begin before the last one had ended, or was killed."""
    scope = 'partition, "offset" %% 2' if ordering == "key" else "partition, 0"
    rows = world.sql(
        f"""select {scope}, "offset", note, pid from effects
             where "group" = %s and note in ('begun', 'ended') order by 1, 2, id""",
        group,
    )
    running: dict[tuple[int, int], tuple[int, int] | None] = {}
    for partition, key, offset, note, pid in rows:
        before = running.get((partition, key))
        if note == "ended":
            assert before == (offset, pid), f"{group} {partition}/{key}: {offset} ended, and {before} ran"
            running[partition, key] = None
        else:
            assert before is None or before[1] == killed, f"{group} {partition}/{key}: {offset} began beside {before}"
            running[partition, key] = (offset, pid)
