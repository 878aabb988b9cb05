"""The ledger of a test harness, in a schema or a database of its own, with a clock that stands still."""

import contextlib
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from eventflow.database import Database, sql
from eventflow.migrations import migrate
from eventflow.testing.services import postgres_url


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where it is."""

    url: str
    schema: str

    @property
    def _clock(self) -> str:
        return f"{self.schema}_clock"

    @property
    def clocked_url(self) -> str:
        """The same, whose connections find the harness's clock before the server's."""
        parts = urlsplit(self.url)
        asked = dict(parse_qsl(parts.query))
        path = f'-csearch_path={self._clock},pg_catalog,"$user",public'
        asked["options"] = f"{asked['options']} {path}" if "options" in asked else path
        return urlunsplit(parts._replace(query=urlencode(asked, quote_via=quote)))

    def prepare(self, now: float) -> None:
        """Make clock and ledger. Blocks."""
        with Database(self.url).connect("testing") as connection:
            connection.execute(f'create schema "{self._clock}"'.encode())
            for statement in sql("clock", self._clock, "testing").split(b";\n"):
                if statement.strip():
                    connection.execute(statement, {"now": _at(now)} if b"%(now)s" in statement else None)
        migrate(self.clocked_url, schema=self.schema)

    def move_clock(self, to: float) -> None:
        """Turn the clock. Blocks."""
        with Database(self.url).connect("testing") as connection:
            connection.execute(sql("move_clock", self._clock, "testing"), {"now": _at(to)})

    def drop(self) -> None:
        """Drop what `prepare` has made. Blocks."""
        with Database(self.url).connect("testing") as connection:
            for schema in (self.schema, self._clock):
                connection.execute(f'drop schema if exists "{schema}" cascade'.encode())


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@contextlib.contextmanager
def own_database(server: str) -> Generator[str]:
    """The URL of an empty database on this server, dropped at the end.

    Raises:
        UnavailableError: the server does not answer.

    """
    name = f"eventflow_test_{uuid.uuid4().hex[:12]}"
    with Database(server).connect("testing") as admin:
        admin.execute(f"create database {name}".encode())
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        with Database(server).connect("testing") as admin:
            admin.execute(f"drop database {name} with (force)".encode())


@contextlib.contextmanager
def database(given: str | None) -> Generator[Ledger]:
    """Where a harness's ledger shall be: in this database, else in one of its own; dropped at the end.

    Raises:
        UnavailableError: the server does not answer.

    """
    if given is None:
        with own_database(postgres_url()) as url:
            yield Ledger(url, "eventflow")
        return
    ledger = Ledger(given, f"eventflow_test_{uuid.uuid4().hex[:12]}")
    try:
        yield ledger
    finally:
        ledger.drop()
