"""What the relay's slots may be left to themselves in: whatever of librdkafka's may not come back."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.slots import Slots


@pytest.mark.parametrize("what", [lambda slots: slots.open([0, 1]), lambda slots: slots.add(0)], ids=["open", "add"])
def test_who_opens_a_slot_may_be_left_to_himself_once_the_limit_is_over(what: Callable[[Slots], None]) -> None:
    slots: Any = Slots("127.0.0.1:1", {}, "ledger", "test")
    seen = list[tuple[bool, float]]()

    def init(limit: float) -> None:
        seen.append((slots._began is not None, limit + slots.sending_for()))

    slots._producer = lambda _: SimpleNamespace(init_transactions=init)
    what(slots)
    assert all(under_way for under_way, _ in seen)
    assert [over for _, over in seen] == pytest.approx([0.0] * len(seen), abs=1)
    assert slots.sending_for() == 0


def test_what_is_opened_within_a_transaction_ends_it_not() -> None:
    slots: Any = Slots("127.0.0.1:1", {}, "ledger", "test")
    slots._producer = lambda _: SimpleNamespace(init_transactions=lambda _: None)
    with slots._under_way():
        slots.add(0)
        assert slots._began is not None
    assert slots._began is None
