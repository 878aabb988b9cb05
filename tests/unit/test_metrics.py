"""Numbers: what is counted, how much of it is kept, and what is drawn."""

import random
from collections import Counter as Count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from eventflow import metrics
from eventflow.metrics import Counter, Histogram, sample
from eventflow.readings import GAUGES
from eventflow.tracing import _Draw, _drawn, _left_out, _sampling


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FAMILIES", {})


@given(st.integers(0, 20_000), st.integers(1, 200))
def test_a_sample_stands_for_all(count: int, most: int) -> None:
    found = sample(count, most)
    assert sum(weight for _, weight in found) == count
    assert len(found) <= most
    assert all(0 <= place < count for place, _ in found)


def test_labels_are_bounded() -> None:
    counter, histogram = Counter("a", "", "step"), Histogram("b", "", "step")
    for n in range(2000):
        counter.add(1, f"step {n}")
        histogram.observe([(0.1, 2)], f"step {n}")
    values = counter.read().values
    assert len(values) == 501
    assert values["other",] == 1500
    assert sum(values.values()) == 2000
    assert len(histogram.read().values) == 501
    assert histogram.read().values["other",][0][6] == 3000


def test_a_histogram_counts_by_bounds() -> None:
    histogram = Histogram("a", "", bounds=(1.0, 2.0))
    histogram.observe([(0.5, 1), (1.0, 1), (1.5, 3), (9.0, 1)])
    assert histogram.read().values == {(): ([2, 3, 1], 0.5 + 1.0 + 4.5 + 9.0)}


def test_each_name_says_its_unit_once() -> None:
    assert not [name for name in GAUGES if name.endswith("_total")]


@pytest.mark.parametrize(
    ("sampler", "known"),
    [
        (ALWAYS_ON, (1.0, False)), (ALWAYS_OFF, (0.0, False)), (ParentBased(ALWAYS_ON), (1.0, True)),
        (TraceIdRatioBased(0.25), (0.25, False)), (ParentBased(TraceIdRatioBased(0.01)), (0.01, True)),
        (ParentBased(TraceIdRatioBased(1e-6)), (1e-6, True)),
        (ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON), (1.0, False)), (object(), (None, False)),
    ],
)  # fmt: skip
def test_what_a_sampler_says_of_itself(sampler: Sampler, known: tuple[float | None, bool]) -> None:
    assert _sampling(sampler) == known


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_what_is_drawn_is_a_share(share: float) -> None:
    random.seed(7)
    draw = _Draw(share)
    drawn = sum(draw.next() for _ in range(100_000))
    assert abs(drawn - 100_000 * share) < 5 * (100_000 * share) ** 0.5


def test_all_and_none_are_drawn() -> None:
    assert all(_Draw(1.0).next() for _ in range(10))
    none = _Draw(0.0)
    assert not any(none.next() for _ in range(10_000))


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-5])
def test_a_drawn_trace_is_one_that_the_sampler_takes(share: float) -> None:
    provider = TracerProvider(sampler=TraceIdRatioBased(share))
    generator = _drawn(provider.id_generator, share)
    found = Count(
        provider.sampler.should_sample(None, generator.generate_trace_id(), "x").decision.is_sampled()
        for _ in range(500)
    )
    assert found == {True: 500}


SENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("traceparent", SENT + b"-00")], True), ([("traceparent", SENT + b"-01")], False), ([("x", b"-00")], False),
        ([("traceparent", SENT + b"-00"), ("baggage", b"a=b")], False), ([("traceparent", None)], False),
        ([("traceparent", b"-00")], False), ([("x", None), ("traceparent", SENT + b"-00")], True),
    ],
)  # fmt: skip
def test_what_was_left_out_by_its_producer(headers: list[tuple[str, bytes | None]], found: bool) -> None:
    assert _left_out(headers) is found
