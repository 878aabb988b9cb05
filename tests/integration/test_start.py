"""What is wrong at start: said in words, once, without a password; the exit status tells whether retrying is pointless."""

import json
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from eventflow.database import Database
from eventflow.handles import steps_of
from tests.harness import World


def fails(world: World, app: str = "one_step", **settings: str) -> str:
    """Start a worker that must give up by itself; what it said."""
    worker = world.start(app, **settings)
    assert world.wait_death(worker, 20) not in {0, None}
    assert "Traceback" not in worker.text, worker.text
    return worker.text


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))


def test_unknown_topic(world: World) -> None:
    """It says so once, with what to do, and waits; when the topic comes to be, it is read."""
    worker = world.start("one_step", EVENTFLOW_LOG_LEVEL="debug")  # where every attempt is seen
    said = f"topic {world.topic!r}: there is no such topic; create it; it is read as soon as it exists; trying again"
    world.wait(lambda: worker.text.count(said) >= 3, "it asks again and again")
    assert sum("WARNING" in line for line in worker.text.splitlines() if said in line) == 1
    assert worker.alive
    world.create_topic(2)
    world.produce(50)
    world.wait_completed("billing")
    world.check("billing")


def test_wrong_database_credentials(world: World) -> None:
    """Retry is pointless: it exits, names the server and never the password."""
    text = fails(world, DATABASE_URL=with_user(world.database_url, "nobody_here", "s3cret-pw"))
    assert "Postgres at" in text
    assert "s3cret-pw" not in text


def test_no_such_database(world: World) -> None:
    parts = urlsplit(world.database_url)
    text = fails(world, DATABASE_URL=urlunsplit(parts._replace(path="/no_such_database")))
    assert "no_such_database" in text


def test_settings_that_are_wrong(world: World) -> None:
    assert "DATABASE_URL" in fails(world, DATABASE_URL="mysql://x")
    assert "EVENTFLOW_LEASE" in fails(world, EVENTFLOW_LEASE="soon")
    text = fails(world, EVENTFLOW_KAFKA=json.dumps({"group.id": "mine"}))
    assert "group.id" in text


def test_an_unknown_librdkafka_property(world: World) -> None:
    """Blamed on the variable that it came from, not on the handler."""
    world.create_topic(1)
    text = fails(world, EVENTFLOW_KAFKA=json.dumps({"no.such.property": 1}))
    assert 'error: EVENTFLOW_KAFKA: No such configuration property: "no.such.property"' in text
    assert "bill" not in text


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no_such_app", "no_such_app"),
        ("refused_two_handlers", "billing"),
        ("refused_no_function", "decorates functions"),
    ],
)
def test_programs_that_cannot_run(world: World, app: str, words: str) -> None:
    assert words in fails(world, app)


def test_a_database_without_the_ledger(world: World) -> None:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        connection.execute("drop schema eventflow cascade")
    assert "eventflow migrate" in fails(world)


def test_the_password_is_never_logged(world: World) -> None:
    """Neither at start nor when the server does not answer."""
    parts = urlsplit(world.database_url)
    dead = urlunsplit(parts._replace(netloc="someone:s3cret-pw@127.0.0.1:1"))
    worker = world.start("one_step", DATABASE_URL=dead)
    world.wait(lambda: "Postgres at" in worker.text, "it says what it misses")
    assert worker.alive
    assert "s3cret-pw" not in worker.text
    assert "***" in worker.text


def test_the_broker_refuses_the_credentials(world: World) -> None:
    """SASL against a listener without it: trying again is pointless, so it says so and ends."""
    world.create_topic(1)
    kafka = {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "me",
        "sasl.password": "s3cret-pw",
    }  # fmt: skip
    text = fails(world, EVENTFLOW_KAFKA=json.dumps(kafka))
    assert world.workers[-1].process.returncode == 1
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: Kafka at {world.bootstrap_servers}: ")
    assert "SASL PLAIN mechanism handshake failed" in line
    assert len(text.splitlines()) <= 6, text
    assert "s3cret-pw" not in text


def test_what_steps_came_to_is_there_however_the_row_was_written(world: World) -> None:
    """Written once, a workflow carries its checkpoints inside its row; accepted before, they have rows of their own."""
    world.create_topic(1)
    once = world.start("one_step", ready=True)
    world.produce(1)
    world.wait_completed("billing")
    once.stop()
    world.start("two_steps")
    world.produce(1)
    world.wait_completed("billing")
    database = Database(world.database_url)
    with database.connect("test") as connection:
        found = [
            [
                (s.position, s.name, s.attempts, s.error)
                for s in steps_of(database.run(connection, "read_steps", {"id": id_}))
            ]
            for (id_,) in world.sql('select id from eventflow.workflows order by "offset"')
        ]
    assert found == [[("1.1", "charge", 1, None)], [("1.1", "one", 1, None), ("1.2", "two", 1, None)]]
    assert world.one("select count(*) from eventflow.checkpoints") == 2
