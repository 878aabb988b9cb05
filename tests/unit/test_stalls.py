"""What stands still although Kafka has more of it, and what only seems to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.runs import ENDLESS, Claim
from eventflow.stalls import _LOOKS, _MOST, _OPEN, Stalls


def claim(partition: int = 0) -> Claim:
    return Claim(1, 1, "g", "orders", partition, 1, 1, "id:", 100)


class Looked:
    """Stalls that are looked at every half minute, by a clock of its own."""

    def __init__(self) -> None:
        self.stalls, self.now = Stalls(), 0.0
        self.stalls.held_back(self.now)

    def look(self, *claims: Claim, end: int = 200) -> list[Claim]:
        self.now += 30
        self.stalls.drained(self.now)
        return self.stalls.look(claims, {("orders", c.partition): end for c in claims})

    def looks_until_told(self, *claims: Claim) -> int:
        return next(n for n in range(1, 1000) if self.look(*claims))


def test_what_does_not_move_though_there_is_more_is_told_once_it_was_seen_so_often() -> None:
    looked, still, moves, ended = Looked(), claim(0), claim(1), claim(2)
    ended.next_offset = 200
    for _ in range(_LOOKS - 1):
        assert looked.look(still, moves, ended) == []
        moves.next_offset += 1
    assert looked.look(still, moves, ended) == [still]


def test_where_to_begin_anew_does_not_help_it_is_done_ever_more_seldom() -> None:
    looked = Looked()
    told = [looked.looks_until_told(claim()) for _ in range(10)]  # a new claim each time, as of a new consumer
    assert told[:3] == [_LOOKS, 2 * _LOOKS, 4 * _LOOKS]
    assert told[-1] == _MOST


def test_a_partition_that_stands_still_at_two_consumers_in_turns_is_told_ever_more_seldom() -> None:
    """Who has told of it has no such partition until the other one has told, too: that is no sign that all is well."""
    ours, theirs, looks = Looked(), Looked(), list[int]()
    for _ in range(8):
        looks.append(ours.looks_until_told(claim()))
        for _ in range(theirs.looks_until_told(claim())):
            ours.look(claim(1), end=100)
        for _ in range(looks[-1]):
            theirs.look(claim(1), end=100)
    assert looks[:3] == [_LOOKS, 2 * _LOOKS, 4 * _LOOKS]
    assert looks[-1] == _MOST
    for _ in range(2 * _MOST):
        ours.look(claim(), end=100)
    assert ours.looks_until_told(claim()) == _LOOKS, "none has stood still for so long"


def test_what_waits_here_to_be_taken_is_nothing_that_does_not_come() -> None:
    stalls, one = Stalls(), claim()
    stalls.drained(0.0)  # and not once after that
    assert [stalls.look([one], {("orders", 0): 200}) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize(("open_for", "told"), [(_OPEN - 0.1, False), (_OPEN, True)])
def test_a_look_counts_where_nothing_was_held_back_for_a_while_before_all_was_taken(
    open_for: float, told: bool
) -> None:
    looked, one = Looked(), claim()
    found = list[Claim]()
    for _ in range(10):
        looked.stalls.held_back(looked.now + 30 - open_for)
        found += looked.look(one)
    assert bool(found) is told


@pytest.mark.parametrize("why", ["in flight", "the end", "not told", "cut off"])
def test_what_is_not_to_come_does_not_stand_still(why: str) -> None:
    looked, one = Looked(), claim()
    if why == "in flight":
        one.handed = 1
    if why == "cut off":
        one.accepted_above = [(300, 400)]
    for _ in range(10):
        looked.now += 30
        looked.stalls.drained(looked.now)
        ends = {} if why == "not told" else {("orders", 0): 100 if why == "the end" else 200}
        assert looked.stalls.look([one], ends) == []


@pytest.mark.parametrize("above", [(150, ENDLESS), (200, ENDLESS), (150, 170)])
def test_what_is_accepted_further_on_hides_nothing_before_it(above: tuple[int, int]) -> None:
    """As of what is run again up to an end: its last message, at 199, is to come, too."""
    looked, one = Looked(), claim()
    one.accepted_above = [above]
    assert looked.looks_until_told(one) == _LOOKS


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_none_is_told_that_has_moved_since_the_looks_that_count(steps: list[tuple[int, bool]]) -> None:
    looked, claims, wanted = Looked(), [claim(n) for n in range(3)], _LOOKS
    still = dict.fromkeys(claims, 0)  # looks at the same place
    for which, moves in steps:
        if moves:
            claims[which].next_offset += 1
            still[claims[which]] = 0
        told = looked.look(*claims, end=1000)
        still = {one: count + 1 for one, count in still.items()}
        assert told == [one for one in claims if still[one] >= wanted]
        wanted = min(2 * wanted, _MOST) if told else wanted
