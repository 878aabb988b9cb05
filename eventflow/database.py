"""The only door to Postgres: connections, the SQL files by name, and what an error of the server means.

Nothing here knows what is written; the journal and the services decide that. What goes through the door passes the
payload codec (`payloads`). Nothing relies on session state, so a pooler in transaction mode may stand between
(`prepared=False` where it does not keep prepared statements).
"""

import logging
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql as compose
from psycopg.conninfo import conninfo_to_dict

from eventflow.arrays import register as register_arrays
from eventflow.codec import error_line
from eventflow.encryption import codec_of
from eventflow.errors import EventflowError, FencedError, SettingsError, UnavailableError, first_line
from eventflow.payloads import Payloads
from eventflow.settings import Settings, masked
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
Sent = list[tuple[bytes, Mapping[str, Any]]]  # statements as `Database.statement` makes them
Verdict = Literal["fenced", "claims lost", "poison", "unknown", "again"]

_PACKAGE = Path(__file__).parent
_BLAMING_CLASSES = ("22", "23", "54", "EF013")


def sql_folder() -> Path:
    """The folder of the SQL files: in the wheel inside the package, in a checkout beside it."""
    packaged = _PACKAGE / "sql"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "sql"


def in_schema(text: str, schema: str) -> str:
    """Put the (quoted) schema where the files say `eventflow.`."""
    if schema == "eventflow":
        return text
    quoted = compose.Identifier(schema).as_string(None)
    return re.sub(r"(?<![\w.\"'])eventflow\.", lambda _: f"{quoted}.", text)


@lru_cache(maxsize=512)
def sql(name: str, schema: str = "eventflow", folder: str = "queries") -> bytes:
    """The text of `sql/{folder}/{name}.sql`, without its comments, for this schema."""
    text = (sql_folder() / folder / f"{name}.sql").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return in_schema(code.strip().rstrip(";"), schema).encode()


@dataclass(frozen=True, slots=True)
class Database:
    """Where the ledger is, or another database, and how to speak to it. Opens connections; holds none.

    Attributes:
        name: of another database than the ledger's, in `EVENTFLOW_DATABASES`.

    """

    url: str
    schema: str = "eventflow"
    prepared: bool = True
    name: str | None = None
    payloads: Payloads = field(default_factory=Payloads, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an address that libpq cannot read, before anything starts.

        Raises:
            SettingsError: names the variable and shows nothing of it; what libpq says quotes what it stumbled over,
                which may be the rest of a password.

        """
        variable = "DATABASE_URL" if self.name is None else f"EVENTFLOW_DATABASES: the database {self.name!r}"
        try:
            ports = str(conninfo_to_dict(self.url).get("port") or "")
        except psycopg.ProgrammingError:
            raise SettingsError(
                f"{variable}: libpq cannot read it: a parameter after `?` is not one of PostgreSQL's, or a space or "
                "another special character is not percent-encoded"
            ) from None
        if not all(port == "" or (port.isdecimal() and 0 < int(port) < 1 << 16) for port in ports.split(",")):
            raise SettingsError(f"{variable}: the port is not a number from 1 to 65535")

    def connect(self, role: str) -> Connection:
        """Open an autocommit connection whose application name is `eventflow {role}`.

        Raises:
            UnavailableError: the server does not answer, or refuses the credentials; says which.

        """
        try:
            connection = psycopg.connect(self.url, autocommit=True, **self.options(role))
        except (psycopg.OperationalError, OSError) as error:  # OSError: this process may open no more files
            raise self.unavailable(error) from error
        self.adopt(connection)
        return connection

    def adopt(self, connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
        """Set how this connection prepares statements and sends arrays."""
        register_arrays(connection)
        connection.prepare_threshold = 5 if self.prepared else None

    def unavailable(self, error: Exception) -> UnavailableError:
        """An error of connecting, in one line, without the password."""
        return unavailable(error, self.url, self.name)

    def options(self, role: str) -> dict[str, Any]:
        """Connection options: a name for pg_stat_activity, and limits within which a dead peer is noticed."""
        return {
            "application_name": f"eventflow {role}",
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        }

    def text(self, name: str) -> bytes:
        """The named query in this database's schema."""
        return sql(name, self.schema, "queries" if self.name is None else "results/queries")

    def statement(self, name: str, params: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
        """What is sent for a named query: its text, and its parameters with their payloads encoded.

        Raises:
            CodecError: the payload codec refuses one.

        """
        return self.text(name), self.payloads.write(params)

    def run(
        self, connection: Connection, name: str, params: Mapping[str, Any] | None = None, *, afresh: bool = False
    ) -> list[tuple[Any, ...]]:
        """Execute the named query; its rows, if it has any.

        `afresh`: planned each time, for the tables as they have become. A plan that was kept from when a table was empty scans
        it for ever; in a flush `fence` sees to that, for the others it is said here.

        Raises:
            CodecError: the payload codec refuses a parameter.

        """
        prepare = self.prepared and not afresh
        cursor = connection.execute(*self.statement(name, params or {}), prepare=prepare, binary=True)
        return self._fetch(name, cursor) if cursor.description else []

    def rows(self, connection: Connection, name: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of a named query that always has some columns; in a pipeline, too, where `run` waits for nothing.

        Raises:
            CodecError: the payload codec refuses a parameter.

        """
        return self._fetch(name, connection.execute(*self.statement(name, params), prepare=self.prepared, binary=True))

    def _fetch(self, name: str, cursor: "psycopg.Cursor[Any]") -> list[tuple[Any, ...]]:
        rows = cursor.fetchall()  # first: in a pipeline nothing is known of them before
        return self.payloads.read(name, [column.name for column in cursor.description or ()], rows)


def client_version() -> str:
    """The version of libpq, as people write it."""
    number = psycopg.pq.version()
    return f"{number // 10000}.{number % 10000}"


def database_of(settings: Settings) -> Database:
    """The ledger that the settings choose, and the codec that its payloads pass.

    Raises:
        SettingsError: an address that libpq cannot read, or a codec that cannot be had.

    """
    url, schema, prepared = settings.database_url, settings.database_schema, settings.prepared_statements
    return Database(url, schema, prepared, payloads=Payloads(codec_of(settings)))


class KeptConnection:
    """One connection, opened when it is first needed and anew after it broke. Not for two threads at once."""

    def __init__(self, database: Database, role: str) -> None:
        self.database = database
        self._role = role
        self._connection: Connection | None = None

    def open(self) -> Connection:
        """The connection.

        Raises:
            UnavailableError: as `Database.connect`.

        """
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect(self._role)
        return self._connection

    def run(self, name: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute the named query; its rows, if it has any."""
        return self.database.run(self.open(), name, params)

    def transact(self, work: Callable[[Connection], Any], *setup: str) -> Any:
        """`in_transaction` on this connection."""
        return in_transaction(self.open(), work, *setup)

    def failed(self, error: Exception, logger: logging.Logger) -> None:
        """Say, seldom, what went wrong with it or with what was done on it; the next use opens it anew."""
        if isinstance(error, psycopg.Error | UnavailableError):
            seldom.say(logger, f"{self._role}: {unavailable(error, self.database.url)}; trying again")
        else:
            said = f"{self._role}: {type(error).__name__}: {error_line(error)}; trying again"
            seldom.say(logger, said, logging.ERROR)
        self.close()

    def close(self) -> None:
        """Close it; the next use opens it anew."""
        if self._connection is not None:
            self._connection.close()


def unavailable(error: Exception, url: str, name: str | None = None) -> UnavailableError:
    """An error of connecting, or of a connection that broke, in one line, without the password."""
    if isinstance(error, UnavailableError):
        return error
    which = "" if name is None else f"database {name!r}: "
    result = UnavailableError(f"{which}Postgres at {masked(url)}: {first_line(error)}")
    result.permanent = is_pointless(error)  # type: ignore[attr-defined]
    return result


def is_pointless(error: BaseException) -> bool:
    """Whether connecting again cannot help: wrong credentials, no such role or database, a parameter's wrong value."""
    state = getattr(error, "sqlstate", None)
    if state in {"28P01", "28000", "3D000"}:
        return True
    text = str(error)
    return (
        "password authentication failed" in text
        or ("role" in text and "does not exist" in text)
        or ("database" in text and "does not exist" in text)
        or "no password supplied" in text
        or re.search(r"invalid (\w+ value|port number)", text) is not None
    )


def judge(error: psycopg.Error, connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> Verdict:
    """What an error of a writing transaction means (R2, R3, R15).

    `fenced`: this executor is over. `claims lost`: partitions went to another owner. `poison`: a row's own fault.
    `unknown`: the connection broke, so the commit may or may not have happened. `again`: run the whole once more.
    """
    state = error.sqlstate
    if state in {"EF001", "EF003", "EF004"}:
        return "fenced"  # EF004: the ledger is not what this executor thinks; only a new beginning helps
    if state == "EF002":
        return "claims lost"
    if connection.broken or connection.closed or (state is None and isinstance(error, psycopg.OperationalError)):
        return "unknown"
    if state is None:
        return "poison"  # psycopg itself could not send a value
    return "poison" if state.startswith(_BLAMING_CLASSES) else "again"


def lost_claims(error: psycopg.Error) -> list[int]:
    """The claim ids in the detail of an EF002."""
    return [int(part) for part in (error.diag.message_detail or "").split(",") if part]


def fenced(error: BaseException) -> FencedError:
    """EF001 or EF003 as an error of ours."""
    return FencedError(first_line(error))


@contextmanager
def _whole(connection: Connection) -> Generator[None, None, None]:
    """Roll back what fails."""
    try:
        yield
    except BaseException as error:
        rollback(connection)
        if isinstance(error, psycopg.Error) and error.sqlstate in {"EF001", "EF003"}:
            raise fenced(error) from error
        raise


def _check_commit(cursor: "psycopg.Cursor[Any]") -> None:
    if cursor.statusmessage != "COMMIT":
        raise EventflowError("the transaction was rolled back by the server")


def in_transaction(connection: Connection, work: Callable[[Connection], Any], *setup: str) -> Any:
    """Run `work` in one READ COMMITTED transaction after the SET LOCAL statements given.

    Raises:
        FencedError: the executor is dead.
        psycopg.Error: anything else, after a rollback.

    """
    begin = "; ".join(("begin isolation level read committed", *setup))
    with _whole(connection):
        connection.execute(begin.encode(), prepare=False)
        result = work(connection)
        _check_commit(connection.execute("commit"))
    return result


def in_pipeline(connection: Connection, work: Callable[[Connection], Any]) -> Any:
    """The same in a pipeline: what `work` sends is waited for only where it takes rows, and with the commit.

    Raises:
        FencedError: the executor is dead.
        psycopg.Error: anything else, after a rollback.

    """
    with _whole(connection):
        with connection.pipeline():
            connection.execute(b"begin isolation level read committed", prepare=False)
            result = work(connection)
            last = connection.execute(b"commit", prepare=False)
        _check_commit(last)
    return result


def rollback(connection: Connection) -> None:
    """Leave the transaction, if the connection still lives."""
    if connection.closed or connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    try:
        connection.execute("rollback")
    except psycopg.Error:
        connection.close()


def columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Rows to one array per column, for `unnest`."""
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


@contextmanager
def evicting(database: Database, connection: Connection, after: float) -> Generator[None, None, None]:
    """End whatever blocks this connection's transaction for longer than `after` seconds (R7, R9).

    A frozen process can hold a lock for ever, half-way through a flush: no timeout of older servers ends that, and
    a role may always terminate the backends of its own. Inside the transaction: behind a pooler only that is one backend.
    """
    [(pid,)] = connection.execute("select pg_backend_pid()").fetchall()
    done = threading.Event()

    def watch() -> None:
        if done.wait(after):
            return
        while not done.wait(0.2):
            try:
                with database.connect("evictor") as evictor:
                    while not done.is_set():
                        evictor.execute(sql("evict", database.schema, "queries"), {"pid": pid})  # in any database
                        done.wait(0.2)
            except (psycopg.Error, UnavailableError) as error:
                logger.debug("evictor: %s", error)

    watcher = threading.Thread(target=watch, name="eventflow evictor", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
