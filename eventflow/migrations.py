"""Brings a database to this code's schema, and tells a process whether it may work on the one it finds.

Migrations are numbered, only go up, and lock by `pg_advisory_xact_lock`, so that any number of processes may migrate at
once and a pooler in transaction mode may stand between. Each says in its second line the oldest schema version whose
code may go on working on it. What a running program may do is one table, `RIGHTS`: the GRANTs are made from it, and the
check at start goes by it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import sql as compose

from eventflow.database import Connection, Database, in_schema, in_transaction, sql, sql_folder, unavailable
from eventflow.errors import SchemaError, UnavailableError

OLDEST_SERVER = 140000

# UPDATE where nothing is updated stands for a row lock: SELECT … FOR KEY SHARE asks for that right.
RIGHTS = {
    "migrations": ("select",),
    "ledger": ("select",),
    "executors": ("select", "insert", "update", "delete"),
    "beats": ("select", "insert", "update", "delete"),
    "flushes": ("select", "insert", "update", "delete"),
    "sources": ("select", "insert", "update"),
    "claims": ("select", "insert", "update"),
    "deltas": ("select", "insert", "delete"),
    "workflows": ("select", "insert", "update", "delete"),
    "checkpoints": ("select", "insert", "update", "delete"),
    "incidents": ("select", "insert", "update"),
    "messages": ("select", "insert", "update", "delete"),
    "events": ("select", "insert", "update", "delete"),
    "stream_items": ("select", "insert", "update", "delete"),
    "signals": ("select", "insert", "delete"),
    "requests": ("select", "insert", "update", "delete"),
    "watches": ("select", "insert", "delete"),
    "queues": ("select", "insert", "update"),
    "queue_starts": ("select", "insert", "delete"),
    "schedules": ("select", "insert", "update", "delete"),
    "fires": ("select", "insert", "delete"),
    "failures": ("select", "insert", "delete"),
    "traces": ("select", "insert", "delete"),
    "edits": ("select", "insert", "delete"),
    "redeliveries": ("select", "insert", "update"),
    "redelivery_items": ("select", "insert", "delete"),
    "pauses": ("select", "insert", "update", "delete"),
    "reprocessings": ("select", "insert", "update"),
    "reprocessed": ("select", "insert", "update"),
    "outbox": ("select", "insert", "delete"),
    "outbox_batches": ("select", "insert", "delete"),
    "relay": ("select", "update"),
    "undelivered": ("select", "insert", "update", "delete"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a schema of ours is made of.

    Attributes:
        what: it holds, as messages name it. folder: of its migrations, under `sql/`.
        rights: what a running program may do with its tables. types: those that it uses.

    """

    what: str
    folder: str
    rights: Mapping[str, tuple[str, ...]]
    types: tuple[str, ...] = ()


LEDGER = Layout("ledger", "migrations", RIGHTS, ("status",))
RESULTS = Layout(  # in other databases: what transactions leave there
    "results of transactions", "results/migrations",
    {"migrations": ("select",), "results": ("select", "insert", "delete")},
)  # fmt: skip
RESULTS_SCHEMA = "eventflow_results"


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


@lru_cache
def migrations(folder: str = LEDGER.folder) -> tuple[Migration, ...]:
    """All migrations of this code, in order."""
    paths = sorted((sql_folder() / folder).glob("*.sql"))
    return numbered((path.name, path.read_text(encoding="utf-8")) for path in paths)


def numbered(files: Iterable[tuple[str, str]]) -> tuple[Migration, ...]:
    """The migrations in these files, given as name and text.

    Raises:
        SchemaError: a file lacks its header, or is not called what its header says, or a number is missing.

    """
    found: list[Migration] = []
    for file, text in files:
        head = re.match(r"-- migration: (\d+) (\w+)\n-- oldest_code: (\d+)\n", text)
        if head is None:
            raise SchemaError(f"{file} lacks its two header lines")
        migration = Migration(int(head[1]), head[2], int(head[3]), text)
        if file != f"{migration.version:04d}_{migration.name}.sql" or migration.version != len(found) + 1:
            raise SchemaError(f"{file} is not migration {len(found) + 1}, or not the one that its header names")
        found.append(migration)
    return tuple(found)


def code_version(layout: Layout = LEDGER) -> int:
    """The schema version that this code is written for."""
    return migrations(layout.folder)[-1].version


# ---- what is there -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Facts:
    """What can be said of a schema by a role without any right on it."""

    server: int
    role: str
    database: str
    exists: bool
    usable: bool
    creatable: bool
    migrated: bool
    readable: bool


def _facts(connection: Connection, schema: str) -> _Facts:
    if len(schema.encode()) > 63 or "%" in schema or "$$" in schema or "\0" in schema or schema.startswith("pg_"):
        raise SchemaError(
            f"a ledger's schema can not be called {schema!r}: at most 63 bytes, no % and no $$, and pg_ is the server's own"
        )
    [row] = _ask(connection, schema, "schema_facts", {"schema": schema})
    facts = _Facts(*row)
    if facts.server < OLDEST_SERVER:
        raise SchemaError(f"PostgreSQL {OLDEST_SERVER // 10000} or newer is needed, this is {facts.server // 10000}")
    return facts


def _applied(connection: Connection, schema: str, facts: _Facts) -> dict[int, int]:
    """Applied versions with the oldest code that each admits; empty where there is no ledger."""
    if not facts.exists or (facts.usable and not facts.migrated):
        return {}
    if not (facts.usable and facts.readable):
        raise _no_rights(facts, schema, "usage of the schema" if not facts.usable else "select on migrations")
    return dict(_ask(connection, schema, "applied_migrations"))


def _ask(connection: Connection, schema: str, name: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    cursor = connection.execute(sql(name, schema), params or {})
    return cursor.fetchall() if cursor.description else []


# ---- migrate -----------------------------------------------------------------------------------


def plan(database_url: str, *, schema: str = "eventflow", layout: Layout = LEDGER) -> list[str]:
    """The migrations that `migrate` would apply.

    Raises:
        UnavailableError: Postgres does not answer.
        SchemaError: the role may not look, or the server is too old.

    """
    with Database(database_url, schema, prepared=False).connect("plan") as connection:
        done = _applied(connection, schema, _facts(connection, schema))
    return [m.title for m in migrations(layout.folder) if m.version not in done]


def pending_sql(database_url: str, *, schema: str = "eventflow", layout: Layout = LEDGER) -> str:
    """What `migrate` would run, as a script for `psql`: nothing where there is nothing to do. Changes nothing.

    Raises:
        UnavailableError, SchemaError: as of `plan`.

    """
    missing = {*plan(database_url, schema=schema, layout=layout)}
    script = [_as_sql(one, schema) for one in migrations(layout.folder) if one.title in missing]
    return "\n".join(script)


def _as_sql(migration: Migration, schema: str) -> str:
    """One migration as the transaction that `_apply` makes of it; applied twice, it is refused by the key of `migrations`."""
    quoted = in_schema("eventflow.", schema).removesuffix(".")
    create = f"create schema if not exists {quoted};\n" if migration.version == 1 else ""
    record = (
        f"insert into {quoted}.migrations (version, name, oldest_code) "
        f"values ({migration.version}, '{migration.name}', {migration.oldest_code});\n"
    )
    return f"begin;\n{create}{in_schema(migration.text, schema).strip()}\n{record}commit;\n"


def migrate(
    database_url: str,
    *,
    schema: str = "eventflow",
    layout: Layout = LEDGER,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Apply what is missing, each migration in a transaction of its own; the titles of those applied.

    Raises:
        UnavailableError: Postgres does not answer.
        SchemaError: the role may not, the server is too old, or a migration failed, of which nothing is left then.

    """
    applied: list[str] = []
    with Database(database_url, schema, prepared=False).connect("migrate") as connection:
        _facts(connection, schema)
        for migration in migrations(layout.folder):
            if _attempt(connection, schema, migration, database_url):
                applied.append(migration.title)
                if progress is not None:
                    progress(migration.title)
    return applied


def _attempt(connection: Connection, schema: str, migration: Migration, url: str) -> bool:
    try:
        return in_transaction(connection, lambda c: _apply(c, schema, migration))
    except psycopg.Error as error:
        if connection.closed:
            raise unavailable(error, url) from error
        raise SchemaError(
            f"migration {migration.title} failed in schema {schema!r}, nothing of it is left: {error.diag.message_primary}"
        ) from error


def _apply(connection: Connection, schema: str, migration: Migration) -> bool:
    _ask(connection, schema, "lock_migrations", {"schema": schema})
    facts = _facts(connection, schema)  # a later statement: it sees what the lock waited for
    if migration.version in _applied(connection, schema, facts):
        return False
    if not facts.creatable:
        what = f"schema {schema!r}" if facts.exists else f"database {facts.database!r}"
        raise SchemaError(f"the role {facts.role!r} may not migrate schema {schema!r}: it lacks create on {what}")
    if not facts.exists:
        connection.execute(compose.SQL("create schema {}").format(compose.Identifier(schema)))
    connection.execute(in_schema(migration.text, schema).encode())
    record = {"version": migration.version, "name": migration.name, "oldest_code": migration.oldest_code}
    _ask(connection, schema, "insert_migration", record)
    return True


# ---- may this code work here -------------------------------------------------------------------


def check_schema(connection: Connection, schema: str, layout: Layout = LEDGER) -> None:
    """Whether this code may work on this database.

    Raises:
        SchemaError: it was never migrated, is older or newer than the code, or the role lacks rights; says which.
        UnavailableError: the connection broke meanwhile.

    """
    try:
        facts = _facts(connection, schema)
        done = _applied(connection, schema, facts)
        _check_version(done, schema, layout)
        lacking = _ask(connection, schema, "missing_rights", _rights(schema, layout))
    except psycopg.OperationalError as error:
        raise UnavailableError(f"Postgres went away: {str(error).splitlines()[0]}") from error
    if lacking:
        raise _no_rights(facts, schema, ", ".join(f"{right} on {name}" for right, name in lacking))


def _check_version(done: dict[int, int], schema: str, layout: Layout) -> None:
    if not done:
        raise SchemaError(f"schema {schema!r} has no {layout.what} yet; run `eventflow migrate`")
    mine, there = code_version(layout), max(done)
    if there < mine:
        raise SchemaError(f"schema {schema!r} is at version {there}, this code needs {mine}; run `eventflow migrate`")
    for version, oldest in sorted(done.items()):
        if version > mine and oldest > mine:
            raise SchemaError(
                f"schema {schema!r} is at version {there}, which code of version {mine} may not use "
                f"(migration {version} needs at least {oldest}); update eventflow"
            )


def _rights(schema: str, layout: Layout) -> dict[str, Any]:
    pairs = [(table, right) for table, rights in layout.rights.items() for right in rights]
    return {"schema": schema, "tables": [t for t, _ in pairs], "rights": [r for _, r in pairs]}


def _no_rights(facts: _Facts, schema: str, lacking: str) -> SchemaError:
    return SchemaError(
        f"the role {facts.role!r} lacks rights on schema {schema!r}: {lacking}; "
        f"`eventflow migrate --roles {facts.role}` prints the grants"
    )


def roles_sql(schema: str, role: str, layout: Layout = LEDGER) -> str:
    """The least rights that a running program needs, as GRANT statements for a role; again after each migration."""
    where, who = compose.Identifier(schema).as_string(None), compose.Identifier(role).as_string(None)
    types = (f"grant usage on type {where}.{name} to {who};" for name in layout.types)
    tables = (f"grant {', '.join(rights)} on {where}.{table} to {who};" for table, rights in layout.rights.items())
    return "\n".join(
        (
            f"grant usage on schema {where} to {who};",
            *types,
            *tables,
            f"grant execute on all functions in schema {where} to {who};",
        )
    )
