from datetime import timedelta

import pytest

from eventflow.errors import CodecError, DeterminismError, UsageError
from eventflow.retry import Retry, as_retry, seconds


def test_waits_grow_and_are_capped() -> None:
    policy = Retry(9, delay=1, factor=2, max_delay=5, jitter=0)
    assert [policy.wait(n, 0.5) for n in range(1, 6)] == [1, 2, 4, 5, 5]


def test_jitter_stays_in_its_share() -> None:
    policy = Retry(1, delay=10, jitter=0.1)
    assert policy.wait(1, 0.0) == pytest.approx(9)
    assert policy.wait(1, 1.0) == pytest.approx(11)


def test_count() -> None:
    assert as_retry(2).wants(ValueError(), 2)
    assert not as_retry(2).wants(ValueError(), 3)


@pytest.mark.parametrize("error", [UsageError(), DeterminismError(), CodecError()])
def test_mistakes_are_not_retried(error: Exception) -> None:
    assert not Retry(5).wants(error, 1)


def test_retry_if() -> None:
    assert Retry(1, retry_if=(KeyError,)).wants(KeyError(), 1)
    assert not Retry(1, retry_if=(KeyError,)).wants(ValueError(), 1)
    assert not Retry(1, retry_if=lambda e: "x" in str(e)).wants(ValueError("y"), 1)


@pytest.mark.parametrize("bad", [{"retries": -1}, {"retries": 1, "delay": -1}, {"retries": 1, "jitter": 2}])
def test_bad_policies(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Retry(**bad)  # type: ignore[arg-type]


def test_durations() -> None:
    assert seconds(timedelta(minutes=1)) == 60
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            seconds(bad)


def test_a_retry_if_that_raises_ends_the_attempts() -> None:
    error = ValueError()
    assert not Retry(5, retry_if=lambda e: e.response.status == 503).wants(error, 1)  # type: ignore[attr-defined]
    assert "retry_if raised" in error.__notes__[0]
