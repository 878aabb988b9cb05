"""`eventflow doctor`, the installed command, on a real server and real topics that are fit, and that are not."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg

from eventflow.migrations import RESULTS, RESULTS_SCHEMA, migrate
from tests.integration.test_cli import APP, complaint, eventflow
from tests.ledgers import empty_database


def test_it_says_what_to_change(
    database_url: str, kafka_bootstrap: str, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = make_topic(2)
    (tmp_path / "app.py").write_text(APP.format(topic=topic))
    both = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    unready = eventflow("doctor", cwd=tmp_path, **both)
    assert unready.returncode == 1
    [line] = [line for line in unready.stdout.splitlines() if line.startswith("WRONG")]
    assert "run `eventflow migrate`" in line
    assert unready.stderr == "1 wrong: see what to change\n"
    migrate(database_url)
    fit = eventflow("doctor", "--app", "app", cwd=tmp_path, **both)
    assert (fit.returncode, fit.stderr) == (0, "nothing is wrong\n"), fit.stdout
    assert f"topic {topic}" in fit.stdout and "2 partitions, each on one broker" in fit.stdout
    assert "it is on one broker: with that it is gone" in fit.stdout
    assert "schema eventflow: version and rights are right" in fit.stdout
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'alter database "{name}" set default_transaction_read_only = on'.encode())
    (tmp_path / "app.py").write_text(APP.format(topic="nowhere"))
    found = [
        json.loads(line)
        for line in eventflow("doctor", "--app", "app", "--json", cwd=tmp_path, **both).stdout.splitlines()
    ]
    wrong = {one["about"]: one["text"] for one in found if one["verdict"] == "wrong"}
    assert wrong == {
        "server": "it is read only (default_transaction_read_only): nothing can be written", "topic nowhere": "there is no such topic",
    }  # fmt: skip


def test_servers_that_do_not_answer(tmp_path: Path) -> None:
    away = {"DATABASE_URL": "postgresql://me:s3cret@127.0.0.1:1/x", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    done = eventflow("doctor", **away)
    assert (done.returncode, done.stderr) == (1, "2 wrong: see what to change\n")
    assert "s3cret" not in done.stdout
    assert "DATABASE_URL is not set" in complaint(eventflow("doctor"), 2)


def test_other_databases(database_url: str, postgres_url: str) -> None:
    migrate(database_url)
    with empty_database(postgres_url, "other") as other:
        databases = {"shop": other, "away": "postgresql://me:s3cret@127.0.0.1:1/x"}
        settings = {"DATABASE_URL": database_url, "EVENTFLOW_DATABASES": json.dumps(databases)}
        unready = eventflow("doctor", "--json", **settings)
        found = [json.loads(line) for line in unready.stdout.splitlines()]
        wrong = {one["about"]: (one["text"], one["advice"]) for one in found if one["verdict"] == "wrong"}
        assert wrong.keys() == {"database shop", "database away"}
        assert "run `eventflow migrate`" in wrong["database shop"][0]
        assert wrong["database away"][1] == "start it, or mend EVENTFLOW_DATABASES"
        assert "s3cret" not in unready.stdout
        migrate(other, schema=RESULTS_SCHEMA, layout=RESULTS)
        fit = eventflow("doctor", **settings | {"EVENTFLOW_DATABASES": json.dumps({"shop": other})})
        assert (fit.returncode, fit.stderr) == (0, "nothing is wrong\n"), fit.stdout
        assert "database shop: connections" in fit.stdout
