"""The relay: takes events out of the outbox and publishes them, each exactly once, in order per key (PROTOCOL.md R17).

Every process that runs something has one; one of them holds the relay, under an epoch, and the others wait for its end.
The holder numbers a batch in a short transaction, which also deletes the events of the batch before; then it sends the batch
in a Kafka transaction that holds the number. After any error it begins anew: it claims, reads both sides, and knows what is
out. No outcome is guessed and no commit is tried twice.

What Kafka refuses for good is parked, with whatever comes behind it of the same topic and key; everything else goes on.
"""

import contextlib
import logging
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from eventflow.brokers import reason
from eventflow.database import Connection, Database, KeptConnection, evicting, in_pipeline
from eventflow.errors import CodecError, EventflowError, FencedError, UnavailableError, UnreadableError, first_line
from eventflow.kafka import headers_from_json
from eventflow.metrics import EVENTS
from eventflow.numbering import (
    Batch,
    Blocked,
    Bound,
    Event,
    MismatchError,
    Parked,
    Refused,
    Review,
    Size,
    block,
    compare,
    ranges,
    sift,
)
from eventflow.payloads import unread
from eventflow.slots import NotSentError, Slots
from eventflow.telemetry import crash_point, seldom
from eventflow.tracing import active

logger = logging.getLogger(__name__)

_SLOTS = 2  # used in turn; one would do, and has a longer tail
_MOST = 5000  # events in a batch
_PART = 100  # parked events that are looked at together
_BYTES = 16 * 1024 * 1024
_LOOK = 1.0  # seconds between two looks at who writes, and at what people have decided
_LIVELY = 2.0  # seconds after the last event for which the holder asks by itself whether there are more
_SHORTEST, _LONGEST = 0.002, 0.1  # seconds between two such questions
_AGAIN = 24 * 3600.0  # seconds after which an idle slot's number is said again: a topic that is not compacted forgets
_SUSPICION = 60.0  # seconds until ledger and Kafka are compared again, where they did not fit
_TROUBLE = 10.0  # seconds of trouble in a row, after which another process may try
_ASK_AGAIN = 1.0  # seconds until a topic that could not be published to is asked about again
_BARRED = 30.0  # the same, where the brokers know the topic and let nobody write
_HELD = 1.0  # seconds for which somebody who was seen to relay is believed to
_LEAVE = 3.0  # seconds that the holder goes on when its process leaves, while there are events
_SLOW = 8.0  # seconds after which a Kafka transaction that failed may have been too large for the way to the brokers
_LOST = 20.0  # seconds after which a Kafka transaction will not end: the brokers give it ten, and librdkafka may wait for ever


@dataclass(frozen=True, slots=True)
class State:
    """Who relays, as the ledger has it; `used`: something was published once."""

    epoch: int
    holder: int | None
    alive: bool
    beat: int | None
    used: bool


class Relay:
    """The relay of one incarnation: a thread that holds the relay, or waits until nobody does."""

    def __init__(
        self,
        database: Database,
        executor: int,
        open_slots: Callable[[], Slots],
        *,
        lease: float,
        on_incident: Callable[[str, str, str], None],
    ) -> None:
        self._database, self._executor, self._lease = database, executor, lease
        self._open_slots, self._on_incident = open_slots, on_incident
        self._thread = self._new_thread()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._leaving: float | None = None
        self._asked = False  # somebody here has published
        self._seen: State | None = None
        self._same_since = self._told_at = self._seen_at = 0.0
        self._not_before = 0.0  # when it may claim again, after it has let go
        self._holding: Holding | None = None

    # ---- what others tell it ----

    def start(self) -> None:
        self._thread.start()

    def published(self) -> None:
        """Events are committed, or will be soon: look at once. From any thread."""
        self._asked = True
        self._wake.set()

    def low(self) -> int | None:
        """An id below which the outbox holds nothing, for the beat to ask beyond; None: somebody else relays."""
        holding = self._holding
        return None if holding is None else holding.bound.low

    def told(self, facts: Sequence[Any]) -> None:
        """What the beat has found: a `State`, and whether there is something to do for the holder."""
        *seen, pending = facts
        state, now = State(*seen), time.monotonic()
        if now - self._told_at > self._lease:
            self._same_since = now  # no suspicion over a stretch in which nobody looked
        self._told_at = now
        self._see(state, now)
        holding = self._holding
        if holding is not None and holding.is_lost() and not self.over():
            self._begin_beside(holding)
        elif pending if holding is not None else self._is_free(now):
            self._wake.set()

    def _begin_beside(self, lost: "Holding") -> None:
        """Leave that one's thread to librdkafka, which may never give it back, and hold the relay in another one.

        That claims it under a new epoch, and with its producers' first act no transaction of the old ones can be committed:
        if their thread comes back after all, it finds itself replaced, and if it were not told, fenced on either side (R17).
        """
        logger.warning("a Kafka transaction has not come back from librdkafka for %g s; publishing begins anew", _LOST)
        lost.replaced = True
        self._holding = None
        self._asked = True
        self._thread = self._new_thread()
        self._thread.start()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._loop, name="eventflow relay", daemon=True)

    def _see(self, state: State, now: float) -> None:
        seen, self._seen, self._seen_at = self._seen, state, now
        if seen is None or (seen.holder, seen.beat) != (state.holder, state.beat):
            self._same_since = now

    def _is_free(self, now: float) -> bool:
        """Whether the relay is to be had, as it was seen last."""
        state = self._seen
        if state is None or not state.used or now < self._not_before:
            return False
        if state.holder is None or state.holder == self._executor or not state.alive:
            return True
        return now - self._same_since > self._lease

    def _is_held(self, now: float) -> bool:
        """Whether another process had the relay just now, so that what is published here need not be asked for."""
        state = self._seen
        return state is not None and state.holder is not None and state.alive and now - self._seen_at < _HELD

    def leave(self) -> None:
        """The process leaves, and has published all that it will: go on while there are events, for a while. Blocks."""
        self._leaving = time.monotonic() + _LEAVE
        self._wake.set()
        self.join(_LEAVE + 1.0)

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def join(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    # ---- what the holder needs ----

    def over(self) -> bool:
        """Whether it has to end: at once, or, where the process leaves, because its time is over."""
        return self._stop.is_set() or (self._leaving is not None and time.monotonic() > self._leaving)

    def leaving(self) -> bool:
        return self._leaving is not None

    def pause(self, seconds: float) -> None:
        """Wait, unless it is to end."""
        self._stop.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for something to do; whether there may be something."""
        woken = self._wake.wait(seconds)
        self._wake.clear()
        return woken

    # ---- the thread ----

    def _loop(self) -> None:
        connection = KeptConnection(self._database, "relay")
        try:
            while self._is_mine() and not self.over() and not (self.leaving() and not self._asked):
                now = time.monotonic()
                if self._is_free(now) or (self._asked and not self._is_held(now)):
                    self._attempt(connection)
                else:
                    self._asked = False
                    if not self.leaving():  # it may have begun to, and woken this thread, just before
                        self.wait(self._lease)
        finally:
            connection.close()

    def _is_mine(self) -> bool:
        """Whether this is the thread that relays, and not one that was replaced."""
        return self._thread is threading.current_thread()

    def _attempt(self, connection: KeptConnection) -> None:
        """Hold the relay if nobody does, for as long as that goes well."""
        try:
            [row] = connection.run("relay_state")
        except (psycopg.Error, UnavailableError) as error:
            seldom.say(logger, f"publishing: {first_line(error)}; trying again", logging.DEBUG)
            connection.close()
            self.pause(0.2)
            return
        self._see(State(*row), time.monotonic())
        self._asked = False
        if not self._is_free(time.monotonic()):
            return
        assert self._seen is not None
        holding = Holding(self, self._database, connection, self._executor, self._open_slots, self._on_incident)
        self._holding = holding
        try:
            holding.hold(self._seen.epoch)
        except FencedError as error:
            logger.info("%s", error)
            self.pause(0.2)
        finally:
            if self._is_mine():
                self._holding, self._seen, self._asked = None, None, False
            holding.close()

    def let_go(self, seconds: float) -> None:
        """Leave it to others for so long."""
        self._not_before = time.monotonic() + seconds * (1 + random.random())


class _TopicsToAskForError(Exception):
    """Of these topics it is not known whether anything can be published to them."""

    def __init__(self, topics: set[str]) -> None:
        super().__init__(topics)
        self.topics = topics


class Holding:
    """The time for which one process holds the relay. `bound` is what the beat asks beyond; `replaced`: another one goes on."""

    def __init__(
        self,
        relay: Relay,
        database: Database,
        connection: KeptConnection,
        executor: int,
        open_slots: Callable[[], Slots],
        on_incident: Callable[[str, str, str], None],
    ) -> None:
        self._relay, self._database, self._kept, self._executor = relay, database, connection, executor
        self._open_slots, self._on_incident = open_slots, on_incident
        self._slots: Slots | None = None
        self._epoch = self._last = 0
        self._slot = 0
        self._newest: dict[int, Batch] = {}
        self._topics: dict[str, tuple[str | None, float]] = {}  # why one cannot be published to, as of when
        self._size = Size(_MOST)
        self._slow: int | None = None  # the batch that was sent last, where that took long and failed
        self.replaced = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.bound = Bound()
        self._blocked = Blocked()
        self._review: Review | None = Review()
        self._turn = False
        self._looked = 0.0
        self._sent_at = time.monotonic()

    def close(self) -> None:
        if self._slots is not None:
            self._slots.close()
            self._slots = None

    def is_lost(self) -> bool:
        """Whether a transaction has been under way for so long that its thread may never come back. From any thread."""
        slots = self._slots
        return slots is not None and slots.sending_for() > _LOST

    def _over(self) -> bool:
        return self.replaced or self._relay.over()

    # ---- from the top ----

    def hold(self, seen: int) -> None:
        """Publish, until the process leaves or there was trouble for too long.

        Raises:
            FencedError: another process relays.

        """
        claim: int | None = seen
        since: float | None = None
        while not self._over():
            try:
                self._claim(claim)
                claim = None
                if not self._settle():
                    continue
                since = None
                self._run()
                if not self.replaced:
                    self._release()
                return
            except FencedError:
                raise
            except MismatchError as error:
                self._stand_still(error)
            except (psycopg.Error, KafkaException, EventflowError, BufferError, TimeoutError) as error:
                if self.replaced:
                    return
                if getattr(error, "sqlstate", None) == "EF004":
                    self._stand_still(error)
                    continue
                now = time.monotonic()
                since = since or now
                self._say(error)
                if now - since > _TROUBLE and claim is None:
                    self._give_up()
                    return
                self._relay.pause(0.05 + min(1.0, (now - since) / 4))
            except Exception as error:  # a fault of the code, or something that nobody has thought of
                if not self.replaced:
                    logger.exception("publishing failed; another process may try")
                    self._tell("relay", "outbox", f"publishing failed: {type(error).__name__}: {first_line(error)}")
                    self._give_up()
                return
            finally:
                self.close()

    def _say(self, error: Exception) -> None:
        text = reason(error) if isinstance(error, KafkaException) else first_line(error)
        seldom.say(logger, f"publishing waits: {text}; trying again")
        if isinstance(error, psycopg.Error):
            self._kept.close()

    def _stand_still(self, error: Exception) -> None:
        """Nothing may be published until a person has looked: he is told, and it is looked at again now and then."""
        self._tell("relay", "outbox", first_line(error))
        self._relay.pause(_SUSPICION)

    def _give_up(self) -> None:
        """Another process may have a better way to Kafka."""
        self._release()
        self._relay.let_go(1.0)

    def _release(self) -> None:
        try:
            self._kept.run("release_relay", {"executor": self._executor, "epoch": self._epoch})
        except (psycopg.Error, UnavailableError) as error:
            logger.debug("the relay was not released: %s", error)

    def _claim(self, seen: int | None) -> None:
        asked = {"executor": self._executor, "seen": seen}

        def work(connection: Connection) -> int:
            with evicting(self._database, connection, after=1.0):
                [(epoch,)] = self._database.run(connection, "claim_relay", asked)
            return epoch

        self._epoch = self._kept.transact(work)
        self._begin_anew()
        logger.info("executor %d relays what is published, in epoch %d", self._executor, self._epoch)
        crash_point("relay.after_claim")

    def _settle(self) -> bool:
        """Find out what is out, and send what is due; whether that went well. The order is R17.6's."""
        batches = self._batches() or [self._birth(0, None)]
        events = [_event(row) for row in self._kept.run("read_batch_events")]
        newest = batches[-1]
        if len(events) not in {0, newest.events}:
            raise MismatchError(f"batch {newest.n} has {len(events)} events in the ledger, of {newest.events}")
        due = newest if events else None
        self._last, self._slot = newest.n, newest.slot
        self._newest = {batch.slot: batch for batch in batches}
        self._slots = slots = self._open_slots()
        self._check_cluster(slots.cluster())
        slots.open(self._newest)
        crash_point("relay.after_init")
        said = slots.numbers(list(self._newest))
        self._kept.run("fence_relay", {"epoch": self._epoch})  # still ours: what was read of both sides fits together
        findings = compare(batches, due, said)
        crash_point("relay.before_settling")
        for batch, what in findings:
            going = events if what == "send" or (what == "look" and not slots.is_out(batch, events)) else []
            if batch.n == self._slow and len(going) > 1:
                self._halve(batch, going)
                return False
            if not self._send(batch, going):
                return False
        for slot in range(_SLOTS):
            if slot not in self._newest:
                slots.add(slot)
                slots.send(self._birth(slot, self._last), ())
        self._blocked = self._parked()
        return True

    def _halve(self, batch: Batch, events: Sequence[Event]) -> None:
        """Kafka ends a transaction that takes too long. The last one did, and is known not to be out: send less in one."""
        logger.warning("a Kafka transaction of %d events took too long; the next one has half as many", len(events))
        self._take_back(batch, ())
        self._size.refused(len(events))
        self._slow = None

    def _batches(self) -> list[Batch]:
        return [Batch(*row) for row in self._kept.run("read_batches")]

    def _birth(self, slot: int, last: int | None) -> Batch:
        """An empty batch: a number that Kafka has to know before anything is sent through the slot."""
        batch = Batch(0 if last is None else last + 1, slot, uuid.uuid4().hex, 0, datetime.now(UTC))

        def work(connection: Connection) -> None:
            self._database.run(connection, "settle_batch", {"epoch": self._epoch, "last": last})
            self._insert(connection, batch, ())

        self._kept.transact(work)
        self._last = batch.n
        self._newest[slot] = batch
        return batch

    def _check_cluster(self, cluster_id: str) -> None:
        known = self._kept.run("know_cluster", {"epoch": self._epoch, "cluster_id": cluster_id})
        if known and known[0][0] != cluster_id:
            raise MismatchError(
                f"this ledger publishes to the Kafka cluster {known[0][0]!r}, and this is {cluster_id!r}; if that is meant, "
                "set cluster_id of the table relay to null"
            )

    def _parked(self) -> Blocked:
        blocked = Blocked()
        after = 0
        while rows := self._kept.run("read_undelivered", {"after": after, "most": _PART}):
            block(blocked, (_refused(row).event for row in rows))
            after = rows[-1][0]
        return blocked

    # ---- one batch after another ----

    def _run(self) -> None:
        while not self._over():
            self._look()
            crash_point("relay.before_numbering")
            try:
                numbered = self._number()
            except _TopicsToAskForError as ask:
                self._ask_for(ask.topics)
                continue
            if numbered is not None:
                crash_point("relay.after_numbering")
                self._send(*numbered)
                self._sent_at = time.monotonic()
            elif self._review is None and not self._turn:  # else it has looked at what is parked only
                if self._relay.leaving():
                    return
                self._wait()

    def _send(self, batch: Batch, events: Sequence[Event]) -> bool:
        """Send a batch that is not out; whether it is then, or was taken back because Kafka refuses something of it."""
        assert self._slots is not None
        lost = unread_of(events)
        if lost is not None:
            raise lost
        tracing = active()
        span = (
            None
            if tracing is None
            else tracing.send((event.topic for event in events), (event.headers for event in events), len(events))
        )
        began = time.monotonic()
        try:
            with span or contextlib.nullcontext():
                self._slots.send(batch, events)
        except NotSentError as error:
            self._void(batch, events, error)
            return False
        except KafkaException:
            self._slow = batch.n if time.monotonic() - began > _SLOW else None
            raise
        for topic, count in Counter(event.topic for event in events).items():
            EVENTS.add(count, topic)
        self._size.sent()
        return True

    def _number(self) -> tuple[Batch, list[Event]] | None:
        """Delete the events of the last batch, which is out, and number the next one; None: there is nothing to send."""
        refused: list[tuple[Event, str]] = []
        self._turn = self._review is not None and not self._turn
        part = self._take_parked if self._turn else self._take

        def work(connection: Connection) -> tuple[Batch, list[Event]] | None:
            self._database.run(connection, "settle_batch", {"epoch": self._epoch, "last": self._last})
            events = part(connection, refused)
            if not events:
                return None
            slot = (self._slot + 1) % _SLOTS
            batch = Batch(self._last + 1, slot, uuid.uuid4().hex, len(events), datetime.now(UTC))
            self._insert(connection, batch, [event.id for event in events])
            crash_point("relay.in_numbering")
            return batch, events

        numbered = in_pipeline(self._kept.open(), work)
        if numbered is not None:
            batch = numbered[0]
            self._last, self._slot, self._newest[batch.slot] = batch.n, batch.slot, batch
        for event, why in refused:
            self._tell("undelivered", event.topic, why)
        return numbered

    def _insert(self, connection: Connection, batch: Batch, ids: Iterable[int]) -> None:
        row = {"n": batch.n, "slot": batch.slot, "id": batch.id, "events": batch.events, "ids": ranges(ids)}
        self._database.run(connection, "insert_batch", row)

    def _take(self, connection: Connection, refused: list[tuple[Event, str]]) -> list[Event]:
        """The next events of the outbox; those that cannot go out are parked."""
        asked = {"low": self.bound.low, "most": self._size.now, "bytes": _BYTES}
        events = [_event(row) for row in self._database.rows(connection, "take_events", asked)]
        self._check_topics(events)
        self.bound.read([event.id for event in events])
        going, parked = sift(events, self._blocked, self._refusal)
        if parked:
            self._park(connection, parked)
            self._block(events, parked, refused)
        return going

    def _take_parked(self, connection: Connection, refused: list[tuple[Event, str]]) -> list[Event]:
        """The next of the parked events that may go out now, for a person has decided so."""
        review = self._review
        assert review is not None
        most = min(self._size.now, _PART)
        rows = self._database.rows(connection, "read_undelivered", {"after": review.after, "most": most})
        found = [_refused(row) for row in rows]
        self._check_topics([one.event for one in found if one.wanted == "retry" or one.behind])
        events, dropped = review.part(found)
        if dropped:
            self._database.run(connection, "drop_undelivered", {"events": dropped})
        going, parked = sift(events, {}, self._refusal)
        if parked:
            self._park(connection, parked)
            self._block(events, parked, refused)
        if len(rows) < most:
            self._blocked, again = review.end()
            self._review = Review() if again else None
        return going

    def _block(self, events: Sequence[Event], parked: Sequence[Parked], refused: list[tuple[Event, str]]) -> None:
        by_id = {event.id: event for event in events}
        waiting = [by_id[one.id] for one in parked]
        block(self._blocked, waiting)
        if self._review is not None:
            self._review.parked(waiting)
        refused += [(by_id[one.id], one.reason) for one in parked if not one.behind]

    def _park(self, connection: Connection, parked: Sequence[Parked]) -> None:
        columns = {
            "events": [one.id for one in parked], "behind": [one.behind for one in parked],
            "reasons": [one.reason for one in parked],
        }  # fmt: skip
        [(moved,)] = self._database.rows(connection, "park_events", columns)
        [(found,)] = self._database.rows(connection, "park_again", columns) if moved < len(parked) else [(0,)]
        if moved + found != len(parked):
            raise MismatchError(f"{len(parked)} events were to be parked, and {moved + found} were there")

    def _void(self, batch: Batch, events: Sequence[Event], error: NotSentError) -> None:
        """Take a batch back of which Kafka has nothing, nor ever will, and park the events that are to blame (R17.12)."""
        guilty = error.guilty
        if not guilty and len(events) == 1:
            self._check_number(batch)
            guilty = {events[0].id: error.reason}
        parked = [Parked(event.id, False, guilty[event.id]) for event in events if event.id in guilty]
        self._take_back(batch, parked)
        if not guilty:
            self._size.refused(len(events))
        if self._turn:  # what people have let go of comes before what is new, and is parked still
            block(self._blocked, events)
        refused: list[tuple[Event, str]] = []
        self._block(events, parked, refused)
        for event, why in refused:
            self._topics.pop(event.topic, None)
            if error.topical:
                self._topics[event.topic] = (why, time.monotonic() + _BARRED)
            self._tell("undelivered", event.topic, why)
        self._review = Review()  # some of them may have come from there

    def _take_back(self, batch: Batch, parked: Sequence[Parked]) -> None:
        def work(connection: Connection) -> None:
            self._database.run(connection, "void_batch", {"epoch": self._epoch, "last": batch.n})
            if parked:
                self._park(connection, parked)

        self._kept.transact(work)
        self._newest = {one.slot: one for one in self._batches()}
        self._last = batch.n - 1

    def _check_number(self, batch: Batch) -> None:
        """Say the number once more that the batch's slot has in Kafka: no event is to blame where that is refused.

        Raises:
            KafkaException: it is.

        """
        assert self._slots is not None
        before = [one for one in self._batches() if one.slot == batch.slot and one.n < batch.n]
        self._slots.send(before[-1], ())

    # ---- topics ----

    def _refusal(self, event: Event) -> str | None:
        """Why an event cannot go out, as far as that is known before it is tried."""
        return self._topics[event.topic][0]

    def _check_topics(self, events: Iterable[Event]) -> None:
        topics = {event.topic for event in events}
        due = time.monotonic() - _ASK_AGAIN
        unknown = {
            t for t in topics if (known := self._topics.get(t)) is None or (known[0] is not None and known[1] < due)
        }
        if unknown:
            raise _TopicsToAskForError(unknown)

    def _ask_for(self, topics: set[str]) -> None:
        """Ask the brokers; one that they do not know may have been made just now, so more than once."""
        assert self._slots is not None
        for topic in topics:
            for attempt in range(1 if topic in self._topics else 5):
                refusal = self._slots.refusal(topic)
                self._topics[topic] = (refusal, time.monotonic())
                if refusal is None:
                    break
                self._relay.pause(0.1 * (attempt < 4))

    # ---- between batches ----

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        self.bound.look(row[0] for row in self._kept.run("outbox_writers"))
        self._pending()
        for slot, batch in self._newest.items():
            if self._slots is not None and now - self._slots.idle_since(slot) > _AGAIN:
                self._slots.send(batch, ())

    def _pending(self) -> bool:
        """Whether there is something to take; what people have decided is seen to from now on."""
        [(events, decided)] = self._kept.run("outbox_pending", {"low": self.bound.low})
        if decided and self._review is None:
            self._review = Review()
            self._topics = {t: known for t, known in self._topics.items() if known[0] is None}  # it may be mended
        return events or decided

    def _wait(self) -> None:
        """Until there may be something to do: for a while by asking often, then by what the beat and this process tell."""
        while not self._over() and not self._relay.leaving():
            quiet = time.monotonic() - self._sent_at
            lively = quiet < _LIVELY
            if self._relay.wait(min(max(quiet / 5, _SHORTEST), _LONGEST) if lively else 600.0):
                return
            self._look()
            if self._pending():
                return
            self.bound.read(())

    def _tell(self, kind: str, subject: str, detail: str) -> None:
        """Tell people, seldom, in the log and in the ledger."""
        if not seldom.may_say(f"{kind} {subject} {detail}"):
            return
        try:
            self._on_incident(kind, subject, detail)
        except (psycopg.Error, UnavailableError) as error:
            logger.debug("an incident was not recorded: %s", error)


def _event(row: Sequence[Any]) -> Event:
    """Of the columns id, topic, key, value, headers."""
    event_id, topic, key, value, headers = row
    if headers is None:
        return Event(event_id, topic, key, value, [])
    lost = unread([headers])
    if lost is not None:
        return Event(event_id, topic, None, None, [], str(lost))
    try:
        named = headers_from_json(headers) or []
    except CodecError as error:
        return Event(event_id, topic, key, None, [], str(error))
    if any("\0" in name for name, _ in named):
        return Event(event_id, topic, key, None, [], "a header's name has a NUL, which no client of Kafka takes")
    return Event(event_id, topic, key, value, named)


def _refused(row: Sequence[Any]) -> Refused:
    """Of the columns of `read_undelivered.sql`."""
    event_id, _, topic, key, value, headers, behind, _, _, wanted = row
    return Refused(_event((event_id, topic, key, value, headers)), behind, wanted)


def unread_of(events: Iterable[Event]) -> UnreadableError | None:
    """Why one of these could not be decoded from what is stored; None where all were."""
    return next((UnreadableError(event.unread) for event in events if event.unread is not None), None)
