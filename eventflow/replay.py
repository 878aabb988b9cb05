"""The step protocol, written once, and what a workflow has recorded: pure, without I/O, clock or loop.

Operations are generators that yield what they cannot do themselves: BARRIER (wait until everything recorded before is
durable), CALL (run the user's function; its result or exception comes back), a number of seconds to wait before the next
attempt, or an Await (a time, or something from outside; what came is the answer, None when the time did). A sync and an
async driver of a few lines run them (psycopg's way of writing a protocol once for both).

Positions: the root of a workflow is branch "1"; each asyncio task (or `sync.gather` call) that reaches a durable
operation is a branch of its own, numbered below the branch that started it. An operation's position is
"{branch}.{number}", so what finishes first cannot change what is found on replay.
"""

import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

from eventflow.errors import CodecError, DeterminismError
from eventflow.records import Checkpoint, Rider
from eventflow.retry import Retry

BARRIER: Literal["barrier"] = "barrier"
CALL: Literal["call"] = "call"
TICKET = "~t"  # between a position and a number: what a transaction in another database is known by there
DETAILS = "~d"  # behind the position of a step that has begun: what its attempts have told of how far they are
_BEGUN = ("", "w", "~1", f"{TICKET}1", "!", DETAILS)  # behind a position: what is recorded first of an operation
LAST = 2**31 - 1  # the number of such details: whatever a retry, or a fork, drops, it drops these, too
TOLD = "told to end"  # what is recorded at "{position}!" where an operation was told that its workflow is to end
_PLACE = re.compile(r"[\d./]+")  # the position of an operation, in that of anything that is recorded of it
LONG = 5.0  # seconds; a policy that may wait for so long between two attempts has them recorded


@dataclass(frozen=True, slots=True)
class Await:
    """What an operation waits for: a time (seconds since 1970 by the ledger's clock), something from outside, or either.

    `sources` is what the ledger is asked for: `("inbox", workflow id, topic)`, `("outcome", workflow id)` or
    `("event", workflow id, key)`. The answer is the source of which something has come, and what.
    """

    until: float | None
    sources: tuple[tuple[str, ...], ...] = ()


Effect = Literal["barrier", "call"] | float | Await
R = TypeVar("R")
Operation = Generator[Effect, Any, R]


class History:
    """What one workflow has recorded: read on replay, appended to by live operations.

    Attributes:
        replays: a former attempt has recorded something. ahead: operations that it had begun, and this one has yet to reach.

    """

    __slots__ = ("_begun", "_closed", "ahead", "failures", "fresh", "recorded", "replays", "riders", "seq")

    def __init__(self, recorded: dict[str, Checkpoint] | None = None) -> None:
        self.recorded = recorded
        self.ahead: set[str] = set()
        self.replays = False
        self.seq = max((c.seq for c in recorded.values() if c.seq != LAST), default=0) if recorded else 0
        self.fresh: list[Checkpoint] = []
        self.riders: tuple[Rider, ...] = ()  # what goes with the fresh checkpoints
        self.failures: list[tuple[BaseException, int]] = []
        self._closed: set[str] | None = None
        self._begun = recorded is not None and any(
            TICKET in position for position in recorded
        )  # whether it has tickets

    def rewind(self) -> None:
        """An attempt begins: all that is recorded is ahead of it."""
        self.replays = bool(self.recorded)
        if self.recorded or self.ahead:
            self.ahead = {place[0] for place in map(_PLACE.match, self.recorded or ()) if place is not None}

    def find(self, position: str, name: str) -> Checkpoint | None:
        """The checkpoint at this position.

        Raises:
            DeterminismError: another operation was recorded there.

        """
        if self.recorded is None:
            return None
        found = self.recorded.get(position)
        if found is not None and found.name != name:
            raise DeterminismError(f"position {position}: {found.name!r} was recorded, the code now calls {name!r}")
        if self._begun and found is None and (begun := self.recorded.get(f"{position}{TICKET}1")) is not None:
            where = json.loads(begun.output or "[null]")[0]
            raise DeterminismError(
                f"position {position}: the transaction {begun.name!r} had begun in the database {where!r}, and may be "
                f"committed there; the code now calls {name!r}, and not there"
            )
        return found

    def tickets(self, position: str) -> list[Checkpoint]:
        """What the transaction in another database that began at this position was known by there, the last one at the end."""
        found: list[Checkpoint] = []
        while (ticket := self.at(f"{position}{TICKET}{len(found) + 1}")) is not None:
            found.append(ticket)
        return found

    def issue(self, position: str, name: str, output: str) -> Checkpoint:
        """Record what a transaction in another database will be known by there, from now on.

        All tickets of a position have the number of its first one, which is when it began.
        """
        before = self.tickets(position)
        if not before:
            self.seq += 1
        seq = before[0].seq if before else self.seq
        ticket = Checkpoint(f"{position}{TICKET}{len(before) + 1}", seq, name, output, None)
        self.fresh.append(ticket)
        self._begun = True
        return ticket

    def settle(self, ticket: Checkpoint, output: str, attempts: int, seconds: float, riders: Iterable[Rider]) -> None:
        """Record what a ticket came to, under the ticket's number: what drops the one drops the other."""
        position = ticket.position.partition(TICKET)[0]
        self.fresh.append(Checkpoint(position, ticket.seq, ticket.name, output, None, attempts, seconds))
        self.ride(ticket, riders)

    def at(self, position: str) -> Checkpoint | None:
        """What was recorded there, whatever it is."""
        return None if self.recorded is None else self.recorded.get(position)

    def add(
        self, position: str, name: str, output: str | None, error: str | None, attempts: int, seconds: float
    ) -> Checkpoint:
        """Record what an operation came to; the journal makes it durable."""
        self.seq += 1
        checkpoint = Checkpoint(position, self.seq, name, output, error, attempts, seconds)
        self.fresh.append(checkpoint)
        return checkpoint

    def fail(
        self, position: str, name: str, error: BaseException, text: str, attempts: int, seconds: float
    ) -> Checkpoint:
        """Record an operation as failed with this exception, encoded as `text`."""
        checkpoint = self.add(position, name, None, text, attempts, seconds)
        self.failures.append((error, checkpoint.seq))
        return checkpoint

    def details(self, position: str) -> str | None:
        """What was kept of how far a step is that has begun, as JSON."""
        kept = self.at(f"{position}{DETAILS}")
        return None if kept is None else kept.output

    def keep_details(self, workflow_id: str, position: str, name: str, details: str) -> Rider:
        """Keep how far a step is, over what was kept before; what writes it."""
        place = f"{position}{DETAILS}"
        if self.recorded is None:
            self.recorded = {}
        self.recorded[place] = Checkpoint(place, LAST, name, details, None)
        return Rider("keep_details", (workflow_id, place, name, details), LAST)

    def end_details(self, workflow_id: str, position: str) -> tuple[Rider, ...]:
        """The step has come to its end: what takes away the details that were kept of it."""
        place = f"{position}{DETAILS}"
        if self.recorded is None or self.recorded.pop(place, None) is None:
            return ()
        return (Rider("end_details", (workflow_id, place)),)

    def note(self, position: str, name: str, output: str | None, *riders: Rider) -> Checkpoint:
        """Record what took no time, with what shall be written in the same transaction."""
        checkpoint = self.add(position, name, output, None, 1, 0.0)
        if riders:
            self.ride(checkpoint, riders)
        return checkpoint

    def ride(self, checkpoint: Checkpoint, riders: Iterable[Rider]) -> None:
        """What shall be written in the same transaction as a checkpoint."""
        self.riders += tuple(rider._replace(seq=checkpoint.seq) for rider in riders)

    def told(self) -> list[Checkpoint]:
        """Where its operations were told that it is to end, in the order in which they were."""
        known = [*(self.recorded or {}).values(), *self.fresh]
        return sorted((c for c in known if c.name == TOLD), key=lambda c: c.seq)

    def has_begun(self, workflow_id: str) -> bool:
        """Whether an operation has recorded that it has started, or put in line, the workflow of this id."""
        known = [*(self.recorded or {}).values(), *self.fresh]
        return json.dumps(workflow_id) in {c.output for c in known if c.name.startswith(("start ", "enqueue "))}

    def closed(self) -> set[str]:
        """The streams that it has recorded as closed."""
        if self._closed is None:
            all_of = [*(self.recorded or {}).values(), *self.fresh]
            self._closed = {json.loads(c.output or '""') for c in all_of if c.name == "close_stream"}
        return self._closed

    def take_fresh(self) -> list[Checkpoint]:
        """The checkpoints not handed to the journal yet; they are the caller's from now on."""
        fresh, self.fresh = self.fresh, []
        if self.recorded is None:
            self.recorded = {}
        for checkpoint in fresh:
            self.recorded[checkpoint.position] = checkpoint
        return fresh

    def take_riders(self) -> tuple[Rider, ...]:
        """What goes with the checkpoints taken just before."""
        riders, self.riders = self.riders, ()
        return riders

    def take_last(self) -> list[Checkpoint]:
        """The same where the attempt is over and nothing will be looked up again."""
        last, self.fresh = self.fresh, []
        return last

    def failed_together(self, raised: BaseException, others: Iterable[BaseException]) -> None:
        """These failed on other branches beside the one that is raised for all: what drops its failure drops theirs."""
        theirs = {id(e) for other in others for e in _causes(other)}
        self.failures += [(raised, seq) for failure, seq in self.failures if id(failure) in theirs]

    def failed_at(self, error: BaseException) -> int | None:
        """The number of the checkpoint whose exception this is, or came from; None where it is no step's."""
        chain = {id(e) for e in _causes(error)}
        return min((seq for failure, seq in self.failures if id(failure) in chain), default=None)

    def note_failure(self, error: BaseException, position: str) -> None:
        """What is recorded there is this failure: a retry of the workflow drops it."""
        seq = next((c.seq for c in self.fresh if c.position == position), None)
        recorded = self.at(position)
        if seq is not None or recorded is not None:
            self.failures.append((error, seq if seq is not None else recorded.seq if recorded is not None else 0))

    def drop_failed(self, error: BaseException) -> tuple[int, str] | None:
        """Drop the checkpoint whose exception ended the workflow and everything after it (API.md 2.3.7).

        Returns the first number dropped, and the position of that checkpoint, whose recorded attempts go, too; None where
        no step's exception ended it.
        """
        first = self.failed_at(error)
        self.failures.clear()
        self._closed = None
        if first is None:
            return None
        known = [*self.fresh, *(self.recorded or {}).values()]
        position = next((c.position for c in known if c.seq == first), "")
        kept = [c for c in known if c.seq < first and not c.position.startswith(f"{position}~")]
        self.fresh = [c for c in self.fresh if c in kept]
        self.riders = tuple(rider for rider in self.riders if rider.seq < first)
        if self.recorded:
            self.recorded = {c.position: c for c in self.recorded.values() if c in kept}
        self.seq = first - 1
        return first, position


def _causes(error: BaseException) -> Generator[BaseException, None, None]:
    """An exception, those it wraps, and those it came from."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [e for e in (current.__cause__, current.__context__) if e is not None]
        if isinstance(current, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[Any]", current).exceptions


class Branch:
    """Where a workflow's operations take their positions. `home` is the task or thread that it belongs to.

    A task may outlive the attempt that started it (`asyncio.gather` ends none): it records nothing in the next one.
    """

    __slots__ = ("attempt", "children", "home", "leave", "number", "path", "refused", "run", "told")

    def __init__(self, run: Any, home: object, path: str = "1", attempt: int | None = None) -> None:
        self.run = run
        self.told = False  # that the workflow is to end
        self.refused = 0  # operations while it was to unwind
        self.leave: Callable[[], None] | None = None  # tells whoever waits for this branch that it will never end
        self.attempt = getattr(run, "attempt", 0) if attempt is None else attempt
        self.home = home
        self.path = path
        self.number = 0
        self.children = 1

    def peek(self) -> str:
        """The position that the next operation will take."""
        return f"{self.path}.{self.number + 1}"

    def replays(self, home: object) -> bool:
        """Whether what this home's code does now was done before: the operation that comes next has begun in a former run."""
        recorded = self.run.history.recorded
        if not recorded:
            return False
        # A task that has reached no operation yet becomes the next child.
        following = self.peek() if home is self.home else f"{self._path_of(self.children + 1)}.1"
        return any(f"{following}{part}" in recorded for part in _BEGUN)

    def next_position(self) -> str:
        self.number += 1
        position = f"{self.path}.{self.number}"
        self.run.history.ahead.discard(position)
        return position

    def child(self, home: object) -> "Branch":
        """The branch of a task that this branch started, numbered in the order of their first operations."""
        self.children += 1
        branch = Branch(self.run, home, self._path_of(self.children), self.attempt)
        branch.told = self.told
        return branch

    def _path_of(self, child: int) -> str:
        return str(child) if self.path == "1" else f"{self.path}/{child}"


class Kind(NamedTuple):
    """What all calls of one step have in common."""

    name: str
    policy: Retry
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]
    encode_error: Callable[[BaseException], str]
    decode_error: Callable[[str], Exception]
    clock: Callable[[], float]


class Pace(NamedTuple):
    """Time and chance as an executor has them.

    Attributes:
        now: in seconds since 1970. draw: chance, from 0 to 1.
        long: a policy that may wait for so many seconds between two attempts has them recorded.
        live: whether a step's result is handed on as it came, and not as its record reads.
        hold: what share of the waits between a transaction's attempts, which nothing records, is waited.

    """

    now: Callable[[], float]
    draw: Callable[[], float]
    long: float = LONG
    live: bool = True
    hold: float = 1.0


class Gathers(Protocol):
    """What gathers the riders of one attempt. `end()` is told that the step has ended, and gives what must be written then."""

    riders: tuple[Rider, ...]

    def end(self) -> tuple[Rider, ...]: ...


def step(
    history: History, position: str, kind: Kind, settled: Callable[[], bool], pace: Pace, scope: Gathers
) -> Generator[Effect, Any, Any]:
    """Return the recorded result of this step, or run it until it succeeds or its retries are spent, and record that.

    `settled` tells whether everything recorded before is durable; only then may the function act (R12). Where the policy's
    waits may be long, failed attempts are recorded too (at `{position}~{attempt}`): a crash does not start them over.
    `scope` gathers what an attempt wants written; it goes with the checkpoint of the one that succeeds.

    A result that cannot be encoded is the step's failure, and not tried again: it has acted.

    Raises:
        DeterminismError: another step was recorded at this position.
        Exception: the step's own, recorded too and raised again by every replay.

    """
    name = kind.name
    recorded = history.find(position, name)
    if recorded is not None:
        if recorded.error is not None:
            error = kind.decode_error(recorded.error)
            history.failures.append((error, recorded.seq))
            raise error
        return kind.decode(recorded.output or "null")
    attempts, policy = 0, kind.policy
    if history.recorded is not None and policy.retries:
        attempts, until = _attempts(history, position, name)
        if until > pace.now():
            yield Await(until)
    if not settled():
        yield BARRIER
    clock = kind.clock
    began = clock()
    while True:
        attempts += 1
        try:
            result = yield CALL
        except Exception as error:
            scope.riders = ()
            if policy.wants(error, attempts):
                wait = policy.wait(attempts, pace.draw())
                if policy.longest() < pace.long:
                    yield wait
                else:
                    until = pace.now() + wait
                    history.add(
                        f"{position}~{attempts}", name, repr(until), kind.encode_error(error), attempts, clock() - began
                    )
                    yield Await(until)
                    if not settled():
                        yield BARRIER
                continue
            if attempts > 1:
                error.add_note(f"eventflow: step {name!r} failed in each of {attempts} attempts")
            failed = history.fail(position, name, error, kind.encode_error(error), attempts, clock() - began)
            history.ride(failed, scope.end())
            raise
        try:
            output = kind.encode(result)
        except CodecError as error:
            scope.riders = ()
            failed = history.fail(position, name, error, kind.encode_error(error), attempts, clock() - began)
            history.ride(failed, scope.end())
            raise
        checkpoint = history.add(position, name, output, None, attempts, clock() - began)
        riders = (*scope.riders, *scope.end())
        if riders:
            history.ride(checkpoint, riders)
        return result if pace.live else kind.decode(output)


def _attempts(history: History, position: str, name: str) -> tuple[int, float]:
    """How many attempts of a step were recorded as failed, and when the next one is due."""
    attempts, until = 0, 0.0
    while (tried := history.find(f"{position}~{attempts + 1}", name)) is not None:
        attempts, until = attempts + 1, float(tried.output or "0")
    return attempts, until


# ---- values, and waiting ---------------------------------------------------------------------------


def recorded_value(history: History, position: str, name: str, make: Callable[[], str]) -> str:
    """What `make` gave when this position was first reached, as it was recorded."""
    found = history.find(position, name)
    if found is None:
        found = history.note(position, name, make())
    return found.output or "null"


def sleep(history: History, position: str, now: Callable[[], float], until: Callable[[], float]) -> Operation[None]:
    """Wait until a time, which is fixed when this is first reached."""
    moment = _fixed_time(history, position, "sleep", until)
    while moment > now():
        yield Await(moment)


def receive(
    history: History, position: str, workflow_id: str, topic: str, now: Callable[[], float], timeout: float | None
) -> Operation[str | None]:
    """The next message of a topic of this workflow's inbox; None where none came in the time given."""
    found = history.find(position, "recv")
    if found is None:
        until = None if timeout is None else _fixed_time(history, f"{position}w", "recv", lambda: now() + timeout)
        came = yield Await(until, (("inbox", workflow_id, topic),))
        message_id, payload = (None, None) if came is None else came[1]
        taken = () if message_id is None else (Rider("consume_messages", (message_id, position)),)
        found = history.note(position, "recv", payload, *taken)
    return found.output


def outcome(
    history: History, position: str, workflow_id: str, settled: Callable[[], bool], now: Callable[[], float],
    timeout: float | None,
) -> Operation[Any]:  # fmt: skip
    """How another workflow ended, as [status, output, error, reason]; None where it has not in the time given."""
    found = history.find(position, "result")
    if found is None:
        until = None if timeout is None else _fixed_time(history, f"{position}w", "result", lambda: now() + timeout)
        came = yield from _ended(Await(until, (("outcome", workflow_id),)), settled)
        found = history.note(position, "result", json.dumps(None if came is None else came[1]))
    return json.loads(found.output or "null")


def first(history: History, position: str, workflow_ids: Sequence[str], settled: Callable[[], bool]) -> Operation[int]:
    """Which of these workflows was seen first to have ended, or to be gone, by its place in the list."""
    found = history.find(position, "first")
    if found is None:
        came = yield from _ended(Await(None, tuple(("outcome", workflow_id) for workflow_id in workflow_ids)), settled)
        found = history.note(position, "first", json.dumps(workflow_ids.index(came[0][1])))
    return int(found.output or "0")


def _ended(awaited: Await, settled: Callable[[], bool]) -> Operation[Any]:
    """Which source has ended, and how.

    One that is not in the ledger is gone only if that was asked after what may start it, here, was durable.
    """
    came = yield awaited
    if came is not None and came[1][0] == "gone":
        if not settled():
            yield BARRIER
        came = yield awaited
    return came


def event(
    history: History, position: str, workflow_id: str, key: str, now: Callable[[], float], timeout: float | None
) -> Operation[str | None]:
    """The value of another workflow's event; None where it was not set in the time given."""
    found = history.find(position, "event")
    if found is None:
        until = None if timeout is None else _fixed_time(history, f"{position}w", "event", lambda: now() + timeout)
        came = yield Await(until, (("event", workflow_id, key),))
        found = history.note(position, "event", None if came is None else came[1][0])
    return found.output


def patch(history: History, branch: "Branch", name: str) -> bool:
    """Whether the code that is new since `name` shall run here: not where a former run went the old way.

    Its marker takes a position only where it is recorded, so that what the old code recorded stays where it is.
    """
    recorded = history.at(branch.peek())
    if recorded is not None and recorded.name != f"patch {name}":
        return False
    if recorded is None and history.tickets(branch.peek()):
        return False  # a transaction has begun here, and may be committed
    position = branch.next_position()
    if recorded is None:
        history.note(position, f"patch {name}", "true")
    return True


def deprecate_patch(history: History, branch: "Branch", name: str) -> None:
    """Pass over the marker of a patch that every run now has; nothing is recorded where there is none."""
    recorded = history.at(branch.peek())
    if recorded is not None and recorded.name == f"patch {name}":
        branch.next_position()


def _fixed_time(history: History, position: str, name: str, make: Callable[[], float]) -> float:
    return float(recorded_value(history, position, name, lambda: repr(make())))
