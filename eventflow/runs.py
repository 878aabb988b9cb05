"""One execution of a workflow in this process, and the claim that a message's execution stands on.

A run is what the executor drives and what the journal writes. Who may touch what: `in_ledger` belongs to the journal;
everything else to the thread or loop that runs it, until it has been handed to the journal for the last time.
"""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from eventflow.codec import decode_error, encode_error
from eventflow.errors import UnreadableError
from eventflow.flow import HEAVY
from eventflow.idempotency import child_workflow_id, message_workflow_id_suffix, operation_key
from eventflow.registry import Spec
from eventflow.replay import Await, History
from eventflow.scopes import Scope, Scopes
from eventflow.tracing import Trace

How = Literal["queued", "recovered", "woken"]  # why a row that nobody held has come to this executor
ENDLESS = 1 << 62  # above all offsets
Request = tuple[str, str, str, int]  # that a workflow ends: its id, "cancel" or "terminate", who wants it, the number

_ONE_THREAD = nullcontext()  # what an async run does, it does on the loop's thread


# Which message it is: timestamp, and SHA-256 of key and value, where these are known.
Fingerprint = tuple[int | None, bytes | None, bytes | None] | tuple[int | None]
Early = dict[int, tuple[Fingerprint, ...]]  # by offset


def fingerprint(timestamp: int, key: bytes | None, value: bytes | None) -> Fingerprint:
    """What tells a message from another one at the same offset."""
    return timestamp, key if key is None else sha256(key).digest(), value if value is None else sha256(value).digest()


def place(group: str, topic: str, incarnation: int, partition: int) -> str:
    """A partition as logs and incidents name it."""
    return f"{group} {topic}{f'#{incarnation}' if incarnation > 1 else ''}/{partition}"


class Reprocess(NamedTuple):
    """A topic that is run again, as the beat tells of it.

    Attributes:
        instead: in the live consumer's place. rate: messages a second, of all processes.
        parts: its partitions, and of each the generation that its messages have: another one, where its log was cut off.

    """

    id: int
    group: str
    topic: str
    generation: int
    instead: bool
    rate: float | None
    parts: Sequence[Sequence[int]]

    def has(self, topic: str, partition: int, generation: int) -> bool:
        """Whether a message of this place is run again by it."""
        return topic == self.topic and [partition, generation] in self.parts


class Dropped(BaseException):
    """Unwinds a run whose attempt is over: what it does can no longer be recorded."""


class Claim:
    """A partition of a source that this executor owns under one epoch. A new claim is a new object (R7).

    Attributes:
        next_offset: everything below was handed out under this claim, or is covered by a gap.
        verified: everything below was read before the topic was last seen to be still the same (R16).
        leader_epoch: that of the last message; one that falls means another log (R16).
        jumped: the last stretch that was passed over without a message: `leader_epoch` says nothing of it. At first, from
            the last message of which that is known to the position; vacant: there was no message in it.
        early: messages that were handled under the topic's former incarnation and may be this one's, by offset (R16).
        accepted_above: ranges above the position that the ledger has accepted already.
        scope: what its messages keep in order where that is the partition. scopes: the same where it is their keys.
        wary: the first so many messages may have killed the former owner; they are accepted before they run (R13).
        handed, finished: messages handed out, and those of them that ended durably; their difference is in flight.
        weight: bytes of those in flight that are heavy (`flow.HEAVY`).
        isolated: how many transactions above READ COMMITTED are under way, which a fold would conflict with.
        folded: what had been read and finished when its deltas were last folded.
        seen: the timestamp of the last message that was handed out, in milliseconds; 0: none was. end: where its log ends, as
            of the last second.
        lock: held to change `finished`, `weight` and `isolated`.
        revoked: nothing of it may start any more. lost: nothing of it may be accepted any more.

    """

    __slots__ = (
        "accepted_above", "early", "end", "epoch", "finished", "folded", "generation", "group", "handed", "id", "id_prefix",
        "id_suffix", "incarnation", "isolated", "jumped", "leader_epoch", "lock", "lost", "next_offset", "partition", "revoked",
        "scope", "scopes", "seen", "source", "topic", "vacant", "verified", "wary", "weight",
    )  # fmt: skip

    def __init__(
        self, id: int, epoch: int, group: str, topic: str, partition: int, source: int, incarnation: int,  # noqa: A002
        id_prefix: str, next_offset: int, generation: int = 1,
    ) -> None:  # fmt: skip
        self.id = id
        self.epoch = epoch
        self.group = group
        self.topic = topic
        self.partition = partition
        self.source = source
        self.incarnation = incarnation
        self.id_prefix, self.id_suffix = id_prefix, message_workflow_id_suffix(generation)
        self.generation = generation
        self.next_offset = next_offset
        self.accepted_above: list[tuple[int, int]] = []
        self.early: Early = {}
        self.scope: Scope | None = None
        self.scopes: Scopes | None = None
        self.weight = 0
        self.wary = 0
        self.verified = next_offset
        self.leader_epoch = -1
        self.jumped: tuple[int, int] = (0, 0)
        self.vacant = False
        self.handed = 0
        self.finished = 0
        self.isolated = 0
        self.folded: tuple[int, int] | None = None
        self.lost = False
        self.revoked = False
        self.seen = self.end = 0
        self.lock = threading.Lock()

    def __str__(self) -> str:
        """As logs and incidents name it."""
        return place(self.group, self.topic, self.incarnation, self.partition) + self.id_suffix

    def epoch_to(self) -> int:
        """Up to where `leader_epoch` tells the log from another one: behind the last message."""
        low, high = self.jumped
        return low if high == self.next_offset else self.next_offset

    def has(self, run: "Run") -> bool:
        """Whether it is a message of this very log."""
        return run.workflow_id == f"{self.id_prefix}{run.offset}{self.id_suffix}"

    def read_through(self) -> bool:
        """Whether nothing that was passed over is a message that another owner has read: the next one may rely on that."""
        above = self.accepted_above
        if above and above[0][1] < ENDLESS:
            return False
        return self.through() or self.vacant or self.epoch_to() == self.next_offset

    def accepted_to(self) -> int:
        """Behind the last message that the ledger has accepted."""
        return max((high for _, high in self.accepted_above if high < ENDLESS), default=self.next_offset)

    def through(self) -> bool:
        """Whether nothing more of it is to be read: it is run again, and that up to an end."""
        return self.next_offset >= ENDLESS

    def in_flight(self) -> int:
        """How many of its messages were handed out and have not ended."""
        return self.handed - self.finished

    def burden(self, run: "Run", weight: int) -> int:
        """A heavy message of it is in flight; how heavy."""
        run.weight = weight
        with self.lock:
            self.weight += weight
        return weight

    def lighten(self, run: "Run") -> None:
        """It is in flight no more."""
        with self.lock:
            self.weight -= run.weight
            run.weight = 0

    def lose(self) -> None:
        """It is another's, or nobody's: nothing of it may start or be accepted any more."""
        self.lost = self.revoked = True


class Life:
    """What a run has that waits, talks or has relatives; most messages' runs have none.

    Attributes:
        generation: how often it has been continued as new: its positions begin anew, and mean other operations.
        attributes: to search by, as JSON. parent: the workflow that started it.
        queue: whose line it came from.
        deadline: when it is over, in seconds since 1970 by the ledger's clock.
        interrupted: why it is to end before its function does; told: whether its code has been told so.
        cut: from which checkpoint on it recorded what it did because it was told.
        heard: the number of the last request to end that came; one that is read again says nothing.
        to_tell: positions at which a former attempt was told, and this one has yet to be.
        waits: what its branches wait for, while they do.
        seen: where it stood when it was last looked at; one that stands still may leave memory.
        suspending: it leaves memory; whatever it does on its way out is not recorded.
        unread: and the ledger had not said yet what has come for it.
        taken: messages of its inbox that it has received in this run.
        raised: what it was told to leave memory by, while it does: who swallows it is named.

    """

    __slots__ = (
        "attributes",
        "cut",
        "deadline",
        "generation",
        "heard",
        "interrupted",
        "parent",
        "queue",
        "raised",
        "seen",
        "suspending",
        "taken",
        "to_tell",
        "told",
        "unread",
        "waits",
    )

    def __init__(self, parent: str | None = None, deadline: float | None = None, queue: str | None = None) -> None:
        self.generation = 0
        self.attributes: str | None = None
        self.parent = parent
        self.queue = queue
        self.deadline = deadline
        self.interrupted: BaseException | None = None
        self.told = False
        self.cut: int | None = None
        self.heard = 0
        self.to_tell: set[str] = set()
        self.waits: dict[Any, Await] = {}
        self.seen: Any = None
        self.suspending = False
        self.unread = False
        self.taken: set[int] = set()
        self.raised: tuple[BaseException, ...] = ()

    def is_to_be_told(self) -> bool:
        """Whether its code has yet to be told that it is to end."""
        return self.interrupted is not None and not self.told

    def tell(self, history: History) -> None:
        """Its code is told that it is to end."""
        self.told, self.cut = True, history.seq + 1

    def recall(self, history: History) -> None:
        """Take up what was recorded of where a former attempt was told to end: this one is told there, and nowhere else."""
        told = history.told()
        self.to_tell = {checkpoint.position.removesuffix("!") for checkpoint in told}
        self.told, self.cut = bool(told), told[0].seq if told else None
        if told and self.interrupted is None:
            why = json.loads(told[0].output or "")
            self.heard, self.interrupted = why["request"], decode_error(why["error"])

    def why(self) -> str:
        """What is recorded where it is told to end."""
        assert self.interrupted is not None
        return json.dumps({"request": self.heard, "error": encode_error(self.interrupted)})

    def begin_anew(self) -> None:
        """The next run of a workflow that was told to end, and went on: what that one was asked is done with."""
        self.interrupted, self.told, self.cut = None, False, None
        self.to_tell.clear()


class Run:
    """One run of one workflow.

    Attributes:
        first: where its range of offsets begins; `first` to `offset` exclusive is a gap that it covers (R5).
        in_ledger: its row exists there; set by the journal alone.
        submitted, durable: entries handed to the journal, and those that it has committed. Each has one writer, so
            that no lock is needed: the runner counts the first, who settles counts the second.
        begun: its function was called, and has not returned.
        wary: to be accepted before it runs, because its partition's former owner did not end cleanly (R13).
        lock: held to hand something to the journal, where the loop and a worker thread may both do so.
        counted: it is over, and its claim's count of what is finished, and its scope's, say so.
        dropped: the attempt is over (fenced, or its claim is lost); whatever it still does is not recorded.
        acting: operations under way that do not wait for something from outside.
        driven: a runner drives it, or waits with it.
        home: the task that drives it, where it is async and has begun.
        life: what only a workflow has that waits, talks or has relatives.
        scope: what it is kept in order with; None for all that no claim of this process has read.
        trace: what is traced of it; None where nothing is.
        turn: it is its turn in its scope. weight: bytes, if it is heavy (`flow.HEAVY`).
        before: the earlier run of its scope; its first step waits until that one is durable.
        unreadable: why what the ledger has of it cannot be read here; it does not run then, and is parked.

    """

    __slots__ = (
        "acting", "after", "application", "arguments", "attempt", "before", "begun", "claim", "counted",
        "driven", "dropped", "durable", "ended", "executor", "first", "future", "headers", "history", "home", "in_ledger",
        "key", "life", "lock", "name", "offset", "outcome", "recoveries", "retries", "scope", "spec", "submitted",
        "timestamp", "trace", "turn", "unreadable", "value", "waiters", "wary", "weight", "workflow_id",
    )  # fmt: skip

    def __init__(self, spec: Spec, workflow_id: str, application: str) -> None:
        self.spec = spec
        self.workflow_id = workflow_id
        self.name = spec.name
        self.application = application
        self.attempt = 1
        self.retries = 0
        self.recoveries = 0
        self.scope: Scope | None = None
        self.arguments: str | None = None
        self.claim: Claim | None = None
        self.offset: int | None = None
        self.first = 0
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.headers: Any = None
        self.timestamp: int | None = None
        self.history: History = History()
        self.in_ledger = False
        self.submitted = 0
        self.durable = 0
        self.dropped = False
        self.ended = False
        self.counted = False
        self.driven = False
        self.begun = False
        self.acting = 0
        self.home: Any = None
        self.life: Life | None = None
        self.wary = False
        self.turn = False
        self.weight = 0
        self.before: Run | None = None
        self.after: Run | None = None
        self.waiters: list[Callable[[], None]] | None = None
        self.executor: Any = None
        self.trace: Trace | None = None
        self.future: Any = None
        self.outcome: Any = None
        self.unreadable: UnreadableError | None = None
        self.lock: Any = _ONE_THREAD if spec.is_async else threading.Lock()

    def key_of(self, position: str) -> str:
        """What tells an operation of this workflow from all others, in any process."""
        return operation_key(self.workflow_id, position, self._generation())

    def child_id(self, position: str) -> str:
        """The id of a workflow that it starts there under none of its own."""
        return child_workflow_id(self.workflow_id, position, self._generation())

    def _generation(self) -> int:
        return 0 if self.life is None else self.life.generation

    def may_begin(self) -> bool:
        """Whether its function may be called: not where the attempt is over, nor, unaccepted, once its claim is revoked."""
        revoked = self.claim is not None and self.claim.revoked
        return not (self.dropped or (revoked and not self.submitted and not self.in_ledger))

    def settled(self) -> bool:
        """Whether everything recorded before, in this workflow and in its scope, is durable (R12)."""
        before = self.before
        if before is not None:
            if not before.over():
                return False
            self.before = None
        return not self.history.fresh and self.submitted == self.durable

    def over(self) -> bool:
        """Whether it has ended for good, durably, or is no longer this process's."""
        return self.dropped or (self.ended and self.submitted == self.durable)

    def wake(self) -> "Run | None":
        """Release what waits for this run's records, if they are durable; who follows it in its scope, if it is over."""
        if self.waiters and (self.dropped or self.submitted == self.durable):
            waiters, self.waiters = self.waiters, None
            for waiter in waiters:
                waiter()
        after = self.after
        if after is not None and self.over():
            self.after = after.before = None  # nothing keeps a finished run
            return after
        return None


def weigh(runs: list[Run]) -> int:
    """The bytes of those that are heavy, which their claims count from here on."""
    heavy = [run for run in runs if run.value is not None and len(run.value) > HEAVY]
    return sum(
        run.claim.burden(run, len(run.value)) for run in heavy if run.claim is not None and run.value is not None
    )
