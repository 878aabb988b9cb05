"""A topic run again: where each partition begins, asked of Kafka, and what the ledger says of where the group is."""

import asyncio
import dataclasses
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from eventflow.brokers import Brokers
from eventflow.context import Backend
from eventflow.errors import UnavailableError, UsageError, WorkflowNotFoundError
from eventflow.records import ReprocessedPartition, Reprocessing


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be run again, as a person says it.

    Raises:
        UsageError: it cannot be.

    """

    group: str
    topic: str
    since: datetime | None = None
    offsets: Mapping[int, int] | None = None
    instead: bool = False
    rate: float | None = None

    def __post_init__(self) -> None:
        if not self.group or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", self.topic):
            raise UsageError(f"a group and a topic, not {self.group!r} and {self.topic!r}")
        if self.since is not None and self.offsets is not None:
            raise UsageError("either since= a time, or offsets= by partition, not both")
        if self.since is not None and (not isinstance(self.since, datetime) or self.since.tzinfo is None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"since= is a time with a zone, not {self.since!r}")
        for partition, offset in (self.offsets or {}).items():
            if partition < 0 or offset < 0:
                raise UsageError(f"offsets= is by partition, both from 0, not {partition}: {offset}")
        if self.offsets is not None and not self.offsets:
            raise UsageError("offsets= names no partition")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each partition is run again from, and, as far as is known now, up to where."""

    wanted: Wanted
    source: int
    generation: int
    firsts: dict[int, int]
    pasts: dict[int, int]

    def params(self) -> dict[str, Any]:
        """As `reprocess.sql` has them."""
        return {
            "group": self.wanted.group, "source": self.source, "partitions": list(self.firsts),
            "firsts": list(self.firsts.values()), "rate": self.wanted.rate, "instead": self.wanted.instead,
        }  # fmt: skip

    def dry(self, who: str) -> Reprocessing:
        """What it would be."""
        w = self.wanted
        parts = tuple(
            ReprocessedPartition(p, first, self.pasts[p], 0)
            for p, first in self.firsts.items()
            if first < self.pasts[p]
        )
        now = datetime.now(UTC)
        return Reprocessing(None, w.group, w.topic, self.generation, w.instead, w.rate, who, now, None, None, parts)


async def plan(backend: Backend, wanted: Wanted) -> Plan:
    """Ask Kafka and the ledger.

    Raises:
        UsageError: the group has read nothing of such a topic, or an offset is not in its log.
        UnavailableError: the brokers do not answer.
        SettingsError: no brokers are named.

    """
    return await asyncio.to_thread(_plan, backend, wanted)


def _plan(backend: Backend, wanted: Wanted) -> Plan:
    brokers, topic = Brokers.to_ask(*backend.kafka), wanted.topic
    found = backend.query("current_source", {"topic": topic})
    live: dict[int, int] = {}
    if found:
        rows = backend.query("live_positions", {"group": wanted.group, "source": found[0][0]})
        live = {partition: position if wanted.instead else past for partition, position, past in rows}
    if not live:
        raise UsageError(f"group {wanted.group!r} has read nothing of a topic {topic!r}: there is nothing to run again")
    source, _, cluster_id, topic_id = found[0]
    identity = brokers.identities([topic])[topic]
    if isinstance(identity, UnavailableError):
        raise identity
    if identity != (cluster_id, topic_id):
        raise UsageError(f"the topic {topic!r} is another one than the group {wanted.group!r} has read")
    generations = backend.query("next_generation", {"group": wanted.group, "source": source})
    return Plan(wanted, source, generations[0][0], _firsts(brokers, wanted, live), live)


def _firsts(brokers: Brokers, wanted: Wanted, live: Mapping[int, int]) -> dict[int, int]:
    topic, offsets = wanted.topic, wanted.offsets
    unknown = sorted(set(offsets or ()) - live.keys())
    if unknown:
        raise UsageError(f"group {wanted.group!r} has read nothing of {topic}/{unknown[0]}")
    partitions = sorted(live if offsets is None else offsets)
    lows = brokers.offsets(topic, partitions, "earliest")
    if offsets is None:
        found = lows if wanted.since is None else brokers.offsets(topic, partitions, wanted.since)
        # -1: nothing was sent since then
        return {p: live[p] if found[p] < 0 else max(lows[p], found[p]) for p in partitions}
    for partition, offset in offsets.items():
        if not lows[partition] <= offset < live[partition]:
            raise UsageError(
                f"{topic}/{partition} cannot be run again from offset {offset}: its log begins at {lows[partition]}, "
                f"and the group has read it up to {live[partition]}"
            )
    return {partition: offsets[partition] for partition in partitions}


def reprocessings(backend: Backend, number: int | None = None) -> list[Reprocessing]:
    """All that were ordered, or the one of this number. Blocks.

    Raises:
        WorkflowNotFoundError: there is none of this number.

    """
    rows = backend.query("read_reprocessings", {"reprocessing": number})
    if number is not None and not rows:
        raise WorkflowNotFoundError(f"there is no reprocessing {number}")
    by_number: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        by_number.setdefault(row[0], []).append(row)
    return [
        Reprocessing(*its[0][:10], partitions=tuple(ReprocessedPartition(*row[10:]) for row in its))
        for its in by_number.values()
    ]
