"""What is stored, encrypted: nothing of it is there to read, keys rotate, and a workflow whose key is gone waits for it."""

import base64
import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import eventflow
from eventflow import durable, sync
from eventflow.encryption import AesGcm
from eventflow.errors import (
    CodecError,
    UnreadableError,
    UsageError,
    WorkflowError,
    WorkflowExistsError,
    WorkflowParkedError,
)
from eventflow.payloads import Payloads
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import MODES, App, new_database, new_world
from tests.harness import World, pick, seeds

APP = "tests.conformance.secret_app"
SECRET = "thirty-nine steps"
RAW = {name: os.urandom(32) for name in ("old", "new", "other")}
KEYS = {name: base64.b64encode(key).decode() for name, key in RAW.items()}
SOON = {
    "EVENTFLOW_SUSPEND_AFTER": "0.02", "EVENTFLOW_ACCEPT_AFTER": "0.01", "EVENTFLOW_LEASE": "0.6", "EVENTFLOW_BEAT": "0.1",
}  # fmt: skip
POINTS = {
    "journal.before_commit": 6,
    "journal.after_commit": 6,
    "executor.after_step": 4,
    "transactions.before_commit": 1,
    "recovery.after_claim_woken": 1,
}


def keys(*names: str) -> dict[str, Any]:
    """The setting, in code."""
    return {"encryption_keys": {name: KEYS[name] for name in names}}


def variable(*names: str) -> dict[str, str]:
    """The setting, in the environment."""
    return {"EVENTFLOW_ENCRYPTION_KEYS": ",".join(f"{name}:{KEYS[name]}" for name in names)} if names else {}


def under(name: str, text: str) -> str:
    """A text as it is stored under this key."""
    return Payloads(AesGcm({name: RAW[name]})).encode(text)


# ---- nothing to read -----------------------------------------------------------------------------------


def where(url: str, secret: str) -> set[str]:
    """The columns of the ledger in which the secret can be read, in any of the forms in which it could stand there."""
    data = secret.encode()
    forms = [secret, data.hex(), base64.b64encode(data).decode().rstrip("=")[:-1]]
    found: set[str] = set()
    with psycopg.connect(url, autocommit=True) as connection:
        columns = connection.execute(
            "select table_name, column_name from information_schema.columns where table_schema = 'eventflow'"
        ).fetchall()
        assert len(columns) > 100
        for table, column in columns:
            query = f'select count(*) from eventflow.{table} where "{column}"::text ilike any(%s)'
            [(count,)] = connection.execute(query.encode(), [[f"%{form}%" for form in forms]]).fetchall()
            if count:
                found.add(f"{table}.{column}")
    return found


def labels(url: str) -> set[str]:
    """The keys under which something is stored, by the query of the documentation."""
    page = Path(__file__).resolve().parents[2] / "docs" / "payloads.md"
    query = page.read_text().split("```sql\n")[1].split("```")[0]
    with psycopg.connect(url, autocommit=True) as connection:
        return {row[0] for row in connection.execute(query.encode()).fetchall()}


EVERYWHERE = {
    "workflows.arguments", "workflows.output", "workflows.error", "workflows.steps",
    "workflows.key", "workflows.value", "workflows.headers", "failures.error",
    "checkpoints.output", "checkpoints.error", "messages.payload", "events.value", "stream_items.value",
}  # fmt: skip


@pytest.fixture
def kafka_world(postgres_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    with new_world(postgres_url, tmp_path) as made:
        made.bootstrap_servers = kafka_bootstrap
        made.create_topic(1)
        for colour in ("async", "sync"):
            made.producer.produce(
                made.topic, json.dumps({"text": SECRET}).encode(), f"{colour} {SECRET}".encode(),
                headers=[("secret", SECRET.encode())],
            )  # fmt: skip
        made.flush()
        yield made


KEPT = [f"{SECRET} {end}" for end in ("made", "failed", "child said", "sent back", "broke", "queued served", "outside")]


def message_id(world: World, group: str, offset: int) -> str:
    return f"kafka:{group}:{world.topic}:1:0:{offset}"


def go(world: World, client: sync.Client, count: int) -> None:
    """What the first messages wait for."""
    for n in range(count):
        client.handle(message_id(world, "begins", n), str).send(f"{SECRET} go", idempotency_key="once")


def finish(world: World, **settings: Any) -> None:
    """Send what the two workflows wait for, and wait until all has ended as it must."""
    found = "select count(*) from eventflow.workflows where id in ('async', 'sync')"
    world.wait(lambda: world.one(found) == 2, "both have been started")
    with sync.Client(world.database_url, **settings) as client:
        go(world, client, 2)
        for n, colour in enumerate(("async", "sync")):
            handle = client.handle(colour, list[str])
            handle.send(f"{SECRET} outside", topic="outside", idempotency_key="once")
            assert handle.result(timeout=20) == KEPT
            assert list(handle.stream("pages", str)) == [f"{SECRET} page"]
            assert [s.error for s in handle.steps() if s.name == "fail"] == [f"ValueError: {SECRET} failed"]
            world.wait_completed("quick", 2)
            quick = client.handle(message_id(world, "quick", n), str)
            assert quick.result(timeout=20) == f"{SECRET} weighed"
            assert [step.name for step in quick.steps()] == ["weigh"]
    world.wait(lambda: world.completed("begins") == world.completed("books") == 2, "the messages have been handled")
    world.wait(lambda: world.unfinished() == 0, "all have ended")
    failed = "select count(*) from eventflow.workflows where status = 'failed' and name in ('refuses', 'secret_app.breaks async', 'secret_app.breaks sync')"
    world.wait(lambda: world.one(failed) == 4, "both messages are refused, and both children have failed")
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []


def test_a_dead_letter_is_read_and_edited_where_its_key_is(kafka_world: World) -> None:
    """Nothing of it can be read in the ledger: not the message, nor what it was before, nor what its attempts failed with."""
    world = kafka_world
    world.start(APP, **SOON, **variable("old"))
    with (
        sync.Client(world.database_url, payload_codec=AesGcm({"old": RAW["old"]})) as client,
        sync.Client(world.database_url) as stranger,
    ):
        refused = "select id from eventflow.workflows where name = 'refuses' and status = 'failed' order by id"
        first, _ = world.wait(
            lambda: rows if len(rows := [i for (i,) in world.sql(refused)]) == 2 else None, "both are refused"
        )
        details = client.dead_letter(first)
        assert (details.message.decoded(), details.message.headers) == (
            {"text": SECRET},
            (("secret", SECRET.encode()),),
        )
        assert SECRET in details.failed[0].error
        assert "is stored under the key 'old'" in (next(stranger.dead_letters()).error or "")
        with pytest.raises(UnreadableError, match="is stored under the key 'old'"):
            stranger.dead_letter(first)
        with pytest.raises(UsageError, match="none can be found by its key"):
            client.dead_letters(key=b"k")
        client.redeliver_edited(first, value=json.dumps({"text": f"{SECRET} changed"}).encode())
        world.wait(lambda: len(client.dead_letter(first).failed) == 2, "it is refused again")
        [edit] = client.dead_letter(first).edits
        assert edit.before == details.message
        assert client.dead_letter(first).message.key == details.message.key
    assert where(world.database_url, SECRET) == set()
    assert labels(world.database_url) == {"old"}


def test_without_keys_all_of_it_can_be_read(kafka_world: World) -> None:
    """So that the tests below look where there would be something to see."""
    kafka_world.start(APP, **SOON)
    finish(kafka_world)
    assert where(kafka_world.database_url, SECRET) == EVERYWHERE
    assert labels(kafka_world.database_url) == set()


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_under_another_key_nothing_can_be_read(kafka_world: World, point: str, seed: int) -> None:
    world = kafka_world
    count = pick(seed, point, "encrypted", choices=range(1, POINTS[point] + 1))
    victim = world.start(APP, crash=f"{point}:{count}", **SOON, **variable("old"))
    assert world.wait_death(victim) == -signal.SIGKILL
    world.start(APP, **SOON, **variable("new", "old"))
    finish(world, payload_codec=AesGcm({"new": RAW["new"], "old": RAW["old"]}))
    assert where(world.database_url, SECRET) == set()
    assert "new" in labels(world.database_url)
    logged = "".join(worker.text for worker in world.workers)
    assert not any(key in logged for key in KEYS.values())


def test_a_message_whose_key_is_gone(kafka_world: World) -> None:
    """It is parked, and handled where the key is; other messages are not held up by it."""
    world, both_keys = kafka_world, AesGcm({"new": RAW["new"], "old": RAW["old"]})
    first = world.start(APP, **SOON, **variable("old"))
    asleep = (
        "select count(*) from eventflow.workflows where name = 'begins' and status = 'waiting' and value is not null"
    )
    world.wait(lambda: world.one(asleep) == 2, "both are accepted, and wait")
    first.kill()
    other = world.start(APP, **SOON, **variable("new"))
    with sync.Client(world.database_url, payload_codec=both_keys) as client:
        go(world, client, 2)
        parked = "select reason from eventflow.workflows where name = 'begins' and status = 'parked'"
        world.wait(lambda: len(world.sql(parked)) == 2, "both are parked")
        why = "under the key 'old', which this process does not have; it has 'new'"
        assert [why in reason for (reason,) in world.sql(parked)] == [True, True]
        booked = world.completed("books")
        world.produce(1, text=f"{SECRET} new")
        go(world, client, 3)
        world.wait(lambda: world.completed("begins") == 1 and world.completed("books") > booked, "others go on")
        assert other.stop() == 0
        world.start(APP, **SOON, **variable("new", "old"))
        client.resume([workflow.workflow_id for workflow in client.workflows(status="parked")])
        world.wait(lambda: world.completed("begins") == 3, "all are handled")
        for n, text in enumerate((SECRET, SECRET, f"{SECRET} new")):
            assert client.handle(message_id(world, "begins", n), str).result() == f"{text} {SECRET} go"
    assert where(world.database_url, SECRET) == set()


# ---- in one process --------------------------------------------------------------------------------------


def shout(text: str) -> str:
    trace("shout")
    return text.upper()


@both
def waits(do: Do, text: str) -> Body[str]:
    trace("begun")
    made = yield do.run_step(shout, text)
    received = yield do.recv(str, timeout=60)
    return f"{made} {received}"


@both
def echoes(do: Do, text: str) -> Body[str]:
    yield do.set_event("said", text)
    return (yield do.run_step(shout, text))


@both
def hears(do: Do, other: str) -> Body[str]:
    trace("begun")
    return (yield do.event(other, "said", str, timeout=60))


@both
def asks(do: Do, text: str, other: str) -> Body[str]:
    trace("begun")
    handle = yield do.start(echoes, text, workflow_id=other)
    return (yield handle.result)


@pytest.fixture(scope="module")
def encrypted(postgres_url: str) -> Iterator[str]:
    """A ledger of their own: what one key's tests leave behind, the others' processes would park."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture
def start_app(encrypted: str) -> Iterator[Callable[..., App]]:
    with contextlib.ExitStack() as stack:

        def start(*names: str, mode: str = "leaves") -> App:
            made = App(encrypted, mode, **keys(*names))
            stack.callback(made.down)
            return made

        yield start


def test_keys_rotate_under_workflows_that_wait(start_app: Callable[..., App], encrypted: str, colour: Colour) -> None:
    app = start_app("old")
    handle = app.start(waits, colour, "quiet")
    app.asleep(handle)
    app.down()
    app.up(**keys("new", "old"))
    handle.send("loud")
    assert handle.result(timeout=15) == "QUIET loud"
    assert traced(handle.workflow_id).count("shout") == 1
    with psycopg.connect(encrypted) as connection:
        [row] = connection.execute(
            "select arguments, output from eventflow.workflows where id = %s", [handle.workflow_id]
        ).fetchall()
    assert [text.split(":")[0] for text in row] == ["~old", "~new"]


def test_what_was_written_before_keys_were_set_is_read(encrypted: str, colour: Colour) -> None:
    app = App(encrypted, "leaves")
    handle = app.start(waits, colour, "plain")
    app.asleep(handle)
    app.down()
    app.up(**keys("new"))
    try:
        handle.send("sealed")
        assert handle.result(timeout=15) == "PLAIN sealed"
        by_sql, arguments = f"by sql {handle.workflow_id}", json.dumps({"args": ["sql"], "kwargs": {}})
        with psycopg.connect(encrypted, autocommit=True) as connection:
            connection.execute(
                "insert into eventflow.workflows (id, name, application, status, arguments) values (%s, %s, 'default', 'queued', %s)",
                [by_sql, waits[colour].name, arguments],
            )
            connection.execute(
                "insert into eventflow.messages (workflow_id, topic, payload) values (%s, '', %s)",
                [by_sql, '"message"'],
            )
        with sync.Client(encrypted, payload_codec=AesGcm({"new": RAW["new"]})) as client:
            assert client.handle(by_sql, str).result(timeout=15) == "SQL message"
    finally:
        app.down()


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_workflow_whose_key_is_gone_is_parked_and_the_others_go_on(
    start_app: Callable[..., App], colour: Colour, attempt: int
) -> None:
    app = start_app("old")
    handle = app.start(waits, colour, "quiet")
    app.asleep(handle)
    app.down()
    app.up(**keys("new"))
    handle.send("loud")
    until(lambda: handle.get().status == "parked")
    why = "it is stored under the key 'old', which this process does not have; it has 'new'"
    assert handle.get().reason == f"what the ledger has of it cannot be read: {why}"
    with pytest.raises(WorkflowParkedError, match="under the key 'old'"):
        handle.result(timeout=5)
    assert app.run(echoes, colour, "others go on") == "OTHERS GO ON"
    if attempt:  # too early
        handle.resume()
        until(lambda: handle.get().status == "parked")
    app.down()
    app.up(**keys("new", "old"))
    handle.resume()
    assert handle.result(timeout=15) == "QUIET loud"
    assert traced(handle.workflow_id).count("shout") == 1


def test_no_key_at_all(start_app: Callable[..., App], colour: Colour) -> None:
    app = start_app("old")
    handle = app.start(waits, colour, "quiet")
    app.asleep(handle)
    app.down()
    app.up()
    handle.send("loud")
    until(lambda: handle.get().status == "parked")
    assert "under the key 'old', and this process has none: set EVENTFLOW_ENCRYPTION_KEYS" in (
        handle.get().reason or ""
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_message_whose_senders_key_is_not_here_stays_in_the_inbox(
    start_app: Callable[..., App], encrypted: str, colour: Colour, mode: str
) -> None:
    app = start_app("new", mode=mode)
    handle = app.start(waits, colour, "quiet")
    app.asleep(handle)
    with sync.Client(encrypted, payload_codec=AesGcm({"other": RAW["other"]})) as client:
        client.handle(handle.workflow_id, str).send("loud")
    until(lambda: handle.get().status == "parked")
    assert "under the key 'other'" in (handle.get().reason or "")
    with psycopg.connect(encrypted) as connection:
        left = "select count(*) from eventflow.messages where workflow_id = %s and not consumed"
        assert connection.execute(left.encode(), [handle.workflow_id]).fetchone() == (1,)
    app.down()
    app.up(**keys("new", "other"))
    handle.resume()
    assert handle.result(timeout=15) == "QUIET loud"
    assert traced(handle.workflow_id).count("shout") == 1


@both
def stubborn(do: Do) -> Body[str]:
    trace("begun")
    for _ in range(2):
        try:
            yield do.recv(str, timeout=60)
        except CodecError:
            trace("refused")
    return (yield do.recv(str, timeout=60))


def test_who_goes_on_nevertheless_is_not_given_the_next_message(
    start_app: Callable[..., App], encrypted: str, colour: Colour
) -> None:
    """He would receive them in another order than where the key is."""
    app = start_app("new", mode="stays")
    handle = app.start(stubborn, colour)
    app.asleep(handle)
    with sync.Client(encrypted, payload_codec=AesGcm({"other": RAW["other"]})) as client:
        client.handle(handle.workflow_id, str).send("first")
    handle.send("second")
    until(lambda: handle.get().status == "parked")
    begun, *refused = traced(handle.workflow_id)
    assert (begun, refused[-2:]) == ("begun", ["refused", "refused"])
    assert set(refused[:-2]) <= {"begun"}, "and it runs again only where it lost its lease"


@pytest.mark.parametrize("what", ["event", "result"])
def test_what_another_workflow_tells_under_a_key_that_is_not_here(
    start_app: Callable[..., App], encrypted: str, colour: Colour, what: str
) -> None:
    app = start_app("new")
    other = app.start(echoes, colour, "heard")
    other.result(timeout=15)
    text, place = ("heard", "events set value") if what == "event" else ("HEARD", "workflows set output")
    column = "workflow_id" if what == "event" else "id"
    with psycopg.connect(encrypted, autocommit=True) as connection:
        connection.execute(
            f"update eventflow.{place} = %s where {column} = %s".encode(),
            [under("other", json.dumps(text)), other.workflow_id],
        )
    arguments = (other.workflow_id,) if what == "event" else ("heard", other.workflow_id)
    handle = app.start(hears if what == "event" else asks, colour, *arguments)
    until(lambda: handle.get().status == "parked")
    assert "under the key 'other'" in (handle.get().reason or "")
    with pytest.raises(UnreadableError, match="under the key 'other'"):
        other.event("said", str) if what == "event" else other.result(timeout=5)
    app.down()
    app.up(**keys("new", "other"))
    handle.resume()
    assert handle.result(timeout=15) == text


def test_who_is_the_same_is_told_by_what_was_meant(start_app: Callable[..., App], colour: Colour) -> None:
    """Encrypted twice, the same arguments are two texts."""
    app = start_app("old")
    handle = app.start(waits, colour, "quiet")
    assert app.start(waits, colour, "quiet", workflow_id=handle.workflow_id).workflow_id == handle.workflow_id
    with pytest.raises(WorkflowExistsError, match="other arguments"):
        app.start(waits, colour, "other", workflow_id=handle.workflow_id)
    app.asleep(handle)
    app.down()
    app.up(**keys("new", "old"))
    app.start(waits, colour, "quiet", workflow_id=handle.workflow_id)
    app.down()
    app.up(**keys("new"))
    with pytest.raises(UnreadableError, match="whether .* has the same arguments: .* under the key 'old'"):
        app.start(waits, colour, "quiet", workflow_id=handle.workflow_id)


def test_a_client_without_the_key(start_app: Callable[..., App], encrypted: str, colour: Colour) -> None:
    app = start_app("new")
    handle = app.start(echoes, colour, "heard")
    handle.result(timeout=15)
    with sync.Client(encrypted) as client:
        mine = client.handle(handle.workflow_id, str)
        assert (mine.get().status, [step.name for step in mine.steps()]) == ("succeeded", ["set_event", "shout"])
        for read in (lambda: mine.result(timeout=5), lambda: mine.event("said", str)):
            with pytest.raises(UnreadableError, match="'new', and this process has none"):
                read()


# ---- queues ----------------------------------------------------------------------------------------------


@eventflow.transaction
def posts(connection: "psycopg.Connection[Any]", to: str, text: str) -> str:
    """What it sends and enqueues is written with its own commit."""
    connection.execute("select 1")
    sync.send(to, text)
    return sync.enqueue(echoes["sync"], text).workflow_id


noticed: set[str] = set()


def tells_and_waits(text: str) -> str:
    told = durable.details(dict[str, str])
    if told is None:
        durable.heartbeat({"done": text})
        until(lambda: durable.workflow_id() in noticed, 60)
        return "the first attempt"
    return told["done"]


@both
def tells_of_its_progress(do: Do, text: str) -> Body[str]:
    return (yield do.run_step(tells_and_waits, text))


def test_what_a_step_tells_of_its_progress(start_app: Callable[..., App], encrypted: str, colour: Colour) -> None:
    app = start_app("new")
    handle = app.start(tells_of_its_progress, colour, "forty winks")
    query = "select output from eventflow.checkpoints where workflow_id = %s and position like '%%~d'"
    with psycopg.connect(encrypted, autocommit=True) as connection:
        stored = until(lambda: connection.execute(query, [handle.workflow_id]).fetchall())
    assert stored[0][0].startswith("~new:")
    assert where(encrypted, "forty winks") == set()
    app.down()
    app.up(**keys("other", "new"))
    assert handle.result(timeout=15) == "forty winks"
    noticed.add(handle.workflow_id)


def test_what_a_transaction_outside_a_workflow_writes(start_app: Callable[..., App], encrypted: str) -> None:
    start_app("new")
    secret = f"posted {uuid.uuid4()}"
    workflow_id = posts(f"nobody {uuid.uuid4()}", secret)
    with sync.Client(encrypted, payload_codec=AesGcm({"new": RAW["new"]})) as client:
        assert client.handle(workflow_id, str).result(timeout=10)
    assert where(encrypted, secret) == set()


def enqueue_by(way: str, client: sync.Client, url: str, name: str, text: str, workflow_id: str) -> None:
    """Put it in line, in one of the ways that there are."""
    if way == "client":
        client.enqueue(name, text, workflow_id=workflow_id)
    elif way == "psycopg":
        with psycopg.connect(url) as connection:
            client.enqueue(name, text, workflow_id=workflow_id, session=connection)
    elif way == "sqlalchemy":
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with Session(engine) as session, session.begin():
            client.enqueue(name, text, workflow_id=workflow_id, session=session)
        engine.dispose()
    else:
        with psycopg.connect(url) as connection:
            arguments = json.dumps([text])
            connection.execute(
                "select eventflow.enqueue(%s, %s::jsonb, workflow_id => %s)", [name, arguments, workflow_id]
            )


@pytest.mark.parametrize("way", ["client", "psycopg", "sqlalchemy", "sql"])
def test_what_is_enqueued(start_app: Callable[..., App], encrypted: str, colour: Colour, way: str) -> None:
    """Encrypted, but by SQL; put in line again it is the same, where that can be told."""
    start_app("old")
    mine, name = f"{colour} {uuid.uuid4()}", echoes[colour].name
    with sync.Client(encrypted, payload_codec=AesGcm({"old": RAW["old"]})) as client:
        enqueue_by(way, client, encrypted, name, "heard", mine)
        assert client.handle(mine, str).result(timeout=15) == "HEARD"
        enqueue_by(way, client, encrypted, name, "heard", mine)
        with pytest.raises((WorkflowExistsError, psycopg.errors.DatabaseError), match="exists|other arguments"):
            enqueue_by(way, client, encrypted, name, "other", mine)
    with psycopg.connect(encrypted) as connection:
        [(stored,)] = connection.execute("select arguments from eventflow.workflows where id = %s", [mine]).fetchall()
    assert stored.startswith('{"' if way == "sql" else "~old:")
    with sync.Client(encrypted, payload_codec=AesGcm({"new": RAW["new"]})) as client:
        if way == "sql":
            enqueue_by(way, client, encrypted, name, "heard", mine)
        else:
            with pytest.raises(UnreadableError, match="whether .* has the same arguments: .* under the key 'old'"):
                enqueue_by(way, client, encrypted, name, "heard", mine)
            with pytest.raises(
                psycopg.Error, match="its arguments are encrypted: only a Client with the key"
            ) as refused:
                enqueue_by("sql", client, encrypted, name, "heard", mine)
            assert refused.value.sqlstate == "EF011"


def test_one_that_stands_in_line_and_whose_key_is_gone(
    start_app: Callable[..., App], encrypted: str, colour: Colour
) -> None:
    """It is parked when its turn comes, and stands in nobody's way."""
    start_app("new")
    mine = f"{colour} {uuid.uuid4()}"
    with sync.Client(encrypted, payload_codec=AesGcm({"other": RAW["other"]})) as client:
        handle = client.enqueue(echoes[colour], "heard", workflow_id=mine)
        until(lambda: handle.get().status == "parked")
        assert "under the key 'other'" in (handle.get().reason or "")
    with sync.Client(encrypted, payload_codec=AesGcm({"new": RAW["new"]})) as client:
        assert client.enqueue(echoes[colour], "others").result(timeout=15) == "OTHERS"


# ---- what people do to encrypted workflows --------------------------------------------------------------

fails = 0


def fails_once(text: str) -> str:
    global fails
    fails += 1
    if fails % 2:
        raise ConnectionError(text)
    return text


@both
def writes(do: Do, text: str) -> Body[str]:
    yield do.write_stream("lines", "before")
    try:
        yield do.run_step(fails_once, text)
    except ConnectionError:
        yield do.write_stream("lines", "after")
        yield do.run_step(shout, text)  # so that all of it is durable
        raise
    yield do.write_stream("lines", "after")
    return text


def test_retry_fork_and_restart(start_app: Callable[..., App], colour: Colour) -> None:
    """A fork's records are another workflow's, copied by the database; an item that a retry writes again is the same."""
    app = start_app("old")
    handle = app.start(writes, colour, "text")
    with pytest.raises(ConnectionError, match="text"):
        handle.result(timeout=15)
    app.down()
    app.up(**keys("new", "old"))
    handle.retry()
    assert handle.result(timeout=15) == "text"
    assert list(handle.stream("lines", str)) == ["before", "after"]
    forked = handle.fork(next(step.position for step in handle.steps() if step.name == "fails_once"))
    with pytest.raises(ConnectionError):
        forked.result(timeout=15)
    handle.restart()
    assert handle.result(timeout=15) == "text"


@both
def counts(do: Do, n: int) -> Body[int]:
    yield do.sleep(0.05)
    if n == 2:
        return n
    durable.continue_as_new(counts[do.colour].bind(n + 1))
    return 0


def test_continued_as_new(start_app: Callable[..., App], colour: Colour) -> None:
    assert start_app("old").run(counts, colour, 0) == 2


# ---- a codec of one's own ---------------------------------------------------------------------------------


class Choosy:
    """Stores as it is what does not ask to be refused."""

    secrets = ()

    def encode(self, payload: bytes, /) -> tuple[str, bytes]:
        if b"refuse me" in payload:
            raise RuntimeError(f"no: {payload!r}")
        return "choosy", payload

    def decode(self, label: str, stored: bytes, /) -> bytes:
        return stored


def provoke(text: str) -> str:
    return text.replace("-", " ")


@both
def provokes(do: Do, text: str) -> Body[str]:
    yield do.run_step(provoke, text)
    yield do.sleep(0.05)
    return "gone on"


def test_a_codec_that_refuses_a_value_fails_its_workflow_alone(encrypted: str, colour: Colour) -> None:
    app = App(encrypted, "leaves", payload_codec=Choosy())
    refusal = r"the payload codec refused a value \(RuntimeError\)$"
    try:
        handles = [app.start(provokes, colour, "refuse-me" if n == 3 else "take-me") for n in range(7)]
        for n, handle in enumerate(handles):
            if n == 3:
                with pytest.raises(WorkflowError, match=refusal):
                    handle.result(timeout=15)
            else:
                assert handle.result(timeout=15) == "gone on"
        with pytest.raises(CodecError, match=refusal):
            handles[0].send("refuse me")
        with pytest.raises(CodecError, match=refusal):
            app.start(provokes, colour, "refuse me")
    finally:
        app.down()
