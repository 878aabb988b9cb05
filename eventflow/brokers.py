"""How this process speaks to Kafka: librdkafka's properties, its errors in one line, and what the brokers know of a topic."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from eventflow.errors import SettingsError, UnavailableError
from eventflow.settings import KafkaProperties

logger = logging.getLogger("eventflow.kafka.client")
logger.setLevel(logging.ERROR)

_OURS: KafkaProperties = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
}
_DEFAULTS: KafkaProperties = {
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
_SHARED = ("bootstrap", "security", "sasl", "ssl", "client", "error_cb")  # what an admin client takes, too


class UnknownTopicError(UnavailableError):
    """The brokers do not know the topic, or not any more."""


@dataclass(frozen=True)
class Brokers:
    """The brokers as one consumer speaks to them."""

    servers: str
    properties: KafkaProperties  # for all consumers, and for this one
    group: str
    client_id: str
    on_error: Callable[[KafkaError], None]

    @cached_property
    def config(self) -> dict[str, Any]:
        return {
            **_DEFAULTS, **self.properties, **_OURS, "bootstrap.servers": self.servers, "group.id": self.group,
            "client.id": self.client_id, "error_cb": self.on_error,
        }  # fmt: skip

    @cached_property
    def admin(self) -> AdminClient:
        shared = {name: value for name, value in self.config.items() if name.startswith(_SHARED)}
        return AdminClient(shared, logger=logger)

    def consumer(self) -> Consumer:
        return Consumer(self.config, logger=logger)

    def check(self, name: str) -> None:
        """Whether librdkafka takes this configuration.

        Raises:
            SettingsError: it does not; names the property.

        """
        try:
            self.consumer().close()
        except KafkaException as error:
            raise SettingsError(f"the Kafka properties of {name!r}: {reason(error)}") from None

    def identity(self, topic: str) -> tuple[str, str]:
        """(cluster id, topic id) as the brokers have them.

        Raises:
            UnknownTopicError: they do not know the topic.
            UnavailableError: they do not answer, or the topic has no id.

        """
        try:
            return self._describe(topic)
        except KafkaException as error:
            where = f"Kafka at {self.servers}, topic {topic!r}"
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise UnknownTopicError(f"{where}: there is no such topic") from error
            raise UnavailableError(f"{where}: {reason(error)}") from error

    def _describe(self, topic: str) -> tuple[str, str]:
        admin: Any = self.admin  # its futures are not typed
        asked = admin.describe_topics(confluent_kafka.TopicCollection([topic]), request_timeout=5)
        description = asked[topic].result(timeout=6)
        cluster = admin.describe_cluster(request_timeout=5).result(timeout=6)
        topic_id = str(description.topic_id)
        if not topic_id or set(topic_id) <= set("A-0") or not cluster.cluster_id:
            raise UnavailableError(f"topic {topic!r} has no id; Apache Kafka 3.7 or newer is needed")
        return cluster.cluster_id, topic_id


def reason(error: BaseException) -> str:
    """What went wrong, as librdkafka says it."""
    first = error.args[0] if error.args else error
    return first.str() if isinstance(first, KafkaError) else str(error)
