"""How far consumer groups are behind: where they are, as the ledger has it, and where the logs end, asked of Kafka."""

import dataclasses
import time

from eventflow.brokers import Brokers
from eventflow.context import Backend
from eventflow.errors import UsageError
from eventflow.records import PartitionLag, Pause


def lags(backend: Backend, group: str | None, topic: str | None) -> list[PartitionLag]:
    """The lag of each partition that a group has read. Blocks.

    Raises:
        UnavailableError: the brokers do not answer.
        SettingsError: none are named.

    """
    brokers = Brokers.to_ask(*backend.kafka)
    rows = backend.query("read_lags", {"group": group, "topic": topic})
    held = pauses(backend, group)
    # Of a topic that was deleted there is no end.
    ends = brokers.ends((name, partition) for _, name, partition, *_ in rows)
    found: list[PartitionLag] = []
    for in_group, name, partition, position, above, owner in rows:
        end = ends.get((name, partition))
        paused = next((pause for pause in held if pause.holds(in_group, name, partition)), None)
        behind = None if end is None else max(0, end - position - above)
        found.append(PartitionLag(in_group, name, partition, position, end, behind, None, owner, paused))
    return _aged(brokers, found)


def _aged(brokers: Brokers, found: list[PartitionLag]) -> list[PartitionLag]:
    """The same with how old the first message of each is that was not accepted."""
    firsts: dict[str, dict[int, set[int]]] = {}
    for lag in found:
        if lag.behind:
            firsts.setdefault(lag.topic, {}).setdefault(lag.partition, set()).add(lag.position)
    times = {topic: brokers.times(topic, its) for topic, its in firsts.items()}
    now = time.time()

    def seconds(lag: PartitionLag) -> float | None:
        if not lag.behind:
            return None if lag.behind is None else 0.0
        produced = times[lag.topic].get((lag.partition, lag.position))
        return None if produced is None else max(0.0, now - produced)

    return [dataclasses.replace(lag, seconds=seconds(lag)) for lag in found]


def pauses(backend: Backend, group: str | None = None) -> list[Pause]:
    """What people have paused. Blocks."""
    return [Pause(*row) for row in backend.query("read_pauses", {"group": group})]


def check_place(group: str, topic: str | None, partition: int | None) -> dict[str, object]:
    """What is to be paused, or resumed.

    Raises:
        UsageError: that cannot be.

    """
    if not group or (topic is not None and not topic):
        raise UsageError(f"not a group and a topic: {group!r}, {topic!r}")
    if partition is not None and (topic is None or partition < 0):
        raise UsageError(f"a partition is one of a topic, from 0, not {partition} of {topic!r}")
    return {"group": group, "topic": topic, "partition": partition}


def place_text(group: str, topic: str | None, partition: int | None) -> str:
    """As people read it."""
    return f"group {group!r}" + ("" if topic is None else f", {topic}" + ("" if partition is None else f"/{partition}"))
