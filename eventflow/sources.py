"""What the topics of a consumer are: incarnations, told by the topic's id, not by its name (PROTOCOL.md R16).

A topic that was deleted and recreated begins at offset 0 again; by its name, its messages would be taken for those of the
old one. So the id is asked before anything is read, regularly while reading, and after every error of the topic; from an
error on until the id is known, nothing is taken.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psycopg

from eventflow.brokers import Asked, Brokers, Identity, Place, UnknownTopicError, answers
from eventflow.database import KeptConnection, unavailable
from eventflow.errors import UnavailableError
from eventflow.records import Choice
from eventflow.registry import ConsumerSpec
from eventflow.runs import Claim
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_ASK_EVERY = 2.0
_LIST_EVERY = 5.0
_ENDS_EVERY = 30.0  # seconds between two questions for where all that is read ends
_LAG = 2.0  # seconds for which a broker may still answer with a topic that others serve no more


@dataclass(frozen=True, slots=True)
class Source:
    """What a topic is now."""

    id: int
    topic: str
    incarnation: int
    topic_id: str
    cluster_id: str
    begins: Choice | None = None  # as was chosen when its cluster took another one's place


@dataclass(frozen=True, slots=True)
class _Read:
    """How far the claims had been read at a time of this process's clock."""

    at: float
    offsets: list[tuple[Claim, int]]

    def verify(self, changed: Mapping[str, str]) -> None:
        """It was read of topics that are still what they were."""
        for claim, offset in self.offsets:
            if claim.topic not in changed:
                claim.verified = offset


class Sources:
    """What the topics of one consumer are, asked of Kafka and registered in the ledger.

    Attributes:
        suspect: set from the first doubt until the ids were asked anew; nothing may be taken meanwhile.
        changed: topics that are not what they were, and what has become of them; the session that reads them is over.
        found: topics that exist and are not read yet, and their identities.
        ends: where the logs end, as their leaders have told: of what is paused regularly, of the rest now and then.
        all_ends: the same of all of them that answered when all were last asked: a new one each time.

    """

    def __init__(self, spec: ConsumerSpec, brokers: Brokers, ledger: KeptConnection, stop: threading.Event) -> None:
        self.suspect = threading.Event()
        self.changed: dict[str, str] = {}
        self.found: dict[str, Identity] = {}
        self.ends: dict[Place, int] = {}
        self.all_ends: dict[Place, int] = {}
        self._spec, self._brokers, self._ledger, self._stop = spec, brokers, ledger, stop
        self._known: dict[str, Source] = {}
        self._asked = Asked()
        self._asked_all = False
        self._asked_all_at = time.monotonic()
        self._validated: dict[tuple[int, int], int] = {}  # the leader's epoch at which a claim's log had what was read
        self._matching: list[str] = []
        self._listed_at = -_LIST_EVERY
        self._doubts = 0

    def get(self, topic: str) -> Source | None:
        """What the topic is, if it was asked."""
        return self._known.get(topic)

    def topics(self) -> list[str]:
        """Those that are known, to be read."""
        return list(self._known)

    def identify(self) -> bool:
        """Ask what the topics are, and register them; until there is one to read, say so and try again. False: stopped."""
        attempt = 0
        self._known = {}
        while not self._stop.is_set():
            try:
                self.found = self._identities(self._wanted())
                self.adopt()
            except (psycopg.Error, UnavailableError) as error:
                seldom.say(logger, f"{unavailable(error, self._ledger.database.url)}; trying again")
            if self._known:
                self.changed = {}
                self.ends = {}
                self._asked, self._asked_all = Asked(), False  # of what was read before
                self.suspect.clear()
                return True
            attempt += 1
            self._stop.wait(min(0.1 * attempt, 2.0))
        return False

    def adopt(self) -> bool:
        """Register what was found; whether there is more to read now.

        Raises:
            psycopg.Error, UnavailableError: not now; it is found again.

        """
        found, self.found = self.found, {}
        registered = [self._register(topic, *identity) for topic, identity in found.items()]
        new = {source.topic: source for source in registered if source is not None}
        self._known = {**self._known, **new}
        return bool(new)

    def partitions(self, topic: str) -> list[int]:
        """The partitions that the topic has now.

        Raises:
            KafkaException: the brokers do not answer.

        """
        return self._brokers.partitions(topic)

    def ask(self, places: Iterable[Place]) -> Asked:
        """Have these partitions' leaders say something: whether they answer is what `answers` tells."""
        return self._brokers.ask(places)

    def cut_off(self, topic: str, claims: Iterable[Claim]) -> tuple[dict[int, int], dict[int, Exception]]:
        """Where the logs of those partitions were cut off that do not have what was read any more, as the leaders' epochs tell.

        Asked where a partition has another leader's epoch than what was read of it, once for each epoch. And of which
        partitions that cannot be told now.
        """
        known = {c.partition: c for c in claims if c.leader_epoch >= 0}
        told, unheard = answers(self._brokers.ask((topic, p) for p in known)) if known else ({}, {})
        silent: dict[int, Exception] = {p: error for (_, p), error in unheard.items()}
        epochs = {p: one.leader_epoch for (_, p), one in told.items()}
        read = {
            p: (known[p].jumped[0], known[p].leader_epoch)
            for p, epoch in epochs.items()
            if epoch not in {known[p].leader_epoch, self._validated.get((known[p].id, known[p].jumped[0]))}
        }
        cut, late = self._brokers.cut_off(topic, read) if read else ({}, {})
        sound = read.keys() - cut.keys() - late.keys()
        self._validated |= {(known[p].id, known[p].jumped[0]): epochs[p] for p in sound}
        return cut, silent | late

    def _wanted(self) -> list[str]:
        """The topics to be read; of those that a pattern matches, as many as there are.

        Raises:
            UnavailableError: the brokers do not answer.

        """
        topics = self._spec.topics
        if isinstance(topics, tuple):
            return list(topics)
        now = time.monotonic()
        if now - self._listed_at >= _LIST_EVERY:
            self._matching = [topic for topic in self._brokers.topics() if topics.fullmatch(topic)]
            self._listed_at = now
        if not self._matching:
            seldom.say(logger, f"Kafka at {self._brokers.servers}: there is no topic that matches {topics.pattern!r}")
        return self._matching

    def _identities(self, topics: Iterable[str]) -> dict[str, Identity]:
        """Those of the topics that exist; what is said of the others.

        Raises:
            UnavailableError: the brokers do not answer.

        """
        identities: dict[str, Identity] = {}
        for topic, what in self._brokers.identities(topics).items():
            if isinstance(what, UnavailableError):
                seldom.say(logger, f"{what}; trying again")
            else:
                identities[topic] = what
        return identities

    def _register(self, topic: str, cluster_id: str, topic_id: str) -> Source | None:
        """The source that the topic is; None where another cluster's is read, and nobody has chosen this one."""
        [(source, incarnation, foreign, begins)] = self._ledger.run(
            "register_source",
            {"topic": topic, "cluster_id": cluster_id, "topic_id": topic_id, "policy": self._spec.policy},
        )
        if foreign:
            seldom.say(
                logger, f"topic {topic!r}: the brokers at {self._brokers.servers} are cluster {cluster_id}, the topic was "
                "read in another one; nothing of it is read until a person settles the incident (`eventflow incidents list`)",
                level=logging.ERROR,
            )  # fmt: skip
            return None
        return Source(source, topic, incarnation, topic_id, cluster_id, begins)

    # ---- while reading ----

    def doubt(self) -> None:
        """A topic may not be what it was: nothing is taken until it was asked, later than now."""
        self._doubts += 1
        self.suspect.set()

    def check(self, topic: str) -> None:
        """Whether a topic is still what it was, asked now: else nothing can be said of the log that was read.

        Raises:
            UnavailableError: it is not, or the brokers do not answer.

        """
        became = _what_became(self._known[topic], self._brokers.identities([topic])[topic])
        if became is not None:
            self.doubt()
            raise UnavailableError(f"the topic {topic!r} is {became} now; asking anew")

    def watch(
        self, over: threading.Event, claims: Callable[[], list[Claim]], paused: Callable[[], list[Place]]
    ) -> None:
        """Ask regularly, and after every doubt, whether the topics are still what they were; for a thread.

        What was read before the question was asked is verified by its answer, once that cannot come from a broker which had
        not heard of the topic's recreation when another one served the new log.
        """
        changed, unverified = self.changed, _Read(0.0, [])  # an answer that comes late is its own session's
        while not over.is_set() and not changed:
            self.suspect.wait(_ASK_EVERY)
            doubts, known = self._doubts, self._known
            read = _Read(time.monotonic(), [(claim, claim.next_offset) for claim in claims()])
            try:
                now = self._brokers.identities(known)
                became = {topic: _what_became(source, now[topic]) for topic, source in known.items()}
                found = self._identities(topic for topic in self._wanted() if topic not in known)
            except UnavailableError as error:
                seldom.say(logger, f"{error}; trying again")
            else:
                if self.changed is not changed:
                    return  # its session is over, and the next one has asked for itself
                changed |= {topic: what for topic, what in became.items() if what is not None}
                self.found = found
                if read.at - unverified.at >= _LAG:
                    unverified.verify(changed)
                    unverified = read
                self.suspect.clear()
                if doubts != self._doubts:
                    self.suspect.set()  # a doubt that is younger than the question
                self._ask_ends(read.at, paused(), [(claim.topic, claim.partition) for claim, _ in read.offsets])
            over.wait(0.2)

    def _ask_ends(self, now: float, paused: list[Place], held: list[Place]) -> None:
        """Where these end: for who asks how far behind what is paused is, and whether all comes that there is (`stalls`).

        Never waited for, as a leader that is away says nothing.
        """
        if not self._asked.over():
            return
        told = {place: one.offset for place, one in answers(self._asked)[0].items()}
        self.ends = self.ends | told
        if self._asked_all:
            self.all_ends = told
        self._asked_all = now - self._asked_all_at >= _ENDS_EVERY
        if self._asked_all:
            self._asked_all_at = now
        places = held if self._asked_all else paused
        self._asked = self._brokers.ask(places) if places else Asked()


def _what_became(source: Source, now: Identity | UnavailableError) -> str | None:
    """What the topic is instead of what it was; None where it is the same.

    Raises:
        UnavailableError: that cannot be told.

    """
    if isinstance(now, UnknownTopicError):
        return "deleted"
    if isinstance(now, UnavailableError):
        raise now
    if now[0] != source.cluster_id:
        return "another cluster's"
    return None if now[1] == source.topic_id else "recreated"
