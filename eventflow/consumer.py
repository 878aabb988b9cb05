"""Reads Kafka: claims partitions, seeks to the ledger's positions, turns messages into runs, and bounds what is in flight.

One thread per handler owns its Kafka consumer: `poll` is served while handlers run, and no thread of Kafka's ever
blocks the event loop. What the topics are is `sources`' to know, who owns what of them is `claims`'.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import confluent_kafka
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from eventflow.brokers import Brokers, cut_at, knows_brokers
from eventflow.claims import Claims, Key, cut_off
from eventflow.database import Database, KeptConnection, unavailable
from eventflow.errors import EventflowError, FencedError, UnavailableError
from eventflow.fetched import Fetched, run_of
from eventflow.flow import Flow
from eventflow.journal import Journal, backoff
from eventflow.kafka import headers_of
from eventflow.records import Pause
from eventflow.registry import ConsumerSpec
from eventflow.retry import doubled
from eventflow.runs import Claim, Reprocess, Run, fingerprint, weigh
from eventflow.scopes import Scopes
from eventflow.settings import KafkaProperties
from eventflow.sources import Sources
from eventflow.stalls import Stalls
from eventflow.telemetry import crash_point, seldom
from eventflow.turns import Desk, Turns

logger = logging.getLogger(__name__)

BATCH = 1000
_FOLD_EVERY = 5.0
_LOOK_EVERY = 1.0
_PAUSE_AFTER = 1.0
_LONGEST_WAIT = 5.0  # seconds between two attempts to get what reading a message needs
_WITHOUT_END = 1 << 62
_LEAVE = 10.0  # seconds that leaving a group may take
_DEAF = 2  # looks in a row at which librdkafka knows no broker
# What is wrong with a batch of one partition, and is the same when it is fetched again.
_CORRUPT = {
    KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG, KafkaError._NOT_IMPLEMENTED,
    KafkaError.INVALID_MSG, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
}  # fmt: skip
_HOPELESS = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError._FATAL}


class Lag(NamedTuple):
    """How far behind a partition is: messages that are not done, and the age of the last one that was handed out.

    Attributes:
        seconds: None where nothing was handed out yet.

    """

    topic: str
    partition: int
    in_flight: int
    offsets: int
    seconds: float | None


class Intake:
    """One `@kafka_consumer` at work in this process."""

    def __init__(
        self,
        spec: ConsumerSpec,
        database: Database,
        journal: Journal,
        *,
        executor: int,
        application: str,
        bootstrap_servers: str,
        properties: KafkaProperties,
        max_in_flight: int,
        max_bytes: int,
        dispatch: Callable[[list[Run]], None],
        accept: Callable[[set[Claim], float], None],
        has_lease: Callable[[], bool],
        desk: Desk,
        run_of: Callable[[Any], Run],
        on_fatal: Callable[[Exception], None],
        brokers: Callable[..., Brokers] = Brokers,
        reprocess: Reprocess | None = None,
        gather: Callable[[list[Fetched]], None] | None = None,
    ) -> None:
        """`reprocess`: it reads the topic of that once more, beside the live one, up to an end.

        `gather`: takes messages as they were fetched, where its handler does.
        """
        self.spec = spec
        self.reprocess = reprocess
        self.name = spec.spec.name + ("" if reprocess is None else f", reprocessing {reprocess.id}")
        self._application = application
        self._journal = journal
        self._bound = spec.max_in_flight or max(max_in_flight, 2 * (spec.batch or 0))
        self._flow = Flow(self._bound, max_bytes, spec.rate_limit, time.monotonic)
        self._dispatch, self._gather, self._accept, self._on_fatal = dispatch, gather, accept, on_fatal
        self._has_lease = has_lease
        self._stop = threading.Event()
        self._hold = threading.Event()
        self._abandoned = False
        self._unsure = False  # in a doubt all was thrown away: it is fetched again before anything else is taken
        self._rebalanced = False
        self._assigned = False
        self._deaf = 0  # looks in a row at which its client knew no broker
        self._stalls, self._looked_at_ends = Stalls(), dict[Key, int]()
        self._begin_anew = ""  # why its client is to be replaced by a new one
        self._lost: deque[Claim] = deque()
        self._halted: deque[tuple[Claim, str, int, str]] = (
            deque()
        )  # what stops them: kind, first offset in doubt, detail
        self._granted: set[Key] = set()  # what the group gives us, read or stopped
        self._consumer: Consumer
        self._paused: set[Key] = set()
        self._skipped: set[Claim] = set()  # of these, messages that found no room were thrown away
        self._fallen: set[Claim] = set()  # whose leader epoch fell, and whose topic's id was asked since
        self._prepare = spec.spec.reader.prepare if spec.foreign and spec.spec.reader.prepares else None
        self._waits_until = 0.0  # for what reading messages needs; nothing is taken meanwhile
        self._refused = 0  # times in a row
        self._again: deque[Run] = deque()  # messages that come from the ledger, and take their turn in their scopes
        self._reads = False  # claims are held, or may be taken at any time
        self._failed: deque[tuple[Run, str]] = deque()  # by whose policy it stands still, and why; not recorded yet
        self._waits_for: list[Run] = []  # the same, recorded
        self._full_since: float | None = None
        self._folded_at = self._looked_at = 0.0
        self._pauses: list[Pause] = []  # of this group
        self._told: list[Reprocess] = [] if reprocess is None else [reprocess]  # what concerns this consumer
        group = spec.group if reprocess is None else f"{spec.group}.g{reprocess.generation}"
        self._brokers = brokers(
            bootstrap_servers, properties, spec.kafka, group, f"eventflow-{executor}", self._on_error
        )
        self._ledger = KeptConnection(database, f"consumer {self.name}"[:60])
        self._sources = Sources(spec, self._brokers, self._ledger, self._stop)
        number = None if reprocess is None else reprocess.id
        self.claims = Claims(spec, executor, self._bound, self._ledger, self._sources, journal, self._stop, number)
        self._turns = Turns(executor, spec.spec.name, self.claims, self._bound, self._ledger, desk, run_of, self.lose)
        self._thread = threading.Thread(target=self._main, name=f"eventflow {self.name}", daemon=True)

    def check(self) -> None:
        """Whether librdkafka takes this configuration.

        Raises:
            SettingsError: it does not; names the property.

        """
        self._brokers.check(self.name)

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

    def alive(self) -> bool:
        """Whether it has yet to leave its group."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def lose(self, claims: Iterable[Claim]) -> None:
        """The journal learnt that these belong to others; where Kafka disagrees they are claimed again (R7)."""
        for claim in claims:
            if self.claims.get(claim.topic, claim.partition) is claim:
                self._lost.append(claim)

    def told(self, reprocesses: Iterable[Reprocess], pauses: Iterable[Pause]) -> None:
        """What is paused, and what is run again, of all groups: in the place of what this one reads. From any thread."""
        self._pauses = [pause for pause in pauses if pause.group == self.spec.group]
        mine = self.reprocess
        if mine is None:
            self._told = [r for r in reprocesses if r.instead and self.is_of(r)]
        else:
            self.reprocess = next((r for r in reprocesses if r.id == mine.id), mine)

    def is_of(self, reprocess: Reprocess) -> bool:
        """Whether what is run again is what it reads."""
        return reprocess.group == self.spec.group and self.spec.reads(reprocess.topic)

    def take_again(self, run: Run) -> None:
        """A message has come from the ledger: redelivered, or one that a peer let go of. From any thread.

        Where no claim is held, nor being taken, nothing of its scope is here, and whoever claims that learns of it.
        """
        self._again.append(run)
        if not self._reads:
            self._dispatch_again()

    def _dispatch_again(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._dispatch([self._again.popleft()])

    def stand_still(self, run: Run, why: str) -> None:
        """A message has failed for good, and nothing more is to be fetched until it has been decided on. From any thread."""
        self._failed.append((run, why))

    def _main(self) -> None:
        try:
            while not self._stop.is_set():
                self._session()
        except FencedError as error:
            self._on_fatal(error)
        except EventflowError as error:
            logger.error("%s stops: %s", self.name, error)
            self._on_fatal(error)
        except Exception as error:
            logger.exception("%s stopped", self.name)
            self._on_fatal(error)
        finally:
            self._ledger.close()

    def _session(self) -> None:
        """One Kafka consumer, from subscription to close; a changed topic or a lost lease ends it and another begins."""
        if not self._sources.identify() or not self._wait_for_lease() or not self._learn_pauses():
            return
        over = threading.Event()
        self._consumer = self._brokers.consumer(
            lambda statistics: None if over.is_set() else self._on_statistics(statistics),
            lambda _: self._stalls.held_back(time.monotonic()),
        )
        self._deaf, self._begin_anew = 0, ""
        self._stalls.held_back(time.monotonic())
        self._paused.clear()
        self._assigned = False
        self._granted.clear()
        self._halted.clear()
        self.claims.bereft.clear()
        self._reads = True
        asked = (over, lambda: list(self.claims.held.values()), lambda: list(self.claims.paused))
        watch = threading.Thread(target=self._sources.watch, args=asked, name="eventflow topic ids", daemon=True)
        try:
            self._subscribe()
            watch.start()
            while not (self._stop.is_set() or self._sources.changed or self._begin_anew) and self._has_lease():
                self._turn()
        finally:
            over.set()
            if self._begin_anew:
                logger.warning("%s begins anew: %s", self.name, self._begin_anew)
            if not self._has_lease() and not self._abandoned:
                logger.warning("%s leaves its group: the lease was not renewed in time", self.name)
            self._give_up(list(self.claims.held))
            self.claims.note_changed(self._sources.changed, self._consumer)
            self.claims.drop(self.claims.held)
            self._skipped.clear()
            self._fallen.clear()
            self._leave(self._consumer)
            self._reads = False
            self._dispatch_again()

    def _leave(self, consumer: Consumer) -> None:
        """Leave the group; librdkafka may never come back where the brokers are gone (its issues 3740 and 4519)."""
        leaving = threading.Thread(target=consumer.close, name=f"eventflow {self.name} leaves", daemon=True)
        leaving.start()
        leaving.join(_LEAVE)
        if leaving.is_alive():
            logger.warning("%s: librdkafka has not left the group within %g s; going on without it", self.name, _LEAVE)

    def _subscribe(self) -> None:
        topics = self._sources.topics()
        self._consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _wait_for_lease(self) -> bool:
        while not self._has_lease():
            if self._stop.wait(0.05):
                return False
        return True

    def _learn_pauses(self) -> bool:
        """What was paused before this process began; from then on the beat tells. False: stopped."""
        attempt = 0
        while not self._stop.is_set():
            try:
                rows = self._ledger.run("read_pauses", {"group": self.spec.group})
            except (psycopg.Error, UnavailableError) as error:
                attempt += 1
                seldom.say(logger, f"{unavailable(error, self._ledger.database.url)}; trying again")
                self._ledger.close()
                self._stop.wait(backoff(attempt))
            else:
                self._pauses = [Pause(*row) for row in rows]
                return True
        return False

    def _on_statistics(self, statistics: str) -> None:
        self._deaf = 0 if knows_brokers(statistics) else self._deaf + 1
        if self._deaf >= _DEAF:
            self._begin_anew = "it was told that there are no brokers, and has let go of them"

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}:
            self._on_fatal(UnavailableError(f"Kafka at {self._brokers.servers}: {error.str()}"))
        elif error.code() == KafkaError._SSL:
            seldom.say(logger, f"Kafka at {self._brokers.servers}: {error.str()}; trying again")
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            seldom.say(logger, f"{self._brokers.no_answer}; trying again")

    # ---- a turn of the loop ----

    def _turn(self) -> None:
        if (self._lost or self._halted) and not self._sources.suspect.is_set():  # a topic that is new is no log cut off
            self._claim_again()
        if self._rebalanced:
            self._may_join_at_once()
        if self._hold.is_set() or self._sources.suspect.is_set():
            self._serve()
            return
        self._tend()
        if time.monotonic() < self._waits_until or ((self._failed or self._waits_for) and self._stands_still()):
            self._serve()
            return
        circuit = self.spec.spec.circuit
        if circuit is not None and circuit.wait(None):
            self._serve()
            return
        if self._pauses or self.claims.paused:
            self.claims.pause(self._pauses)
        room = self._flow.room(self.claims.in_flight(), self.claims.weight())
        if room <= 0:
            self._full()
            return
        self._full_since = None
        self._fetch_again()
        self._pause(self._crowded())
        self._receive(min(room, BATCH) if circuit is None or not circuit.is_open else 1)  # which is tried

    def _stands_still(self) -> bool:
        """Whether messages that have failed let nothing more be fetched here; its partitions stay, or a peer would fetch."""
        while self._failed:
            run, why = self._failed.popleft()
            self._waits_for.append(run)
            self.claims.record("stopped", run.workflow_id, f"{self.name} stands still: {why}")
        self._waits_for = [run for run in self._waits_for if not run.over()]
        for run in self._waits_for:
            seldom.say(logger, f"{self.name} stands still, since {run.workflow_id} failed: restart it", logging.ERROR)
        if not self._waits_for:
            logger.warning("%s goes on", self.name)
        return bool(self._waits_for)

    def _tend(self) -> None:
        """What is due from time to time, also while there is no room: what blocks a scope may be what takes the room."""
        if self._again:
            self._turns.take_again([self._again.popleft() for _ in range(len(self._again))])
        now = time.monotonic()
        if self.spec.ordering != "none":
            self._turns.tend(now)
        if now - self._looked_at > _LOOK_EVERY:
            self._looked_at = now
            self._look()
            self._note_ends()
        if now - self._folded_at > _FOLD_EVERY:
            self._folded_at = now
            self.claims.fold()
            self._commit_advisory()

    def _look(self) -> None:
        """For topics that have come since, incidents that were settled, and partitions of which Kafka tells again."""
        try:
            if self._sources.found and self._sources.adopt():
                self._subscribe()
        except (psycopg.Error, UnavailableError) as error:
            logger.debug("registering topics: %s", error)
        again = self.claims.settled() + self.claims.back(time.monotonic())
        if again:
            self._read(self._claim(again))
        try:
            self._reprocess()
        except (psycopg.Error, UnavailableError) as error:
            logger.debug("reprocessing: %s", error)

    def _reprocess(self) -> None:
        """Keep the rate of what is run again, and end it; who reads it in the live one's place reads there from now on."""
        self._keep_rate()
        told = self._told
        if not told:
            return
        if self.reprocess is None:
            self._lost.extend(self.claims.replaced())
        for one in told:
            self.claims.end_reprocessing(one.id)

    def _keep_rate(self) -> None:
        """Its share of what is run again at a rate, by the partitions that it has."""
        rates = [r.rate * max(1, self._held_of(r)) / len(r.parts) for r in self._told if r.rate is not None]
        self._flow.limit(min(rates, default=None))

    def _held_of(self, reprocess: Reprocess) -> int:
        return sum(topic == reprocess.topic for topic, _ in self.claims.held)

    def _note_ends(self) -> None:
        """Where the logs end, as the last fetches have told. Here alone: a consumer that polls keeps other threads waiting."""
        ends = self._sources.ends
        for (topic, partition), claim in self.claims.held.items():
            fetched = -1
            with contextlib.suppress(KafkaException):  # nothing was fetched yet
                fetched = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)[1]
            claim.end = max(fetched, ends.get((topic, partition), -1))
        if self._looked_at_ends is not self._sources.all_ends:
            self._looked_at_ends = self._sources.all_ends
            self._look_for_stalls()

    def _look_for_stalls(self) -> None:
        moving = [claim for claim in self.claims.usable() if not self.claims.is_paused(claim)]
        stalled = [str(claim) for claim in self._stalls.look(moving, self._looked_at_ends)]
        if stalled:
            others = f" and {len(stalled) - 3} others" if len(stalled) > 3 else ""
            self._begin_anew = f"nothing comes of {', '.join(stalled[:3])}{others}, of which there is more"

    def _commit_advisory(self) -> None:
        offsets = self.claims.folded_positions()
        if offsets and not self._deaf:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                logger.debug("advisory commit: %s", error)

    # ---- room ----

    def _full(self) -> None:
        """Short of room: first just wait; after a while pause, so that Kafka keeps the rest and `poll` is served."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _PAUSE_AFTER:
            time.sleep(self._flow.wait())  # the runs report by counters; a turn is cheaper than a wake-up for each
            return
        self._serve()

    def _serve(self) -> None:
        """Poll, so that Kafka sees us alive, with everything paused."""
        self._stalls.held_back(time.monotonic())
        self._pause(set(self.claims.held))
        self._take([m for m in [self._consumer.poll(0.02)] if m is not None])

    def _pause(self, wanted: set[Key]) -> None:
        """Exactly these partitions are paused from now on."""
        wanted &= self.claims.held.keys()
        self._paused &= self.claims.held.keys()
        if wanted == self._paused:
            return
        self._consumer.pause([TopicPartition(*key) for key in wanted - self._paused])
        self._consumer.resume([TopicPartition(*key) for key in self._paused - wanted])
        self._paused = wanted

    def _share(self, claim: Claim) -> int:
        """How many messages of a claim may be in flight: one that goes in order leaves room for the others.

        Its messages wait in line for one another, so that more of them would not be more work in parallel.
        """
        return _WITHOUT_END if claim.scope is None else max(1, self._bound // max(1, len(self.claims.held)))

    def _crowded(self) -> set[Key]:
        """Partitions that have used their share up or not made half of it free again, that are paused, or through."""
        return {
            key for key, claim in self.claims.held.items()
            if claim.through() or key in self.claims.paused
            or (claim.scope is not None and claim.in_flight() * (2 if key in self._paused else 1) >= self._share(claim))
        }  # fmt: skip

    def _fetch_again(self) -> None:
        """Seek to what was thrown away: in a doubt of all partitions, else where a claim had no room."""
        claims = self.claims.usable() if self._unsure else [c for c in self._skipped if not self._stands(c)]
        self._unsure = False
        for claim in claims:
            self._skipped.discard(claim)
            if not claim.revoked:
                epoch = claim.leader_epoch if claim.epoch_to() == claim.next_offset else -1
                self._seek(claim, TopicPartition(claim.topic, claim.partition, claim.next_offset, leader_epoch=epoch))

    def _seek(self, claim: Claim, place: TopicPartition) -> None:
        """Fetch from there on. Where that fails, nothing may be taken as if it had been sought: it is claimed again."""
        try:
            self._consumer.seek(place)
        except KafkaException as error:
            logger.warning("%s: %s; claiming again", claim, error.args[0].str())
            claim.revoked = True
            self._lost.append(claim)

    def _stands(self, claim: Claim) -> bool:
        return not claim.revoked and (self.claims.is_paused(claim) or claim.in_flight() * 2 >= self._share(claim))

    # ---- what comes ----

    def _receive(self, limit: int) -> None:
        first = self._consumer.poll(0.05)
        messages = [] if first is None else [first]
        if messages and limit > 1:
            messages += self._consumer.consume(limit - 1, 0)
        if len(messages) < limit:
            self._stalls.drained(time.monotonic())
        self._take(messages)

    def _take(self, messages: list[confluent_kafka.Message]) -> None:
        """Turn messages into runs; whatever is thrown away on the way is sought again before anything later is taken."""
        runs: list[Run] = []
        stacks: list[Fetched] = []
        spec, application, sources = self.spec.spec, self._application, self._sources
        key: tuple[Any, Any] | None = None
        claim: Claim | None = None
        scopes: Scopes | None = None
        stack: Fetched | None = None
        left = 0
        for message in cast("list[Any]", messages):
            error = message.error()
            at_end = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is not None and not at_end:
                self._problem(message, error)
            if sources.suspect.is_set():
                self._unsure = True
            if self._unsure or (error is not None and not at_end):
                continue
            here = (message.topic(), message.partition())
            if here != key:
                key, claim, left = here, *self._taken_from(*here)
                scopes = None if claim is None else claim.scopes
                stack = self._stack(claim, stacks)
            if claim is None:
                continue
            offset = message.offset()
            if at_end:
                self._cover_to(claim, offset)
                continue
            if offset < claim.next_offset or (claim.accepted_above and self._accepted(claim, offset)):
                claim = self._passed_by(claim, offset)
                continue
            if left <= 0:
                self._skipped.add(claim)
                claim = None
                continue
            if message.leader_epoch() != claim.leader_epoch and not self._same_log(claim, message):
                claim = None
                continue
            if claim.early and self._handled_early(claim, message):
                continue
            if self._prepare is not None and not self._prepared(message):
                self._skipped.add(claim)
                claim = None
                continue
            if stack is not None:
                # What lies between two stacks is accepted, or covered, otherwise.
                stack = stack if stack.end == claim.next_offset else self._new_stack(claim, stacks)
                stack.messages.append(message)
                claim.next_offset = stack.end = offset + 1
                continue
            run = run_of(spec, application, claim, message, claim.next_offset)
            run.scope = claim.scope if scopes is None else scopes.place(run)
            run.wary = claim.handed < claim.wary
            claim.next_offset = offset + 1
            claim.handed += 1
            left -= 1
            runs.append(run)
        self._hand_over(runs, [one for one in stacks if one.messages])

    def _stack(self, claim: Claim | None, stacks: list[Fetched]) -> Fetched | None:
        """Where messages of this claim are stacked as they were fetched, if they are: not those that may be killers (R13)."""
        if self._gather is None or claim is None or claim.handed < claim.wary:
            return None
        return self._new_stack(claim, stacks)

    def _new_stack(self, claim: Claim, stacks: list[Fetched]) -> Fetched:
        stacks.append(Fetched(self.spec.spec, claim, claim.next_offset))
        return stacks[-1]

    def _hand_over(self, runs: list[Run], stacks: list[Fetched]) -> None:
        """Have these run, or gathered for their handler."""
        if runs or stacks:
            crash_point("consumer.after_fetch")
        if runs:
            self._flow.took(len(runs), weigh(runs))
            _see(runs)
            self._dispatch(runs)
        if stacks and self._gather is not None:
            for one in stacks:
                one.claim.handed += len(one)
                one.claim.seen = one.messages[-1].timestamp()[1] or 0
            self._flow.took(sum(map(len, stacks)), sum(one.weigh() for one in stacks))
            self._gather(stacks)

    def _prepared(self, message: Any) -> bool:
        """Whether its handler can read it now; where what that needs cannot be had, all wait: it is no fault of a message."""
        if time.monotonic() < self._waits_until:
            return False
        try:
            cast("Any", self._prepare)(message.value(), message.key(), headers_of(message), message.topic())
        except UnavailableError as error:
            self._refused += 1
            seldom.say(logger, f"{self.name} waits: {error}; trying again")
            self._waits_until = time.monotonic() + doubled(0.1, self._refused, _LONGEST_WAIT)
            return False
        self._refused = 0
        return True

    def _taken_from(self, topic: str | None, partition: int | None) -> tuple[Claim | None, int]:
        """The claim that a partition's messages are taken under, if they are; and how many more of them."""
        claim = self.claims.get(topic, partition)
        if claim is None or claim.revoked or claim in self._skipped:
            return None, 0
        if self.claims.paused and self.claims.is_paused(claim):
            self._skipped.add(claim)
            return None, 0
        return claim, self._share(claim) - claim.in_flight()

    def _same_log(self, claim: Claim, message: Any) -> bool:
        """Whether this can be the log that was read before: its leaders' epochs never fall (R16).

        Where one does, the topic's id is asked; if that is the same, the partition has lost what was read.
        """
        epoch: int | None = message.leader_epoch()
        if epoch is None:  # an old message format does not tell
            return True
        if (
            message.offset() < claim.jumped[0]
        ):  # its last owner had read beyond the position, and knew of later messages
            claim.jumped, claim.leader_epoch = (0, 0), -1
        if epoch > claim.leader_epoch:
            claim.leader_epoch = epoch
            return True
        detail = f"the leader epoch fell from {claim.leader_epoch} to {epoch} at offset {message.offset()}"
        if claim in self._fallen:
            self._halt(claim, "truncation", message.offset(), detail)
        else:
            logger.warning("%s: %s; asking for the topic's id", claim, detail)
            self._fallen.add(claim)
            self._sources.doubt()
            self._unsure = True
        return False

    def _passed_by(self, claim: Claim, offset: int) -> Claim | None:
        """The claim, where a message at this offset may have been read before; else it is another log, and the claim stops."""
        low, high = claim.jumped
        if not claim.vacant or not low <= offset < high:
            return claim
        self._halt(claim, "truncation", offset, f"there was no message at offset {offset}, and there is one now")
        return None

    def _handled_early(self, claim: Claim, message: Any) -> bool:
        """Whether this very message was handled when the topic's recreation had not been noticed yet (R16)."""
        offset = message.offset()
        known = claim.early.pop(offset, None)
        if known is None:
            return False
        sent = fingerprint(message.timestamp()[1], message.key(), message.value())
        if all(one != sent[: len(one)] for one in known):
            return False
        self._journal.cover((claim, claim.next_offset, offset + 1))
        claim.next_offset = offset + 1
        return True

    def _accepted(self, claim: Claim, offset: int) -> bool:
        """Whether the ledger accepted this offset before this claim; what lies between is covered on the way."""
        above = claim.accepted_above
        while above and above[0][0] <= offset:
            low, high = above[0]
            if claim.next_offset < low:
                self._journal.cover((claim, claim.next_offset, low))
            claim.jumped, claim.vacant = (claim.next_offset, max(claim.next_offset, high)), False
            claim.next_offset = claim.jumped[1]
            above.pop(0)
        return offset < claim.next_offset

    def _cover_to(self, claim: Claim, end: int) -> None:
        """The rest of the partition's log, up to its end as it is now, holds no message."""
        if claim.accepted_above:
            self._accepted(claim, end)
        if end > claim.next_offset and not claim.accepted_above:
            self._journal.cover((claim, claim.next_offset, end))
            claim.vacant = claim.vacant or claim.epoch_to() == claim.next_offset
            claim.jumped = claim.epoch_to(), end
            claim.next_offset = end

    def _problem(self, message: Any, error: KafkaError) -> None:
        code, claim = error.code(), self.claims.get(message.topic(), message.partition())
        gone = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
        if code in _HOPELESS:
            raise UnavailableError(f"Kafka at {self._brokers.servers}: {self._hopeless(message, error)}: {error.str()}")
        self._sources.doubt()
        if code in _CORRUPT and claim is not None:
            detail = f"what lies there cannot be read: {error.str()}"
            self._halt(claim, "corrupt", claim.next_offset, detail)
        elif code not in gone or claim is None:
            logger.warning("%s: %s", self.name, error.str())
        elif (end := cut_at(error)) is not None:
            self._halt(claim, "truncation", end, cut_off(claim, end))
        else:
            logger.warning("%s: offset %d is not in the log: %s", claim, claim.next_offset, error.str())
            claim.revoked = True
            self._lost.append(claim)  # claimed again, it is compared with the log

    def _hopeless(self, message: Any, error: KafkaError) -> str:
        """What a person has to see to, before this consumer can read on."""
        group = self._brokers.group
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return f"{self.name} may not read topic {message.topic()!r}; allow it READ"
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return f"{self.name} may not read in group {group!r}; allow it READ"
        instance = self._brokers.config.get("group.instance.id")
        return f"{self.name} is no member of group {group!r}" + (f" as {instance!r} any more" if instance else "")

    def _halt(self, claim: Claim, kind: str, first: int, detail: str) -> None:
        """Read no more of it; it stops, unless its topic proves to be another one."""
        if not claim.revoked:
            claim.revoked = True
            self._halted.append((claim, kind, first, detail))
            self._sources.doubt()

    # ---- what others ask: from any thread ----

    def joined(self) -> bool:
        """Whether its group has told it what of its topics it reads, be it nothing."""
        return self._assigned

    def lags(self, now: float) -> list[Lag]:
        """How far behind each of its partitions is, as far as the brokers have told; of what is run again nothing."""
        found: list[Lag] = []
        for claim in [] if self.reprocess is not None else list(self.claims.held.values()):
            behind = max(0, claim.end - claim.next_offset) + claim.in_flight()
            seconds = None if behind and not claim.seen else max(0.0, now - claim.seen / 1000) if behind else 0.0
            found.append(Lag(claim.topic, claim.partition, claim.in_flight(), behind, seconds))
        return found

    # ---- who owns what ----

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return
        self._assigned = True
        keys = [(p.topic, p.partition) for p in partitions]
        self._granted.update(keys)
        self._read(self._claim(keys))
        self._rebalanced = True

    def _read(self, claims: list[Claim]) -> None:
        """Fetch from where these claims stand."""
        self._unassign(self._consumer, [(c.topic, c.partition) for c in claims])
        try:
            self._consumer.incremental_assign([self.claims.start(claim) for claim in claims])
            # A pause outlives its assignment.
            self._consumer.resume([TopicPartition(c.topic, c.partition) for c in claims])
            self._paused.difference_update((c.topic, c.partition) for c in claims)
        except KafkaException as error:  # in a callback it would end the process
            logger.warning("%s: %s; claiming again", self.name, error.args[0].str())
            self._lost.extend(claims)

    def _unassign(self, consumer: Consumer, keys: Iterable[Key], *, called_back: bool = False) -> None:
        """Fetch no more of these; what librdkafka has let go of meanwhile, by a rebalance of its own, is gone already.

        `called_back`: it waits for an answer, be it that there is nothing to let go of. Without one the binding answers with
        all that is revoked, also what an incident stops, which librdkafka refuses.
        """
        assigned = {(p.topic, p.partition) for p in consumer.assignment()}
        held = [TopicPartition(*key) for key in keys if key in assigned]
        try:
            if held or called_back:
                consumer.incremental_unassign(held)
        except KafkaException as error:
            logger.debug("%s: %s", self.name, error)
            for one in held:
                with contextlib.suppress(KafkaException):
                    consumer.incremental_unassign([one])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        if self._is_left(consumer, gone):
            return
        self._give_up(gone)
        self._forget(consumer, gone)
        self._rebalanced = True

    def _may_join_at_once(self) -> None:
        """Let the next round of this rebalance begin: librdkafka joins once a second, counted anew by each metadata answer.

        What is to move stands still between the round that revokes it and the one that assigns it.
        """
        self._rebalanced = False
        with contextlib.suppress(KafkaException):
            self._consumer.list_topics(self._sources.topics()[0], timeout=1)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        if self._is_left(consumer, gone):
            return
        logger.warning("%s lost %s without a hand-over", self.name, gone)
        self.claims.bereft += [claim for key in gone if (claim := self.claims.get(*key)) is not None]
        self._forget(consumer, gone)

    def _is_left(self, consumer: Consumer, gone: list[Key]) -> bool:
        """Whether it is one that was left to itself: what it lets go of is another's, and it is answered, and no more."""
        if consumer is self._consumer:
            return False
        self._unassign(consumer, gone, called_back=True)
        return True

    def _forget(self, consumer: Consumer, gone: list[Key]) -> None:
        self._drop(gone)
        self._granted.difference_update(gone)
        self._stand_still(consumer, gone, called_back=True)

    def _drop(self, keys: list[Key]) -> None:
        claims = [claim for key in keys if (claim := self.claims.get(*key)) is not None]
        self.claims.drop(keys)
        self._turns.give_back(claims)

    def _stand_still(self, consumer: Consumer, gone: Iterable[Key], *, called_back: bool = False) -> None:
        """Fetch no more of these."""
        gone = list(gone)
        self._paused.difference_update(gone)
        self._unassign(consumer, gone, called_back=called_back)

    def _claim(self, keys: list[Key]) -> list[Claim]:
        """Claim these partitions, while there is a lease; again and again, until it can be done.

        But not those of which Kafka tells nothing: the group waits for this, and the others are to be read.
        """
        attempt = 0
        while not self._stop.is_set() and self._has_lease() and not self._sources.changed:
            try:
                crash_point("consumer.before_claim")
                claims = self.claims.take(self._consumer, keys)
            except (psycopg.Error, UnavailableError) as error:
                attempt += 1
                why = unavailable(error, self._ledger.database.url)
                seldom.say(logger, f"claiming for {self.name}: {why}; trying again")
                if isinstance(error, psycopg.OperationalError):
                    self._ledger.close()
                self._stop.wait(backoff(attempt))
                continue
            crash_point("consumer.after_claim")
            if self._pauses:
                self.claims.pause(self._pauses)  # before anything of them is taken, which the same poll may give
            self._keep_rate()
            return claims
        return []

    def _claim_again(self) -> None:
        """R7: refused, yet Kafka still assigns it to us; or its position is not in the log any more."""
        self._record_halted()
        lost = [self._lost.popleft() for _ in range(len(self._lost))]
        again = sorted({(c.topic, c.partition) for c in lost} & self._granted)
        mine = [(c.topic, c.partition) for c in lost if self.claims.get(c.topic, c.partition) is c]
        self._give_up(mine)
        self._drop(mine)
        self._skipped.difference_update(lost)
        if not again:
            return
        logger.warning("%s claims %s again", self.name, again)
        claims = self._claim(again)
        self._stand_still(self._consumer, set(again) - {(c.topic, c.partition) for c in claims})
        self._read(claims)

    def _record_halted(self) -> None:
        """What has stopped is recorded before it is claimed again; where that fails, in the next turn."""
        try:
            while self._halted:
                claim, kind, first, detail = self._halted[0]
                if self.claims.get(claim.topic, claim.partition) is claim:
                    self.claims.stop(claim, kind, first, detail)
                    self._lost.append(claim)
                self._halted.popleft()
        except (psycopg.Error, UnavailableError) as error:
            seldom.say(
                logger, f"{unavailable(error, self._ledger.database.url)}; {self.name} records an incident later"
            )
            self._ledger.close()

    def _give_up(self, keys: list[Key]) -> None:
        """Start nothing new, accept what has started, then let go of the claims (R8); without a lease, just drop them."""
        held = (self.claims.get(*key) for key in keys)
        claims = {claim for claim in held if claim is not None and not claim.lost}
        for claim in claims:
            claim.revoked = True
        if not claims or self._abandoned or not self._has_lease():
            return
        self._accept(claims, 5.0)
        crash_point("consumer.before_release")
        self.claims.release(claims)


def _see(runs: list[Run]) -> None:
    """These are handed out: each claim knows how old its last one is."""
    for last in {run.claim: run for run in runs}.values():
        cast("Claim", last.claim).seen = last.timestamp or 0
