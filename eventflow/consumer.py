"""Reads Kafka: claims partitions, seeks to the ledger's positions, turns messages into runs, and bounds what is in flight.

One thread per handler owns its Kafka consumer: `poll` is served while handlers run, and no thread of Kafka's ever
blocks the event loop. Kafka's committed offsets are advisory; from its first claim on, only the ledger counts.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import confluent_kafka
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from eventflow.database import Connection, Database, evicting, in_transaction
from eventflow.errors import EventflowError, FencedError, SettingsError, UnavailableError
from eventflow.idempotency import message_workflow_id_prefix
from eventflow.journal import Journal, Lane, backoff
from eventflow.runs import Claim, Run
from eventflow.telemetry import crash_point
from eventflow.workflows import ConsumerSpec

logger = logging.getLogger(__name__)

BATCH = 1000
_FOLD_EVERY = 5.0
_POLL_EVERY = 0.05
_ASK_IDENTITY_EVERY = 2.0
_PAUSE_AFTER = 1.0
_READ_COMMITTED: dict[str, str | int | float | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
}
_DEFAULTS: dict[str, str | int | float | bool] = {
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 200,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 32768,
    "topic.metadata.refresh.interval.ms": 10000,
    "topic.metadata.propagation.max.ms": 1,  # a topic that was identified and is unknown now was deleted
    "reconnect.backoff.max.ms": 1000,
    "allow.auto.create.topics": False,
}
Key = tuple[str, int]


class UnknownTopicError(UnavailableError):
    """The brokers do not know the topic, or not any more."""


class PartitionStoppedError(EventflowError):
    """A partition that must not be read on before a person has looked."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a topic is now."""

    id: int
    incarnation: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class Connections:
    """Where the consumer gets at Kafka and the ledger."""

    database: Database
    bootstrap_servers: str
    kafka: dict[str, Any]
    executor: int
    application: str


class Intake:
    """One `@kafka_consumer` at work in this process."""

    def __init__(
        self,
        spec: ConsumerSpec,
        connections: Connections,
        journal: Journal,
        *,
        max_in_flight: int,
        dispatch: Callable[[list[Run]], None],
        accept: Callable[[set[Claim], float], None],
        has_lease: Callable[[], bool],
        unblock: Callable[[Claim], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self.spec = spec
        self.claims: dict[Key, Claim] = {}
        self._connections = connections
        self._journal = journal
        self._bound = spec.max_in_flight or max_in_flight
        self._dispatch, self._accept, self._unblock, self._on_fatal = dispatch, accept, unblock, on_fatal
        self._has_lease = has_lease
        self._stop = threading.Event()
        self._hold = threading.Event()
        self._abandoned = False
        self._sources: dict[str, Source] = {}
        self._suspect = threading.Event()  # a topic may have been recreated: nothing is taken until its id is known
        self._doubts = 0
        self._unsure = False
        self._rebalanced = False
        self._changed: set[str] = set()
        self._lost: list[Claim] = []
        self._connection: Connection | None = None
        self._consumer: Consumer
        self._paused = False
        self._full_since: float | None = None
        self._folded_at = self._polled_at = 0.0
        self._positions: dict[Claim, int] = {}
        self._dirty = False
        self._thread = threading.Thread(target=self._main, name=f"eventflow {spec.spec.name}", daemon=True)

    def check(self) -> None:
        """Whether librdkafka takes this configuration.

        Raises:
            SettingsError: it does not; names the property.

        """
        try:
            Consumer(self._config(), logger=_kafka_logger).close()
        except KafkaException as error:
            raise SettingsError(f"the Kafka properties of {self.spec.spec.name!r}: {_reason(error)}") from None

    # ---- life ----

    def start(self) -> None:
        self._thread.start()

    def hold(self) -> None:
        """Fetch nothing more; the partitions stay."""
        self._hold.set()

    def stop(self, *, abandon: bool = False) -> None:
        """Leave the group. Cleanly, claims are released; abandoned, the incarnation is over and nothing is written."""
        self._abandoned = self._abandoned or abandon
        self._hold.set()
        self._stop.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def lose(self, claims: Iterable[Claim]) -> None:
        """The journal learnt that these belong to others; where Kafka disagrees they are claimed again (R7)."""
        self._lost.extend(c for c in claims if self.claims.get((c.topic, c.partition)) is c)

    def _main(self) -> None:
        try:
            while not self._stop.is_set():
                self._session()
        except FencedError:
            logger.debug("%s stops: fenced", self.spec.spec.name)
        except EventflowError as error:
            logger.error("%s stops: %s", self.spec.spec.name, error)
            self._on_fatal(error)
        except Exception as error:
            logger.exception("%s stopped", self.spec.spec.name)
            self._on_fatal(error)
        finally:
            if self._connection is not None:
                self._connection.close()

    def _session(self) -> None:
        """One Kafka consumer, from subscription to close; a changed topic or a lost lease ends it and another begins."""
        if not self._identify() or not self._wait_for_lease():
            return
        self._consumer = Consumer(self._config(), logger=_kafka_logger)
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), name="eventflow topic ids", daemon=True)
        try:
            self._consumer.subscribe(
                list(self.spec.topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            watch.start()
            while not self._stop.is_set() and not self._changed and self._has_lease():
                self._turn()
            self._note_changes()
        finally:
            over.set()
            if not self._has_lease() and not self._abandoned:
                logger.warning("%s leaves its group: the lease was not renewed in time", self.spec.spec.name)
            self._give_up(list(self.claims))
            for claim in self.claims.values():
                claim.lost = claim.revoked = True
            self._consumer.close()
            self.claims.clear()

    def _wait_for_lease(self) -> bool:
        while not self._has_lease():
            if self._stop.wait(0.05):
                return False
        return True

    def _config(self) -> dict[str, Any]:
        return (
            _DEFAULTS | self._connections.kafka | self.spec.kafka | _READ_COMMITTED
            | {
                "bootstrap.servers": self._connections.bootstrap_servers, "group.id": self.spec.group,
                "client.id": f"eventflow-{self._connections.executor}", "error_cb": self._on_error,
            }
        )  # fmt: skip

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}:
            self._on_fatal(UnavailableError(f"Kafka at {self._connections.bootstrap_servers}: {error.str()}"))
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            logger.warning("Kafka at %s does not answer; trying again", self._connections.bootstrap_servers)

    # ---- a turn of the loop ----

    def _turn(self) -> None:
        if self._lost:
            self._claim_again()
        if self._rebalanced:
            self._may_join_at_once()
        if self._hold.is_set() or self._suspect.is_set():
            self._serve()
            return
        self._tend()
        room = self._bound - self._in_flight()
        if room <= 0:
            self._full()
            return
        self._resume()
        self._receive(min(room, BATCH))

    def _tend(self) -> None:
        """What is due from time to time, also while there is no room: what blocks a scope may be what takes the room."""
        now = time.monotonic()
        if now - self._polled_at > _POLL_EVERY:
            self._polled_at = now
            self._poll_unfinished()
        if now - self._folded_at > _FOLD_EVERY:
            self._folded_at = now
            self._fold()

    def _in_flight(self) -> int:
        return sum(claim.handed - claim.finished for claim in self.claims.values() if not claim.lost)

    def _full(self) -> None:
        """Short of room: first just wait; after a while pause, so that Kafka keeps the rest and `poll` is served."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _PAUSE_AFTER:
            time.sleep(0.001)  # the runs report by counters; a turn is cheaper than a wake-up for each
            return
        self._serve()

    def _serve(self) -> None:
        if not self._paused and self.claims:
            self._paused = True
            self._consumer.pause([TopicPartition(t, p) for t, p in self.claims])
        self._take([m for m in [self._consumer.poll(0.02)] if m is not None])

    def _resume(self) -> None:
        self._full_since = None
        if self._unsure:  # what came after a topic error was thrown away, and is fetched again
            self._unsure = False
            for claim in self.claims.values():
                self._consumer.seek(TopicPartition(claim.topic, claim.partition, claim.next_offset))
        if self._paused:
            self._paused = False
            self._consumer.resume([TopicPartition(t, p) for t, p in self.claims])

    def _receive(self, limit: int) -> None:
        first = self._consumer.poll(0.05)
        if first is None:
            return
        messages = [first]
        if limit > 1:
            messages += self._consumer.consume(limit - 1, 0)
        self._take(messages)

    def _take(self, messages: list[confluent_kafka.Message]) -> None:
        runs: list[Run] = []
        claims, spec, application = self.claims, self.spec.spec, self._connections.application
        key: Key | None = None
        claim: Claim | None = None
        for message in cast("list[Any]", messages):
            error = message.error()
            at_end = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is not None and not at_end:
                self._problem(message, error)
            if self._suspect.is_set():
                self._unsure = True
            if self._unsure or (error is not None and not at_end):
                continue  # also what comes after the doubt is settled, until `_resume` has sought: nothing may be passed over
            if at_end:
                self._cover_to_end(message)
                continue
            here: Key = (message.topic(), message.partition())
            if here != key:
                key, claim = here, claims.get(here)
            offset = message.offset()
            if claim is None or claim.lost or claim.revoked or offset < claim.next_offset:
                continue
            if claim.accepted_above and self._accepted(claim, offset):
                continue
            run = Run(spec, claim.id_prefix + str(offset), application)
            run.claim, run.offset, run.first = claim, offset, claim.next_offset
            run.value, run.key, run.headers = message.value(), message.key(), message.headers()
            run.timestamp = message.timestamp()[1]
            run.scope = claim.scope
            run.wary = claim.handed < claim.wary
            claim.next_offset = offset + 1
            claim.handed += 1
            runs.append(run)
        if runs:
            self._dirty = True
            crash_point("consumer.after_fetch")
            self._dispatch(runs)

    def _accepted(self, claim: Claim, offset: int) -> bool:
        """Whether the ledger accepted this offset before this claim; what lies between is covered on the way."""
        above = claim.accepted_above
        while above and above[0][0] <= offset:
            low, high = above[0]
            if claim.next_offset < low:
                self._journal.cover((claim, claim.next_offset, low))
            claim.next_offset = max(claim.next_offset, high)
            above.pop(0)
        return offset < claim.next_offset

    def _problem(self, message: Any, error: KafkaError) -> None:
        code, claim = error.code(), self._claim_of(message)
        if code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE} and claim is not None:
            self._doubt()
            self._halt(claim, "retention", f"offset {claim.next_offset} is no longer in the log: {error.str()}")
            return
        if code in {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}:
            self._on_fatal(UnavailableError(f"{self.spec.spec.name}: {error.str()}"))
            return
        self._doubt()
        logger.warning("%s: %s", self.spec.spec.name, error.str())

    def _doubt(self) -> None:
        """A topic may not be what it was: take nothing until it was asked, later than now."""
        self._doubts += 1
        self._suspect.set()

    def _claim_of(self, message: Any) -> Claim | None:
        return self.claims.get((message.topic() or "", message.partition() if message.partition() is not None else -1))

    def _cover_to_end(self, message: Any) -> None:
        """The rest of the partition's log, up to its end as it is now, holds no message."""
        claim, end = self._claim_of(message), message.offset()
        if claim is not None and not claim.lost and end > claim.next_offset and not claim.accepted_above:
            self._journal.cover((claim, claim.next_offset, end))
            claim.next_offset = end

    # ---- who owns what ----

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        wanted = [(p.topic, p.partition) for p in partitions]
        claims = self._claim(wanted)
        consumer.incremental_assign([TopicPartition(c.topic, c.partition, c.next_offset) for c in claims if not c.lost])
        if self._paused:
            consumer.pause([TopicPartition(c.topic, c.partition) for c in claims if not c.lost])
        self._rebalanced = True

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        self._give_up(gone)
        self._forget(consumer, gone)
        self._rebalanced = True

    def _may_join_at_once(self) -> None:
        """Let the next round of this rebalance begin: librdkafka joins once a second, counted anew by each metadata answer.

        What is to move stands still between the round that revokes it and the one that assigns it.
        """
        self._rebalanced = False
        with contextlib.suppress(KafkaException):
            self._consumer.list_topics(self.spec.topics[0], timeout=1)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        logger.warning("%s lost %s without a hand-over", self.spec.spec.name, gone)
        self._forget(consumer, gone)

    def _forget(self, consumer: Consumer, gone: list[Key]) -> None:
        assigned = {(p.topic, p.partition) for p in consumer.assignment()}
        for key in gone:
            claim = self.claims.pop(key, None)
            if claim is not None:
                claim.lost = claim.revoked = True
        held = [TopicPartition(t, p) for t, p in gone if (t, p) in assigned]
        if held:
            consumer.incremental_unassign(held)

    def _claim(self, keys: list[Key]) -> list[Claim]:
        """Claim these partitions, while there is a lease; what cannot be claimed is stopped and said so."""
        attempt = 0
        while not self._stop.is_set() and self._has_lease() and not self._changed:
            try:
                crash_point("consumer.before_claim")
                claims = [c for topic in sorted({t for t, _ in keys}) for c in self._claim_topic(topic, keys)]
            except (psycopg.Error, UnavailableError, KafkaException) as error:
                attempt += 1
                if attempt in {1, 10}:
                    logger.warning("claiming for %s: %s; trying again", self.spec.spec.name, error)
                if isinstance(error, psycopg.OperationalError) and self._connection is not None:
                    self._connection.close()
                self._stop.wait(backoff(attempt))
                continue
            crash_point("consumer.after_claim")
            for claim in claims:
                self.claims[claim.topic, claim.partition] = claim
            return claims
        return []

    def _claim_topic(self, topic: str, keys: list[Key]) -> list[Claim]:
        partitions = sorted(p for t, p in keys if t == topic)
        source = self._sources.get(topic)
        if source is None:
            return []
        self._first_positions(topic, source, partitions)
        connection, database = self._database()

        def work(connection: Connection) -> list[Any]:
            with evicting(database, connection, after=1.0):
                return self._take_claims(connection, source, partitions)

        rows = in_transaction(connection, work)
        claims = [self._make_claim(topic, source, row) for row in rows]
        return [claim for claim in claims if self._in_log(claim)]

    def _take_claims(self, connection: Connection, source: Source, partitions: list[int]) -> list[Any]:
        """R7, statement by statement: what is read comes later than the lock that it relies on."""
        executor, run = self._connections.executor, self._connections.database.run
        run(connection, "fence", {"executor": executor})
        if not run(connection, "lock_source", {"source": source.id}):
            self._doubt()
            raise UnavailableError(f"source {source.id} was superseded; asking for the topic's id again")
        where = {"group": self.spec.group, "source": source.id, "partitions": partitions}
        left = {row[0]: row for row in run(connection, "lock_claims", where)}
        taken = run(
            connection, "take_claims",
            {"executor": executor, "in_flight": self._bound, "claims": sorted(left)},
        )  # fmt: skip
        positions = dict(run(connection, "read_positions", {"claims": sorted(left)}))
        unfinished = run(connection, "read_unfinished", {"claims": sorted(left)})
        return [
            (i, partition, epoch, left[i][2], left[i][3], positions[i], [u for u in unfinished if u[1] == i])
            for i, partition, epoch in sorted(taken)
        ]

    def _make_claim(self, topic: str, source: Source, row: Any) -> Claim:
        claim_id, partition, epoch, released, bound, accepted, unfinished = row
        first, *above = list(accepted)
        prefix = message_workflow_id_prefix(self.spec.group, topic, source.incarnation, partition)
        claim = Claim(
            claim_id, epoch, self.spec.group, topic, partition, source.id, source.incarnation, prefix, first.upper
        )
        claim.accepted_above = [(r.lower, r.upper) for r in above]
        if self.spec.ordering == "partition":
            claim.scope = str(claim_id)
            claim.unfinished = [u[0] for u in unfinished if u[2] is not None]
        if not released:
            claim.wary = bound
        logger.info(
            "%s claims %s/%d from offset %d (epoch %d%s)", self.spec.spec.name, topic, partition, first.upper, epoch,
            "" if released else ", its last owner did not let go of it",
        )  # fmt: skip
        return claim

    def _in_log(self, claim: Claim) -> bool:
        """Whether the position is still in Kafka's log; where it is not, the partition stops, loudly (R5, R16)."""
        place = TopicPartition(claim.topic, claim.partition)
        low, high = self._consumer.get_watermark_offsets(place, timeout=10)
        if low <= claim.next_offset <= high:
            return True
        kind = "retention" if claim.next_offset < low else "truncation"
        self._halt(claim, kind, f"the position {claim.next_offset} is not in the log, which has {low} to {high}")
        return False

    def _halt(self, claim: Claim, kind: str, detail: str) -> None:
        """Stop a partition until a person has looked, and record why."""
        claim.lost = claim.revoked = True
        subject = f"{claim.group} {claim.topic}/{claim.partition}"
        logger.error("%s stops: %s", subject, detail)
        self._incident(kind, subject, detail)

    def _incident(self, kind: str, subject: str, detail: str) -> None:
        connection, database = self._database()
        database.run(connection, "insert_incident", {"kind": kind, "subject": subject, "detail": detail})

    def _first_positions(self, topic: str, source: Source, partitions: list[int]) -> None:
        """Choose where partitions begin that the ledger has never seen, once for all that the topic has now."""
        connection, database = self._database()
        rows = database.run(connection, "known_partitions", {"topic": topic, "group": self.spec.group})
        known = {p for s, p in rows if s == source.id}
        if known.issuperset(partitions):
            return
        everything = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
        unseen = sorted((set(everything) | set(partitions)) - known)
        chosen = self._choose(topic, unseen, first=not rows)
        database.run(
            connection, "insert_claims",
            {
                "group": self.spec.group, "source": source.id, "partition": unseen,
                "position": [chosen[p][0] for p in unseen], "began": [chosen[p][1] for p in unseen],
            },
        )  # fmt: skip
        for partition in unseen:
            logger.info("%s: %s/%d begins at %d (%s)", self.spec.spec.name, topic, partition, *chosen[partition])

    def _choose(self, topic: str, unseen: list[int], *, first: bool) -> dict[int, tuple[int, str]]:
        places = [TopicPartition(topic, partition) for partition in unseen]
        committed = {p.partition: p.offset for p in self._consumer.committed(places, timeout=10)} if first else {}
        chosen: dict[int, tuple[int, str]] = {}
        for place in places:
            low, high = self._consumer.get_watermark_offsets(place, timeout=10)
            offset = committed.get(place.partition, -1)
            if offset >= 0:
                chosen[place.partition] = (max(low, min(offset, high)), "committed")
            elif first and self.spec.start == "latest":
                chosen[place.partition] = (high, "latest")
            else:
                chosen[place.partition] = (low, "earliest" if first else "added")
        return chosen

    def _claim_again(self) -> None:
        """R7: refused, yet Kafka still assigns it to us."""
        lost, self._lost = self._lost, []
        assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
        again = sorted({(c.topic, c.partition) for c in lost} & assigned)
        for claim in lost:
            if self.claims.get((claim.topic, claim.partition)) is claim:
                del self.claims[claim.topic, claim.partition]
        if not again:
            return
        logger.warning("%s: claims of %s were lost while Kafka still assigns them", self.spec.spec.name, again)
        for claim in self._claim(again):
            self._consumer.seek(TopicPartition(claim.topic, claim.partition, claim.next_offset))

    def _give_up(self, keys: list[Key]) -> None:
        """Start nothing new, accept what has started, then let go of the claims (R8); without a lease, just drop them."""
        claims = {self.claims[key] for key in keys if key in self.claims and not self.claims[key].lost}
        if not claims:
            return
        for claim in claims:
            claim.revoked = True
        if self._abandoned or not self._has_lease():
            return
        self._accept(claims, 5.0)
        crash_point("consumer.before_release")
        held = sorted((c for c in claims if not c.lost), key=lambda c: c.id)
        try:
            connection, database = self._database()
            release = {
                "claims": [c.id for c in held], "epochs": [c.epoch for c in held],
                "executor": self._connections.executor,
            }  # fmt: skip

            def work(connection: Connection) -> None:
                database.run(connection, "fence", {"executor": self._connections.executor})
                database.run(connection, "release_claims", release)

            in_transaction(connection, work)
        except (psycopg.Error, EventflowError) as error:
            logger.warning("%s: claims not released: %s", self.spec.spec.name, error)

    def _database(self) -> tuple[Connection, Database]:
        database = self._connections.database
        if self._connection is None or self._connection.closed:
            self._connection = database.connect(f"consumer {self.spec.spec.name}"[:60])
        return self._connection, database

    # ---- order, positions ----

    def _poll_unfinished(self) -> None:
        """Scopes that accepted, unfinished messages hold back go on when those are final (R11)."""
        blocked = [c for c in self.claims.values() if c.unfinished and not c.lost]
        if not blocked:
            return
        try:
            connection, database = self._database()
            rows = database.run(connection, "read_unfinished", {"claims": [c.id for c in blocked]})
        except (psycopg.Error, UnavailableError):
            return
        still = {row[0] for row in rows}
        for claim in blocked:
            claim.unfinished = [i for i in claim.unfinished if i in still]
            if not claim.unfinished:
                self._unblock(claim)

    def _fold(self) -> None:
        if not self._dirty:
            return
        self._dirty = self._in_flight() > 0
        claims = [c for c in self.claims.values() if not c.lost and not c.revoked]
        self._journal.between_flushes(lambda lane: self._fold_claims(lane, claims))
        positions, self._positions = self._positions, {}
        offsets = [
            TopicPartition(c.topic, c.partition, position) for c, position in positions.items()
            if not c.lost and not c.revoked
        ]  # fmt: skip
        if offsets:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                logger.debug("advisory commit: %s", error)

    def _fold_claims(self, lane: Lane, claims: list[Claim]) -> None:
        database = self._connections.database
        for claim in claims:
            params = {"executor": lane.executor, "claim": claim.id, "epoch": claim.epoch}
            try:
                [(accepted,)] = database.run(lane.connection(), "fold_claim", params)
            except psycopg.Error as error:
                if error.sqlstate == "EF005":
                    claim.lost = claim.revoked = True
                    logger.error("%s/%d stops: %s", claim.topic, claim.partition, error)
                    self._incident("overlap", f"{claim.group} {claim.topic}/{claim.partition}", str(error))
                else:
                    logger.debug("fold: %s", error)
                continue
            self._positions[claim] = next(iter(accepted)).upper

    # ---- what the topic is ----

    def _identify(self) -> bool:
        """Ask Kafka what the topics are, and register them; until they exist, say so and try again."""
        attempt = 0
        while not self._stop.is_set():
            try:
                self._sources = {topic: self._register(topic) for topic in self.spec.topics}
            except PartitionStoppedError:
                raise
            except (KafkaException, psycopg.Error, UnavailableError) as error:
                attempt += 1
                if attempt in {1, 20}:
                    logger.warning("%s: %s; trying again", self.spec.spec.name, _reason(error))
                self._admin_client.poll(0)
                self._stop.wait(min(0.1 * attempt, 2.0))
                continue
            self._changed.clear()
            self._suspect.clear()
            return True
        return False

    def _register(self, topic: str) -> Source:
        cluster_id, topic_id = self._ask(topic)
        connection, database = self._database()
        [(source, incarnation, foreign)] = database.run(
            connection, "register_source", {"topic": topic, "cluster_id": cluster_id, "topic_id": topic_id}
        )
        if foreign:
            detail = f"the brokers are now cluster {cluster_id}; the ledger knows the topic from another one"
            self._incident("cluster", topic, detail)
            raise PartitionStoppedError(f"topic {topic!r}: {detail}")
        return Source(source, incarnation, topic_id)

    def _ask(self, topic: str) -> tuple[str, str]:
        """(cluster id, topic id) as the brokers have them.

        Raises:
            UnavailableError: the topic is unknown, or has no id.

        """
        admin = self._admin_client
        try:
            return self._describe(admin, topic)
        except KafkaException as error:
            where = f"Kafka at {self._connections.bootstrap_servers}, topic {topic!r}"
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise UnknownTopicError(f"{where}: there is no such topic") from error
            raise UnavailableError(f"{where}: {_reason(error)}") from error

    def _describe(self, admin: AdminClient, topic: str) -> tuple[str, str]:
        description = admin.describe_topics(confluent_kafka.TopicCollection([topic]), request_timeout=5)[topic].result(
            timeout=6
        )
        cluster = admin.describe_cluster(request_timeout=5).result(timeout=6)
        topic_id = str(description.topic_id)
        if not topic_id or set(topic_id) <= set("A-0") or not cluster.cluster_id:
            raise UnavailableError(f"topic {topic!r} has no id; Apache Kafka 3.7 or newer is needed")
        return cluster.cluster_id, topic_id

    @cached_property
    def _admin_client(self) -> AdminClient:
        prefixes = ("bootstrap", "security", "sasl", "ssl", "client", "error_cb")
        shared = {name: value for name, value in self._config().items() if name.startswith(prefixes)}
        return AdminClient(shared, logger=_kafka_logger)

    def _watch(self, over: threading.Event) -> None:
        """Ask regularly, and after every topic error, whether the topics are still what they were (R16)."""
        while not over.is_set() and not self._changed:
            self._suspect.wait(_ASK_IDENTITY_EVERY)
            doubts = self._doubts
            read = [(claim, claim.next_offset) for claim in list(self.claims.values())]
            try:
                changed = {topic for topic, source in self._sources.items() if not self._is(topic, source)}
            except (KafkaException, UnavailableError) as error:
                logger.debug("asking for topic ids: %s", error)
            else:
                self._changed |= changed
                for claim, offset in read:
                    if claim.topic not in changed:
                        claim.verified = offset
                if doubts == self._doubts:
                    self._suspect.clear()
            over.wait(0.2)

    def _is(self, topic: str, source: Source) -> bool:
        try:
            return self._ask(topic)[1] == source.topic_id
        except UnknownTopicError:
            return False

    def _note_changes(self) -> None:
        for key, claim in list(self.claims.items()):
            if key[0] in self._changed:
                logger.error("topic %s was deleted or recreated; its partitions begin anew", key[0])
                suspect = f"offsets {claim.verified} to {claim.next_offset} may be those of the new one"
                detail = f"was deleted or recreated; read under its old id, {suspect}"
                claim.lost = claim.revoked = True
                self._incident("recreated", f"{claim.group} {claim.topic}/{claim.partition}", detail)
                del self.claims[key]


def _reason(error: BaseException) -> str:
    first = error.args[0] if error.args else error
    return first.str() if isinstance(first, KafkaError) else str(error)


_kafka_logger = logging.getLogger("eventflow.kafka.client")
_kafka_logger.setLevel(logging.ERROR)
