"""How many messages are taken from the ledger's lines at once."""

from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.turns import Turns


@pytest.mark.parametrize(
    ("bound", "taken", "scopes", "limit"),
    [
        (1000, [], 1, 50),
        (1000, [], 20, 25),
        (1000, [50] * 9, 1, 50),
        (1000, [50] * 9 + [30], 1, 20),
        (1000, [50] * 10, 1, 1),
        (1000, [50] * 10 + [1] * 100, 20, 1),
        (20, [], 1, 10),
        (1, [], 1, 1),
    ],
)
def test_what_waits_behind_parked_messages_takes_half_of_the_room(
    bound: int, taken: list[int], scopes: int, limit: int
) -> None:
    """And one of each further key: it may be why there is no room."""
    slow = [SimpleNamespace(taken=lambda n=n: n) for n in taken]
    claims: Any = SimpleNamespace(
        usable=lambda: [
            SimpleNamespace(scopes=None),
            SimpleNamespace(scopes=SimpleNamespace(of_the_ledger=lambda: slow)),
        ]
    )
    nothing: Any = None
    turns = Turns(1, "handler", claims, bound, nothing, nothing, nothing, nothing)
    assert turns._at_once(scopes) == limit
