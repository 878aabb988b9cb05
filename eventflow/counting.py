"""What a flush, or a transaction's commit, adds to the numbers of `metrics`: once for all that it holds."""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

import eventflow.metrics as metrics
from eventflow.fetched import Fetched
from eventflow.journal import Entry
from eventflow.metrics import sample
from eventflow.records import Status
from eventflow.runs import Run

_STATUS: Callable[[Entry], Status] = attrgetter("status")
_NAME: Callable[[Entry], str] = attrgetter("run.name")
_ENDS: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled", "parked"})
_LETTERS = frozenset({"failed", "parked"})


def flushed(entries: Sequence[Entry], seconds: float, now: float) -> None:
    """A flush of these has taken so long, and they are durable."""
    metrics.FLUSH_SECONDS.observe([(seconds, 1)])
    metrics.FLUSH_ENTRIES.observe([(len(entries), 1)])
    statuses = Counter(map(_STATUS, entries))
    for status in statuses.keys() & _ENDS:
        ended = entries if len(statuses) == 1 else [entry for entry in entries if entry.status == status]
        for name, count in Counter(map(_NAME, ended)).items():
            _ended(next(entry.run for entry in ended if entry.run.name == name), status, count)
        _late([(ended[place].run, weight) for place, weight in sample(len(ended))], now)
    stepped = [entry for entry in entries if entry.checkpoints]
    took: dict[str, list[tuple[float, int]]] = {}
    for place, weight in sample(len(stepped)):
        for checkpoint in stepped[place].checkpoints:
            if checkpoint.seconds:  # what takes no time is no step
                took.setdefault(checkpoint.name, []).append((checkpoint.seconds, weight))
                if checkpoint.error is not None:
                    metrics.STEP_FAILURES.add(weight, checkpoint.name)
    for name, values in took.items():
        metrics.STEPS.observe(values, name)


def committed(runs: Sequence[Run], now: float) -> None:
    """Messages of one transactional handler have succeeded in a transaction of their own."""
    if not runs:
        return
    _ended(runs[0], "succeeded", len(runs))
    _late([(runs[place], weight) for place, weight in sample(len(runs))], now)


def committed_fetched(fetched: Sequence[Fetched], now: float) -> None:
    """The same of messages as they were fetched."""
    name, messages = fetched[0].spec.name, [message for one in fetched for message in one.messages]
    metrics.MESSAGES.add(len(messages), name, "succeeded")
    stamps = [(messages[place].timestamp()[1], weight) for place, weight in sample(len(messages))]
    metrics.LATENCY.observe([(max(0.0, now - stamp / 1000), weight) for stamp, weight in stamps if stamp], name)


def _late(runs: Sequence[tuple[Run, int]], now: float) -> None:
    """These have ended, each standing for so many: how old they are, where they are messages."""
    late: dict[str, list[tuple[float, int]]] = {}
    for run, weight in runs:
        if run.claim is not None and run.timestamp:
            late.setdefault(run.name, []).append((max(0.0, now - run.timestamp / 1000), weight))
    for name, values in late.items():
        metrics.LATENCY.observe(values, name)


def _ended(one: Run, status: str, count: int) -> None:
    """So many like this one."""
    if one.spec.consumer is None:
        metrics.WORKFLOWS.add(count, one.name, status)
        return
    metrics.MESSAGES.add(count, one.name, status)
    if status in _LETTERS:
        metrics.DEAD_LETTERS.add(count, one.name)
