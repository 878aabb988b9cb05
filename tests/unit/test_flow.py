"""How much a consumer takes at once, by a clock that the test moves."""

import pytest

from eventflow.flow import Flow, Rate


@pytest.mark.parametrize("per_second", [0.5, 7.0, 100.0, 5000.0])
def test_a_rate_is_kept_whatever_the_pauses(per_second: float) -> None:
    rate, now, taken = Rate(per_second), 100.0, 0
    for step in range(20_000):
        now += 0.0007 if step % 50 else 0.3
        count = rate.room(now)
        rate.take(count)
        taken += count
    seconds = 20_000 * 0.0007 + 400 * 0.2993
    assert taken <= seconds * per_second + max(1.0, per_second / 10)
    # Pauses of 0.3 s lose what a tenth of a second does not hold.
    assert taken >= (20_000 * 0.0007 + 400 * 0.1 * 0.9) * min(per_second, 100) * 0.9 - 2


def test_what_was_taken_above_the_rate_is_paid_back() -> None:
    rate = Rate(10)
    assert rate.room(0) == 1
    rate.take(21)
    assert rate.wait() == pytest.approx(2.1)
    assert rate.room(2.0) == 0
    assert rate.room(2.2) == 1


def test_room_is_what_all_bounds_leave() -> None:
    flow = Flow(100, 1_000_000, None, lambda: 0.0)
    assert flow.room(30, 0) == 70
    assert flow.room(100, 0) == 0
    assert flow.room(30, 1_000_000) == 0
    flow.took(10, 500_000)
    assert flow.room(10, 500_000) == 11, "as many as the last ones weighed"
    flow.took(10, 0)
    assert flow.room(20, 500_000) == 80


def test_a_rate_bounds_the_room() -> None:
    now = [0.0]
    flow = Flow(100, 1_000_000, 50.0, lambda: now[0])
    assert flow.room(0, 0) == 5
    flow.took(5, 0)
    assert flow.room(0, 0) == 0
    assert flow.wait() == pytest.approx(0.02)
    now[0] = 0.021
    assert flow.room(0, 0) == 1
