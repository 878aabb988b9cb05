"""Brings a database to this code's schema, and tells a process whether it may work on the one it finds.

Migrations are numbered, only go up, and lock by `pg_advisory_xact_lock`, so that any number of processes may migrate at
once and a pooler in transaction mode may stand between. Each says in its second line the oldest schema version whose
code may go on working on it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import psycopg
from psycopg import sql

from eventflow.database import Connection, Database, in_schema, in_transaction, sql_folder
from eventflow.errors import SchemaError

_OLDEST_SERVER = 140000
_TABLES = ("executors", "beats", "flushes", "sources", "claims", "deltas", "workflows", "checkpoints", "incidents")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    oldest_code: int
    text: str

    @property
    def title(self) -> str:
        """Number and name, as people see them."""
        return f"{self.version:04d} {self.name}"


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """All migrations of this code, in order."""
    found: list[Migration] = []
    for path in sorted((sql_folder() / "migrations").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        head = re.match(r"-- migration: (\d+) (\S+)\n-- oldest_code: (\d+)\n", text)
        if head is None:
            raise SchemaError(f"{path.name} lacks its two header lines")
        found.append(Migration(int(head[1]), head[2], int(head[3]), text))
    return tuple(found)


def code_version() -> int:
    """The schema version that this code is written for."""
    return migrations()[-1].version


def plan(database_url: str, *, schema: str = "eventflow") -> list[str]:
    """The migrations that `migrate` would apply.

    Raises:
        UnavailableError: Postgres does not answer.

    """
    with Database(database_url, schema).connect("plan") as connection:
        done = _applied(connection, schema) or {}
    return [m.title for m in migrations() if m.version not in done]


def migrate(
    database_url: str, *, schema: str = "eventflow", progress: Callable[[str], None] | None = None
) -> list[str]:
    """Apply what is missing, each migration in a transaction of its own; the titles of those applied.

    Raises:
        UnavailableError: Postgres does not answer.
        SchemaError: the role may not, or the server is too old.

    """
    with Database(database_url, schema, prepared=False).connect("migrate") as connection:
        _check_server(connection)
        applied: list[str] = []
        try:
            for migration in migrations():
                if in_transaction(connection, lambda c, m=migration: _apply(c, schema, m)):
                    applied.append(migration.title)
                    if progress is not None:
                        progress(migration.title)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"the role {connection.info.user!r} may not migrate schema {schema!r}: {error.diag.message_primary}"
            ) from None
        return applied


def _apply(connection: Connection, schema: str, migration: Migration) -> bool:
    connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"eventflow.migrate {schema}",))
    done = _applied(connection, schema)
    if done is not None and migration.version in done:
        return False
    if done is None:
        exists = connection.execute("select 1 from pg_namespace where nspname = %s", (schema,)).fetchone()
        if exists is None:
            connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    connection.execute(in_schema(migration.text, schema).encode())
    connection.execute(
        in_schema("insert into eventflow.migrations (version, name, oldest_code) values (%s, %s, %s)", schema).encode(),
        (migration.version, migration.name, migration.oldest_code),
    )
    return True


def _applied(connection: Connection, schema: str) -> dict[int, int] | None:
    """Applied versions with the oldest code that each admits; None where there is no ledger."""
    found = connection.execute(
        "select 1 from pg_tables where schemaname = %s and tablename = 'migrations'", (schema,)
    ).fetchone()
    if found is None:
        return None
    text = in_schema("select version, oldest_code from eventflow.migrations", schema)
    return dict(connection.execute(text.encode()).fetchall())


def check_schema(connection: Connection, schema: str) -> None:
    """Whether this code may work on this database.

    Raises:
        SchemaError: it was never migrated, is older or newer than the code, or the role lacks rights; says which.

    """
    _check_server(connection)
    try:
        done = _applied(connection, schema)
    except psycopg.errors.InsufficientPrivilege:
        raise _no_rights(connection, schema) from None
    if done is None:
        raise SchemaError(f"schema {schema!r} has no ledger yet; run `eventflow migrate`")
    mine, there = code_version(), max(done, default=0)
    if there < mine:
        raise SchemaError(f"schema {schema!r} is at version {there}, this code needs {mine}; run `eventflow migrate`")
    for version, oldest in sorted(done.items()):
        if version > mine and oldest > mine:
            raise SchemaError(
                f"schema {schema!r} is at version {there}, which code of version {mine} may not use "
                f"(migration {version} needs at least {oldest}); update eventflow"
            )
    _check_rights(connection, schema)


def _check_server(connection: Connection) -> None:
    if connection.info.server_version < _OLDEST_SERVER:
        raise SchemaError(f"PostgreSQL 14 or newer is needed, this is {connection.info.server_version // 10000}")


def _check_rights(connection: Connection, schema: str) -> None:
    names = [f"{sql.Identifier(schema).as_string(None)}.{t}" for t in _TABLES]
    [(enough,)] = connection.execute(
        "select bool_and(has_table_privilege(t, 'select') and has_table_privilege(t, 'insert') "
        "and has_table_privilege(t, 'update')) from unnest(%s::text[]) t",
        (names,),
    ).fetchall()
    if not enough:
        raise _no_rights(connection, schema)


def _no_rights(connection: Connection, schema: str) -> SchemaError:
    return SchemaError(
        f"the role {connection.info.user!r} lacks rights on schema {schema!r}; `eventflow migrate --roles NAME` "
        "prints the grants"
    )


def roles_sql(schema: str, role: str) -> str:
    """The least rights that a running program needs, as GRANT statements for a role."""
    where, who = sql.Identifier(schema).as_string(None), sql.Identifier(role).as_string(None)
    return "\n".join(
        (
            f"grant usage on schema {where} to {who};",
            f"grant select, insert, update, delete on all tables in schema {where} to {who};",
            f"grant usage on all sequences in schema {where} to {who};",
            f"grant execute on all functions in schema {where} to {who};",
            f"revoke insert, update, delete on {where}.migrations from {who};",
        )
    )
