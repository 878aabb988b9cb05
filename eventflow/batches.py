"""Batch handlers: many messages, one call. Who is gathered for it, and whose fault it is when it fails.

Messages gather on the loop, until there are as many as a batch holds or the first has waited for as long as it may; those of
a scope in order, behind the one whose turn it is, whose turn is then theirs, too. A call that fails is made again with each
half of its messages, and so on: the one that fails alone fails like any message, and so do others like it. What was tried
before runs by itself. With a transaction, `transactions` makes the calls, each in one of its own; without, this does.

Where nothing is kept of messages that succeed and they have no order, they come as they were fetched, and become runs when
anything is amiss with their batch (`fetched`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from eventflow.codec import error_line
from eventflow.context import StepScope, current
from eventflow.errors import CodecError
from eventflow.fetched import Fetched
from eventflow.kafka import Unprepared
from eventflow.outcomes import Outcomes
from eventflow.registry import ConsumerSpec, Spec
from eventflow.replay import Branch
from eventflow.runs import Run
from eventflow.telemetry import seldom
from eventflow.tracing import Tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Messages that go to their handler together, in order; or as they were fetched."""

    runs: list[Run]
    fetched: list[Fetched] = field(default_factory=list[Fetched])

    @property
    def spec(self) -> Spec:
        return self.runs[0].spec if self.runs else self.fetched[0].spec


class Desk(Protocol):
    """What the executor does for it."""

    loop: asyncio.AbstractEventLoop
    stopping: bool

    def able(self, runs: list[Run]) -> list[Run]: ...
    def begin_batch(self, batch: Batch) -> None: ...
    def company(self, run: Run, limit: int) -> list[Run]: ...
    def beginning(self, runs: list[Run]) -> list[Run]: ...
    def put_back(self, runs: list[Run]) -> None: ...


Read = Callable[[Run], Any]


def is_batched(spec: Spec) -> bool:
    """Whether its handler takes batches."""
    return spec.consumer is not None and spec.consumer.batch is not None


def takes_fetched(consumer: ConsumerSpec, *, keeps: bool) -> bool:
    """Whether its messages may be gathered as they were fetched; `keeps`: each of them gets a row."""
    return (
        consumer.batch is not None and consumer.transaction is not None and consumer.ordering == "none" and not keeps
        and consumer.spec.circuit is None
    )  # fmt: skip


class _Gathered:
    """What waits for one handler's next call."""

    __slots__ = ("fetched", "messages", "runs")

    def __init__(self) -> None:
        self.runs: deque[Run] = deque()
        self.fetched: deque[Fetched] = deque()
        self.messages = 0  # of those that were fetched

    def __len__(self) -> int:
        return len(self.runs) + self.messages

    def take_fetched(self, most: int) -> list[Fetched]:
        """So many of those that were fetched, at most."""
        taken: list[Fetched] = []
        while self.fetched and most:
            one = self.fetched[0]
            if len(one) <= most:
                self.fetched.popleft()
            else:
                one = one.cut(most)
            taken.append(one)
            most -= len(one)
            self.messages -= len(one)
        return taken


def take_up(runs: list[Run], read: Read) -> tuple[list[Run], list[Any], list[tuple[Run, BaseException | None]]]:
    """Those that may go together now, and their messages; of the others, what is wrong with reading them.

    That is None for one that stands behind one of its scope that does not go with it, and has not gone, or not durably (R12).
    """
    going: list[Run] = []
    messages: list[Any] = []
    others: list[tuple[Run, BaseException | None]] = []
    here = set[Run]()
    for run in runs:
        before = run.before
        if before is not None and before not in here and not before.over():
            others.append((run, None))
            continue
        try:
            messages.append(read(run))
        except (CodecError, Unprepared) as error:
            others.append((run, error))
        else:
            going.append(run)
            if run.scope is not None:
                here.add(run)
    return going, messages, others


def halves(runs: list[Run], error: BaseException) -> list[list[Run]]:
    """Both halves of what has failed with this, the one that is called first at the end.

    That is said, seldom: a batch that fails as a whole, and passes in parts, costs more each time and leaves no other trace.
    """
    what = f"{type(error).__name__}: {error_line(error)}"
    seldom.say(logger, f"{runs[0].name}: a call with {len(runs)} messages failed, and is made with each half: {what}")
    middle = len(runs) // 2
    return [runs[middle:], runs[:middle]]


class Batches:
    """The batches of one executor. On the loop, but for `calls`."""

    def __init__(self, desk: Desk, outcomes: Outcomes, read: Read, tracing: Tracing | None = None) -> None:
        self._desk, self._outcomes, self._read, self._tracing = desk, outcomes, read, tracing
        self._gathered: dict[str, _Gathered] = {}  # by their handler's name
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._open = True
        self.running = set[Run]()  # in calls that are made here

    def waiting(self) -> int:
        """How many messages are gathered for a call that has not begun."""
        return sum(len(gathered) for gathered in self._gathered.values())

    def open(self, value: bool) -> None:
        """Whether calls may begin."""
        self._open = value
        if value:
            for name in list(self._gathered):
                self._look(name)

    def put(self, name: str, runs: list[Run]) -> None:
        """Gather these of one handler. They are not looked at: that costs much where another thread has just made them."""
        self._gathered.setdefault(name, _Gathered()).runs.extend(runs)
        self._look(name)

    def gather(self, fetched: list[Fetched]) -> None:
        """Gather these of one handler, as they were fetched."""
        name = fetched[0].spec.name
        gathered = self._gathered.setdefault(name, _Gathered())
        gathered.fetched.extend(fetched)
        gathered.messages += sum(map(len, fetched))
        self._look(name)

    def _look(self, name: str, *, due: bool = False) -> None:
        gathered = self._gathered.get(name)
        if due:
            self._timers.pop(name, None)
        if not gathered or not self._open:
            return
        consumer: Any = (gathered.runs or gathered.fetched)[0].spec.consumer
        while gathered and (due or _count(gathered, consumer) >= consumer.batch):
            self._desk.begin_batch(self._next(gathered, consumer))
        if gathered and name not in self._timers:
            self._timers[name] = self._desk.loop.call_later(consumer.batch_wait, lambda: self._look(name, due=True))
        elif not gathered and name in self._timers:
            self._timers.pop(name).cancel()

    def _next(self, gathered: _Gathered, consumer: Any) -> Batch:
        most, waiting = consumer.batch, gathered.runs
        if not waiting:  # runs first: where messages come as fetched, runs are the few that were amiss
            return Batch([], gathered.take_fetched(most))
        if consumer.ordering == "none":
            return Batch([waiting.popleft() for _ in range(min(most, len(waiting)))])
        runs: list[Run] = []
        while waiting and len(runs) < most:
            run = waiting.popleft()
            runs.append(run)
            if run.scope is not None:
                runs += self._desk.company(run, most - len(runs))
        return Batch(runs)

    # ---- calls without a transaction: at least once ----

    async def run(self, batch: Batch) -> None:
        """Make the calls of an async handler."""
        calls, error = self._calls(batch.runs), None
        with suppress(StopIteration):
            messages = next(calls)
            while True:
                try:
                    await batch.spec.function(messages)
                except BaseException as raised:
                    error = raised
                else:
                    error = None
                messages = calls.send(error)

    def run_sync(self, batch: Batch) -> None:
        """Make those of a sync one, in a thread of its own context."""
        calls, error = self._calls(batch.runs), None
        with suppress(StopIteration):
            messages = next(calls)
            while True:
                try:
                    batch.spec.function(messages)
                except BaseException as raised:
                    error = raised
                else:
                    error = None
                messages = calls.send(error)

    def _calls(self, runs: list[Run]) -> Generator[list[Any], BaseException | None, None]:
        """With which messages calls are to be made, in the scope that is current then; told what each raised, if anything."""
        parts = [self._desk.beginning(runs)]
        self.running.update(runs)
        try:
            while parts:
                part, messages, others = take_up(self._desk.able(parts.pop()), self._read)
                for run, wrong in others:
                    if wrong is not None:
                        self._failed(run, wrong)
                if others:
                    self._desk.put_back([run for run, wrong in others if wrong is None])
                if not part:
                    continue
                scope = StepScope(Branch(part[0], None), "1.1", part[0].name, many=True)
                current.set(scope)
                span = None if self._tracing is None else self._tracing.begin_batch(part)
                error = yield messages
                if span is not None:
                    span.error = error
                    span.close()
                if error is None:
                    part[0].history.riders = scope.riders  # what was started there goes with the first message's end
                    self._end(part, None)
                elif self._desk.stopping and not isinstance(error, Exception):  # nothing more is to begin
                    self._end([run for one in (part, *reversed(parts)) for run in one], error)
                    return
                elif len(part) > 1:
                    parts += halves(part, error)
                else:
                    self._end(part, error)
        finally:
            self.running.difference_update(runs)

    def _end(self, runs: list[Run], error: BaseException | None) -> None:
        output = None if error is not None else runs[0].spec.result.encode(None)
        for run in runs:
            if error is not None:
                self._failed(run, error)
                continue
            with run.lock:
                self._outcomes.finish(run, output or "", None)

    def _failed(self, run: Run, error: BaseException) -> None:
        with run.lock:
            self._outcomes.failed(run, error)


def _count(gathered: _Gathered, consumer: Any) -> int:
    """How many may go now, of those gathered and of those behind them in their scopes, if not more than a whole batch."""
    count = len(gathered)
    if consumer.ordering == "none":
        return count
    for run in gathered.runs:
        if count >= consumer.batch:
            break
        count += 0 if run.scope is None else run.scope.waiting()
    return count
