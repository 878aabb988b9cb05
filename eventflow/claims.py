"""Who owns which partition: takes claims, lets go of them, folds their deltas.

The ledger's side of a consumer (PROTOCOL.md R5, R7, R8, R11). Kafka assigns partitions; from the first claim on, only the
ledger counts: where a partition goes on, and what of it is accepted.
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition

from eventflow.database import Connection, KeptConnection, evicting
from eventflow.errors import EventflowError, UnavailableError
from eventflow.idempotency import message_workflow_id_prefix
from eventflow.journal import Journal, Lane, backoff
from eventflow.payloads import unread
from eventflow.registry import ConsumerSpec
from eventflow.runs import Claim, Early, Fingerprint, fingerprint
from eventflow.scopes import Left, Scope, Scopes
from eventflow.sources import Source, Sources

logger = logging.getLogger(__name__)

Key = tuple[str, int]  # topic, partition
_ASK = 10  # seconds for a question to the brokers
_PUT_OFF = 12  # folds of a claim that may be left out in a row
_EARLY = 10_000  # messages looked up at once


@dataclass(frozen=True, slots=True)
class _Taken:
    """What taking a claim has told."""

    id: int
    partition: int
    epoch: int
    released: bool
    former_bound: int
    verified: int
    accepted: Any
    left: list[Left]
    early: Early


class Claims:
    """The claims of one consumer in this process, by topic and partition."""

    def __init__(
        self, spec: ConsumerSpec, executor: int, bound: int, ledger: KeptConnection, sources: Sources, journal: Journal,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self.held: dict[Key, Claim] = {}
        self._spec, self._executor, self._bound = spec, executor, bound
        self._ledger, self._sources, self._journal, self._stop = ledger, sources, journal, stop
        self._positions: dict[Claim, int] = {}
        self._put_off: dict[int, int] = {}

    def get(self, topic: str | None, partition: int | None) -> Claim | None:
        """The claim of a partition, if it is held."""
        return None if topic is None or partition is None else self.held.get((topic, partition))

    def usable(self) -> list[Claim]:
        """Those that are neither lost nor about to be let go of."""
        return [claim for claim in self.held.values() if not claim.revoked]

    def in_flight(self) -> int:
        """How many messages of all of them have not ended."""
        return sum(claim.in_flight() for claim in self.held.values() if not claim.lost)

    def weight(self) -> int:
        """How many bytes the heavy ones of them have."""
        return sum(claim.weight for claim in self.held.values() if not claim.lost)

    def drop(self, keys: Iterable[Key]) -> None:
        """They are lost."""
        for key in list(keys):
            claim = self.held.pop(key, None)
            if claim is not None:
                claim.lose()

    # ---- taking ----

    def take(self, consumer: Consumer, keys: list[Key]) -> list[Claim]:
        """Claim these partitions, once; those whose position is still in Kafka's log are held from then on.

        Raises:
            psycopg.Error, UnavailableError, KafkaException: not now; nothing was claimed, or it is to be claimed again.

        """
        claims = [c for topic in sorted({t for t, _ in keys}) for c in self._take_topic(consumer, topic, keys)]
        for claim in claims:
            self.held[claim.topic, claim.partition] = claim
        return claims

    def _take_topic(self, consumer: Consumer, topic: str, keys: list[Key]) -> list[Claim]:
        partitions = sorted(p for t, p in keys if t == topic)
        source = self._sources.get(topic)
        if source is None:
            return []
        self._first_positions(consumer, topic, source, partitions)

        def work(connection: Connection) -> list[_Taken]:
            with evicting(self._ledger.database, connection, after=1.0):
                return self._take_rows(connection, source, partitions)

        claims = [self._make(topic, source, taken) for taken in self._ledger.transact(work)]
        usable = [claim for claim in claims if self._in_log(consumer, claim)]
        for claim in usable:
            wary = ", its last owner did not let go of it" if claim.wary else ""
            logger.info("%s claims %s/%d from offset %d (epoch %d%s)", self._spec.spec.name, claim.topic,
                        claim.partition, claim.next_offset, claim.epoch, wary)  # fmt: skip
        return usable

    def _take_rows(self, connection: Connection, source: Source, partitions: list[int]) -> list[_Taken]:
        """R7, statement by statement: what is read comes later than the lock that it relies on."""
        run = self._ledger.database.run
        run(connection, "fence", {"executor": self._executor})
        if not run(connection, "lock_source", {"source": source.id}):
            self._sources.doubt()
            raise UnavailableError(f"source {source.id} was superseded; asking for the topic's id again")
        where = {"group": self._spec.group, "source": source.id, "partitions": partitions}
        left = {row[0]: row for row in run(connection, "lock_claims", where)}
        ids = sorted(left)
        early = self._end_former(connection, source, partitions) if source.incarnation > 1 else {}
        taken = run(connection, "take_claims", {"executor": self._executor, "in_flight": self._bound, "claims": ids})
        positions = dict(run(connection, "read_positions", {"claims": ids}))
        if self._spec.ordering != "key":
            run(connection, "free_lines", {"claims": ids})
        left_over = run(connection, "read_unfinished", {"claims": ids})
        return [
            _Taken(
                i, partition, epoch, left[i][2], left[i][3], left[i][4], positions[i],
                [(scope, *what) for claim, scope, *what in left_over if claim == i], early.get(partition, {}),
            )
            for i, partition, epoch in sorted(taken)
        ]  # fmt: skip

    def _end_former(self, connection: Connection, source: Source, partitions: list[int]) -> dict[int, Early]:
        """End the claims on older incarnations of the topic; what may have been read of this one under them, by partition.

        librdkafka goes on by the topic's name: between the recreation of a topic and the moment that it is noticed, messages of
        the new one can be taken for the old one's. They were handled once, and are told by what they are (R16).
        """
        run = self._ledger.database.run
        former = run(
            connection, "end_former_claims",
            {"source": source.id, "group": self._spec.group, "partitions": partitions},
        )  # fmt: skip
        suspects = _suspects(former)
        positions = dict(run(connection, "read_positions", {"claims": [claim for claim, *_ in suspects]}))
        early: dict[int, Early] = {}
        for claim, incarnation, partition, verified in suspects:
            prefix = message_workflow_id_prefix(self._spec.group, source.topic, incarnation, partition)
            position = max(r.upper for r in positions[claim])
            known = early.setdefault(partition, {})
            for low in range(verified, position, _EARLY):
                ids = [f"{prefix}{offset}" for offset in range(low, min(low + _EARLY, position))]
                for offset, *what in run(connection, "read_early", {"ids": ids}):
                    known[offset] = (*known.get(offset, ()), self._told(*what))
        return early

    def _told(
        self, timestamp: int, key: bytes | None, value: bytes | None, stored: bytes, label: str | None
    ) -> Fingerprint:
        """What tells a message, from what `read_early.sql` has of it; of one that cannot be read, its time alone."""
        if label is None:
            return timestamp, key, value
        key, value, headers = self._ledger.database.payloads.decode_message(stored, label)
        return (timestamp,) if unread([headers]) is not None else fingerprint(timestamp, key, value)

    def _make(self, topic: str, source: Source, taken: _Taken) -> Claim:
        first, *above = list(taken.accepted)
        prefix = message_workflow_id_prefix(self._spec.group, topic, source.incarnation, taken.partition)
        claim = Claim(
            taken.id, taken.epoch, self._spec.group, topic, taken.partition, source.id, source.incarnation, prefix,
            first.upper,
        )  # fmt: skip
        claim.accepted_above = [(r.lower, r.upper) for r in above]
        if self._spec.ordering == "partition":
            claim.scope = Scope(str(taken.id), [one for _, ids, *_ in taken.left for one in ids])
        elif self._spec.ordering == "key":
            claim.scopes = Scopes(taken.id, taken.left)
        claim.verified = min(taken.verified, claim.next_offset)
        claim.early = taken.early
        if not taken.released:
            claim.wary = taken.former_bound
        return claim

    def _in_log(self, consumer: Consumer, claim: Claim) -> bool:
        """Whether the position is still in Kafka's log; where it is not, the partition stops, loudly (R5, R16)."""
        low, high = consumer.get_watermark_offsets(TopicPartition(claim.topic, claim.partition), timeout=_ASK)
        if low <= claim.next_offset <= high:
            return True
        kind = "retention" if claim.next_offset < low else "truncation"
        self.halt(claim, kind, f"the position {claim.next_offset} is not in the log, which has {low} to {high}")
        return False

    # ---- where a partition begins ----

    def _first_positions(self, consumer: Consumer, topic: str, source: Source, partitions: list[int]) -> None:
        """Choose where partitions begin that the ledger has never seen, once for all that the topic has now."""
        rows = self._ledger.run("known_partitions", {"topic": topic, "group": self._spec.group})
        known = {p for s, p in rows if s == source.id}
        if known.issuperset(partitions):
            return
        everything = self._sources.partitions(topic)
        unseen = sorted((set(everything) | set(partitions)) - known)
        chosen = self._choose(consumer, topic, unseen, first=not rows)
        self._ledger.run(
            "insert_claims",
            {
                "group": self._spec.group, "source": source.id, "partition": unseen,
                "position": [chosen[p][0] for p in unseen], "began": [chosen[p][1] for p in unseen],
            },
        )  # fmt: skip
        for partition in unseen:
            logger.info("%s: %s/%d begins at %d (%s)", self._spec.spec.name, topic, partition, *chosen[partition])

    def _choose(self, consumer: Consumer, topic: str, unseen: list[int], *, first: bool) -> dict[int, tuple[int, str]]:
        places = [TopicPartition(topic, partition) for partition in unseen]
        committed = {p.partition: p.offset for p in consumer.committed(places, timeout=_ASK)} if first else {}
        chosen: dict[int, tuple[int, str]] = {}
        for place in places:
            low, high = consumer.get_watermark_offsets(place, timeout=_ASK)
            offset = committed.get(place.partition, -1)
            if offset >= 0:
                chosen[place.partition] = (max(low, min(offset, high)), "committed")
            elif first and self._spec.start == "latest":
                chosen[place.partition] = (high, "latest")
            else:
                chosen[place.partition] = (low, "earliest" if first else "added")
        return chosen

    # ---- letting go ----

    def release(self, claims: Iterable[Claim]) -> None:
        """Let go of claims of which nothing runs unaccepted: the next owner need not be wary (R8, R13)."""
        held = sorted((c for c in claims if not c.lost), key=lambda c: c.id)
        release = {
            "claims": [c.id for c in held], "epochs": [c.epoch for c in held], "verified": [c.verified for c in held],
            "executor": self._executor,
        }  # fmt: skip

        def work(connection: Connection) -> None:
            self._ledger.database.run(connection, "fence", {"executor": self._executor})
            self._ledger.database.run(connection, "release_claims", release)

        try:
            self._ledger.transact(work)
        except (psycopg.Error, EventflowError) as error:
            logger.warning("%s: claims not released: %s", self._spec.spec.name, error)

    def halt(self, claim: Claim, kind: str, detail: str) -> None:
        """Stop a partition until a person has looked, and record why."""
        claim.lose()
        logger.error("%s stops: %s", claim, detail)
        self.record(kind, str(claim), detail)

    def note_changed(self, topics: set[str]) -> None:
        """Record what may have been read of a topic under the id that it had before (R16)."""
        for claim in self.held.values():
            if claim.topic in topics:
                logger.error("%s: the topic was deleted or recreated; its partitions begin anew", claim)
                suspect = f"offsets {claim.verified} to {claim.next_offset} may be those of the new one"
                detail = f"was deleted or recreated; read under its old id, {suspect}"
                self.record("recreated", str(claim), detail)

    def record(self, kind: str, subject: str, detail: str) -> None:
        """Record an incident, if need be after a while; the log has it in any case."""
        for attempt in range(10):
            try:
                self._ledger.run("insert_incident", {"kind": kind, "subject": subject, "detail": detail})
            except (psycopg.Error, UnavailableError) as error:
                logger.debug("incident: %s", error)
                self._stop.wait(backoff(attempt))
            else:
                return
        logger.error("%s: the incident could not be recorded: %s: %s", subject, kind, detail)

    # ---- folding ----

    def fold(self) -> None:
        """Have the journal fold the deltas of each claim that has new ones, one between two flushes (R5)."""
        for claim in self.usable():
            state = (claim.next_offset, claim.finished)
            if claim.folded != state and self._may_fold(claim):
                claim.folded = state
                self._journal.between_flushes(lambda lane, c=claim: self._fold_one(lane, c))

    def _may_fold(self, claim: Claim) -> bool:
        """Not while a transaction above READ COMMITTED is under way, which would run again; nor put off for ever."""
        self._put_off[claim.id] = self._put_off.get(claim.id, 0) + 1 if claim.isolated else 0
        return self._put_off[claim.id] % (_PUT_OFF + 1) == 0

    def folded_positions(self) -> list[TopicPartition]:
        """What folds have told since the last call, for Kafka's advisory offsets."""
        positions, self._positions = self._positions, {}
        return [TopicPartition(c.topic, c.partition, n) for c, n in positions.items() if not c.revoked]

    def _fold_one(self, lane: Lane, claim: Claim) -> None:
        """In the journal's thread, with its connection."""
        if claim.revoked:
            return
        database, connection = self._ledger.database, lane.connection()
        params = {"executor": lane.executor, "claim": claim.id, "epoch": claim.epoch, "verified": claim.verified}
        try:
            [(accepted,)] = database.run(connection, "fold_claim", params)
        except psycopg.Error as error:
            claim.folded = None
            if error.sqlstate == "EF005":
                claim.lose()
                logger.error("%s stops: %s", claim, error)
                incident = {"kind": "overlap", "subject": str(claim), "detail": str(error)}
                database.run(connection, "insert_incident", incident)
            elif error.sqlstate == "EF007":
                self._sources.doubt()
            else:
                logger.debug("fold: %s", error)
            return
        self._positions[claim] = next(iter(accepted)).upper


def _suspects(former: list[Any]) -> list[tuple[int, int, int, int]]:
    """Which of the claims that have been ended may have read messages of what the topic is now.

    The newest of each partition, and those before it down to one whose topic was seen to be the same after something was
    read of it: before that could be read, all older ones had ended.
    """
    suspects: list[tuple[int, int, int, int]] = []
    settled: set[int] = set()
    for claim, incarnation, partition, verified in sorted(former, key=lambda row: row[1], reverse=True):
        if partition not in settled:
            suspects.append((claim, incarnation, partition, verified))
            if verified > 0:
                settled.add(partition)
    return suspects
