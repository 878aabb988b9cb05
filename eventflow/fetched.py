"""Messages as they were fetched, of which none is a run: a batch handler without order takes them so.

A run for each message costs more than the handler's own work on it. Where nothing is kept of a message that succeeds, a batch
needs none, as long as all goes well; where anything does not, its messages become runs, and what fails is found among those.
"""

from typing import Any

from eventflow.flow import HEAVY
from eventflow.kafka import headers_of, of_generation
from eventflow.registry import Spec
from eventflow.runs import Claim, Run


class Fetched:
    """Messages of one claim, in order.

    Attributes:
        first, end: the range of offsets that they cover, with the gaps between them (R5).
        weight: bytes of those that are heavy; their claim counts them.

    """

    __slots__ = ("claim", "end", "first", "messages", "spec", "weight")

    def __init__(self, spec: Spec, claim: Claim, first: int) -> None:
        self.spec, self.claim = spec, claim
        self.first = self.end = first
        self.messages: list[Any] = []  # as confluent-kafka has them
        self.weight = 0

    def __len__(self) -> int:
        return len(self.messages)

    def weigh(self) -> int:
        """Have the claim count those that are heavy from here on; how heavy they are."""
        self.weight = _weight_of(self.messages)
        if self.weight:
            with self.claim.lock:
                self.claim.weight += self.weight
        return self.weight

    def head(self) -> "Fetched":
        """The first one by itself."""
        one = Fetched(self.spec, self.claim, self.first)
        one.messages = self.messages[:1]
        one.end = one.messages[0].offset() + 1
        return one

    def cut(self, count: int) -> "Fetched":
        """The first so many of them, which it has no more."""
        head = Fetched(self.spec, self.claim, self.first)
        head.messages, self.messages = self.messages[:count], self.messages[count:]
        head.end = self.first = head.messages[-1].offset() + 1
        if self.weight:
            head.weight = _weight_of(head.messages)
            self.weight -= head.weight
        return head

    def read(self) -> list[Any]:
        """The handler's messages, decoded by its annotation.

        Raises:
            CodecError, Unprepared: one cannot be.

        """
        claim, read = self.claim, self.spec.reader.read
        topic, partition, incarnation = claim.topic, claim.partition, claim.incarnation
        messages = [
            read(m.value(), m.key(), headers_of(m), topic, partition, m.offset(), incarnation, m.timestamp()[1])
            for m in self.messages
        ]
        if claim.generation == 1:
            return messages
        return [of_generation(message, claim.generation) for message in messages]

    def runs(self, application: str) -> list[Run]:
        """A run for each of them."""
        first, runs = self.first, list[Run]()
        for message in self.messages:
            run = run_of(self.spec, application, self.claim, message, first)
            if run.value is not None and len(run.value) > HEAVY:
                run.weight = len(run.value)  # which its claim has counted
            first = message.offset() + 1
            runs.append(run)
        return runs

    def let_go(self) -> None:
        """They are in flight no more."""
        with self.claim.lock:
            self.claim.finished += len(self.messages)
            self.claim.weight -= self.weight


def _weight_of(messages: list[Any]) -> int:
    return sum(len(v) for m in messages if (v := m.value()) is not None and len(v) > HEAVY)


def run_of(spec: Spec, application: str, claim: Claim, message: Any, first: int) -> Run:
    """The run of a message that was fetched; it covers the offsets from `first` on."""
    offset = message.offset()
    run = Run(spec, claim.id_prefix + str(offset) + claim.id_suffix, application)
    run.claim, run.offset, run.first = claim, offset, first
    run.value, run.key, run.headers = message.value(), message.key(), headers_of(message)
    run.timestamp = message.timestamp()[1]
    return run
