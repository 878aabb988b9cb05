"""May this code work on the database that it finds: each state has its own error with its own way out; one migrates."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from eventflow.database import Database, sql
from eventflow.elsewhere import check_results, other_database
from eventflow.errors import SchemaError
from eventflow.migrations import RESULTS, RESULTS_SCHEMA, check_schema, migrate, migrations, roles_sql
from eventflow.payloads import Payloads
from tests.harness import World
from tests.integration.test_cli import eventflow
from tests.integration.test_schema import QUERIES, RESULTS_QUERIES, explain
from tests.ledgers import prepare

MIGRATING = {"insert_migration", "lock_migrations"}  # what only `migrate` does, by a role that may create
Admin = psycopg.Connection[Any]


@pytest.fixture
def admin(database_url: str) -> Iterator[Admin]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(admin: Admin) -> Iterator[str]:
    """A role that may log in, and nothing else; not even what PUBLIC has on functions and types."""
    name = f"plain_{uuid.uuid4().hex[:12]}"
    admin.execute(f"create role {name} login password 'plain'".encode())
    yield name
    admin.execute(f"drop owned by {name}; drop role {name}".encode())


def url_of(role: str, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:plain@{parts.netloc.rpartition('@')[2]}"))


MINE = migrations()[-1].version  # of this code


def harden(admin: Admin, role: str) -> None:
    """Leave the role exactly the documented rights."""
    admin.execute(b"revoke all on all functions in schema eventflow from public")
    admin.execute(b"revoke usage on type eventflow.status from public")
    admin.execute(roles_sql("eventflow", role).encode())


def complaint(url: str) -> str | None:
    """What a program says of this database at start; None: it goes on."""
    with Database(url).connect("test") as connection:
        try:
            check_schema(connection, "eventflow")
        except SchemaError as error:
            return str(error)
    return None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, "has no ledger yet; run `eventflow migrate`"),
        ([], "has no ledger yet; run `eventflow migrate`"),
        ([(MINE - 1, 0)], f"is at version {MINE - 1}, this code needs {MINE}; run `eventflow migrate`"),
        ([(MINE, 1)], None),
        ([(MINE, 1), (MINE + 1, MINE)], None),
        (
            [(MINE, 1), (MINE + 1, MINE + 1)],
            f"is at version {MINE + 1}, which code of version {MINE} may not use (migration {MINE + 1} needs at least {MINE + 1})",
        ),
        (
            [(MINE, 1), (MINE + 1, 1), (MINE + 2, MINE + 2), (MINE + 3, 1)],
            f"code of version {MINE} may not use (migration {MINE + 2} needs at least {MINE + 2})",
        ),
    ],
    ids=["nothing", "empty", "older", "same", "newer but safe", "newer", "one of the newer is not safe"],
)
def test_a_database_of_another_version(
    database_url: str, admin: Admin, rows: list[tuple[int, int]] | None, expected: str | None
) -> None:
    if rows is not None:
        migrate(database_url)
        admin.execute("delete from eventflow.migrations")
        for version, oldest in rows:
            admin.execute("insert into eventflow.migrations values (%s, 'x', %s)", (version, oldest))
    said = complaint(database_url)
    assert said == expected or (expected and said and expected in said)


def test_a_role_without_rights_is_told_which_it_lacks(database_url: str, admin: Admin, role: str) -> None:
    migrate(database_url)
    mine = url_of(role, database_url)
    assert "usage of the schema" in str(complaint(mine))
    admin.execute(f"grant usage on schema eventflow to {role}".encode())
    assert "select on migrations" in str(complaint(mine))
    harden(admin, role)
    assert complaint(mine) is None
    admin.execute(f"revoke delete on eventflow.deltas from {role}".encode())
    admin.execute(f"revoke execute on function eventflow.fence from {role}".encode())
    said = str(complaint(mine))
    assert said.endswith(f"delete on deltas, execute on fence; `eventflow migrate --roles {role}` prints the grants")
    with pytest.raises(SchemaError, match=f"'{role}' may not migrate schema 'other': it lacks create on database"):
        migrate(mine, schema="other")


def test_doctor_says_which_rights_a_role_lacks(database_url: str, admin: Admin, role: str) -> None:
    migrate(database_url)
    mine = {"DATABASE_URL": url_of(role, database_url)}
    lacks = eventflow("doctor", **mine)
    assert (lacks.returncode, lacks.stderr) == (1, "1 wrong: see what to change\n"), lacks.stdout
    [line] = [line for line in lacks.stdout.splitlines() if line.startswith("WRONG")]
    assert f"the role '{role}' lacks rights" in line
    assert "usage of the schema" in line
    assert "eventflow migrate --roles NAME" in line
    harden(admin, role)
    fit = eventflow("doctor", **mine)
    assert (fit.returncode, fit.stderr) == (0, "nothing is wrong\n"), fit.stdout
    assert "version and rights are right" in fit.stdout


def test_the_documented_rights_suffice_for_every_query(database_url: str, admin: Admin, role: str) -> None:
    """The right to migrate is none of them."""
    migrate(database_url)
    harden(admin, role)
    with psycopg.connect(url_of(role, database_url), autocommit=True) as connection:
        for name in set(QUERIES) - MIGRATING:
            assert explain(connection, name), name
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            explain(connection, "insert_migration")


def test_the_documented_rights_suffice_elsewhere(database_url: str, admin: Admin, role: str) -> None:
    migrate(database_url, schema=RESULTS_SCHEMA, layout=RESULTS)
    admin.execute(f"revoke all on all functions in schema {RESULTS_SCHEMA} from public".encode())
    other = other_database("shop", url_of(role, database_url), prepared=True, payloads=Payloads())
    with pytest.raises(SchemaError, match=f"database 'shop': the role '{role}' lacks rights .*usage of the schema"):
        check_results(other)
    admin.execute(roles_sql(RESULTS_SCHEMA, role, RESULTS).encode())
    check_results(other)
    with other.connect("test") as connection:
        for name in RESULTS_QUERIES:
            assert explain(connection, name, RESULTS_SCHEMA, "results/queries"), name
    admin.execute(f"revoke insert on {RESULTS_SCHEMA}.results from {role}".encode())
    with pytest.raises(SchemaError, match="insert on results; `eventflow migrate --roles"):
        check_results(other)


@pytest.fixture
def own_world(database_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    """On the database that `admin` administers."""
    made = World(prepare(database_url), kafka_bootstrap, tmp_path)
    yield made
    made.close()


def test_workers_with_the_documented_rights_only(own_world: World, admin: Admin, role: str) -> None:
    """Every kind of handler, a takeover, folding and pruning."""
    world = own_world
    harden(admin, role)
    admin.execute(f"grant insert on effects to {role}; grant usage on sequence effects_id_seq to {role}".encode())
    mine = {"DATABASE_URL": url_of(role, world.database_url), "EVENTFLOW_LOG_LEVEL": "debug"}
    world.create_topic(2)
    victim = world.start("mixed", ready=True, **mine)
    survivor = world.start("mixed", EVENTFLOW_KEEP="2", **mine)
    world.wait_owner(survivor)
    world.produce(100)
    entered = "select count(*) from effects where \"group\" = 'ledger'"
    world.wait(lambda: world.one(entered) == 100, "the first are entered")
    victim.kill()
    world.produce(100)
    world.wait(lambda: world.one(entered) == 200, "all are entered")
    world.wait(lambda: world.one("select count(*) from eventflow.executors where taken_by is not null"), "a takeover")
    world.wait(lambda: world.one("select count(*) from eventflow.workflows") == 0, "all are pruned")
    world.wait(lambda: world.one("select count(*) from eventflow.deltas") == 0, "all are folded")
    assert survivor.stop() == 0
    assert "permission denied" not in victim.text + survivor.text


def test_of_three_that_migrate_at_once_one_applies_each(database_url: str, admin: Admin) -> None:
    """The others wait for it, and go on with the next, if one is left."""
    waiting = (
        "select count(*) from pg_locks l join pg_database d on d.oid = l.database "
        "where d.datname = current_database() and locktype = 'advisory' and not granted"
    )
    with ThreadPoolExecutor(3) as pool, psycopg.connect(database_url) as first:
        first.execute(sql("lock_migrations"), {"schema": "eventflow"})
        applying = [pool.submit(migrate, database_url) for _ in range(3)]
        until = time.monotonic() + 20
        while admin.execute(waiting.encode()).fetchone() != (3,):
            assert not any(one.done() for one in applying), "it did not wait for the lock"
            assert time.monotonic() < until
            time.sleep(0.01)
        first.rollback()
        applied = [one.result(30) for one in applying]
    assert sum(map(len, applied)) == MINE
    assert len(admin.execute("select version from eventflow.migrations").fetchall()) == MINE
