"""Who is next in a queue: priorities, turns of the keys, limits; and what a reader by snapshots sees."""

from hypothesis import given
from hypothesis import strategies as st

from eventflow.lines import Cursor, Limits, Lines, Used


def taken_from(
    lines: Lines, stock: dict[tuple[int, str], list[int]], budget: int, left: dict[str, int] | None = None
) -> list[tuple[int, str]]:
    """What a ledger that holds this stock would give; the stock is what is left."""
    limit = left or {}
    asks = lines.plan(budget, limit.get)
    heads: list[tuple[int, int, int, str, int]] = []
    for n, ask in enumerate(asks, 1):
        rows = [p for p in stock[ask.priority, ask.key] if p >= ask.low][: ask.share]
        heads += [(ask.priority, turn, n, ask.key, placed) for turn, placed in enumerate(rows)]
    chosen = sorted(heads)[:budget]
    for priority, _, _, key, placed in chosen:
        stock[priority, key].remove(placed)
    lines.answered(asks, [(n, placed) for _, _, n, _, placed in chosen], budget)
    return [(priority, key) for priority, _, _, key, _ in chosen]


def lines_of(stock: dict[tuple[int, str], list[int]]) -> Lines:
    lines = Lines()
    for (priority, key), rows in stock.items():
        for placed in rows:
            lines.arrived(priority, key, placed)
    return lines


STOCKS = st.dictionaries(
    st.tuples(st.integers(-2, 2), st.sampled_from("abcdef")),
    st.lists(st.integers(1, 50), min_size=1, max_size=20).map(sorted),
    max_size=12,
)


@given(STOCKS, st.integers(1, 30))
def test_all_that_stands_in_line_is_taken_once(stock: dict[tuple[int, str], list[int]], budget: int) -> None:
    wanted = {place: len(rows) for place, rows in stock.items()}
    lines, found = lines_of(stock), dict.fromkeys(stock, 0)
    for _ in range(500):
        if not lines:
            break
        for place in taken_from(lines, stock, budget):
            found[place] += 1
    assert not lines
    assert found == wanted


@given(STOCKS, st.integers(1, 30))
def test_the_smallest_priority_goes_first(stock: dict[tuple[int, str], list[int]], budget: int) -> None:
    lines = lines_of(stock)
    while lines:
        before = {priority for (priority, _), rows in stock.items() if rows}
        taken = taken_from(lines, stock, budget)
        if taken and before:
            assert taken[0][0] == min(before)
        for (
            priority,
            _,
        ) in taken:  # none of a higher priority was left behind for it, unless its keys were not all asked
            higher = sum(len(rows) for (p, _), rows in stock.items() if p < priority)
            assert higher == 0 or len(taken) == budget


def test_keys_take_turns_whatever_stands_behind_them() -> None:
    stock = {(0, "many"): list(range(1, 1001)), **{(0, f"k{n}"): [500] for n in range(20)}}
    lines = lines_of(stock)
    first = taken_from(lines, stock, 21)
    assert sorted(key for _, key in first) == sorted(["many", *(f"k{n}" for n in range(20))])


def test_turns_go_on_where_they_stopped() -> None:
    stock = {(0, key): [1, 2, 3] for key in "abcdef"}
    lines = lines_of(stock)
    found = [key for _ in range(3) for _, key in taken_from(lines, stock, 4)]
    assert sorted(found[:6]) == list("abcdef")
    assert sorted(found[6:]) == list("abcdef")


def test_a_key_at_its_limit_holds_up_no_other() -> None:
    stock = {(0, "full"): [1] * 50, (0, "free"): [2] * 3}
    lines = lines_of(stock)
    assert taken_from(lines, stock, 10, {"full": 0, "free": 10}) == [(0, "free")] * 3
    assert lines
    assert taken_from(lines, stock, 10, {"full": 2}) == [(0, "full")] * 2


def test_a_limit_of_a_key_is_one_over_its_priorities() -> None:
    stock = {(0, "k"): [1, 1], (1, "k"): [1, 1, 1]}
    lines = lines_of(stock)
    assert taken_from(lines, stock, 10, {"k": 3}) == [(0, "k"), (0, "k")], "it might have been three"
    assert taken_from(lines, stock, 10, {"k": 1}) == [(1, "k")]


def test_what_is_used_up() -> None:
    limits = Limits.of({"concurrency": 5, "rate": [10, 60.0], "concurrency_per_key": 2})
    assert limits == Limits(concurrency=5, rate=(10, 60.0), concurrency_per_key=2)
    used = Used(slots={"a": 2, "b": 1}, started={"a": 9})
    assert used.left(limits) == 1
    assert used.left_of(limits, "a") == 0
    assert used.left_of(limits, "b") == 1
    assert Used().left(Limits()) is None
    assert Used().left_of(Limits(), "a") is None
    assert Used(slots={"a": 9}).left(Limits(concurrency=5)) == 0


def test_a_cursor_goes_by_the_snapshot_and_not_by_numbers_alone() -> None:
    cursor = Cursor()
    assert cursor.params() == {"since": "0", "missed": []}
    cursor.advance("100:120:100,117")
    assert cursor.params() == {"since": "120", "missed": ["100", "117"]}
    cursor.advance("130:130:")
    assert cursor.params() == {"since": "130", "missed": []}
    cursor.advance("131:135:", "131")
    assert cursor.params() == {"since": "135", "missed": ["131"]}, "nobody sees itself"
