"""What is packed here is what PostgreSQL reads."""

from typing import Any

import psycopg
import pytest

from eventflow.arrays import BigintArray, ByteaArray, TextArray, register

CASES: list[tuple[str, Any]] = [
    ("text", TextArray([])),
    ("text", TextArray(["", "a", None, 'Grüße, "x"{}\\', "\U0001f600"])),
    ("bytea", ByteaArray([b"", None, bytes(range(256))])),
    ("bigint", BigintArray([0, -1, 2**63 - 1, -(2**63)])),
]


@pytest.mark.parametrize(("kind", "array"), CASES)
def test_round_trip(ledger_url: str, kind: str, array: Any) -> None:
    with psycopg.connect(ledger_url) as connection:
        register(connection)
        for _ in range(2):
            row = connection.execute(f"select %b::{kind}[]".encode(), [array], prepare=True).fetchone()
            assert row == (array.values,)


def test_too_large_a_number_is_refused_before_it_is_sent(ledger_url: str) -> None:
    with psycopg.connect(ledger_url) as connection:
        register(connection)
        with pytest.raises(Exception, match="int"):
            connection.execute("select %b::bigint[]", [BigintArray([2**63])])
