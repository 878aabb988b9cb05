"""Kafka as a test harness has it: topics in memory, of one partition each, and as much of a client as a consumer asks for.

It is no broker: nothing that eventflow guarantees is proved on it. Whatever stands behind it is the real consumer, which
claims partitions in the ledger, seeks to its positions and bounds what is in flight.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from eventflow.brokers import Asked
from eventflow.errors import UnavailableError
from eventflow.settings import KafkaProperties


@dataclass(frozen=True, slots=True)
class Place:
    """A partition, and an offset in it."""

    topic: str
    partition: int = 0
    offset: int = -1001  # none is committed


@dataclass(frozen=True, slots=True)
class Sent:
    """A message in a topic, as the client hands it over."""

    at: Place
    sent_value: bytes | None
    sent_key: bytes | None
    sent_headers: list[tuple[str, bytes | None]]
    milliseconds: int

    def error(self) -> None: ...
    def topic(self) -> str:
        return self.at.topic

    def partition(self) -> int:
        return self.at.partition

    def offset(self) -> int:
        return self.at.offset

    def leader_epoch(self) -> int:
        return 0

    def value(self) -> bytes | None:
        return self.sent_value

    def key(self) -> bytes | None:
        return self.sent_key

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.sent_headers or None

    def timestamp(self) -> tuple[int, int]:
        return 1, self.milliseconds


@dataclass
class Topics:
    """What was delivered to a harness, by topic. They outlive its executors."""

    logs: dict[str, list[Sent]] = field(default_factory=dict[str, list[Sent]])
    consumers: "list[Consumer]" = field(default_factory=list["Consumer"])
    changed: threading.Condition = field(default_factory=threading.Condition)

    def append(
        self, topic: str, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]],
        milliseconds: int,
    ) -> int:  # fmt: skip
        """Deliver a message; its offset."""
        with self.changed:
            log = self.logs.setdefault(topic, [])
            log.append(Sent(Place(topic, 0, len(log)), value, key, headers, milliseconds))
            self.changed.notify_all()
            return len(log) - 1

    def end(self, topic: str) -> int:
        """The offset after a topic's last message."""
        return len(self.logs.get(topic, ()))

    def brokers(self, *arguments: Any) -> "Brokers":
        """These topics as a consumer's `brokers.Brokers`."""
        return Brokers(self, *arguments)

    def read(self) -> bool:
        """Whether each consumer has taken all that there is, or has no room for more, and has handed over what it took."""
        with self.changed:
            return all(consumer.is_at_end() for consumer in self.consumers)


class Brokers:
    """What `brokers.Brokers` is to a consumer."""

    def __init__(
        self, topics: Topics, servers: str, properties: KafkaProperties, own: KafkaProperties, group: str, client_id: str,
        on_error: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self._topics = topics
        self.servers = servers
        self.no_answer = "the test harness's topics do not answer"

    def check(self, name: str) -> None:
        """Any configuration will do."""

    def consumer(self, *_: object) -> "Consumer":
        return Consumer(self._topics)

    def identities(self, topics: Iterable[str]) -> dict[str, tuple[str, str]]:
        return {topic: ("testing", topic) for topic in topics}

    def ask(self, places: Iterable[tuple[str, int]]) -> Asked:
        asked = Asked({place: Future() for place in places})
        for (topic, _), future in asked.items():
            future.set_result(SimpleNamespace(offset=self._topics.end(topic), leader_epoch=0))
        return asked

    def partitions(self, topic: str) -> list[int]:  # of every topic
        return [0]

    def unavailable(self, error: Exception, where: str = "") -> UnavailableError:
        return UnavailableError(f"{self.no_answer}{where}: {error}")


class Consumer:
    """What librdkafka's consumer is: alone in its group, which gives it each partition at once."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._subscribed: list[str] | None = None
        self._on_assign: Callable[[Any, list[Place]], None]
        self._next: dict[tuple[str, int], int] = {}
        self._paused: set[tuple[str, int]] = set()
        self._handing = False
        with topics.changed:
            topics.consumers.append(self)

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._on_assign = on_assign
        self._subscribed = list(topics)

    def is_at_end(self) -> bool:
        """Whether all that is assigned to it was taken, or is paused, and it has come for more since; and something is."""
        return self._subscribed is None and bool(self._next) and not (self._has_more() or self._handing)

    def _has_more(self) -> bool:
        return any(self._topics.end(key[0]) > offset for key, offset in self._next.items() if key not in self._paused)

    def poll(self, timeout: float) -> Sent | None:
        new, self._subscribed = self._subscribed, None
        if new is not None:
            self._on_assign(self, [Place(topic) for topic in new if (topic, 0) not in self._next])
        with self._topics.changed:
            self._handing = False
            self._topics.changed.wait_for(self._has_more, timeout)
        return next(iter(self.consume(1, 0)), None)

    def consume(self, count: int, timeout: float) -> list[Sent]:  # whatever is there
        taken: list[Sent] = []
        with self._topics.changed:
            for key, offset in self._next.items():
                if key not in self._paused:
                    more = self._topics.logs.get(key[0], [])[offset : offset + count - len(taken)]
                    self._next[key] += len(more)
                    taken += more
            self._handing = self._handing or bool(taken)
        return taken

    def incremental_assign(self, places: Iterable[Any]) -> None:
        with self._topics.changed:
            self._next |= {(place.topic, place.partition): place.offset for place in places}

    def incremental_unassign(self, places: Iterable[Any]) -> None:
        with self._topics.changed:
            for place in places:
                self._next.pop((place.topic, place.partition), None)

    def assignment(self) -> list[Place]:
        return [Place(*key) for key in self._next]

    def seek(self, place: Any) -> None:
        self.incremental_assign([place])

    def pause(self, places: Iterable[Any]) -> None:
        self._paused |= {(place.topic, place.partition) for place in places}

    def resume(self, places: Iterable[Any]) -> None:
        self._paused -= {(place.topic, place.partition) for place in places}

    def get_watermark_offsets(self, place: Any, **_: object) -> tuple[int, int]:
        return 0, self._topics.end(place.topic)

    def committed(self, places: Iterable[Any], **_: object) -> list[Place]:
        return [Place(place.topic, place.partition) for place in places]

    def commit(self, **_: object) -> None: ...
    def list_topics(self, *_: object, **__: object) -> None: ...
    def close(self) -> None:
        with self._topics.changed:
            if self in self._topics.consumers:
                self._topics.consumers.remove(self)
