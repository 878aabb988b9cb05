"""What a process counts: plain numbers, added up once per batch, read when somebody asks.

Counting costs the same whether anybody asks or not, so it is done by the flush, not by the message: who has ended is counted
in C, and histograms are made of fifty entries of a flush at most, each standing for its neighbours. Labels are names that
code declares, never a key or an id; one that would have more than `_MOST` of them puts the rest under "other".

`Family` is what is read; `readings` has it as Prometheus' text and as OpenTelemetry's instruments.
"""

import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_MOST = 500  # sets of labels of one family
_OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
SIZES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 4000.0)
Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as it is now.

    Attributes:
        name: without a prefix, as `message_latency_seconds`. labels: their names.
        values: by labels; of a histogram the counts of its buckets, the last one above all bounds, and the sum.

    """

    name: str
    kind: Kind
    help: str
    labels: Labels
    values: Mapping[Labels, Any]
    bounds: tuple[float, ...] = ()


class _Instrument:
    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002  # what Prometheus calls it
        self.name, self.help, self.labels = name, help, labels
        self._lock = threading.Lock()
        FAMILIES[name] = self

    def _within(self, known: Mapping[Labels, object], labels: Labels) -> Labels:
        return labels if labels in known or len(known) < _MOST else (_OTHER,) * len(labels)

    def read(self) -> Family:
        raise NotImplementedError


FAMILIES: dict[str, _Instrument] = {}


class Counter(_Instrument):
    """A number that only grows, by labels. From any thread."""

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002
        super().__init__(name, help, *labels)
        self._values: dict[Labels, int] = {} if labels else {(): 0}

    def add(self, count: int, *labels: str) -> None:
        with self._lock:
            within = self._within(self._values, labels)
            self._values[within] = self._values.get(within, 0) + count

    def read(self) -> Family:
        with self._lock:
            return Family(self.name, "counter", self.help, self.labels, dict(self._values))


class Histogram(_Instrument):
    """How often values were how large, by labels. From any thread.

    Attributes:
        sink: is told each value, with how many it stands for and its labels: OpenTelemetry's, where a program has set it up.

    """

    def __init__(self, name: str, help: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> None:  # noqa: A002
        super().__init__(name, help, *labels)
        self.bounds = bounds
        none = ([0] * (len(bounds) + 1), 0.0)
        self._values: dict[Labels, tuple[list[int], float]] = {} if labels else {(): none}
        self.sink: Callable[[float, int, Labels], None] | None = None

    def observe(self, values: Iterable[tuple[float, int]], *labels: str) -> None:
        """Values, each with how many it stands for."""
        with self._lock:
            within = self._within(self._values, labels)
            counts, total = self._values.get(within) or ([0] * (len(self.bounds) + 1), 0.0)
            for value, weight in values:
                counts[bisect_left(self.bounds, value)] += weight
                total += value * weight
                if self.sink is not None:
                    self.sink(value, weight, within)
            self._values[within] = (counts, total)

    def read(self) -> Family:
        with self._lock:
            values = {labels: (list(counts), total) for labels, (counts, total) in self._values.items()}
        return Family(self.name, "histogram", self.help, self.labels, values, self.bounds)


def sample(count: int, most: int = 50) -> Sequence[tuple[int, int]]:
    """Which of so many stand for all of them: places, each with how many it stands for."""
    step = max(1, -(-count // most))
    return [(place, min(step, count - place)) for place in range(0, count, step)]


def collected() -> list[Family]:
    """What was counted."""
    return [instrument.read() for instrument in list(FAMILIES.values())]


MESSAGES = Counter("messages", "Messages whose workflow has ended, or is parked.", "consumer", "outcome")
WORKFLOWS = Counter("workflows", "Other workflows that have ended, or are parked.", "workflow", "outcome")
LATENCY = Histogram(
    "message_latency_seconds", "From a message's timestamp in Kafka until its end is durable.", "consumer"
)
STEPS = Histogram("step_seconds", "How long steps take, with their retries.", "step")
STEP_FAILURES = Counter("step_failures", "Steps that have failed for good.", "step")
RETRIES = Counter("retries", "Further attempts of workflows, by their policy.", "workflow")
DEAD_LETTERS = Counter("dead_letters", "Messages that have become dead letters.", "consumer")
FLUSH_SECONDS = Histogram("flush_seconds", "How long the journal's flushes take.")
FLUSH_ENTRIES = Histogram("flush_entries", "What the journal's flushes write: entries.", bounds=SIZES)
RECOVERIES = Counter("recoveries", "Workflows that were taken over from dead processes.")
TAKEOVERS = Counter("takeovers", "Dead processes whose work was taken over.")
LATENESS = Histogram("schedule_lateness_seconds", "How late fire times are fired.", "schedule")
EVENTS = Counter("events_sent", "Published events that are in Kafka.", "topic")


def for_otel() -> Any:
    """The provider of OpenTelemetry's meters; None where the program has set none up."""
    metrics = sys.modules.get("opentelemetry.metrics")
    provider: Any = None if metrics is None else metrics.get_meter_provider()
    return None if type(provider).__name__ in {"NoneType", "_ProxyMeterProvider", "NoOpMeterProvider"} else provider
