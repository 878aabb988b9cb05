"""What an idle worker says of Postgres: it asks for nothing but its lease."""

import logging
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from eventflow.database import unavailable
from eventflow.journal import Identity
from tests.fakes import new_lease

URL = "postgresql://me:s3cret@db.example/shop"


class FakeDatabase:
    """Postgres that is away, or not; it loses the connection first, as a server does that goes away."""

    url = URL

    def __init__(self) -> None:
        self.away = False

    def connect(self, _: str) -> Any:
        if self.away:
            raise unavailable(psycopg.OperationalError("connection refused\n\tIs the server running?"), URL)
        return SimpleNamespace(closed=False, close=lambda: None)

    def run(self, connection: Any, _: str, __: Any) -> list[Any]:
        if self.away:
            connection.closed = True
            raise psycopg.OperationalError("server closed the connection unexpectedly\n\tThis probably means")
        return [(True, True, True, {}, False, False, False, None, False, None, None, False, None, [], [], 0.0, None)]


def test_beats_that_fail_are_told_and_so_is_the_first_that_does_not(caplog: pytest.LogCaptureFixture) -> None:
    database: Any = FakeDatabase()
    lease = new_lease(database, Identity(1, "1", [0]), "a", {})
    with caplog.at_level(logging.INFO, "eventflow.recovery"):
        for away, beats in ((False, 3), (True, 61), (False, 3), (True, 1)):
            database.away = away
            for _ in range(beats):
                lease._one_beat()
    lost = "postgresql://me:***@db.example/shop: server closed the connection unexpectedly; the lease is not renewed"
    refused = "postgresql://me:***@db.example/shop: connection refused; the lease is not renewed"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", f"Postgres at {lost}; trying again"),
        ("WARNING", f"Postgres at {refused}; trying again"),
        ("WARNING", f"Postgres at {refused}; trying again"),
        ("INFO", "Postgres at postgresql://me:***@db.example/shop: answers again"),
        ("WARNING", f"Postgres at {lost}; trying again"),
    ]
