"""What the topics of a consumer are: incarnations, told by the topic's id, not by its name (PROTOCOL.md R16).

A topic that was deleted and recreated begins at offset 0 again; by its name, its messages would be taken for those of the
old one. So the id is asked before anything is read, regularly while reading, and after every error of the topic; from an
error on until the id is known, nothing is taken.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psycopg

from eventflow.brokers import Brokers, UnknownTopicError
from eventflow.database import KeptConnection, unavailable
from eventflow.errors import EventflowError, UnavailableError
from eventflow.runs import Claim
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_ASK_EVERY = 2.0
_LAG = 2.0  # seconds for which a broker may still answer with a topic that others serve no more


class ClusterChangedError(EventflowError):
    """Another cluster stands behind the brokers' addresses: a person looks first."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a topic is now."""

    id: int
    topic: str
    incarnation: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class _Read:
    """How far the claims had been read at a time of this process's clock."""

    at: float
    offsets: list[tuple[Claim, int]]

    def verify(self, changed: set[str]) -> None:
        """It was read of topics that are still what they were."""
        for claim, offset in self.offsets:
            if claim.topic not in changed:
                claim.verified = offset


class Sources:
    """What the topics of one consumer are, asked of Kafka and registered in the ledger.

    Attributes:
        suspect: set from the first doubt until the ids were asked anew; nothing may be taken meanwhile.
        changed: topics that are not what they were; the session that reads them is over.

    """

    def __init__(self, topics: Iterable[str], brokers: Brokers, ledger: KeptConnection, stop: threading.Event) -> None:
        self.suspect = threading.Event()
        self.changed: set[str] = set()
        self._topics, self._brokers, self._ledger, self._stop = tuple(topics), brokers, ledger, stop
        self._known: dict[str, Source] = {}
        self._doubts = 0

    def get(self, topic: str) -> Source | None:
        """What the topic is, if it was asked."""
        return self._known.get(topic)

    def identify(self) -> bool:
        """Ask what the topics are, and register them; until they exist, say so and try again. False: stopped.

        Raises:
            ClusterChangedError: the ledger knows a topic from another cluster.

        """
        attempt = 0
        while not self._stop.is_set():
            try:
                self._known = {topic: self._register(topic) for topic in self._topics}
            except (psycopg.Error, UnavailableError) as error:
                attempt += 1
                seldom.say(logger, f"{unavailable(error, self._ledger.database.url)}; trying again")
                self._stop.wait(min(0.1 * attempt, 2.0))
                continue
            self.changed.clear()
            self.suspect.clear()
            return True
        return False

    def partitions(self, topic: str) -> list[int]:
        """The partitions that the topic has now.

        Raises:
            KafkaException: the brokers do not answer.

        """
        return self._brokers.partitions(topic)

    def _register(self, topic: str) -> Source:
        cluster_id, topic_id = self._brokers.identity(topic)
        [(source, incarnation, foreign)] = self._ledger.run(
            "register_source", {"topic": topic, "cluster_id": cluster_id, "topic_id": topic_id}
        )
        if foreign:
            detail = f"the brokers are now cluster {cluster_id}; the ledger knows the topic from another one"
            self._ledger.run("insert_incident", {"kind": "cluster", "subject": topic, "detail": detail})
            raise ClusterChangedError(f"topic {topic!r}: {detail}")
        return Source(source, topic, incarnation, topic_id)

    # ---- while reading ----

    def doubt(self) -> None:
        """A topic may not be what it was: nothing is taken until it was asked, later than now."""
        self._doubts += 1
        self.suspect.set()

    def watch(self, over: threading.Event, claims: Callable[[], list[Claim]]) -> None:
        """Ask regularly, and after every doubt, whether the topics are still what they were; for a thread.

        What was read before the question was asked is verified by its answer, once that cannot come from a broker which had
        not heard of the topic's recreation when another one served the new log.
        """
        known, unverified = self._known, _Read(0.0, [])
        while not over.is_set() and not self.changed:
            self.suspect.wait(_ASK_EVERY)
            doubts = self._doubts
            read = _Read(time.monotonic(), [(claim, claim.next_offset) for claim in claims()])
            try:
                changed = {topic for topic, source in known.items() if not self._is(topic, source)}
            except UnavailableError as error:
                logger.debug("asking for topic ids: %s", error)
            else:
                if self._known is not known:
                    return  # the answer came after its session's end, and the next one has asked for itself
                self.changed |= changed
                if read.at - unverified.at >= _LAG:
                    unverified.verify(changed)
                    unverified = read
                self.suspect.clear()
                if doubts != self._doubts:
                    self.suspect.set()  # a doubt that is younger than the question
            over.wait(0.2)

    def _is(self, topic: str, source: Source) -> bool:
        try:
            return self._brokers.identity(topic)[1] == source.topic_id
        except UnknownTopicError:
            return False
