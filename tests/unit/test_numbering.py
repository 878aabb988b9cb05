"""What the relay decides: pure, so every case of the protocol can be put to it."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.numbering import (
    Batch,
    Blocked,
    Bound,
    Event,
    MismatchError,
    Parked,
    Refused,
    Review,
    Size,
    block,
    compare,
    ranges,
    sift,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)


def batch(n: int, slot: int, name: str = "") -> Batch:
    return Batch(n, slot, name or f"id{n}", 3, AT)


def event(number: int, key: bytes | None = None, topic: str = "t", unread: str | None = None) -> Event:
    return Event(number, topic, key, b"v", [], unread)


# ---- comparing (R17.7) --------------------------------------------------------------------------

OLD, OTHER, NEW = batch(1, 0), batch(2, 1), batch(3, 0)


def findings(due: Batch | None, zero: object, one: object = OTHER.number) -> list[tuple[int, str]]:
    found = compare([OLD, OTHER, NEW], due, {0: zero, 1: one})  # type: ignore[dict-item]
    return [(finding.batch.n, finding.what) for finding in found]


def test_what_kafka_has_is_out() -> None:
    assert findings(NEW, NEW.number) == []
    assert findings(None, NEW.number) == []


def test_the_number_before_means_that_what_is_due_is_not_out() -> None:
    assert findings(NEW, OLD.number) == [(3, "send")]


def test_a_number_that_kafka_has_forgotten_is_given_again_or_looked_for() -> None:
    assert findings(None, None) == [(3, "renumber")]
    assert findings(NEW, None) == [(3, "look")]
    assert findings(NEW, OLD.number, None) == [(2, "renumber"), (3, "send")]


@pytest.mark.parametrize(
    ("due", "zero"),
    [(None, OLD.number), (NEW, (3, "another")), (None, (3, "another")), (NEW, (1, "another")), (NEW, (4, "id4")), (None, (0, "x"))],
)  # fmt: skip
def test_anything_else_is_for_a_person(due: Batch | None, zero: object) -> None:
    with pytest.raises(MismatchError, match="slot 0"):
        findings(due, zero)


def test_every_slot_is_compared_not_only_that_of_what_is_due() -> None:
    """A fail-over has lost the last numbering, and nothing is due: Kafka is ahead (hazard 7)."""
    with pytest.raises(MismatchError, match="slot 1"):
        findings(NEW, OLD.number, (4, "lost"))


def test_a_slots_first_batch() -> None:
    first = batch(0, 0)
    assert compare([first], None, {0: None}) == [(first, "renumber")]
    assert compare([first], None, {0: first.number}) == []


# ---- what goes out -------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 200)))
def test_ranges_hold_these_ids_and_no_others(ids: set[int]) -> None:
    text = ranges(sorted(ids))
    found = set[int]()
    for part in text.strip("{}").split(",["):
        if part:
            low, high = part.strip("[)").split(",")
            found |= set(range(int(low), int(high)))
    assert found == ids


def test_what_is_refused_parks_what_comes_behind_it_and_nothing_else() -> None:
    events = [
        event(1, b"a"),
        event(2, b"b", "bad"),
        event(3, b"b"),
        event(4, b"b", "bad"),
        event(5, None, "bad"),
        event(6, b"c"),
        event(7, None),
    ]
    going, parked = sift(events, {("t", b"c"): 5}, lambda e: "no" if e.topic == "bad" and e.id != 4 else None)
    assert [e.id for e in going] == [1, 3, 7]
    assert [(p.id, p.behind) for p in parked] == [(2, False), (4, True), (5, False), (6, True)]
    assert isinstance(parked[0], Parked)
    assert parked[0].reason == "no"


def test_what_cannot_be_read_is_parked_alone() -> None:
    going, parked = sift([event(1, unread="no key"), event(2)], {}, lambda _: None)
    assert ([e.id for e in going], parked) == ([2], [Parked(1, False, "no key")])


def test_what_comes_before_a_refused_event_of_its_key_goes_out() -> None:
    """It was in a batch with that one, which was taken back."""
    blocked: Blocked = {}
    block(blocked, [event(4, b"a"), event(2, b"a"), event(3)])
    going, parked = sift([event(1, b"a"), event(3, b"a")], blocked, lambda _: None)
    assert ([e.id for e in going], [p.id for p in parked]) == ([1], [3])


# ---- what people decide --------------------------------------------------------------------------


def refused(number: int, key: bytes | None, behind: bool = False, wanted: str | None = None) -> Refused:
    return Refused(event(number, key), behind, wanted)


def test_a_retry_lets_go_what_was_behind_it_up_to_the_next_refused_one() -> None:
    review = Review()
    parked = [
        refused(1, b"a", wanted="retry"),
        refused(2, b"b"),
        refused(3, b"a", behind=True),
        refused(4, b"b", behind=True),
        refused(5, b"a"),
        refused(6, b"a", behind=True),
        refused(7, None),
        refused(8, None, wanted="retry"),
    ]
    going, dropped = review.part(parked)
    assert ([e.id for e in going], dropped) == ([1, 3, 8], [])
    assert review.end() == ({("t", b"a"): 5, ("t", b"b"): 2}, False)


def test_what_is_dropped_is_in_nobodys_way() -> None:
    review = Review()
    going, dropped = review.part([refused(1, b"a", wanted="drop"), refused(2, b"a", behind=True)])
    assert ([e.id for e in going], dropped) == ([2], [1])
    assert review.end() == ({}, False)


def test_a_walk_in_parts_knows_what_it_has_seen_and_what_came_meanwhile() -> None:
    review = Review()
    assert review.part([refused(1, b"a")]) == ([], [])
    review.parked([event(0, b"c"), event(5, b"d")])  # of which it will meet the second one yet
    assert review.part([refused(2, b"a", behind=True), refused(3, b"b", behind=True)])[0] == [event(3, b"b")]
    assert review.after == 3
    assert review.part([refused(5, b"d", behind=True)])[0] == [event(5, b"d")]
    assert review.end() == ({("t", b"a"): 1, ("t", b"c"): 0}, True)


# ---- the lower bound -----------------------------------------------------------------------------


def test_the_bound_waits_for_everyone_who_may_have_drawn_a_lower_id() -> None:
    bound = Bound()
    bound.look(["slow"])
    bound.read([1, 2, 5])
    assert bound.low == 0  # nothing had been seen at the look
    bound.look(["slow", "other"])
    bound.read([6, 7])
    assert bound.low == 0
    bound.look(["slow", "new"])
    bound.read([8])
    assert bound.low == 0
    bound.look(["new"])
    bound.read([9])
    assert bound.low == 5  # what was seen when the look began, not what was seen since


def test_what_was_drawn_early_and_committed_late_stays_above_the_bound() -> None:
    bound = Bound()
    bound.read([1, 2, 5])
    bound.look(["slow"])
    bound.look([])
    bound.read([4, 6])  # 4 was slow's
    assert bound.low == 3


def test_where_nothing_is_left_all_that_was_seen_is_below_the_bound() -> None:
    bound = Bound()
    bound.read([1, 2, 5])
    bound.look([])
    bound.read([])
    assert bound.low == 5
    bound.look([])
    bound.read([])
    assert bound.low == 5


class Postgres:
    """Transactions that draw ids and commit, or not, in any order; a relay that reads above its bound."""

    def __init__(self) -> None:
        self.next, self.open, self.there = 1, dict[str, list[int]](), set[int]()

    def draw(self, who: str) -> None:
        self.open.setdefault(who, []).append(self.next)
        self.next += 1

    def end(self, who: str, commit: bool) -> None:
        ids = self.open.pop(who, [])
        if commit:
            self.there |= set(ids)


@given(st.lists(st.tuples(st.sampled_from(["draw", "commit", "roll back", "look", "read"]), st.sampled_from("abc"))))
def test_no_event_is_ever_passed_over(steps: list[tuple[str, str]]) -> None:
    ledger, bound, committed, taken = Postgres(), Bound(), set[int](), set[int]()
    for what, who in [*steps, ("commit", "a"), ("commit", "b"), ("commit", "c"), ("read", ""), ("read", "")]:
        if what == "draw":
            ledger.draw(who)
        elif what == "look":
            bound.look(list(ledger.open))
        elif what == "read":
            ids = sorted(i for i in ledger.there if i > bound.low)[:2]
            bound.read(ids)
            taken |= set(ids)
            ledger.there -= set(ids)
        else:
            committed |= set(ledger.open.get(who, [])) if what == "commit" else set()
            ledger.end(who, what == "commit")
    assert all(i > bound.low for i in ledger.there)
    assert taken | ledger.there == committed


def test_who_is_to_blame_stands_alone_soon() -> None:
    size = Size(5000)
    tries = 0
    events = 5000
    while events > 1:
        size.refused(events)
        events = min(events, size.now)
        tries += 1
    assert tries <= 13
    size.sent()
    assert size.now == 2
    for _ in range(20):
        size.sent()
    assert size.now == 5000
