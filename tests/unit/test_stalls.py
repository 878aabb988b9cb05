"""What stands still although Kafka has more of it, and what only seems to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.runs import ENDLESS, Claim
from eventflow.stalls import _IDLE, _LOOKS, _MOST, Stalls


def claim(partition: int = 0) -> Claim:
    return Claim(1, 1, "g", "orders", partition, 1, 1, "id:", 100)


def look(stalls: Stalls, *claims: Claim, end: int = 200, idle: int = _IDLE) -> list[Claim]:
    for _ in range(idle):
        stalls.nothing_came()
    return stalls.look(claims, {("orders", c.partition): end for c in claims})


def looks_until_said(stalls: Stalls, *claims: Claim) -> int:
    return next(n for n in range(1, 1000) if look(stalls, *claims))


def test_what_does_not_move_though_there_is_more_is_told_once_it_was_seen_so_often() -> None:
    still, moves, ended = claim(0), claim(1), claim(2)
    stalls, ended.next_offset = Stalls(), 200
    for _ in range(_LOOKS):
        assert look(stalls, still, moves, ended) == []
        moves.next_offset += 1
    assert look(stalls, still, moves, ended) == [still]


def test_where_to_begin_anew_does_not_help_it_is_done_ever_more_seldom() -> None:
    stalls = Stalls()
    said = [looks_until_said(stalls, claim()) for _ in range(10)]  # a new claim each time, as of a new consumer
    assert said[:3] == [_LOOKS + 1, 2 * _LOOKS + 1, 4 * _LOOKS + 1]
    assert said[-1] == _MOST + 1
    look(stalls)
    assert looks_until_said(stalls, claim()) == _LOOKS + 1, "nothing had stood still since"


def test_what_waits_here_to_be_taken_is_nothing_that_does_not_come() -> None:
    stalls, one = Stalls(), claim()
    assert [look(stalls, one, idle=_IDLE - 1) for _ in range(10)] == [[]] * 10


def test_while_all_is_paused_nothing_is_to_come() -> None:
    stalls, one = Stalls(), claim()
    for _ in range(10):
        assert look(stalls, one) == []
        stalls.interrupted()


@pytest.mark.parametrize("why", ["in flight", "the end", "not told", "cut off"])
def test_what_is_not_to_come_does_not_stand_still(why: str) -> None:
    stalls, one = Stalls(), claim()
    if why == "in flight":
        one.handed = 1
    if why == "cut off":
        one.accepted_above = [(300, 400)]
    ends = {} if why == "not told" else {("orders", 0): 100 if why == "the end" else 200}
    for _ in range(10):
        for _ in range(_IDLE):
            stalls.nothing_came()
        assert stalls.look([one], ends) == []


def test_what_is_run_again_up_to_an_end_stands_still_before_it() -> None:
    stalls, one = Stalls(), claim()
    one.accepted_above = [(150, ENDLESS)]
    assert looks_until_said(stalls, one) == _LOOKS + 1


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_none_is_told_that_has_moved_since_the_looks_that_count(steps: list[tuple[int, bool]]) -> None:
    stalls, claims = Stalls(), [claim(n) for n in range(3)]
    still = dict.fromkeys(claims, 0)  # looks since it last moved
    for which, moves in steps:
        if moves:
            claims[which].next_offset += 1
            still[claims[which]] = 0
        told = look(stalls, *claims, end=1000)
        still = {one: count + 1 for one, count in still.items()}
        assert all(still[one] > _LOOKS for one in told)
