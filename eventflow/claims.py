"""Who owns which partition: takes claims, lets go of them, folds their deltas.

The ledger's side of a consumer (PROTOCOL.md R5, R7, R8, R11). Kafka assigns partitions; from the first claim on, only the
ledger counts: where a partition goes on, and what of it is accepted.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition

from eventflow.brokers import Asked, answers, reason
from eventflow.database import Connection, KeptConnection, evicting
from eventflow.errors import EventflowError, UnavailableError
from eventflow.idempotency import message_workflow_id_prefix, message_workflow_id_suffix
from eventflow.journal import Journal, Lane, backoff
from eventflow.payloads import unread
from eventflow.records import Choice, Pause
from eventflow.registry import ConsumerSpec
from eventflow.runs import ENDLESS, Claim, Early, Fingerprint, fingerprint, place
from eventflow.scopes import Left, Scope, Scopes
from eventflow.sources import Source, Sources
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

Key = tuple[str, int]  # topic, partition
_ASK = 10  # seconds for a question to the brokers
_PUT_OFF = 12  # folds of a claim that may be left out in a row
_LONGEST = 10.0  # seconds between two attempts to take those that were away
_EARLY = 10_000  # messages looked up at once


@dataclass(frozen=True, slots=True)
class _Taken:
    """What taking a claim has told."""

    id: int
    partition: int
    epoch: int
    former: "_Former"
    read: "_Read"
    left: list[Left]
    early: Early
    stop: "_Stop | None"


@dataclass(frozen=True, slots=True)
class _Former:
    """What the former owner has left."""

    released: bool
    bound: int
    verified: int
    generation: int
    leader_epoch: int
    epoch_to: int


@dataclass(frozen=True, slots=True)
class _Read:
    """What is accepted, and what the deltas tell of the last message that was read."""

    accepted: Any
    leader_epoch: int = -1
    epoch_to: int = 0


@dataclass(frozen=True, slots=True)
class _Stop:
    """An incident that a partition has not gone on after."""

    id: int
    kind: str
    first: int
    choice: Choice | None
    detail: str


class Claims:
    """The claims of one consumer in this process, by topic and partition."""

    def __init__(
        self, spec: ConsumerSpec, executor: int, bound: int, ledger: KeptConnection, sources: Sources, journal: Journal,
        stop: threading.Event, reprocessing: int | None = None,
    ) -> None:  # fmt: skip
        """`reprocessing`: of this one, and not the live ones."""
        self.held: dict[Key, Claim] = {}
        self.stopped: dict[Key, int] = {}  # the claims of those that an incident stops
        self.away: set[Key] = set()  # to be claimed when Kafka tells of them again
        self.paused: dict[Key, Pause] = {}  # those of the held ones that a person has paused
        self.bereft: list[Claim] = []  # lost without a hand-over: the topic may be gone
        self._spec, self._executor, self._bound, self._reprocessing = spec, executor, bound, reprocessing
        self._ledger, self._sources, self._journal, self._stop = ledger, sources, journal, stop
        self._asked = Asked()  # of those that are away
        self._tries, self._back_at = 0, 0.0
        self._positions: dict[Claim, int] = {}
        self._put_off: dict[int, int] = {}

    def get(self, topic: str | None, partition: int | None) -> Claim | None:
        """The claim of a partition, if it is held."""
        return None if topic is None or partition is None else self.held.get((topic, partition))

    def usable(self) -> list[Claim]:
        """Those that are neither lost nor about to be let go of."""
        return [claim for claim in self.held.values() if not claim.revoked]

    def pause(self, pauses: list[Pause]) -> None:
        """Exactly what these hold up is paused from now on."""
        before, self.paused = self.paused, {
            key: pause for key in self.held for pause in pauses if pause.holds(self._spec.group, *key)
        }  # fmt: skip
        for (topic, partition), pause in self.paused.items():
            if (topic, partition) not in before:
                logger.warning(
                    "%s: %s/%d is paused by %s: %s", self._spec.spec.name, topic, partition, pause.who, pause.why
                )
        for topic, partition in before.keys() & self.held.keys() - self.paused.keys():
            logger.warning("%s: %s/%d goes on", self._spec.spec.name, topic, partition)

    def is_paused(self, claim: Claim) -> bool:
        """Whether nothing more of it is to be begun until a person says so."""
        return (claim.topic, claim.partition) in self.paused

    def in_flight(self) -> int:
        """How many messages of all of them have not ended."""
        return sum(claim.in_flight() for claim in self.held.values() if not claim.lost)

    def weight(self) -> int:
        """How many bytes the heavy ones of them have."""
        return sum(claim.weight for claim in self.held.values() if not claim.lost)

    def drop(self, keys: Iterable[Key]) -> None:
        """They are lost."""
        for key in list(keys):
            self.stopped.pop(key, None)
            self.away.discard(key)
            claim = self.held.pop(key, None)
            if claim is not None:
                claim.lose()

    # ---- taking ----

    def take(self, consumer: Consumer, keys: list[Key]) -> list[Claim]:
        """Claim these partitions, once; those that no incident stops, and of which Kafka tells, are held from then on.

        Raises:
            psycopg.Error, UnavailableError: not now; nothing was claimed, or it is to be claimed again.

        """
        self.away.difference_update(keys)
        silent = answers(self._sources.ask(keys))[1]
        self._put_away(silent)
        keys = [key for key in keys if key not in silent]
        claims = [c for topic in sorted({t for t, _ in keys}) for c in self._take_topic(consumer, topic, keys)]
        for claim in claims:
            self.held[claim.topic, claim.partition] = claim
        return claims

    def _put_away(self, silent: Mapping[Key, Exception]) -> None:
        """They wait until Kafka tells of them again; the others are read."""
        for (topic, partition), error in silent.items():
            self.away.add((topic, partition))
            self.stopped.pop((topic, partition), None)
            seldom.say(logger, f"{self._spec.spec.name} waits for {topic}/{partition}: {reason(error)}; trying again")

    def back(self, now: float) -> list[Key]:
        """Those that were away and of which Kafka tells again; asked without waiting for the answer, as the others are read."""
        if not self.away:
            self._tries = 0
        if not self.away or now < self._back_at or not self._asked.over():
            return []
        back = sorted(answers(self._asked)[0].keys() & self.away)
        if not back:  # the first time nothing was asked yet
            self._asked = self._sources.ask(self.away)
            return []
        self._asked = Asked()
        self._tries += 1
        self._back_at = now + min(2.0**self._tries, _LONGEST)
        return back

    def _leave(self, claim: Claim, error: Exception) -> None:
        """It waits, too. Nothing of it was begun: whoever takes it next is to be as wary as this one, and no more."""
        self._put_away({(claim.topic, claim.partition): error})
        if not claim.wary:
            self.release([claim])

    def _take_topic(self, consumer: Consumer, topic: str, keys: list[Key]) -> list[Claim]:
        partitions = sorted(p for t, p in keys if t == topic)
        source = self._sources.get(topic)
        if source is None:
            return []
        if self._reprocessing is None:
            try:
                silent = self._first_positions(consumer, topic, source, partitions)
            except KafkaException as error:
                silent = dict.fromkeys(partitions, error)
            self._put_away({(topic, partition): error for partition, error in silent.items()})
            partitions = [partition for partition in partitions if partition not in silent]

        def work(connection: Connection) -> list[_Taken]:
            with evicting(self._ledger.database, connection, after=1.0):
                return self._take_rows(connection, source, partitions)

        usable: list[Claim] = []
        moved: list[Key] = []
        made = [(self._make(topic, source, taken), taken.stop) for taken in self._ledger.transact(work)]
        try:
            stops = self._stops(consumer, topic, made)
        except psycopg.Error:
            # Nothing of them was begun: whoever takes them next is to be as wary as this one, and no more.
            self.release(claim for claim, _ in made if not claim.wary)
            raise
        for (claim, _), stop in zip(made, stops, strict=True):
            key = claim.topic, claim.partition
            self.stopped.pop(key, None)
            if claim.through():
                self.release([claim])
            elif isinstance(stop, Exception):
                self._leave(claim, stop)
            elif stop is None:
                usable.append(claim)
            elif (choice := stop.choice or self._policy(stop)) is None:
                self.stopped[key] = claim.id
                self.release([claim])
                logger.error("%s stands still until incident %d is settled (`eventflow incidents settle %d`): %s: %s",
                             claim, stop.id, stop.id, stop.kind, stop.detail)  # fmt: skip
            else:
                try:
                    self._go_on(consumer, claim, stop, choice)
                except KafkaException as error:
                    self._leave(claim, error)
                else:
                    moved.append(key)
        for claim in usable:
            wary = ", its last owner did not let go of it" if claim.wary else ""
            logger.info("%s claims %s from offset %d (epoch %d%s)", self._spec.spec.name, claim,
                        claim.next_offset, claim.epoch, wary)  # fmt: skip
        return usable + (self._take_topic(consumer, topic, moved) if moved else [])

    def _take_rows(self, connection: Connection, source: Source, partitions: list[int]) -> list[_Taken]:
        """R7, statement by statement: what is read comes later than the lock that it relies on."""
        run = self._ledger.database.run
        run(connection, "fence", {"executor": self._executor})
        if not run(connection, "lock_source", {"source": source.id}):
            self._sources.doubt()
            raise UnavailableError(f"source {source.id} was superseded; asking for the topic's id again")
        where = {
            "group": self._spec.group, "source": source.id, "partitions": partitions, "reprocessing": self._reprocessing,
        }  # fmt: skip
        former = {row[0]: _Former(*row[2:]) for row in run(connection, "lock_claims", where)}
        ids = sorted(former)
        early = self._end_former(connection, source, partitions) if source.incarnation > 1 else {}
        taken = run(connection, "take_claims", {"executor": self._executor, "in_flight": self._bound, "claims": ids})
        read = {claim: _Read(*what) for claim, *what in run(connection, "read_positions", {"claims": ids})}
        # Nobody holds a claim that is read through: what stands in its lines is anybody's, in order.
        lines = [i for i in ids if self._spec.ordering != "key" or next(iter(read[i].accepted)).upper is None]
        if lines:
            run(connection, "free_lines", {"claims": lines})
        left_over = run(connection, "read_unfinished", {"claims": ids})
        stops = {claim: _Stop(*stop) for claim, *stop in run(connection, "read_stops", {"claims": ids})}
        return [
            _Taken(
                i, partition, epoch, former[i], read[i],
                [(scope, *what) for claim, scope, *what in left_over if claim == i], early.get(partition, {}), stops.get(i),
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
        # What is run again is compared with nothing: it was handled, and is to be once more.
        suspects = _suspects(former) if self._reprocessing is None else []
        read = run(connection, "read_positions", {"claims": [claim for claim, *_ in suspects]})
        positions = {claim: accepted for claim, accepted, *_ in read}
        early: dict[int, Early] = {}
        for claim, incarnation, partition, verified, generation in suspects:
            prefix = message_workflow_id_prefix(self._spec.group, source.topic, incarnation, partition)
            suffix = message_workflow_id_suffix(generation)
            position = max(r.upper for r in positions[claim])
            known = early.setdefault(partition, {})
            for low in range(verified, position, _EARLY):
                ids = [f"{prefix}{offset}{suffix}" for offset in range(low, min(low + _EARLY, position))]
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
        former = taken.former
        first, *above = ((r.lower, ENDLESS if r.upper is None else r.upper) for r in taken.read.accepted)
        position = first[1]
        last = taken.read if taken.read.epoch_to > former.epoch_to else former
        prefix = message_workflow_id_prefix(self._spec.group, topic, source.incarnation, taken.partition)
        claim = Claim(
            taken.id, taken.epoch, self._spec.group, topic, taken.partition, source.id, source.incarnation, prefix,
            position, former.generation,
        )  # fmt: skip
        claim.leader_epoch, claim.jumped = last.leader_epoch, (last.epoch_to, position)
        claim.vacant = former.released
        claim.accepted_above = above
        if self._spec.ordering == "partition":
            claim.scope = Scope(str(taken.id), [one for _, ids, *_ in taken.left for one in ids])
        elif self._spec.ordering == "key":
            claim.scopes = Scopes(taken.id, taken.left)
        claim.verified = min(former.verified, claim.next_offset)
        claim.early = taken.early
        if not former.released:
            claim.wary = former.bound
        return claim

    # ---- incidents (R16) ----

    def _stops(
        self, consumer: Consumer, topic: str, made: list[tuple[Claim, _Stop | None]]
    ) -> list[_Stop | Exception | None]:
        """What stops each of these, which the ledger knows already or the brokers tell now; or why they do not."""
        cut, silent = self._sources.cut_off(topic, [c for c, stop in made if stop is None and not c.through()])

        def stop_of(claim: Claim) -> _Stop | Exception | None:
            if claim.partition in silent:
                return silent[claim.partition]
            try:
                return self._gone(consumer, claim, cut.get(claim.partition))
            except (KafkaException, UnavailableError) as error:
                return error

        return [None if claim.through() else found or stop_of(claim) for claim, found in made]

    def _gone(self, consumer: Consumer, claim: Claim, cut: int | None) -> _Stop | None:
        """What stops a partition whose position is not in Kafka's log any more, or of which what was read was cut off."""
        end = claim.accepted_to()
        if cut is not None and cut < end:  # else what was read and not accepted is another one now
            return self._lost(claim, "truncation", cut, cut_off(claim, cut))
        low, high = consumer.get_watermark_offsets(TopicPartition(claim.topic, claim.partition), timeout=_ASK)
        where = f"the position {claim.next_offset} is not in the log, which has {low} to {high}"
        if claim.next_offset < low:
            return self._lost(
                claim, "retention", claim.next_offset, f"{where}: what lies before {low} was deleted unread"
            )
        if high < end:
            what = where if high < claim.next_offset else f"{end - 1} was accepted, and the log has {low} to {high}"
            return self._lost(
                claim, "truncation", high, f"{what}: its end was cut off; what is sent next takes offsets anew"
            )
        if claim.jumped[0] < low:
            claim.leader_epoch = -1
        return None

    def _lost(self, claim: Claim, kind: str, first: int, detail: str) -> _Stop:
        """Its log has lost what was, or was to be, read; that is said of the topic that was read, and of no other."""
        self._sources.check(claim.topic)
        return self.stop(claim, kind, first, detail)

    def stop(
        self, claim: Claim, kind: str, first: int, detail: str, choice: Choice | None = None, who: str | None = None
    ) -> _Stop:
        """Record what stops a partition until it is settled.

        Raises:
            psycopg.Error, UnavailableError: not now.

        """
        self._ledger.run(
            "insert_stop",
            {"kind": kind, "subject": str(claim), "detail": detail, "claim": claim.id, "first": first, "choice": choice,
             "who": who},
        )  # fmt: skip
        [(_, *stop)] = self._ledger.run("read_stops", {"claims": [claim.id]})
        return _Stop(*stop)

    def _policy(self, stop: _Stop) -> Choice | None:
        """What the consumer has chosen before; not to fetch what is corrupt again and again."""
        policy = self._spec.policy
        return None if stop.kind == "corrupt" and policy == "earliest" else policy

    def _go_on(self, consumer: Consumer, claim: Claim, stop: _Stop, choice: Choice) -> None:
        """Let a partition go on where a person or the policy has chosen; it is claimed again then."""
        low, high = consumer.get_watermark_offsets(TopicPartition(claim.topic, claim.partition), timeout=_ASK)
        anew = stop.kind == "truncation" and choice != "retry"
        first = stop.first if anew else claim.next_offset
        where = {"earliest": max(first, low), "latest": max(first, high), "retry": claim.next_offset}[choice]
        self._ledger.run(
            "go_on",
            {"executor": self._executor, "claim": claim.id, "epoch": claim.epoch, "incident": stop.id, "choice": choice,
             "who": "on_incident", "skip_from": first, "next": where, "anew": anew},
        )  # fmt: skip
        skipped = f", offsets {first} to {where} are skipped" if where > first else ""
        logger.warning("%s goes on at offset %d (%s)%s", claim, where, choice, skipped)

    def replaced(self) -> list[Claim]:
        """Those of the held ones that have ended: their topic is run again in their place.

        Raises:
            psycopg.Error, UnavailableError: not now.

        """
        held = {claim.id: claim for claim in self.usable()}
        return [held[i] for (i,) in self._ledger.run("ended_claims", {"claims": list(held)})]

    def end_reprocessing(self, number: int) -> None:
        """End it, if all of it is done.

        Raises:
            psycopg.Error, UnavailableError: not now.

        """
        asked = {"executor": self._executor, "reprocessing": number}
        [(ended,)] = self._ledger.transact(lambda c: self._ledger.database.run(c, "end_reprocessing", asked))
        if ended:
            logger.warning("%s: reprocessing %d has ended", self._spec.spec.name, number)

    def settled(self) -> list[Key]:
        """Those of the stopped partitions that may go on."""
        if not self.stopped:
            return []
        try:
            rows = self._ledger.run("read_stops", {"claims": list(self.stopped.values())})
        except (psycopg.Error, UnavailableError):
            return []  # asked again soon
        still = {claim for claim, _, _, _, choice, _ in rows if choice is None}
        return [key for key, claim in self.stopped.items() if claim not in still]

    def start(self, claim: Claim) -> TopicPartition:
        """Where to fetch from. The leader's epoch of what was read lets Kafka tell whether the log still has it.

        It is that of the last message, a few before the position where the last owner died: these are fetched once more,
        and are known.
        """
        if claim.leader_epoch < 0 or claim.jumped[0] > claim.next_offset:
            return TopicPartition(claim.topic, claim.partition, claim.next_offset)
        return TopicPartition(claim.topic, claim.partition, claim.jumped[0], leader_epoch=claim.leader_epoch)

    # ---- where a partition begins ----

    def _first_positions(
        self, consumer: Consumer, topic: str, source: Source, partitions: list[int]
    ) -> dict[int, KafkaException]:
        """Choose where partitions begin that the ledger has never seen, once for all that the topic has now.

        Of which of these that could not be done, and why: all of a topic's first ones begin at once, or none does, as one that
        begins later is taken for one that was added.
        """
        rows = self._ledger.run("known_partitions", {"topic": topic, "group": self._spec.group})
        known = {p for s, p in rows if s == source.id}
        if known.issuperset(partitions):
            return {}
        everything = self._sources.partitions(topic)
        told, silent = answers(self._sources.ask((topic, p) for p in (set(everything) | set(partitions)) - known))
        if silent and not known:
            raise next(iter(silent.values()))
        unseen = sorted(partition for _, partition in told)
        chosen = self._choose(consumer, topic, unseen, first=not rows)
        begin = {
            "group": self._spec.group, "source": source.id, "partition": unseen,
            "position": [chosen[p][0] for p in unseen], "began": [chosen[p][1] for p in unseen],
        }  # fmt: skip

        def work(connection: Connection) -> None:
            made = self._ledger.database.run(connection, "insert_claims", begin)
            for claim, partition in made if rows else ():
                self._note_begun(connection, source, claim, partition, chosen[partition][0], added=bool(known))

        self._ledger.transact(work)
        for partition in unseen:
            logger.info("%s: %s/%d begins at %d (%s)", self._spec.spec.name, topic, partition, *chosen[partition])
        return {partition: error for (_, partition), error in silent.items() if partition in partitions}

    def _note_begun(
        self, connection: Connection, source: Source, claim: int, partition: int, first: int, *, added: bool
    ) -> None:
        """A group that has read the topic begins with a partition that is new to it: why it is new is an incident."""
        note = {
            "subject": place(self._spec.group, source.topic, source.incarnation, partition), "claim": claim, "first": first,
            "choice": source.begins, "who": source.begins and "the cluster's incident",
        }  # fmt: skip
        if added:
            detail = f"the partition was added; it is read from offset {first} on, and its keys' older messages lie elsewhere"
            note |= {"kind": "partitions", "detail": detail, "choice": "earliest", "who": "eventflow"}
        else:
            detail = f"the topic is another one than the one that was read; its log begins at offset {first}"
            note |= {"kind": "recreated", "detail": detail}
        self._ledger.database.run(connection, "insert_stop", note)

    def _choose(self, consumer: Consumer, topic: str, unseen: list[int], *, first: bool) -> dict[int, tuple[int, str]]:
        spots = [TopicPartition(topic, partition) for partition in unseen]
        committed = {p.partition: p.offset for p in consumer.committed(spots, timeout=_ASK)} if first else {}
        chosen: dict[int, tuple[int, str]] = {}
        for spot in spots:
            low, high = consumer.get_watermark_offsets(spot, timeout=_ASK)
            offset = committed.get(spot.partition, -1)
            if offset >= 0:
                chosen[spot.partition] = (max(low, min(offset, high)), "committed")
            elif first and self._spec.start == "latest":
                chosen[spot.partition] = (high, "latest")
            else:
                chosen[spot.partition] = (low, "earliest" if first else "added")
        return chosen

    # ---- letting go ----

    def release(self, claims: Iterable[Claim]) -> None:
        """Let go of claims of which nothing runs unaccepted: the next owner need not be wary (R8, R13).

        Of a transactional handler something may still run, which no row can be given: it is fenced by the next owner's epoch.
        But for those of which this one does not know, either, what a former owner read (R16).
        """
        held = sorted((c for c in claims if not c.lost and c.read_through()), key=lambda c: c.id)
        release = {
            "claims": [c.id for c in held], "epochs": [c.epoch for c in held], "verified": [c.verified for c in held],
            "leader_epochs": [c.leader_epoch for c in held], "epochs_to": [c.epoch_to() for c in held],
            "executor": self._executor,
        }  # fmt: skip

        def work(connection: Connection) -> None:
            self._ledger.database.run(connection, "fence", {"executor": self._executor})
            self._ledger.database.run(connection, "release_claims", release)

        try:
            self._ledger.transact(work)
        except (psycopg.Error, EventflowError) as error:
            logger.warning("%s: claims not released: %s", self._spec.spec.name, error)

    def note_changed(self, changed: Mapping[str, str], consumer: Consumer) -> None:
        """Record what may have been read of a topic under the id that it had before, and what was not read of it (R16)."""
        for claim in [*self.held.values(), *self.bereft]:
            what = changed.get(claim.topic)
            if what is not None:
                detail = self._become(claim, what, consumer)
                logger.error("%s: %s", claim, detail)
                self.record("deleted" if what == "deleted" else "recreated", str(claim), detail)

    def _become(self, claim: Claim, what: str, consumer: Consumer) -> str:
        end = claim.next_offset
        with contextlib.suppress(KafkaException):  # where it never heard of an end
            end = max(end, consumer.get_watermark_offsets(TopicPartition(claim.topic, claim.partition), cached=True)[1])
        if what == "deleted":
            return f"the topic was deleted; it was read up to offset {claim.next_offset}, and went at least to {end}"
        suspect = f"read under its old id, offsets {claim.verified} to {claim.next_offset} may be those of the new one"
        return f"the topic is {what}; {suspect}, and the old one's went at least to {end}"

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
        params = {
            "executor": lane.executor, "claim": claim.id, "epoch": claim.epoch, "verified": claim.verified,
            "leader_epoch": claim.leader_epoch, "epoch_to": claim.epoch_to(),
        }  # fmt: skip
        try:
            [(accepted,)] = database.run(connection, "fold_claim", params)
        except psycopg.Error as error:
            claim.folded = None
            if error.sqlstate == "EF005":
                claim.lose()
                logger.error("%s stops: %s", claim, error)
                incident = {"kind": "overlap", "subject": str(claim), "detail": str(error), "claim": claim.id}
                nobody = {"first": claim.next_offset, "choice": None, "who": None}
                database.run(connection, "insert_stop", incident | nobody)
                self.stopped[claim.topic, claim.partition] = claim.id
            elif error.sqlstate == "EF007":
                self._sources.doubt()
            else:
                logger.debug("fold: %s", error)
            return
        position = next(iter(accepted)).upper
        if position is not None:
            self._positions[claim] = position


def cut_off(claim: Claim, end: int) -> str:
    """What is said of a log that has lost its end."""
    return f"the log was cut off at offset {end}; it had been read to {claim.next_offset}, and offsets come anew"


def _suspects(former: list[Any]) -> list[tuple[int, int, int, int, int]]:
    """Which of the claims that have been ended may have read messages of what the topic is now.

    The newest of each partition, and those before it down to one whose topic was seen to be the same after something was
    read of it: before that could be read, all older ones had ended.
    """
    suspects: list[tuple[int, int, int, int, int]] = []
    settled: set[int] = set()
    for claim, incarnation, partition, verified, generation, ended in sorted(
        former, key=lambda row: row[1], reverse=True
    ):
        if partition not in settled and not ended:
            suspects.append((claim, incarnation, partition, verified, generation))
            if verified > 0:
                settled.add(partition)
    return suspects
