"""What is read of a process when somebody asks: what it has counted, how it stands, and what only the ledger knows.

The ledger is asked by a thread of its own, every few seconds at most, for two seconds at most: who scrapes gets what is known,
and `ledger_up` says whether that is of now. As text it is Prometheus' (`text`); `export` has it as OpenTelemetry's instruments.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from eventflow.consumer import Lag
from eventflow.database import Connection, Database, KeptConnection, in_transaction
from eventflow.metrics import FAMILIES, Counter, Family, Histogram, Labels, collected, for_otel
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_FRESH = 5.0  # seconds for which an answer of the ledger stands
_PATIENCE = 2.0  # seconds that a scrape waits for it
_SET = ("set local statement_timeout = '2s'", "set local lock_timeout = '1s'")

# Gauges, with what they say and their labels.
_OF_PROCESS: dict[str, tuple[str, Labels]] = {
    "in_flight": ("Messages that were handed out and are not done.", ("consumer",)),
    "partitions": ("Partitions that this process reads.", ("consumer",)),
    "lag_offsets": ("Messages of a partition that are not done.", ("consumer", "topic", "partition")),
    "lag_seconds": (
        "Age of the last message that was handed out, where there are more.", ("consumer", "topic", "partition"),
    ),
    "runs": ("Workflows in this process's memory.", ()),
    "lease_age_seconds": ("Since the last beat that came through.", ()),
}  # fmt: skip
_OF_LEDGER: dict[str, tuple[str, Labels]] = {
    "ledger_up": ("Whether the ledger answered when it was asked last.", ()),
    "queue_depth": ("Workflows that wait in a queue, up to 10,000.", ("queue",)),
    "queue_age_seconds": ("Since when the first of them waits.", ("queue",)),
    "dead_letters_open": ("Dead letters that nobody has decided on, up to 10,000.", ("consumer",)),
    "outbox_events": ("Events that are not in Kafka yet, up to 10,000.", ()),
    "outbox_age_seconds": ("Since when the first of them waits.", ()),
    "undelivered_events": ("Events that Kafka refuses, and those behind them, up to 10,000.", ()),
    "incidents_open": ("Incidents that nobody has settled.", ("kind",)),
}
GAUGES = _OF_PROCESS | _OF_LEDGER
Values = dict[str, dict[Labels, float]]


class Readings:
    """All numbers of one process. From any thread."""

    def __init__(self, database: Database, application: str, process: Callable[[], Values]) -> None:
        """`process` tells what the executor that runs now knows."""
        self._application, self._process = application, process
        self._kept = KeptConnection(database, "metrics")
        self._lock = threading.Lock()
        self._known: Values = {}
        self._asked = float("-inf")
        self._answered: threading.Event | None = None
        self._up = False

    def families(self) -> list[Family]:
        """All of them, as they are now."""
        values = {**self._process(), **self._ledger()}
        return [*collected(), *(_gauge(name, values) for name in GAUGES)]

    def gauge(self, name: str) -> Family:
        """One gauge, as it is now."""
        return _gauge(name, self._ledger() if name in _OF_LEDGER else self._process())

    def text(self) -> bytes:
        """The same in Prometheus' text format, with what the program has registered at prometheus_client's own registry.

        Raises:
            ImportError: the extra `eventflow[http]` is not installed.

        """
        from prometheus_client import REGISTRY, generate_latest

        return generate_latest(REGISTRY) + generate_latest(_Collector(self.families()))  # type: ignore[arg-type]

    def close(self) -> None:
        self._kept.close()

    def _ledger(self) -> Values:
        now = time.monotonic()
        with self._lock:
            if self._answered is None and now - self._asked > _FRESH:
                self._asked, self._answered = now, threading.Event()
                threading.Thread(
                    target=self._ask, args=(self._answered,), name="eventflow metrics", daemon=True
                ).start()
            answered = self._answered
        if answered is not None and not answered.wait(_PATIENCE):
            self._up = False
        return {**self._known, "ledger_up": {(): float(self._up)}}

    def _ask(self, answered: threading.Event) -> None:
        def work(connection: Connection) -> list[tuple[Any, ...]]:
            return self._kept.database.run(connection, "read_gauges", {"application": self._application})

        found: Values = {}
        try:
            for kind, label, value in in_transaction(self._kept.open(), work, *_SET):
                found.setdefault(kind, {})[(label,) if _OF_LEDGER[kind][1] else ()] = value
        except Exception as error:
            seldom.say(logger, f"metrics: the ledger did not answer: {type(error).__name__}")
            self._kept.close()
            self._up = False
        else:
            self._known, self._up = found, True
        with self._lock:
            self._answered = None
        answered.set()


def _gauge(name: str, values: Values) -> Family:
    say, labels = GAUGES[name]
    return Family(name, "gauge", say, labels, values.get(name, {}))


def of_lags(lags: Iterable[tuple[str, list[Lag]]]) -> Values:
    """What consumers, by name, tell of their partitions."""
    found: Values = {name: {} for name in ("in_flight", "partitions", "lag_offsets", "lag_seconds")}
    for consumer, partitions in lags:
        found["in_flight"][(consumer,)] = float(sum(lag.in_flight for lag in partitions))
        found["partitions"][(consumer,)] = float(len(partitions))
        for lag in partitions:
            place = (consumer, lag.topic, str(lag.partition))
            found["lag_offsets"][place] = float(lag.offsets)
            if lag.seconds is not None:
                found["lag_seconds"][place] = lag.seconds
    return found


# ---- Prometheus ----------------------------------------------------------------------------------


class _Collector:
    """What prometheus_client asks for families in its own form."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in self._families:
            name, labels = f"eventflow_{family.name}", list(family.labels)
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(name, family.help, labels=labels)
                for key, (counts, total) in family.values.items():
                    histogram.add_metric(list(key), _cumulative(family.bounds, counts), total)
                yield histogram
                continue
            made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            simple = made(name, family.help, labels=labels)
            for key, value in family.values.items():
                simple.add_metric(list(key), value)
            yield simple


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else repr(bound), total))
    return found


# ---- OpenTelemetry -------------------------------------------------------------------------------

_exported: list[Any] = []  # the provider that has our instruments, of which a program has one
_current: list[Readings] = []  # whose these are


def export(readings: Readings) -> None:
    """Have OpenTelemetry's instruments tell these, where the program has set its metrics up."""
    _current[:] = [readings]
    provider = for_otel()
    if provider is None or provider in _exported:
        return
    _exported[:] = [provider]
    meter = provider.get_meter("eventflow")
    for instrument in list(FAMILIES.values()):
        name, unit = _otel(instrument.name)
        if isinstance(instrument, Histogram):
            made = meter.create_histogram(
                name, unit=unit, description=instrument.help, explicit_bucket_boundaries_advisory=instrument.bounds
            )
            instrument.sink = _sink(made, instrument.labels)
        elif isinstance(instrument, Counter):
            meter.create_observable_counter(
                name, callbacks=[_callback(instrument.read)], unit=unit, description=instrument.help
            )
    for gauge, (say, _) in GAUGES.items():
        name, unit = _otel(gauge)
        meter.create_observable_gauge(name, callbacks=[_callback(_reader(gauge))], unit=unit, description=say)


def unexport(readings: Readings) -> None:
    """These are over: instruments cannot be taken back, and tell nothing of them from now on."""
    if _current == [readings]:
        _current.clear()


def _otel(name: str) -> tuple[str, str]:
    """Name and unit; what has no unit is not "1", which for a gauge is a ratio, and says so in Prometheus' name of it."""
    return (f"eventflow.{name.removesuffix('_seconds')}", "s" if name.endswith("_seconds") else "")


def _sink(made: Any, names: Labels) -> Callable[[float, int, Labels], None]:
    def record(value: float, weight: int, labels: Labels) -> None:
        attributes = dict(zip(names, labels, strict=True))
        for _ in range(weight):
            made.record(value, attributes)

    return record


def _reader(gauge: str) -> Callable[[], Family | None]:
    return lambda: _current[0].gauge(gauge) if _current else None


def _callback(read: Callable[[], Family | None]) -> Callable[[Any], Iterable[Any]]:
    def callback(_: Any) -> Iterable[Any]:
        from opentelemetry.metrics import Observation

        family = read()
        if family is None:
            return []
        return [Observation(value, dict(zip(family.labels, key, strict=True))) for key, value in family.values.items()]

    return callback
