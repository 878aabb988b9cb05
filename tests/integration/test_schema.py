"""The schema that people read is the one that migrations make, and every query fits it."""

import re
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventflow.database import Database, in_schema, sql, sql_folder
from eventflow.errors import SchemaError
from eventflow.migrations import check_schema, migrate, plan, roles_sql

DUMP = """
select 'column', c.table_name, c.column_name, c.data_type, c.udt_name, c.is_nullable, c.column_default, c.collation_name
  from information_schema.columns c where c.table_schema = 'eventflow'
union all
select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), null, null, null, null
  from pg_constraint where connamespace = 'eventflow'::regnamespace
union all
select 'index', tablename, indexname, indexdef, null, null, null, null from pg_indexes where schemaname = 'eventflow'
union all
select 'function', proname, pg_get_function_identity_arguments(oid), prosrc, provolatile::text, null, null, null
  from pg_proc where pronamespace = 'eventflow'::regnamespace
union all
select 'label', t.typname, e.enumlabel, e.enumsortorder::text, null, null, null, null
  from pg_enum e join pg_type t on t.oid = e.enumtypid where t.typnamespace = 'eventflow'::regnamespace
union all
select 'table', relname, array_to_string(reloptions, ','), null, null, null, null, null
  from pg_class where relnamespace = 'eventflow'::regnamespace and relkind = 'r'
"""


def dump(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return sorted(connection.execute(DUMP).fetchall(), key=str)


def test_schema_sql_equals_the_migrations(database_url: str) -> None:
    migrate(database_url)
    migrated = dump(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop schema eventflow cascade")
        connection.execute("create schema eventflow")
        connection.execute((sql_folder() / "schema.sql").read_bytes())
    assert dump(database_url) == migrated
    assert len(migrated) > 100


QUERIES = sorted(p.stem for p in (sql_folder() / "queries").glob("*.sql"))


def test_every_query_fits_the_schema(database_url: str) -> None:
    """PREPARE alone resolves every table, column, function and cast."""
    migrate(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name in QUERIES:
            names: list[str] = []

            def number(match: re.Match[str], names: list[str] = names) -> str:
                if match[1] not in names:
                    names.append(match[1])
                return f"${names.index(match[1]) + 1}"

            text = re.sub(r"%\((\w+)\)[bs]", number, sql(name).decode()).replace("%%", "%")
            connection.execute(f"prepare q_{name} as {text}".encode())


def test_another_schema_with_an_odd_name(database_url: str) -> None:
    schema = 'My "odd" schema'
    assert migrate(database_url, schema=schema) == ["0001 ledger"]
    database = Database(database_url, schema)
    with database.connect("test") as connection:
        check_schema(connection, schema)
        [(executor,)] = database.run(
            connection, "birth", {"application": "a", "names": "{}", "host": "h", "pid": 1, "lanes": 2}
        )
        database.run(connection, "fence", {"executor": executor})


def test_many_migrate_at_once(database_url: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, applied)) == [0, 0, 0, 1]
    assert plan(database_url) == []


def complaint(url: str) -> str:
    with Database(url).connect("test") as connection, pytest.raises(SchemaError) as error:
        check_schema(connection, "eventflow")
    return str(error.value)


def test_a_database_that_does_not_fit(database_url: str) -> None:
    assert "eventflow migrate" in complaint(database_url)
    migrate(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into eventflow.migrations values (99, 'future', 99)")
        assert "update eventflow" in complaint(database_url)
        connection.execute("update eventflow.migrations set oldest_code = 1 where version = 99")
        check_schema(connection, "eventflow")
        connection.execute("delete from eventflow.migrations")
    assert "version 0" in complaint(database_url)


def test_the_least_rights(database_url: str) -> None:
    migrate(database_url)
    role = "eventflow_runner"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"drop role if exists {role}".encode())
        admin.execute(f"create role {role} login password 'x'".encode())
        limited = re.sub(r"//[^@]*@", f"//{role}:x@", database_url)
        try:
            assert "lacks rights" in complaint(limited)
            admin.execute(roles_sql("eventflow", role).encode())
            database = Database(limited)
            with database.connect("test") as connection:
                check_schema(connection, "eventflow")
                [(executor,)] = database.run(
                    connection, "birth", {"application": "a", "names": "{}", "host": "h", "pid": 1, "lanes": 2}
                )
                assert executor
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("delete from eventflow.migrations")
        finally:
            admin.execute(f"drop owned by {role}; drop role {role}".encode())


def test_the_first_migration_is_the_file_to_read(tmp_path: Path) -> None:
    text = (sql_folder() / "migrations" / "0001_ledger.sql").read_text()
    assert text.startswith("-- migration: 1 ledger\n-- oldest_code: 1\n")
    assert in_schema(text, "x").count("eventflow.claims") == 0
