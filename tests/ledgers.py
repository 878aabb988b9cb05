"""Databases of the tests: empty ones, other ones than the ledger's, and ledgers, which are emptied and used again.

To make and drop a database takes a fifth of a second of a core, and more where it is migrated; to empty it a quarter of that.
One whose tables, functions, rights or settings a test has changed is not used again.
"""

import atexit
import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from eventflow.migrations import RESULTS, RESULTS_SCHEMA, migrate

# What a transaction or a step does, where a second time must be seen, not refused: there is no unique constraint.
EFFECTS = """
create table if not exists effects (
  id bigserial, "group" text, topic text, partition int, "offset" bigint, note text,
  pid int, at timestamptz default clock_timestamp()
)
"""

_OURS = "n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') and n.nspname !~ '^pg_temp'"
# All that makes the database but its rows; and the rows that nothing but a migration writes.
_SHAPE = f"""
select md5(string_agg(what, e'\\n' order by what)) from (
  select concat_ws(' ', n.nspname, c.relname, c.relkind, c.relowner, c.relacl, c.reloptions, c.relpersistence,
    (select string_agg(concat_ws(' ', a.attname, a.atttypid, a.attnotnull, a.attacl, pg_get_expr(d.adbin, d.adrelid)), ',' order by a.attnum)
       from pg_attribute a left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum where a.attrelid = c.oid and a.attnum > 0),
    case c.relkind when 'i' then pg_get_indexdef(c.oid) when 'v' then pg_get_viewdef(c.oid) end) as what
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where {_OURS}
  union all select concat_ws(' ', n.nspname, n.nspowner, n.nspacl) from pg_namespace n where {_OURS}
  union all select concat_ws(' ', n.nspname, p.oid::regprocedure, p.proacl, p.proowner, p.proconfig, md5(pg_get_functiondef(p.oid)))
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {_OURS} and p.prokind = 'f'
  union all select concat_ws(' ', conrelid::regclass, conname, convalidated, pg_get_constraintdef(oid)) from pg_constraint where conrelid > 0
  union all select concat_ws(' ', tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(oid)) from pg_trigger
  union all select concat_ws(' ', n.nspname, t.typname, t.typacl, (select string_agg(enumlabel, ',' order by enumsortorder) from pg_enum where enumtypid = t.oid))
    from pg_type t join pg_namespace n on n.oid = t.typnamespace where {_OURS} and t.typtype in ('e', 'd')
  union all select concat_ws(' ', ev_class::regclass, rulename) from pg_rewrite where ev_class > 16384
  union all select concat_ws(' ', polrelid::regclass, polname) from pg_policy
  union all select concat_ws(' ', defaclrole, defaclacl) from pg_default_acl
  union all select concat_ws(' ', extname, extversion) from pg_extension
  union all select concat_ws(' ', setrole, setconfig) from pg_db_role_setting s join pg_database b on b.oid = s.setdatabase
    where b.datname = current_database()
  union all select concat_ws(' ', datacl, datconnlimit, datallowconn) from pg_database where datname = current_database()
  union all select gid from pg_prepared_xacts where database = current_database()
  union all select migrations::text from eventflow.migrations
) as everything
"""  # noqa: E501
_ADDED = """
select format('drop %s if exists public.%I cascade', case relkind when 'v' then 'view' else 'table' end, relname) from pg_class
 where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v') and relname <> 'effects'
"""
_WRITTEN = f"""
select string_agg(format('%I.%I', n.nspname, c.relname), ', ') from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and {_OURS} and pg_relation_size(c.oid) > 0
   and (n.nspname, c.relname) not in (('eventflow', 'ledger'), ('eventflow', 'relay'), ('eventflow', 'migrations'))
"""
# Executors go on being counted: one that a test has left behind in this process is to find its row nowhere.
_AS_NEW = """
select setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false) from pg_sequences
 where last_value is not null and sequencename <> 'executors_id_seq';
delete from eventflow.ledger; insert into eventflow.ledger default values;
delete from eventflow.relay; insert into eventflow.relay default values;
"""


def _create(postgres_url: str, kind: str, like: str) -> str:
    name = f"{kind}_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"create database {name} template {like}".encode())
    return postgres_url.rsplit("/", 1)[0] + f"/{name}"


def _drop(postgres_url: str, url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"drop database {_name(url)} with (force)".encode())


def _name(url: str) -> str:
    return url.rsplit("/", 1)[1]


@contextmanager
def empty_database(postgres_url: str, kind: str = "test") -> Iterator[str]:
    """One that is dropped at the end."""
    url = _create(postgres_url, kind, "template1")
    yield url
    _drop(postgres_url, url)


@contextmanager
def other_database(postgres_url: str) -> Iterator[str]:
    """One that is not the ledger's, ready for transactions, with a table for effects."""
    with empty_database(postgres_url, "other") as url:
        migrate(url, schema=RESULTS_SCHEMA, layout=RESULTS)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(EFFECTS.encode())
        yield url


def prepare(url: str) -> str:
    """Make a ledger of it, with a table for effects."""
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(EFFECTS.encode())
    return url


@contextmanager
def new_ledger(postgres_url: str) -> Iterator[str]:
    """A prepared one, which nobody has written to; its id, by which other databases know it, is its own."""
    ledgers = _ledgers(postgres_url)
    url = ledgers.take()
    yield url
    ledgers.give_back(url)


@functools.cache
def _ledgers(postgres_url: str) -> "_Ledgers":
    return _Ledgers(postgres_url)


class _Ledgers:
    """The ledgers of a server: copies of one that is migrated once."""

    def __init__(self, postgres_url: str) -> None:
        self._postgres_url = postgres_url
        self._free: list[str] = []
        self._model = prepare(_create(postgres_url, "test", "template1"))
        with psycopg.connect(self._model) as connection:
            self._shape = connection.execute(_SHAPE.encode()).fetchone()
        atexit.register(self._close)

    def take(self) -> str:
        if self._free:
            return self._free.pop()
        url = _create(self._postgres_url, "test", _name(self._model))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("update eventflow.ledger set id = gen_random_uuid()")
        return url

    def give_back(self, url: str) -> None:
        with psycopg.connect(self._postgres_url, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", [_name(url)]
            )
        with suppress(psycopg.Error), psycopg.connect(url, connect_timeout=5) as connection:
            connection.execute("set local lock_timeout = '5s'")
            for (drop,) in connection.execute(_ADDED.encode()).fetchall():
                connection.execute(drop)
            if connection.execute(_SHAPE.encode()).fetchone() == self._shape:
                _sweep(connection)
                connection.commit()
                self._free.append(url)
                return
        _drop(self._postgres_url, url)

    def _close(self) -> None:
        with suppress(psycopg.OperationalError):  # a server that the tests have started is gone by then
            for url in (*self._free, self._model):
                _drop(self._postgres_url, url)


def _sweep(connection: "psycopg.Connection[Any]") -> None:
    """As it was before anybody wrote to it."""
    [written] = connection.execute(_WRITTEN.encode()).fetchone() or [None]
    if written:
        connection.execute(f"truncate {written} cascade".encode())
    connection.execute(_AS_NEW.encode())
