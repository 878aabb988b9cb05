"""How this process speaks to Kafka: librdkafka's properties, its errors in one line, and what the brokers know of a topic."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, TypeVar

import confluent_kafka
from confluent_kafka import OFFSET_INVALID, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec  # pyright: ignore[reportPrivateImportUsage]

from eventflow.errors import SettingsError, UnavailableError
from eventflow.settings import KafkaProperties
from eventflow.telemetry import Seldom

logger = logging.getLogger("eventflow.kafka.client")
logger.setLevel(logging.ERROR)


class _Repeated(logging.Filter):
    """Lets what librdkafka repeats through once a minute: each of its threads says it at each attempt to connect."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom()

    def filter(self, record: logging.LogRecord) -> bool:
        """Which client complains, and after how long, does not count; what `debug` asked to see is let through."""
        if record.levelno < logging.WARNING:
            return True
        return self._seldom.may_say(re.sub(r"\[[^]]*\]|\(after .*", "", record.getMessage()))


logger.addFilter(_Repeated())

_OURS: KafkaProperties = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
}
_COOPERATIVE = "cooperative-sticky"
_DEFAULTS: KafkaProperties = {
    "partition.assignment.strategy": _COOPERATIVE,
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 200,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 32768,
    "topic.metadata.refresh.interval.ms": 10000,
    "topic.metadata.propagation.max.ms": 1,  # a topic that was identified and is unknown now was deleted
    "reconnect.backoff.ms": 250,  # librdkafka stays near it while a broker is away: each attempt is a connect and a line
    "reconnect.backoff.max.ms": 1000,
    "allow.auto.create.topics": False,
    # To bootstrap anew ends the threads of the brokers that were known, and what waits for one of them to come back, as for a
    # group's coordinator, may wait for ever (librdkafka's issues 5456 and 5511).
    "metadata.recovery.strategy": "none",
}
# Milliseconds after which a member that has not joined a rebalance holds the others up no more (librdkafka: 300,000). Messages
# are handled elsewhere than where they are fetched, so that no handler, however slow, costs the membership.
_REBALANCE = 30_000
# What librdkafka refuses under the new rebalance protocol (KIP-848).
_CLASSIC = {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}
# What an admin client, a producer to librdkafka, ignores with a warning. Everything else it takes as a consumer does.
_CONSUMERS_ONLY = frozenset({
    "auto.commit.interval.ms", "auto.offset.reset", "check.crcs", "consume.callback.max.messages",
    "coordinator.query.interval.ms", "enable.auto.commit", "enable.auto.offset.store", "enable.partition.eof",
    "fetch.error.backoff.ms", "fetch.max.bytes", "fetch.message.max.bytes", "fetch.min.bytes", "fetch.queue.backoff.ms",
    "fetch.wait.max.ms", "group.id", "group.instance.id", "group.protocol", "group.protocol.type",
    "group.remote.assignor", "heartbeat.interval.ms", "isolation.level", "max.partition.fetch.bytes",
    "max.poll.interval.ms", "max.poll.records", "partition.assignment.strategy", "queued.max.messages.kbytes",
    "queued.min.messages", "session.timeout.ms", "share.acknowledgement.mode",
})  # fmt: skip
_STATISTICS = 1000  # milliseconds between two looks of librdkafka's at itself
_NO_ANSWER = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})
_ASK = 10  # seconds for a question
_ANSWER = 5  # seconds for one that is asked in a rebalance, where the group waits
Identity = tuple[str, str]  # the cluster's id, the topic's id
Place = tuple[str, int]  # topic, partition
R = TypeVar("R")


class Asked(dict[Place, "Future[Any]"]):
    """What leaders were asked: of each partition, what will be told."""

    def __init__(self, futures: Mapping[Place, "Future[Any]"] | None = None, limit: float = _ANSWER) -> None:
        super().__init__(futures or {})
        self.until = time.monotonic() + limit + 1  # a question ends by itself before that

    def over(self) -> bool:
        """Whether all have told, or will not: librdkafka may forget the questions of a client that was let go of."""
        return all(future.done() for future in self.values()) or time.monotonic() > self.until


class UnknownTopicError(UnavailableError):
    """The brokers do not know the topic, or not any more."""


class _NoAnswerError(Exception):
    """A client of the brokers' had no answer."""


@dataclass(frozen=True)
class Brokers:
    """The brokers as one consumer speaks to them."""

    servers: str
    properties: KafkaProperties = field(repr=False)  # of all consumers: EVENTFLOW_KAFKA; there are secrets among them
    own: KafkaProperties = field(repr=False)  # of this one: kafka= of its handler
    group: str
    client_id: str
    on_error: Callable[[KafkaError], None]

    @classmethod
    def to_ask(cls, servers: str, properties: KafkaProperties) -> "Brokers":
        """For who reads nothing, and only asks.

        Raises:
            SettingsError: no brokers are named.

        """
        if not servers:
            raise SettingsError("KAFKA_BOOTSTRAP_SERVERS is not set")
        return cls(
            servers, properties, {}, "eventflow", "eventflow-client", lambda _: None
        )  # what is asked fails with the same

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._config(self.properties | self.own)

    def _config(self, properties: KafkaProperties) -> dict[str, Any]:
        defaults = _DEFAULTS
        if properties.get("group.protocol") == "consumer":  # then the broker's group settings say these
            defaults = {name: value for name, value in _DEFAULTS.items() if name not in _CLASSIC}
        session = str(properties.get("session.timeout.ms"))  # which librdkafka wants to be no longer than that
        rebalance = max(_REBALANCE, int(session) if session.isdecimal() else 0)
        return {
            **defaults, "max.poll.interval.ms": rebalance, **properties, **_OURS,
            "bootstrap.servers": self.servers, "group.id": self.group,
            "client.id": self.client_id, "error_cb": self.on_error,
        }  # fmt: skip

    @property
    def admin_config(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if name not in _CONSUMERS_ONLY}

    @cached_property
    def admin(self) -> AdminClient:
        return self._new_admin()

    def _new_admin(self) -> AdminClient:
        admin = AdminClient(self.admin_config, logger=logger)
        if str(self.config.get("sasl.mechanism", self.config.get("sasl.mechanisms"))).upper() == "OAUTHBEARER":
            admin.poll(1.0)  # its first token is made in a poll, and what is asked before waits for one in vain
        return admin

    def consumer(self, on_statistics: Callable[[str], None], on_throttle: Callable[[Any], None]) -> Consumer:
        """One to read with; in its polls it tells librdkafka's statistics, and that a broker answers late, by a quota."""
        if self.config.get("debug"):
            logger.setLevel(logging.DEBUG)  # who asks librdkafka for more is shown it
        told = (
            {"statistics.interval.ms": _STATISTICS}
            | self.config
            | {"stats_cb": on_statistics, "throttle_cb": on_throttle}
        )
        return Consumer(told, logger=logger)

    def check(self, name: str) -> None:
        """Whether librdkafka takes this configuration.

        Raises:
            SettingsError: it does not; names the property, and where it was set.

        """
        refusal = _refusal(self.config) or _eager(self.config)
        if refusal is not None:
            of_all = self._config(self.properties)
            everyones = refusal == (_refusal(of_all) or _eager(of_all))
            raise SettingsError(f"{'EVENTFLOW_KAFKA' if everyones else f'kafka= of the handler {name!r}'}: {refusal}")
        if self.config.get("group.protocol") == "consumer":
            logging.getLogger(__name__).info(
                "%s: the broker keeps group %r (KIP-848): its group.consumer.session.timeout.ms says how soon a dead process's "
                "partitions go to others; what it had accepted does after the lease", name, self.group,
            )  # fmt: skip

    def identities(self, topics: Iterable[str]) -> dict[str, Identity | UnavailableError]:
        """What each topic is, or why that cannot be told: an `UnknownTopicError` where there is none of this name.

        Raises:
            UnavailableError: the brokers do not answer.

        """
        names = list(topics)
        return self._learn(lambda admin: self._describe(admin, names)) if names else {}

    def _learn(self, question: Callable[[AdminClient], R]) -> R:
        """The answer of the client that is kept; where it has none, of a new one, which is kept if it has.

        The old one may know no broker any more, and then it never will (`knows_brokers`).

        Raises:
            UnavailableError: the brokers do not answer.

        """
        try:
            return self._answer(self.admin, question)
        except _NoAnswerError:
            fresh = self._new_admin()
        try:
            found = self._answer(fresh, question)
        except _NoAnswerError:
            raise UnavailableError(self.no_answer) from None
        self.__dict__["admin"] = fresh
        return found

    def _answer(self, admin: AdminClient, question: Callable[[AdminClient], R]) -> R:
        try:
            return question(admin)
        except TimeoutError:
            raise _NoAnswerError from None
        except KafkaException as error:
            if error.args[0].code() in _NO_ANSWER:
                raise _NoAnswerError from None
            raise self.unavailable(error) from error
        finally:
            admin.poll(0)  # what the client has to say meanwhile would else be kept, and said all at once later

    @property
    def no_answer(self) -> str:
        """What is said of brokers that are away: by all consumers alike, so that it is said once."""
        return f"Kafka at {self.servers} does not answer"

    def topics(self) -> list[str]:
        """The names of all topics but Kafka's own.

        Raises:
            UnavailableError: the brokers do not answer.

        """
        return self._learn(
            lambda admin: [name for name in admin.list_topics(timeout=5).topics if not name.startswith("__")]
        )

    def partitions(self, topic: str) -> list[int]:
        """The partitions that the topic has now.

        Asked of the admin client, never in a callback of the consumer that it is for: the binding's `list_topics` (2.16)
        forgets whose callback it was called in, and the next line that librdkafka logs in that poll aborts the process.

        Raises:
            KafkaException: the brokers do not answer.

        """
        return list(self.admin.list_topics(topic, timeout=10).topics[topic].partitions)

    def ask(self, places: Iterable[Place], limit: float = _ANSWER) -> Asked:
        """Have these partitions' leaders say where their logs end, and in which epoch: what `answers` waits for."""
        return self._ask({TopicPartition(*place): OffsetSpec.latest() for place in places}, limit)

    def _ask(self, spots: Mapping[TopicPartition, Any], limit: float) -> Asked:
        if not spots:
            return Asked()
        admin: Any = self.admin
        asked = admin.list_offsets(spots, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=limit)
        return Asked({(spot.topic, spot.partition): future for spot, future in asked.items()}, limit)

    def offsets(
        self, topic: str, partitions: Iterable[int], where: Literal["earliest", "latest"] | datetime
    ) -> dict[int, int]:
        """The offset of each partition's first message; that after its last; or of the first since then, -1: there is none.

        Raises:
            UnavailableError: the brokers do not answer.

        """
        if isinstance(where, datetime):
            spec = OffsetSpec.for_timestamp(int(where.timestamp() * 1000))
        else:
            spec = OffsetSpec.earliest() if where == "earliest" else OffsetSpec.latest()
        told, silent = answers(self._ask({TopicPartition(topic, partition): spec for partition in partitions}, _ASK))
        for error in silent.values():
            raise self.unavailable(error, f", topic {topic!r}") from error
        return {partition: one.offset for (_, partition), one in told.items()}

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """The offset after the last message of each of these partitions, but for those whose leaders do not answer.

        Raises:
            UnavailableError: none answers.

        """
        told, silent = answers(self.ask(set(places)))
        for (topic, _), error in silent.items() if not told else ():
            raise self.unavailable(error, f", topic {topic!r}") from error
        return {place: one.offset for place, one in told.items()}

    def times(self, topic: str, places: Mapping[int, Iterable[int]]) -> dict[tuple[int, int], float]:
        """When the first message from each of these offsets on was produced, by partition and offset, in seconds since 1970.

        Of those that hold no message, or that do not answer in time, nothing is said.
        """
        consumer = Consumer(
            self.config | {"enable.partition.eof": True, "auto.offset.reset": "earliest"}, logger=logger
        )
        found: dict[tuple[int, int], float] = {}
        left = {partition: sorted(offsets) for partition, offsets in places.items()}
        until = time.monotonic() + _ASK
        try:
            while left and time.monotonic() < until:
                asked = {partition: offsets[0] for partition, offsets in left.items()}
                consumer.assign([TopicPartition(topic, *place) for place in asked.items()])
                while asked and time.monotonic() < until:
                    message: Any = consumer.poll(0.1)
                    if message is None or message.partition() not in asked:
                        continue
                    offset = asked.pop(message.partition())
                    if message.error() is None and message.timestamp()[1] > 0:
                        found[message.partition(), offset] = message.timestamp()[1] / 1000
                left = {partition: offsets[1:] for partition, offsets in left.items() if len(offsets) > 1}
        finally:
            consumer.close()
        return found

    def cut_off(self, topic: str, read: dict[int, tuple[int, int]]) -> tuple[dict[int, int], dict[int, KafkaException]]:
        """Where those partitions' logs were cut off that do not have any more what was read: an offset, by its leader's epoch.

        And which of them do not tell. A consumer of its own asks: librdkafka validates an assignment (KIP-320) where it has
        yet to learn who leads.
        """
        consumer = Consumer(self.config | {"enable.partition.eof": True, "fetch.message.max.bytes": 1}, logger=logger)
        cut: dict[int, int] = {}
        waiting, until = set(read), time.monotonic() + _ASK
        try:
            consumer.assign(
                [TopicPartition(topic, p, offset, leader_epoch=epoch) for p, (offset, epoch) in read.items()]
            )
            while waiting and time.monotonic() < until:
                message: Any = consumer.poll(0.1)
                if message is not None and message.partition() in waiting:
                    end = None if message.error() is None else cut_at(message.error())
                    cut |= {} if end is None else {message.partition(): end}
                    waiting.discard(message.partition())
        finally:
            consumer.close()
        return cut, {p: _timed_out() for p in waiting}

    def unavailable(self, error: KafkaException, where: str = "") -> UnavailableError:
        """An error of asking the brokers, in one line that names them."""
        if error.args[0].code() in _NO_ANSWER:
            return UnavailableError(self.no_answer)
        return UnavailableError(f"Kafka at {self.servers}{where}: {reason(error)}")

    def _describe(self, admin: Any, topics: list[str]) -> dict[str, Identity | UnavailableError]:
        asked = admin.describe_topics(confluent_kafka.TopicCollection(topics), request_timeout=5)
        cluster_id = self._cluster_id(admin)
        return {topic: self._identity(topic, cluster_id, asked[topic]) for topic in topics}

    def _cluster_id(self, admin: AdminClient) -> str | None:
        """Told with any topic's metadata; one that nobody has to make, and that costs little.

        Never by `describe_cluster`: an only broker that has just come back answers without brokers, and with that, where no
        topic was asked for, either, librdkafka (2.16) aborts the process (`rd_kafka_admin_response_parse`).
        """
        return admin.list_topics("__consumer_offsets", timeout=5).cluster_id

    def _identity(self, topic: str, cluster_id: str | None, asked: Any) -> Identity | UnavailableError:
        error = _failure(asked, 6)
        if error is not None:
            code = error.args[0].code()
            if code in _NO_ANSWER:
                raise KafkaException(error.args[0])
            if code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                return self.unavailable(error, f", topic {topic!r}")
            hint = "there is no such topic; create it; it is read as soon as it exists"
            return UnknownTopicError(f"Kafka at {self.servers}, topic {topic!r}: {hint}")
        topic_id = str(asked.result().topic_id)
        if not topic_id or set(topic_id) <= set("A-0") or not cluster_id:
            return UnavailableError(f"topic {topic!r} has no id; Apache Kafka 3.7 or newer is needed")
        return cluster_id, topic_id


def answers(asked: Asked) -> tuple[dict[Place, Any], dict[Place, KafkaException]]:
    """What has been told of each partition that was asked of; and of those of which nothing was, why not."""
    told: dict[Place, Any] = {}
    silent: dict[Place, KafkaException] = {}
    for place, future in asked.items():
        error = _failure(future, max(0.0, asked.until - time.monotonic()))
        if error is not None:
            silent[place] = error
        elif (found := future.result()).offset == OFFSET_INVALID:  # so librdkafka has it of a leader that is away
            silent[place] = _timed_out()
        else:
            told[place] = found
    return told, silent


def _failure(asked: "Future[Any]", timeout: float) -> KafkaException | None:
    """Why a question has no answer, if it has none.

    It is not raised here: its traceback would hold the frames that hold the future, and so, for the collector, the client.
    """
    try:
        error = asked.exception(timeout)
    except TimeoutError as late:
        error = late
    return error if error is None or isinstance(error, KafkaException) else _timed_out()


def _timed_out() -> KafkaException:
    return KafkaException(KafkaError(KafkaError._TIMED_OUT))


def ends_of(
    servers: str, properties: KafkaProperties, places: Sequence[tuple[str, int]], timeout: float = 3
) -> dict[tuple[str, int], int]:
    """Where these partitions' logs end, for people: of those of which the brokers say so in time. Blocks."""
    if not servers or not places:
        return {}
    brokers = Brokers.to_ask(servers, properties)  # whose client lives until its questions are answered
    return {place: one.offset for place, one in answers(brokers.ask(places, timeout))[0].items()}


def library_version() -> str:
    """The version of librdkafka."""
    return confluent_kafka.libversion()[0]


def describe(brokers: Brokers, topics: list[str]) -> tuple[int, dict[str, tuple[int, int, dict[str, str]]]]:
    """How many brokers there are, and of each topic how many partitions, copies of each, and its settings. Blocks.

    Raises:
        UnavailableError: the brokers do not answer.

    """
    admin: Any = brokers.admin
    try:
        known = admin.list_topics(timeout=_ASK)
        asked = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics}  # pyright: ignore[reportUnknownMemberType]
        told = (
            {one.name: future.result(timeout=_ASK) for one, future in admin.describe_configs([*asked.values()]).items()}
            if asked
            else {}
        )
    except KafkaException as error:
        raise brokers.unavailable(error) from error
    found: dict[str, tuple[int, int, dict[str, str]]] = {}
    for name in topics:
        partitions = known.topics[name].partitions
        copies = min((len(one.replicas) for one in partitions.values()), default=0)
        found[name] = len(partitions), copies, {one.name: one.value for one in told[name].values()}
    return len(known.brokers), found


def knows_brokers(statistics: str) -> bool:
    """Whether a client still knows a broker, be it one that is away, by its statistics.

    A broker that is fenced, as one is for a moment after it hung or in a rolling upgrade, says that there are no brokers. Of
    all that it knew librdkafka (2.10 and later) then lets go, and has nobody left to ask (its issue 5301).
    """
    return any(f'"source":"{source}"' in statistics for source in ("learned", "configured"))


def cut_at(error: KafkaError) -> int | None:
    """Where the log ends for what was read, if that is what the error says."""
    cut = re.search(r"truncation detected.*broker end offset is (\d+)", error.str())
    return None if cut is None else int(cut[1])


def _eager(config: dict[str, Any]) -> str | None:
    """That partitions would be assigned all at once, if they would: what was claimed is not to be revoked for nothing."""
    strategy = config.get("partition.assignment.strategy", _COOPERATIVE)
    if strategy == _COOPERATIVE:
        return None
    return f"partition.assignment.strategy cannot be {strategy!r}: leave it out, or use {_COOPERATIVE!r}"


def _refusal(config: dict[str, Any]) -> str | None:
    """Why librdkafka does not take this configuration, if it does not."""
    try:
        Consumer(config, logger=logger).close()
    except KafkaException as error:
        return reason(error)
    except (TypeError, ValueError) as error:  # the binding's own: what it wants to be a function, a value out of range
        return str(error)
    return None


def reason(error: BaseException) -> str:
    """What went wrong, as librdkafka says it."""
    first = error.args[0] if error.args else error
    return first.str() if isinstance(first, KafkaError) else str(error)
