"""Kafka's side of the relay: a transactional producer for each slot, and the numbers of batches that Kafka keeps (R17).

A slot's number is the last message that is committed in the slot's partition of an internal topic: it is in the transaction
that holds the batch's events, so that both are out or neither is (ADR 23).
"""

import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, cast

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # pyright: ignore[reportPrivateImportUsage]
from confluent_kafka.cimpl import NewTopic

from eventflow.brokers import Brokers, logger, reason
from eventflow.errors import UnavailableError, UsageError
from eventflow.kafka import headers_of
from eventflow.numbering import Batch, Event, MismatchError, Number
from eventflow.outbox import check_topic
from eventflow.settings import KafkaProperties
from eventflow.telemetry import crash_point, seldom

_PARTITIONS = 4  # of the internal topic: one for each slot that may ever be used
_TOPIC = {  # of which each partition's last message counts, and must not be lost while events of its transaction are kept
    "cleanup.policy": "compact", "segment.bytes": str(16 << 20), "unclean.leader.election.enable": "false",
}  # fmt: skip
_REPLICAS = 3  # of it, where there are so many brokers; all but one must have what is committed
_BACK = 100  # offsets before a partition's end, from which on its last message is looked for first
_ASK = 10.0  # seconds that a question may take
_COMMIT = 15.0
_INIT = 30.0
_EARLIER = 3600  # seconds before a batch was numbered, from which on its events are looked for: clocks differ
_SCAN = 60.0
_MEGABYTE = 1 << 20

# An event with one of these is to blame itself, or its topic is; everything else is the brokers' trouble, or the relay's.
_ITS_OWN = {
    KafkaError.MSG_SIZE_TOO_LARGE: "it is larger than Kafka takes",
    KafkaError.RECORD_LIST_TOO_LARGE: "it is larger than a segment of the topic",
    KafkaError.INVALID_MSG_SIZE: "Kafka refuses its size",
    KafkaError.INVALID_RECORD: "Kafka refuses it",
    KafkaError.INVALID_MSG: "Kafka refuses it",
    KafkaError.POLICY_VIOLATION: "it violates a policy of the brokers",
    KafkaError.TOPIC_EXCEPTION: "Kafka takes this for no topic's name",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "there is no such topic",
    KafkaError._UNKNOWN_TOPIC: "there is no such topic",
    KafkaError._UNKNOWN_PARTITION: "there is no such topic",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this program may not write to the topic",
}
_OF_THE_TOPIC = frozenset({
    KafkaError.TOPIC_EXCEPTION, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION, KafkaError.TOPIC_AUTHORIZATION_FAILED,
})  # fmt: skip
# A transaction that fails has librdkafka throw away what it has not sent yet, or not had an answer for.
_THROWN_AWAY = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
_OURS: KafkaProperties = {
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "linger.ms": 0,
    "retry.backoff.ms": 10,
    "retry.backoff.max.ms": 1000,
    "transaction.timeout.ms": 10_000,
    "queue.buffering.max.messages": 500_000,
    "batch.num.messages": 10_000,
    "message.max.bytes": 64 * _MEGABYTE,
    "topic.metadata.propagation.max.ms": 2000,
    "delivery.report.only.error": True,
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 500,
}


class NotSentError(Exception):
    """A batch was aborted, and Kafka has none of it: one of its events was refused for good.

    Attributes:
        guilty: which ones, by id, and why; empty where that is not known.
        reason: why, in any case.
        topical: nothing at all can be published to the topic.

    """

    def __init__(self, guilty: dict[int, str], reason: str, *, topical: bool) -> None:
        super().__init__(reason)
        self.guilty = guilty
        self.reason = reason
        self.topical = topical


class _Failed(NamedTuple):
    """An event that was refused; `alone`: by itself, and not with others that went to the broker together."""

    event: int
    error: KafkaError
    alone: bool


class Slots:
    """The slots of one ledger's relay, from when they are opened until they are closed; nothing survives an error."""

    def __init__(self, servers: str, properties: KafkaProperties, ledger: str, prefix: str) -> None:
        self._ledger = ledger
        self._prefix = f"{prefix}-"
        self._topic = f"{prefix}-{ledger}"  # its transactional ids begin with the same
        self._brokers = Brokers(servers, properties, {}, self._topic, "eventflow-relay", self._on_error)
        self._producers: dict[int, Producer] = {}
        self._touched: dict[int, float] = {}
        self._began: float | None = None  # when the transaction that is under way did

    def _on_error(self, error: KafkaError) -> None:
        seldom.say(logging.getLogger("eventflow.relay"), f"Kafka: {error.str()}", logging.DEBUG)

    # ---- opening ----

    def cluster(self) -> str:
        """The cluster's id; the internal topic exists from then on.

        Raises:
            UnavailableError: the brokers do not answer, or do not let us make it.

        """
        admin = self._brokers.admin
        try:
            metadata = admin.list_topics(timeout=_ASK)
            if self._topic not in metadata.topics:
                self._create(admin, min(_REPLICAS, len(metadata.brokers)))
        except KafkaException as error:
            raise self._brokers.unavailable(error, f", the relay's topic {self._topic!r}") from error
        finally:
            admin.poll(0)
        return metadata.cluster_id or ""

    def _create(self, admin: Any, replicas: int) -> None:
        config = {**_TOPIC, "min.insync.replicas": str(max(1, replicas - 1))}
        wanted = NewTopic(self._topic, _PARTITIONS, replicas, config=config)
        try:
            admin.create_topics([wanted], request_timeout=_ASK)[self._topic].result(_ASK + 2)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        until = time.monotonic() + _ASK
        while self._topic not in admin.list_topics(self._topic, timeout=_ASK).topics or self._led(admin) < _PARTITIONS:
            if time.monotonic() > until:
                raise UnavailableError(
                    f"the relay's topic {self._topic!r} was made, and the brokers do not lead it yet"
                )
            time.sleep(0.05)

    def _led(self, admin: AdminClient) -> int:
        found = admin.list_topics(self._topic, timeout=_ASK).topics[self._topic]
        return sum(partition.leader >= 0 for partition in found.partitions.values())

    def open(self, slots: Iterable[int]) -> None:
        """Take these slots over: no transaction of theirs that was under way can be committed after that.

        Raises:
            KafkaException: the brokers do not answer, or refuse it.

        """
        self._producers = {slot: self._producer(slot) for slot in slots}
        errors: list[BaseException] = []

        def init(producer: Producer) -> None:
            try:
                producer.init_transactions(_INIT)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=init, args=(p,), daemon=True) for p in self._producers.values()]
        with self._under_way(_INIT):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        self._touched = dict.fromkeys(self._producers, time.monotonic())

    def _config(self) -> dict[str, Any]:
        config = self._brokers.config
        return {**config, "fetch.wait.max.ms": 10, "retry.backoff.ms": 10}

    def _producer(self, slot: int) -> Producer:
        config = self._brokers.admin_config | _OURS | {"transactional.id": f"{self._topic}-{slot}"}
        return Producer(config, logger=logger)

    def add(self, slot: int) -> None:
        """Open one by itself."""
        self._producers[slot] = self._producer(slot)
        with self._under_way(_INIT):
            self._producers[slot].init_transactions(_INIT)

    @contextlib.contextmanager
    def _under_way(self, limit: float = 0.0) -> Generator[None]:
        """What may not come back; after `limit` seconds it should have by itself, if librdkafka keeps its limits."""
        before, self._began = self._began, time.monotonic() + limit
        try:
            yield
        finally:
            self._began = before

    def close(self) -> None:
        """Let go of all of them; what is under way may be committed or not: who opens them next finds out."""
        self._producers = {}

    # ---- numbers ----

    def numbers(self, slots: Iterable[int]) -> dict[int, Number | None]:
        """What Kafka says of each slot: the number that was committed last; None: nothing, or nothing any more.

        After they were opened: no transaction of theirs is under way then, so that the end of what is committed is the end.

        Raises:
            KafkaException: the brokers do not answer, or refuse it.

        """
        asking = Consumer(self._config(), logger=logger)
        try:
            return {slot: self._last(asking, slot) for slot in slots}
        finally:
            asking.close()

    def _last(self, asking: Consumer, slot: int) -> Number | None:
        low, high = asking.get_watermark_offsets(TopicPartition(self._topic, slot), _ASK)
        begin, back = high, _BACK
        while begin > low:
            begin, back = max(low, high - back), back * 10
            found = self._last_from(asking, slot, begin, high)
            if found is not None:
                return found
        return None

    def _last_from(self, asking: Consumer, slot: int, begin: int, end: int) -> Number | None:
        """The last number from an offset on, if there is one before the end."""
        asking.assign([TopicPartition(self._topic, slot, begin)])
        found: bytes | None = None
        until = time.monotonic() + _ASK
        while True:
            message = asking.poll(0.2)
            if message is None:
                if time.monotonic() > until:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            elif _ended(message, {slot: end}):
                return None if found is None else self._number(found, slot)
            elif message.error() is None:
                found = message.value() or b""

    def _number(self, value: bytes, slot: int) -> Number:
        """As it was produced."""
        try:
            n, batch_id = json.loads(value)
        except (ValueError, TypeError):
            raise MismatchError(
                f"the last message of partition {slot} of the relay's topic {self._topic!r} is no number: {value[:100]!r}"
            ) from None
        return n, batch_id

    def idle_since(self, slot: int) -> float:
        """When its number was last committed, or it was opened, by the monotonic clock."""
        return self._touched[slot]

    # ---- sending ----

    def event_id(self, event: int) -> str:
        """What an event is known by, in its header."""
        return f"{self._ledger}/{event}"

    def sending_for(self) -> float:
        """For how many seconds a transaction has been under way; 0: none is. From any thread."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def send(self, batch: Batch, events: Sequence[Event]) -> None:
        """One Kafka transaction: the events, in order, and the batch's number.

        Raises:
            NotSentError: nothing is out, for some of these events are refused for good.
            KafkaException: whether it is out is not known.

        """
        with self._under_way():
            self._send(batch, events)

    def _send(self, batch: Batch, events: Sequence[Event]) -> None:
        producer = self._producers[batch.slot]
        failed: list[_Failed] = []
        unnumbered: list[KafkaError] = []
        producer.begin_transaction()
        number = json.dumps(batch.number).encode()
        told = functools.partial(_told_of_number, unnumbered)
        whole = True
        try:
            self._produce(producer, events, failed)
            producer.produce(self._topic, number, b"number", partition=batch.slot, on_delivery=told)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            whole = False  # an event was refused meanwhile, with which the transaction has failed: its commit says why
        crash_point("relay.after_produce")
        try:
            crash_point("relay.before_commit")
            if not any(one.alone for one in failed):  # else it would be committed without these
                producer.commit_transaction(_COMMIT)
        except KafkaException as error:
            if unnumbered or not events:  # no event is to blame
                raise KafkaException(*unnumbered[:1] or error.args) from error
            self._abort(batch.slot, failed, error)
        if failed:
            self._abort(batch.slot, failed, None)
        if not whole:
            raise MismatchError(f"a Kafka transaction that had failed was committed, with a part of batch {batch.n}")
        crash_point("relay.after_commit")
        self._touched[batch.slot] = time.monotonic()

    def _produce(self, producer: Producer, events: Sequence[Event], failed: "list[_Failed]") -> None:
        ledger = self._ledger
        for count, (event_id, topic, key, value, headers, _) in enumerate(events):
            sent: list[Any] = [*headers, ("eventflow-id", f"{ledger}/{event_id}".encode())]
            on_delivery = functools.partial(_told, failed, event_id)
            until = 0.0
            while True:
                try:
                    producer.produce(topic, value, key, headers=sent, on_delivery=on_delivery)
                    break
                except BufferError:
                    until = until or time.monotonic() + _COMMIT
                    if time.monotonic() > until:
                        raise
                    producer.poll(0.05)
                except KafkaException as error:
                    if error.args[0].code() not in _ITS_OWN:
                        raise
                    failed.append(_Failed(event_id, error.args[0], alone=True))
                    break
            if not count & 1023:
                producer.poll(0)

    def _abort(self, slot: int, failed: list[_Failed], error: KafkaException | None) -> NoReturn:
        """Nothing is out once the abort has returned; an error that says nothing of the events is raised again."""
        producer = self._producers[slot]
        producer.poll(0)
        cause: KafkaError | None = None if error is None else error.args[0]
        blamed = [one for one in failed if one.error.code() in _ITS_OWN]
        blames = bool(blamed) or (cause is not None and cause.code() in _ITS_OWN)
        if error is not None and cause is not None and not (blames and cause.txn_requires_abort()):
            raise error
        try:
            producer.abort_transaction(_COMMIT)
        except KafkaException as nothing:  # librdkafka does not know whether Kafka admitted a single partition
            if nothing.args[0].code() != KafkaError.INVALID_TXN_STATE:
                raise
        self.add(slot)  # the old one is spent, or would go on behind a sequence number that Kafka has never seen
        exact = [one for one in blamed if one.alone or one.error.code() in _OF_THE_TOPIC]
        if not exact and len(blamed) == 1:
            exact = blamed
        first = blamed[0].error if blamed else cause
        assert first is not None
        guilty = {one.event: why(one.error) for one in exact}
        raise NotSentError(guilty, why(first), topical=first.code() in _OF_THE_TOPIC) from error

    # ---- what there is ----

    def refusal(self, topic: str) -> str | None:
        """Why nothing can be published to this topic; None: it can, or the brokers do not say.

        Raises:
            KafkaException: they do not answer.

        """
        try:
            check_topic(topic)
        except UsageError as error:
            return str(error)
        if topic.startswith(self._prefix):
            return f"topics whose names begin with {self._prefix} are the relay's own"
        admin = self._brokers.admin
        try:
            found = admin.list_topics(topic, timeout=_ASK).topics.get(topic)
        finally:
            admin.poll(0)
        error = None if found is None else found.error
        if found is not None and error is None:
            return None
        if error is not None and error.code() not in _OF_THE_TOPIC:
            return None
        return why(error) if error is not None else "there is no such topic"

    def is_out(self, batch: Batch, events: Sequence[Event]) -> bool:
        """Whether a batch of which Kafka has forgotten the number is out, by its events themselves.

        All or nothing holds for a Kafka transaction: so one topic is enough. "No" needs every partition read to its end, in a
        log of which nothing was deleted since the batch was numbered.

        Raises:
            MismatchError: that cannot be told.
            KafkaException: the brokers do not answer.

        """
        topic = events[0].topic
        wanted = {self.event_id(event.id).encode() for event in events if event.topic == topic}
        asking = Consumer(self._config(), logger=logger)
        try:
            begin, ends, gone = self._stretch(topic, int((batch.at.timestamp() - _EARLIER) * 1000))
            asking.assign(begin)
            left, until = {place for place, end in ends.items() if end}, time.monotonic() + _SCAN
            while left:
                if time.monotonic() > until:
                    raise MismatchError(f"whether batch {batch.n} is out: topic {topic!r} cannot be read to its end")
                message = asking.poll(0.2)
                if message is None:
                    continue
                if _ended(message, ends):
                    left.discard(message.partition() or 0)
                elif any(name == "eventflow-id" and value in wanted for name, value in headers_of(message) or ()):
                    return True
            if gone or self._is_compacted(topic):
                raise MismatchError(
                    f"whether batch {batch.n} is out: topic {topic!r} may have had its events and lost them"
                )
            return False
        finally:
            asking.close()

    def _stretch(self, topic: str, since: int) -> tuple[list[TopicPartition], dict[int, int], bool]:
        """From where to read each partition of a topic, up to where, and whether more was there once.

        Up to the end of what is written, committed or not: while another program's transaction is open, nobody is shown what
        is committed behind it, and its end must be waited for.
        """
        partitions = self._brokers.partitions(topic)
        asking = Consumer(self._config() | {"isolation.level": "read_uncommitted"}, logger=logger)
        try:
            begin = asking.offsets_for_times([TopicPartition(topic, p, since) for p in partitions], timeout=_ASK)
            ends: dict[int, int] = {}
            gone = False
            for place in begin:
                low, high = asking.get_watermark_offsets(TopicPartition(topic, place.partition), _ASK)
                ends[place.partition] = high if place.offset >= 0 else 0  # nothing came since then
                gone = gone or (low > 0 and (low == high or 0 <= place.offset <= low))
            return [place for place in begin if place.offset >= 0], ends, gone
        finally:
            asking.close()

    def _is_compacted(self, topic: str) -> bool:
        admin, asked = cast("Any", self._brokers.admin), cast("Any", ConfigResource)(ResourceType.TOPIC, topic)
        configs: dict[str, Any] = admin.describe_configs([asked], request_timeout=_ASK)[asked].result(_ASK + 2)
        return "compact" in (configs["cleanup.policy"].value or "")


def why(error: KafkaError | None) -> str:
    """Why an event is refused, in one line."""
    if error is None:
        return "Kafka refuses it"
    return f"{_ITS_OWN.get(error.code(), 'Kafka refuses it')} ({reason(KafkaException(error))})"


def _told(failed: list[_Failed], event: int, error: KafkaError | None, _: Message) -> None:
    if error is not None:
        failed.append(_Failed(event, error, alone=False))


def _told_of_number(failed: list[KafkaError], error: KafkaError | None, _: Message) -> None:
    if error is not None and error.code() not in _THROWN_AWAY:
        failed.append(error)


def _ended(message: Message, ends: dict[int, int]) -> bool:
    """Whether this is no message, but the end of its partition, or what comes behind where that was."""
    error = message.error()
    if error is None or error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:  # it asks for a group, and needs none
        return False
    if error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return (message.offset() or 0) >= ends[message.partition() or 0]
