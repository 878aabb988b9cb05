"""What an error of a transaction means: by what the transaction was doing, whether its connection is broken, and its code."""

import functools
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from eventflow.database import judge
from eventflow.errors import UnavailableError
from eventflow.ports import RolledBackError
from eventflow.transactions import Phase, judge_transaction

PHASES: tuple[Phase, ...] = ("begin", "user", "write", "commit")


@functools.cache
def coded(state: str, base: type[psycopg.Error] = psycopg.OperationalError) -> type[psycopg.Error]:
    return type(f"Coded{state}", (base,), {"sqlstate": state})


def server(state: str, table: str | None = None) -> psycopg.Error:
    """An error as the server sends it."""
    error = coded(state)(state)
    error.__class__ = type("Coded", (coded(state),), {"diag": SimpleNamespace(table_name=table)})
    return error


def wrapped(state: str) -> DBAPIError:
    """As SQLAlchemy hands it on."""
    return DBAPIError("select 1", None, server(state))


LOST_CONNECTION = psycopg.OperationalError("the connection is lost")

# Error; then what it means in each phase, the connection being whole; then with the connection broken.
TABLE: list[tuple[str, BaseException, tuple[str, str, str, str], tuple[str, str, str, str]]] = [
    ("dead", server("EF001"), ("fenced",) * 4, ("fenced",) * 4),
    ("claims lost", server("EF002"), ("lost",) * 4, ("lost",) * 4),
    ("another timeline", server("EF003"), ("fenced",) * 4, ("fenced",) * 4),
    ("another ledger", server("EF004"), ("fenced",) * 4, ("fenced",) * 4),
    ("workflow let go of", server("EF008"), ("gone",) * 4, ("gone",) * 4),
    ("wrapped fence", wrapped("EF001"), ("fenced",) * 4, ("fenced",) * 4),
    ("serialization", server("40001"), ("conflict",) * 4, ("conflict",) * 4),
    ("deadlock", server("40P01"), ("conflict",) * 4, ("conflict",) * 4),
    ("wrapped conflict", wrapped("40001"), ("conflict",) * 4, ("conflict",) * 4),
    ("unique", server("23505", "orders"), ("user", "user", "user", "user"), ("again", "broken", "again", "user")),
    ("flush number", server("23505", "flushes"), ("unknown", "user", "unknown", "user"), ("again", "broken", "again", "user")),
    ("foreign key", server("23503", "orders"), ("user", "user", "user", "user"), ("again", "broken", "again", "user")),
    ("wrapped check", wrapped("23514"), ("user", "user", "user", "user"), ("again", "broken", "again", "user")),
    ("rolled back", RolledBackError("COMMIT answered ROLLBACK"), ("user",) * 4, ("again", "broken", "again", "user")),
    ("io error", server("58030"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("disk full", server("53100"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("read-only", server("25006"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("shutdown", server("57P01"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("query cancelled", server("57014"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("connection failure", server("08006"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("internal", server("XX000"), ("user", "user", "user", "unknown"), ("again", "broken", "again", "unknown")),
    ("lost connection", LOST_CONNECTION, ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("wrapped loss", DBAPIError("", None, LOST_CONNECTION), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("server away", UnavailableError("no answer"), ("again", "user", "again", "unknown"), ("again", "broken", "again", "unknown")),
    ("the user's", ValueError("no"), ("user", "user", "user", "unknown"), ("again", "broken", "again", "unknown")),
    ("cancelled", KeyboardInterrupt(), ("user",) * 4, ("user",) * 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "error", "whole", "broken"), TABLE, ids=[row[0] for row in TABLE])
def test_what_an_error_means(name: str, error: BaseException, whole: tuple[str, ...], broken: tuple[str, ...]) -> None:
    assert tuple(judge_transaction(error, phase, "whole") for phase in PHASES) == whole
    assert tuple(judge_transaction(error, phase, "broken") for phase in PHASES) == broken


@pytest.mark.parametrize("state", ["53100", "53200", "58030"])
def test_a_full_disk_is_nobodys_failure_where_it_is_the_ledgers(state: str) -> None:
    """On the connection that was lent; on one of the user's to another database it is his (R15)."""
    assert judge_transaction(server(state), "user", "failed") == "again"
    assert judge_transaction(wrapped(state), "user", "failed") == "again"
    assert judge_transaction(server(state), "user", "whole") == "user"
    assert judge_transaction(server("23505", "orders"), "user", "failed") == "user"


def test_what_the_journal_makes_of_a_row_that_is_not_its_own() -> None:
    """The ledger is not what this executor thinks: to send it again, for ever, mends nothing (EF004)."""
    whole: Any = SimpleNamespace(broken=False, closed=False)
    assert [judge(server(state), whole) for state in ("EF001", "EF003", "EF004")] == ["fenced"] * 3
    assert judge(server("EF002"), whole) == "claims lost"
