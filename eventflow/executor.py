"""Runs workflows: async ones on the program's loop, sync ones in threads, each from its input to its outcome.

Async runs share *runner* tasks: a runner drives one workflow after another, each in a context of its own, and no task is
made for one that never really waits. When a workflow waits, its runner waits with it and another takes the rest, so
`asyncio.current_task()`, `timeout` and `TaskGroup` mean in a handler what they always mean.

Nothing here writes: outcomes and checkpoints go to the journal as entries, and come back as durable, or dropped.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Any, Literal, NoReturn, Protocol

import eventflow.metrics as metrics
from eventflow.batches import Batch, Batches, is_batched
from eventflow.context import Hopeless, Progress, Start, StepScope, Suspended, current
from eventflow.counting import committed, committed_fetched, flushed
from eventflow.errors import Cancelled, CodecError, HistoryTooLongError, for_future
from eventflow.fetched import Fetched
from eventflow.idempotency import parse_message_workflow_id
from eventflow.interrupts import Interrupts, overdue
from eventflow.journal import Entry, Journal, heralds
from eventflow.kafka import of_generation
from eventflow.outcomes import Outcomes
from eventflow.preparation import Preparation
from eventflow.records import FINAL, Rider
from eventflow.registry import Spec
from eventflow.replay import Await, Branch, Pace
from eventflow.runs import Claim, Dropped, How, Life, Run
from eventflow.scopes import Scope
from eventflow.suspects import Suspects
from eventflow.swallowed import place_of
from eventflow.telemetry import crash_point
from eventflow.threads import Threads, give_up, works_for_a_pool
from eventflow.tracing import Trace, active
from eventflow.waits import Ask, Later, Wait, Waits, life_of

logger = logging.getLogger(__name__)

_SLICE = 0.005  # seconds that one runner may hold the loop
_LONG = 2000  # operations recorded by one run of a workflow, which a warning says; half of the limit, where it is low
_CHILDREN = 1000  # workflows in memory, beyond which children are left to whoever has room
_RECOVERED = 3000  # rows of dead peers that are taken beside what runs
_DETAILS_EVERY = 1.0  # seconds between two writes of what a step tells of its progress
_SWALLOWS = 1000  # operations that one branch may try while it is to unwind
_NO_CAUSES: dict[object, str] = {}
_SHOWN = 100  # exceptions that are kept to tell where they were swallowed


# Tasks of code that goes on whatever unwinds it: nobody awaits them, and they must not be collected.
_left: list[Any] = []


class TransactionLanes(Protocol):
    """Where transactional handlers run."""

    active: int

    def put(self, items: Sequence[Run | Batch], *, alone: bool = False) -> None: ...
    def open(self, value: bool) -> None: ...


class _Follow:
    """Awaits what a workflow awaits, in the workflow's own context, for the runner that drives it."""

    __slots__ = ("context", "coroutine", "first")

    def __init__(self, context: Context, coroutine: Any, first: Any) -> None:
        self.context = context
        self.coroutine = coroutine
        self.first = first

    def __await__(self) -> Generator[Any, Any, None]:
        run, send, throw, future = self.context.run, self.coroutine.send, self.coroutine.throw, self.first
        try:
            while True:
                try:
                    value = yield future
                except BaseException as error:
                    future = run(throw, error)
                else:
                    future = run(send, value)
        except StopIteration:
            return


class Executor:
    """All runs of one incarnation of this process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, accept_after: float, threads: int, pace: Pace, ask: Ask,
        later: Later | None = None, suspend_after: float = 5.0, application: str = "default", longest: int = 50_000,
    ) -> None:  # fmt: skip
        """`later` calls a function on the loop in so many seconds, by the clock of `pace`."""
        self.loop = loop
        self.later: Later = later or loop.call_later
        self.pace, self.now = pace, pace.now
        self._loop_thread = threading.get_ident()
        self.journal: Journal
        self.transactions: TransactionLanes
        self.waits = Waits(loop, ask, now=pace.now, later=self.later, suspend_after=suspend_after, crowded=self.crowded)
        self._longest, self._long = longest, min(_LONG, longest // 2)
        self.application = application
        self.tracing = active()
        if self.tracing is not None:
            self.tracing.whose = _whose
        self.on_signal: Callable[[], None]  # something came for a workflow that may sleep
        self.on_told: Callable[
            [Literal["target", "sleeper"], str], None
        ]  # what one may watch, or a watch, is committed
        self.on_rows: Callable[[], None]  # there are rows that nobody holds
        self.on_sleep: Callable[[float | None], None]  # one of ours sleeps, until then at most
        self.on_queued: Callable[[float | None], None]  # something stands in line, or will in so many seconds
        self.on_published: Callable[[], None] = lambda: None  # events are in the outbox
        self.on_freed: Callable[[], None]  # one that came from a queue has left memory
        self.on_ordered: Callable[[Run], None]  # one that is kept in order has come from the ledger, and takes its turn
        self.on_stop: Callable[[Run, str], None]  # a message has failed for good, and why: its consumer stands still
        self.runs: dict[str, Run] = {}
        self._accept_after = accept_after
        self.outcomes = Outcomes(self, pace.draw)
        self.interrupts = Interrupts(self, self.outcomes, self.waits)
        self.waits.on_asked = self.interrupts.request
        self._suspects = Suspects(self, self.outcomes)
        self._preparation = Preparation(self.when_settled)
        self.batches = Batches(self, self.outcomes, message_of, self.tracing)
        self._queue: deque[Run] = deque()
        self._runners = 0
        self._idle = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsubmitted: list[Run] = []
        self._posted: deque[Callable[[], None]] = deque()  # by other threads, for the loop
        self._woken = False
        self._behind: dict[Run, bool] = {}  # launched when the one before them in their scopes is durable
        self._started: deque[tuple[float, Run]] = deque()
        self._children = set[str]()  # whose rows are on their way to the ledger
        self._startable: dict[str, Spec] = {}  # what has been started as a child, by name
        self._gate = False
        self.stopping = False
        self._active = 0
        self._beginning: Run | None = (
            None  # it has not waited yet; what it records is handed over when it does, or ends
        )
        self._clock = time.monotonic
        self._threads: Threads[Run | Batch] = Threads(threads, self._run_in_thread)
        self._in_threads: set[Run] = set()
        self._turned = time.monotonic()
        self._tick = loop.call_later(max(accept_after / 2, 0.005), self._accept_slow)

    # ---- intake ----

    def dispatch(self, runs: list[Run]) -> None:
        """Run these; from any thread. Order within a scope is the order given."""
        ready = [run for run in runs if self._in_turn(run)]
        if ready:
            self._launch(ready)

    def _launch(self, runs: list[Run]) -> None:
        wary: list[Run] = []
        plain: list[Run] = []
        threaded: list[Run] = []
        others: list[Run] = []
        for run in runs:
            if run.life is not None:
                self._watch(run, run.life)
            consumer = run.spec.consumer
            circuit = run.spec.circuit
            if run.wary:
                wary.append(run)
            elif circuit is not None and not run.dropped and (wait := circuit.wait(run)):
                self.outcomes.put_off(run, wait)
            elif consumer is not None and (consumer.transaction or consumer.batch):
                others.append(run)
            elif run.before is not None and run.spec.acts and not (run.settled() or run.dropped):
                self._launch_later(run)  # called now, it would stand still at once
            elif run.spec.is_async:
                plain.append(run)
            else:
                threaded.append(run)
        if wary:
            self.loop.call_soon_threadsafe(self._accept_first, wary)
        if others:
            self._launch_settled(others)
        if threaded and self._threads.stopped.is_set():
            for run in threaded:
                self.abandon(run)
        elif threaded:
            self._threads.put(threaded)
        if plain:
            self.on_loop(self._enqueue, plain)

    def _watch(self, run: Run, life: Life) -> None:
        if life.deadline is None:
            return
        if life.deadline <= self.now():  # told before it begins: a short one would have ended by then
            life.interrupted = life.interrupted or overdue(run)
        else:
            self.loop.call_soon_threadsafe(self.interrupts.watch, run, life.deadline)

    def _launch_settled(self, runs: list[Run]) -> None:
        """Launch messages of transactional and batch handlers, all of which are effects.

        They would be there before what stands before them in their scopes is known to be durable (R12), so they wait.
        """
        transactional: list[Run] = []
        batched: dict[str, list[Run]] = {}
        for run in runs:
            if not (run.settled() or run.dropped):
                self._launch_later(run)
            elif not is_batched(run.spec):
                transactional.append(run)
            elif run.in_ledger or run.retries:
                self.on_loop(self.begin_batch, Batch([run]))
            else:
                batched.setdefault(run.name, []).append(run)
        if transactional:
            self.transactions.put(transactional)
        for name, ones in batched.items():
            self.on_loop(self.batches.put, name, ones)

    def _launch_later(self, run: Run) -> None:
        """Launch it once the one before it in its scope is over; together with others that wait for what is known with that."""
        self._behind[run] = True  # before the look: whoever ends the other one looks here after that
        before = run.before
        if (before is None or before.over()) and self._behind.pop(run, False):
            self.when_settled(run)

    def _wake(self, run: Run, free: list[Run]) -> None:
        """Tell who waits for this one's records, and note who may be launched now."""
        after = run.wake()
        while after is not None:
            if self._behind.pop(after, False):
                free.append(after)
            after = after.wake()

    def _wake_all(self, runs: Iterable[Run]) -> None:
        free: list[Run] = []
        for run in runs:
            self._wake(run, free)
        if free:
            self._launch(free)

    def when_settled(self, run: Run) -> None:
        """Launch it once everything recorded before, in it and in its scope, is durable."""
        once = threading.Lock()

        def launch() -> None:
            if once.acquire(blocking=False):
                if run.life is not None:
                    run.life.taken.clear()  # what it keeps of its messages is durable, what it gave back may come again
                self._launch([run])

        self._tell_when_settled(run, launch)

    def _tell_when_settled(self, run: Run, tell: Callable[[], None]) -> None:
        """Call `tell`, from any thread and perhaps twice, once all is durable or the attempt is over."""
        run.waiters = [*(run.waiters or ()), tell]
        if run.settled() or run.dropped:
            tell()

    def _in_turn(self, run: Run) -> bool:
        """Whether it may start now; else it waits in its scope's line (R11)."""
        run.executor = self
        return run.scope is None or run.turn or run.scope.enter(run)

    def prepare(self, run: Run) -> None:
        """Run it again once what reading its message needs is there."""
        self._preparation.put(run)

    def next_in_line(self, run: Run) -> None:
        """Its function has ended for good: the next of its scope may start."""
        if run.scope is not None:
            self._follow(run.scope.leave(run))

    def company(self, run: Run, limit: int) -> list[Run]:
        """Who comes behind it in its scope and may run together with it, in order: they are done all or none."""
        if run.scope is None or run.in_ledger or run.dropped:
            return []
        return self.able(run.scope.accompany(limit))

    def able(self, runs: list[Run]) -> list[Run]:
        """Those that may begin; the attempts of the others are over."""
        dead = [run for run in runs if not run.may_begin()]
        for run in dead:
            self.abandon(run)
        return [run for run in runs if not run.dropped] if dead else runs

    def beginning(self, runs: list[Run]) -> list[Run]:
        """Those that may begin, and are about to."""
        runs = self.able(runs)
        for run in runs:
            run.begun = True
        return runs

    def put_back(self, runs: list[Run]) -> None:
        """These kept a run company that has failed: they are the first of their scopes again."""
        by_scope: dict[Scope, list[Run]] = {}
        for run in runs:
            if run.scope is not None:
                by_scope.setdefault(run.scope.of(run), []).append(run)
        for scope, ones in by_scope.items():
            self._follow(scope.put_back(ones))

    def unblock(self, scope: Scope) -> None:
        """Start the first in line of a scope that nothing holds back."""
        self._follow(scope.following())

    def _follow(self, run: Run | None) -> None:
        if run is None:
            return
        if run.before is not None and run.spec.acts and run.life is None and not run.wary:
            self._launch_later(run)
        else:
            self._launch([run])

    def store(self, runs: list[Run]) -> None:
        """Give these, which wait in line, a row instead: they are in line in the ledger. From their consumer's thread."""
        for run in runs:
            self.hand(run, Entry(run, [], "queued", held=None), ended=True)

    def release(self, runs: list[Run]) -> None:
        """Let go of these, which have rows and wait for their turn. From their consumer's thread."""
        for run in runs:
            self.outcomes.release(run)

    def take(self, run: Run) -> None:
        """It was in line in the ledger, and is this executor's now."""
        run.executor = self
        self.runs[run.workflow_id] = run

    def _hold_back(self, run: Run, entry: Entry) -> None:
        """It has ended and is not final: what comes behind it in its scope waits, too (R11)."""
        if entry.held is None:
            if run.scope is not None:
                run.scope.stored_one()
            return
        if run.scope is not None:
            run.scope.hold_back(run)
            if entry.status == "parked":
                logger.error("%s is held back until %s is decided on", run.scope, run.workflow_id)
        if entry.status == "waiting":
            self.on_sleep(None if entry.wake_in is None else self.now() + entry.wake_in)

    def _enqueue(self, runs: list[Run]) -> None:
        if self.stopping:
            for run in runs:
                self.abandon(run)
            return
        self._queue.extend(runs)
        self.spawn()

    def spawn(self) -> None:
        """Make sure that a runner is on its way while there is something to run."""
        if self._queue and not self._idle and not self._gate and not self.stopping:
            self._idle += 1
            task = self.loop.create_task(self._runner(), context=Context())  # not that of a workflow that just ended
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # ---- async runs ----

    async def _runner(self) -> None:
        task = asyncio.current_task()
        queue, clock = self._queue, self._clock
        self._idle -= 1
        until = clock() + _SLICE
        while queue and not self._gate and not self.stopping:
            run = queue.popleft()
            if not run.may_begin():
                self.abandon(run)
                continue
            self._active += 1
            self._beginning = run
            run.begun = run.driven = True
            context = Context()
            coroutine = self._run(run, task)
            try:
                future = context.run(coroutine.send, None)
            except StopIteration:
                pass
            else:
                self._beginning = None
                self.submit_fresh(run)
                self.interrupts.tell_late(run)
                self._started.append((clock(), run))
                self.spawn()
                await _Follow(context, coroutine, future)
                if task is not None and task.cancelling():
                    while task.uncancel():
                        pass
            self._undriven(run)
            if clock() > until:
                if self._idle:
                    return  # another runner is on its way
                self._idle += 1
                await asyncio.sleep(0)
                self._idle -= 1
                until = clock() + _SLICE

    def _undriven(self, run: Run) -> None:
        """No runner drives it any more."""
        if run.driven:
            run.driven = False
            self._active -= 1

    async def _run(self, run: Run, task: Any) -> None:
        current.set(Branch(run, task))
        run.home = task
        run.history.rewind()
        spec = run.spec
        span = None if self.tracing is None else self.tracing.begin(run)
        try:
            if run.claim is not None or run.arguments is None:
                result = await spec.function(message_of(run))
            else:
                args, kwargs = spec.arguments.decode(run.arguments)
                result = await spec.function(*args, **kwargs)
            output = spec.result.encode(result)
        except BaseException as error:
            if span is not None:
                span.error = error
            self._conclude(run, self.outcomes.failed, error)
        else:
            crash_point("executor.before_finish")
            self._conclude(run, self.outcomes.finish, output, result)
        if span is not None:
            span.close()

    # ---- batches ----

    def gather(self, fetched: list[Fetched]) -> None:
        """Have these gathered for their batch handler; from their consumer's thread."""
        self.on_loop(self.batches.gather, fetched)

    def begin_batch(self, batch: Batch, *, alone: bool = False) -> None:
        """Have the handler called with these messages, where they may begin by then. On the loop."""
        if self.stopping:
            for run in batch.runs:
                self.abandon(run)
            for one in batch.fetched:
                one.let_go()
        elif _is_transactional(batch.spec):
            self.transactions.put([batch], alone=alone)
        elif batch.spec.is_async:
            self._tasks.add(task := self.loop.create_task(self._run_batch(batch), context=Context()))
            task.add_done_callback(self._tasks.discard)
        elif alone:
            self._threads.alone(batch)
        else:
            self._threads.put([batch])

    async def _run_batch(self, batch: Batch) -> None:
        self._active += 1
        try:
            await self.batches.run(batch)
        finally:
            self._active -= 1

    # ---- sync runs ----

    def _run_in_thread(self, run: Run | Batch) -> None:
        if isinstance(run, Batch):
            Context().run(self.batches.run_sync, run)
            return
        if not run.may_begin():
            self.abandon(run)
            return
        run.begun = True
        self._started.append((self._clock(), run))
        self._in_threads.add(run)
        Context().run(self._run_sync, run)
        self._in_threads.discard(run)

    def _run_sync(self, run: Run) -> None:
        current.set(Branch(run, threading.current_thread()))
        spec = run.spec
        run.acting = 1  # its threads that are not in a wait: what they do between two operations, nobody else sees
        span = None if self.tracing is None else self.tracing.begin(run)
        try:
            if run.claim is not None or run.arguments is None:
                result = spec.function(message_of(run))
            else:
                args, kwargs = spec.arguments.decode(run.arguments)
                result = spec.function(*args, **kwargs)
            output = spec.result.encode(result)
        except BaseException as error:
            if span is not None:
                span.error = error
            with run.lock:
                self._conclude(run, self.outcomes.failed, error)
        else:
            crash_point("executor.before_finish")
            with run.lock:
                self._conclude(run, self.outcomes.finish, output, result)
        if span is not None:
            span.close()

    def _conclude(self, run: Run, outcome: Callable[..., None], *args: Any) -> None:
        """Its function has ended; where even its outcome raises, it fails for good with that: else nothing ever ended it."""
        try:
            outcome(run, *args)
        except Exception as problem:
            logger.exception("the outcome of %s", run.workflow_id)
            if not (run.ended or run.dropped or self.stopping):  # one that stops leaves it to whoever comes next
                self.outcomes.fail(run, problem)

    def hand(self, run: Run, entry: Entry, *, ended: bool = False) -> None:
        run.submitted += 1
        if run.trace is not None and run.submitted == 1 and not run.in_ledger and entry.status not in FINAL:
            entry.riders = [*(entry.riders or ()), run.trace.rider(run.workflow_id)]
        if run.history.riders:
            entry.riders = [*(entry.riders or ()), *run.history.take_riders()]
        if ended:
            run.ended, run.home = True, None
            if (run.claim is None or run.life is not None) and (entry.status in FINAL or entry.status == "parked"):
                entry.riders = [*(entry.riders or ()), *heralds(run)] or None
        else:
            self.runs[run.workflow_id] = run  # its row will carry our id: R10b must find it running
        self.journal.submit(entry)
        if ended and entry.status in FINAL:
            self.next_in_line(run)

    def stop_consumer(self, run: Run, why: str) -> None:
        self.on_stop(run, why)

    def abandon(self, run: Run) -> None:
        """This attempt is over and is recorded by nobody here; where its end is with the journal already, that stands."""
        if run.ended and not run.dropped and run.submitted > run.durable:
            return
        run.dropped = run.ended = True
        self._forget(run)
        self._count_dropped(run)
        if run.future is not None and not run.future.done():  # who waits for it here asks the ledger from now on
            self.on_loop(_cancel, run.future)
        self._wake_all([run])
        self.next_in_line(run)

    def _count_dropped(self, run: Run) -> None:
        """It takes no more room in its claim's bound."""
        if run.claim is None:
            return
        with run.claim.lock:
            counted, run.counted = run.counted, True
            run.claim.finished += not counted
        if run.weight:
            run.claim.lighten(run)
        if run.scope is not None and not counted:
            run.scope.let_go(run)

    def _forget(self, run: Run) -> None:
        """It is ours no more; another run of the same message may have taken its place."""
        self.interrupts.unwatch(run)
        if self.runs.get(run.workflow_id) is run:
            del self.runs[run.workflow_id]
            if run.life is not None and run.life.queue is not None:
                self.on_freed()

    # ---- durability ----

    def check(self, run: Run, attempt: int | None = None) -> None:
        """Raise where the run's attempt is over, or the one given is.

        Raises:
            Dropped: it is.

        """
        if run.dropped or run.ended or (attempt is not None and attempt != run.attempt):
            self._refuse(run, Dropped())
        if (run.life is not None and run.life.suspending) or (self.stopping and run.spec.is_async):
            self._refuse(run, Suspended())
        if run.history.seq >= self._long:
            self._check_length(run)
        claim = run.claim
        if claim is not None and claim.lost and not run.in_ledger:
            raise Dropped  # its partition is another's, who runs it anew

    def _refuse(self, run: Run, error: BaseException) -> NoReturn:
        """Raise in an operation of code that is to unwind; code that has swallowed that too often is got rid of."""
        self._raising(run, error)
        here = current.get()
        branch = here.branch if isinstance(here, StepScope) else here
        if branch is not None and branch.run is run:
            branch.refused += 1
            if branch.refused > _SWALLOWS:
                self._leave_alone(run, branch)
        raise error

    def _raising(self, run: Run, error: BaseException) -> None:
        if run.life is not None and len(run.life.raised) < _SHOWN and not run.ended:
            run.life.raised += (error,)

    def _leave_alone(self, run: Run, branch: Branch) -> NoReturn:
        """Nothing that is raised in it ends this code: its workflow is parked, and no loop or pool has it any more.

        An async one is never woken again: what it awaits next does not come. The thread of a sync one goes to sleep for
        good, and another takes its place.

        Raises:
            Hopeless: on the loop.

        """
        on_loop = threading.get_ident() == self._loop_thread
        if on_loop:
            for task in {asyncio.current_task(self.loop), run.home} - {None}:
                _abandon_task(task)
                self._tasks.discard(task)
        with run.lock:
            place = place_of(run.life.raised if run.life is not None else ())
            self._undriven(run)
            text = f"its code swallows what unwinds it, again and again, at {place}: let `Suspended` pass"
            if run.ended or run.dropped or branch.attempt != run.attempt:
                logger.error("%s: %s", run.workflow_id, text)  # a task that nobody awaits, or one that was terminated
            elif self.stopping:
                self.outcomes.release(run)
            else:
                self.outcomes.park(run, text)
            if run.life is not None:
                run.life.raised = ()
        if on_loop or run.spec.is_async or not works_for_a_pool():
            raise Hopeless
        self._in_threads.discard(run)
        if branch.leave is not None:
            branch.leave()
        give_up()

    def _check_length(self, run: Run) -> None:
        if run.history.seq == self._long:
            logger.warning("%s has recorded %d operations; each wake reads them all: see continue_as_new", run.workflow_id,
                           self._long)  # fmt: skip
        if run.history.seq >= self._longest:
            raise HistoryTooLongError(f"it has recorded {run.history.seq} operations, the limit: use continue_as_new")

    def home(self) -> object:
        """The task or the thread that this code runs in; a loop where it runs in a callback."""
        if threading.get_ident() == self._loop_thread:
            loop = self.loop  # Python 3.11 asks the kernel for the process's id when it is not told
        else:
            loop = asyncio._get_running_loop()
            if loop is None:
                return threading.current_thread()
        return asyncio.current_task(loop) or loop

    def recorded(self, run: Run) -> None:
        """A step ended: its checkpoint goes to the journal soon, with whatever else this turn of the loop records."""
        crash_point("executor.after_step")
        if run is self._beginning or not run.history.fresh:
            return
        if not run.spec.is_async:
            return  # sync runs hand over at the next barrier, at the end, or when the acceptance time is over
        if not self._unsubmitted:
            self.loop.call_soon(self._submit_fresh)
        self._unsubmitted.append(run)

    def _submit_fresh(self) -> None:
        runs, self._unsubmitted = self._unsubmitted, []
        for run in runs:
            self.submit_fresh(run)

    def submit_fresh(self, run: Run) -> None:
        """Hand over what the run has recorded and not handed over yet."""
        if run.history.fresh and not run.ended and not run.dropped:
            self.hand(run, Entry(run, run.history.take_fresh()))

    async def barrier(self, run: Run) -> None:
        """Wait until everything recorded before, in this run and its scope, is durable.

        Raises:
            Dropped: the attempt is over.

        """
        while True:
            future = self.loop.create_future()
            if self._settled_or_tell(run, functools.partial(self._release, future)):
                break
            await future
        self.check(run)

    def _settled_or_tell(self, run: Run, tell: Callable[[], None]) -> bool:
        """Whether all is durable; if not, it is handed over, also what another branch has recorded, and `tell` called.

        Raises:
            Dropped: the attempt is over.

        """
        with run.lock:  # a sync workflow's branches register from several threads
            self.submit_fresh(run)
            if run.settled():
                return True
            if run.dropped:
                raise Dropped
            if run.before is not None:
                run.spec.acts = True
            self._tell_when_settled(run, tell)
            return False

    def _release(self, future: "asyncio.Future[None]") -> None:
        if threading.get_ident() == self._loop_thread:
            if not future.done():
                future.set_result(None)
        else:
            self.loop.call_soon_threadsafe(self._release, future)

    def barrier_sync(self, run: Run) -> None:
        """The same for a worker thread."""
        while True:
            event = threading.Event()
            if self._settled_or_tell(run, event.set):
                break
            event.wait()
        self.check(run)

    # ---- progress of steps ----

    def heartbeat(self, scope: StepScope, details: str) -> None:
        """A step tells how far it is: kept soon, the newest alone, once a second at most. From any thread; never waits."""
        if scope.branch.run.ended or scope.branch.run.dropped:
            return
        progress = scope.progress = scope.progress or Progress()
        progress.details = details
        if not progress.due:
            progress.due = True
            self.on_loop(self._keep_soon, scope, progress)

    def _keep_soon(self, scope: StepScope, progress: Progress) -> None:
        wait = progress.written + _DETAILS_EVERY - self._clock()
        if wait > 0:
            self.loop.call_later(wait, self.keep_details, scope)
        else:
            self.keep_details(scope)

    def keep_details(self, scope: StepScope) -> None:
        """Hand over what a step has told of its progress, where it has, and that was not handed over yet."""
        progress, branch = scope.progress, scope.branch
        run: Run = branch.run
        with run.lock:
            if progress is None or not progress.due:
                return
            progress.due = False  # before the look: what is told after it is kept by itself
            if progress.over or run.ended or run.dropped or branch.attempt != run.attempt:
                return
            progress.written = self._clock()
            kept = run.history.keep_details(run.workflow_id, scope.position, scope.name, progress.details)
            entry = Entry(run, run.history.take_fresh())
            entry.riders = [kept]
            self.hand(run, entry)

    # ---- children ----

    def child(self, start: Start, workflow_id: str, *, again: bool = False) -> Rider:
        """What starts a workflow with its parent's checkpoint: here, once that is durable; many go to whoever has room.

        `again`: a former attempt of the parent may have started it; if so, that one is the child.
        """
        rider = self.child_with_step(start, workflow_id, again=again, beside=0)
        if rider.row[3] is not None:
            self._children.add(workflow_id)
        return rider

    def child_with_step(self, start: Start, workflow_id: str, *, again: bool, beside: int) -> Rider:
        """The same for a step: of an attempt that fails nothing is left. `beside`: what else this one starts."""
        self._startable[start.spec.name] = start.spec
        ours = not again and len(self._children) + len(self.runs) + beside < _CHILDREN
        return start.rider(workflow_id, self.application, self.now(), self.journal.executor if ours else None)

    def _born(self, row: tuple[Any, ...], cause: str | None) -> None:
        """A child's row is committed: ours begins, another is for whoever takes it."""
        workflow_id, name, _, executor, parent, arguments, deadline, _ = row
        self._children.discard(workflow_id)
        if executor != self.journal.executor:
            self.on_rows()
        elif not self.stopping and not self.holds(workflow_id):
            child = Run(self._startable[name], workflow_id, self.application)
            child.arguments, child.executor, child.in_ledger = arguments, self, True
            child.life = Life(parent, deadline)
            child.trace = None if cause is None else Trace(cause)
            self.runs[workflow_id] = child
            self.dispatch([child])

    # ---- waiting ----

    async def wait(self, run: Run, awaited: Await) -> Any:
        """Wait for a time or for something from outside: what came, or None.

        Raises:
            Suspended: the run leaves memory meanwhile.
            Dropped: the attempt is over.

        """
        self.submit_fresh(run)
        future = self.loop.create_future()
        wait = Wait(run, awaited, functools.partial(_resolve_wait, future))
        self.waits.add(wait)
        try:
            what = await future
        except asyncio.CancelledError:
            self.waits.give_back(wait)
            raise
        finally:
            self.waits.drop(wait)
        return self._came(run, what)

    def wait_sync(self, branch: Branch, awaited: Await) -> Any:
        """The same for a worker thread."""
        run: Run = branch.run
        self.interrupts.raise_if_interrupted(branch)
        with run.lock:
            self.submit_fresh(run)
            run.acting -= 1
        came: list[Any] = []
        told = threading.Event()

        def resolve(what: Any) -> None:
            with run.lock:
                run.acting += 1  # before its thread knows: from here on it does not stand still
            came.append(what)
            told.set()

        self.loop.call_soon_threadsafe(self._add_wait, branch, Wait(run, awaited, resolve))
        told.wait()
        return self._came(run, came[0])

    def _add_wait(self, branch: Branch, wait: Wait) -> None:
        """Of a worker thread, unless its branch was to be told to end just before."""
        life = life_of(wait.run)
        if life.interrupted is None or branch.told or life.suspending:
            self.waits.add(wait)
            return
        if not life.told:
            life.tell(wait.run.history)
        wait.resolve(Cancelled(str(life.interrupted)))

    def _came(self, run: Run, what: Any) -> Any:
        if isinstance(what, BaseException):
            self._raising(run, what)
            raise what
        self.check(run)
        return what

    def pause_sync(self, run: Run, seconds: float) -> None:
        """Wait between two attempts of a sync step; a stop ends it."""
        if self._threads.stopped.wait(seconds):
            raise Dropped
        self.check(run)

    def durable(self, entries: list[Entry], seconds: float) -> None:
        """The journal committed these, in so many seconds; called in its thread."""
        self.loop.call_soon_threadsafe(self._settle, [e for e in entries if e.run.spec.is_async])
        sync = [e for e in entries if not e.run.spec.is_async]
        if sync:
            self._settle(sync)
        flushed(entries, seconds, self.now())

    def _settle(self, entries: list[Entry]) -> None:
        finished: dict[Claim, int] = {}
        free: list[Run] = []
        for entry in entries:
            run = entry.run
            over, counted = run.ended and run.submitted == run.durable + 1, run.counted
            run.counted = counted or over  # before `durable`: who unwinds after that counts it no more
            run.durable += 1
            if over:
                claim = run.claim
                if claim is not None and not counted:
                    finished[claim] = finished.get(claim, 0) + 1
                    if run.weight:
                        claim.lighten(run)
                if run.workflow_id in self.runs:
                    self._answer(run, entry)
                    if entry.status in FINAL:
                        ended = ("outcome", run.workflow_id)
                        if self.waits.awaited(ended):
                            what = (entry.status, entry.output, entry.error, entry.reason)
                            self.on_loop(self.waits.arrived, ended, what)
                if entry.status not in FINAL and not run.dropped:
                    self._hold_back(run, entry)
                if run.scope is not None and not counted:
                    run.scope.let_go(run)
            if run.waiters is not None or run.after is not None:
                self._wake(run, free)
            if entry.riders is not None:
                self.tell(entry.riders)
        self._finished(finished, free)

    def _finished(self, counts: Mapping[Claim, int], free: list[Run]) -> None:
        """So many of these claims' messages are over, and these runs, which waited for some of them, may be launched."""
        for claim, count in counts.items():
            with claim.lock:
                claim.finished += count
        if free:
            self._launch(free)

    def tell(self, riders: Iterable[Rider]) -> None:
        """What has been written for others: who waits for it here looks at once, who sleeps is woken."""
        causes = _NO_CAUSES
        for query, row, _ in riders:
            if query == "insert_messages":
                self.on_loop(self.waits.arrived, ("inbox", *row[:2]))
            elif query == "insert_events":
                self.on_loop(self.waits.arrived, ("event", *row[:2]))
            elif query == "insert_children":
                self._born(row, causes.get(row[0]))
            elif query == "insert_traces":  # of a child, it stands before it
                causes = {**causes, row[0]: str(row[1])}
            elif query == "enqueue":
                self.on_queued(row[7] if row[10] is None else row[10])  # type: ignore[arg-type]  # wait, settle
            elif query == "insert_watches":
                self.on_told("sleeper", str(row[2]))
            elif query == "signal_watches":
                self.on_told("target", str(row[0]))
                if row[1]:
                    self.on_signal()
            elif query == "insert_signals":
                self.on_signal()
            elif query == "insert_outbox":
                self.on_published()

    def on_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call it on the loop: now, where this is its thread; else in order, as many as have come by one wake-up."""
        if threading.get_ident() == self._loop_thread:
            function(*args)
            return
        self._posted.append(functools.partial(function, *args))
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._see_to_posted)

    def _see_to_posted(self) -> None:
        self._woken = False  # before the look: what is posted after it wakes the loop again
        try:
            while self._posted:
                self._posted.popleft()()
        finally:
            if self._posted:  # one has raised, which the loop reports
                self.loop.call_soon(self._see_to_posted)

    def begin_fetched(self, fetched: list[Fetched]) -> list[Fetched]:
        """Those that may begin; the others are a peer's."""
        beginning: list[Fetched] = []
        for one in fetched:
            if one.claim.revoked:
                one.let_go()
            else:
                beginning.append(one)
        return beginning

    def settled_fetched(self, fetched: list[Fetched]) -> None:
        """These were committed by a transaction of their own, position included."""
        committed_fetched(fetched, self.now())
        for one in fetched:
            one.let_go()

    def settled(self, runs: list[Run]) -> None:
        """These were committed by a transaction of their own, result and position included."""
        committed(runs, self.now())
        free: list[Run] = []
        finished = Counter(run.claim for run in runs if run.claim is not None and not run.counted)
        for run in runs:
            uncounted, run.counted = not run.counted, True
            if run.spec.circuit is not None:
                run.spec.circuit.succeeded(run)
            if run.submitted or run.in_ledger:
                self._forget(run)
            run.in_ledger = run.ended = True
            if run.weight and run.claim is not None:
                run.claim.lighten(run)
            self._wake(run, free)
            if run.scope is not None:
                follower = run.scope.leave(run)
                free += [] if follower is None else [follower]
                if uncounted:
                    run.scope.let_go(run)
        self._finished(finished, free)

    def _answer(self, run: Run, entry: Entry) -> None:
        self._forget(run)
        future = run.future
        if future is None:
            return
        call = self.on_loop if isinstance(future, asyncio.Future) else _at_once  # or of a thread, which it wakes itself
        if entry.status in {"succeeded", "failed"}:
            call(_resolve, future, run.outcome, entry.status == "failed")
        else:
            call(_cancel, future)

    def dropped(self, entries: list[Entry]) -> None:
        """The journal refused these; called in its thread."""
        for entry in entries:
            run = entry.run
            run.dropped = True
            if entry.held is None and run.scope is not None:
                run.scope.stored_one()
            for rider in entry.riders or ():
                self._children.discard(str(rider.row[0]))
            if run.ended:
                self.next_in_line(run)  # unless it was final, which had left its turn, or its scope is held back for it
                self._count_dropped(run)
                self._forget(run)
            if run.future is not None:
                self.loop.call_soon_threadsafe(_cancel, run.future)
            if run.life is not None:
                self.loop.call_soon_threadsafe(self.waits.end, run, Dropped())
        self._wake_all(entry.run for entry in entries)

    # ---- acceptance ----

    def _accept_slow(self) -> None:
        """Give a row of its own to whatever has been running for longer than the acceptance time."""
        if self.stopping:
            return
        self._turned = self._clock()
        limit = self._turned - self._accept_after
        started = self._started
        for _ in range(len(started)):
            if started[0][0] >= limit:
                break
            run = started.popleft()[1]
            self.accept(run)
            if not run.spec.is_async and not run.ended:
                started.append((self._clock(), run))  # what it records, it hands over when it next waits, or here
        self._tick = self.loop.call_later(max(self._accept_after / 2, 0.005), self._accept_slow)

    def accept_claims(self, claims: set[Claim], timeout: float) -> None:
        """Accept what has started of these claims, and wait until that is durable; from a consumer's thread (R8)."""
        until = time.monotonic() + min(timeout, 0.5)
        while any(c.handed != c.finished for c in claims) and time.monotonic() < until:
            time.sleep(0.002)
        reached = threading.Event()

        def accept() -> None:
            for run in [*(run for _, run in list(self._started)), *list(self.batches.running)]:
                if run.claim in claims:
                    self.accept(run)
            self.journal.mark(reached.set)

        if any(c.handed != c.finished for c in claims):
            self.loop.call_soon_threadsafe(accept)
            reached.wait(timeout)

    def accept(self, run: Run) -> None:
        """Write its row now, with what it has recorded."""
        with run.lock:
            if (run.submitted == 0 or run.history.fresh) and not run.ended and not run.dropped:
                self.hand(run, Entry(run, run.history.take_fresh()))

    def _accept_first(self, runs: list[Run]) -> None:
        """R13: these may have killed their last process; they get a row before they run, or theirs says that they do."""
        for run in runs:
            run.wary = False
            if run.unreadable is not None:
                self._park_unreadable(run)
                continue
            run.waiters = [lambda r=run: self._launch([r])]
            self.hand(run, Entry(run, [], changed=run.in_ledger))

    # ---- what a dead peer left ----

    def adopt(self, runs: Iterable[Run], how: How) -> None:
        """Rows that this executor has claimed; recovered ones run alone, one by one (R13). On the loop's thread."""
        suspects: list[Run] = []
        for run in runs:
            known = self.runs.get(run.workflow_id)
            if self.stopping or (known is not None and not known.dropped and not known.ended):
                continue  # one that has ended let go of it, by a commit that this thread may not have been told of yet
            self.runs[run.workflow_id] = run
            run.executor = self
            if run.unreadable is not None:
                self._park_unreadable(run)
            elif how == "recovered":
                metrics.RECOVERIES.add(1)
                suspects.append(run)
            elif how == "woken":
                self._launch([run])
            elif run.spec.consumer is not None and run.spec.consumer.ordering != "none":
                run.attempt += 1
                run.wary = True
                self.on_ordered(run)
            else:
                run.attempt += 1
                run.waiters = [lambda r=run: self._launch([r])]
                self.hand(run, Entry(run, [], changed=True))
        self._suspects.add(suspects)

    def _park_unreadable(self, run: Run) -> None:
        self.outcomes.park(run, f"what the ledger has of it cannot be read: {run.unreadable}")

    def open(self, value: bool) -> None:
        """Whether anything but a suspect may begin."""
        self._gate = not value
        self._threads.open(value)
        self.transactions.open(value)
        self.batches.open(value)

    def start_alone(self, run: Run) -> None:
        if is_batched(run.spec):
            self.begin_batch(Batch([run]), alone=True)
        elif run.spec.consumer is not None and run.spec.consumer.transaction is not None:
            self.transactions.put([run], alone=True)
        elif run.spec.is_async:
            self._tasks.add(task := self.loop.create_task(self._run_by_itself(run)))
            task.add_done_callback(self._tasks.discard)
        else:
            self._threads.alone(run)

    async def _run_by_itself(self, run: Run) -> None:
        context, coroutine = Context(), self._run(run, asyncio.current_task())
        self._active += 1
        run.begun = run.driven = True
        try:
            future = context.run(coroutine.send, None)
            self.interrupts.tell_late(run)
            await _Follow(context, coroutine, future)
        except StopIteration:
            pass
        finally:
            self._undriven(run)

    async def silence(self, timeout: float) -> None:
        """Wait until nothing runs but what only waits, or for the time given."""
        until = self._clock() + timeout
        while self._running() > self.waits.standing() and self._clock() < until:
            await asyncio.sleep(0.005)

    def _running(self) -> int:
        """How many runs have begun and not ended, whether they do something or wait."""
        return self._active + self._threads.active() + self.transactions.active

    def loop_age(self) -> float:
        """For how many seconds the loop has stood still. From any thread."""
        return 0.0 if self.stopping else max(0.0, self._clock() - self._turned - self._accept_after)

    # ---- the end ----

    def holds(self, workflow_id: str) -> bool:
        """Whether a run of this workflow is under way here, or waits to be."""
        run = self.runs.get(workflow_id)
        return run is not None and not run.dropped

    def in_queues(self) -> "Counter[str]":
        """How many of the runs here came from which queue. From any thread."""
        lives = [run.life for run in list(self.runs.values()) if run.life is not None]
        return Counter(life.queue for life in lives if life.queue is not None)

    def threads_free(self) -> int:
        """How many more sync runs are worth having here."""
        return self._threads.free()

    def crowded(self) -> bool:
        """Whether work waits for a thread."""
        return self._threads.waiting() > 0

    def room(self) -> int:
        """How many more rows may be taken."""
        return max(0, _RECOVERED - len(self.runs))

    def suspects(self) -> bool:
        """Whether some wait for their turn that were under way when their process died: no more of them are to be taken."""
        return bool(self._suspects)

    def busy(self) -> int:
        """How many runs are under way or waiting to start."""
        return (
            len(self._queue) + self._active + self._threads.active() + self._threads.waiting() + self.batches.waiting()
        )

    def acting(self) -> int:
        """How many runs do something, or are about to, and do not only wait for a time or for something from outside."""
        return self.busy() - self.waits.standing() + self._suspects.under_way()

    async def drain(self, left: Callable[[], bool]) -> None:
        """Let running work end while there is time `left`; then let go of the rest."""
        self._preparation.stop()
        for run in self.outcomes.call_off_all():
            if run.submitted or run.in_ledger:  # else it is nobody's yet, and is fetched again
                self.outcomes.release(run)
        self.waits.suspend_all()
        while (self._active or self._threads.active()) and left():
            await asyncio.sleep(0.01)
        self.stopping = True
        self._threads.stop()
        self.outcomes.call_off_all()
        for task in list(self._tasks):
            task.cancel()  # what unwinds lets go of itself
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.0)
        for run in list(self.runs.values()):
            if not run.begun and not _is_transactional(run.spec):  # what runs on is let go of when this executor dies
                self.outcomes.release(run)

    def abort(self) -> None:
        """The incarnation is over: nothing that runs can be recorded any more. On the loop's thread."""
        self.stopping = True
        self._preparation.stop()
        self._tick.cancel()
        self.outcomes.call_off_all()
        for run in [*self.runs.values(), *self._in_threads]:
            run.dropped = True
            if run.future is not None:
                _cancel(run.future)
            self._wake_all([run])
        self.waits.stop(Dropped())
        self._threads.stop()
        for task in list(self._tasks):
            task.cancel()


def _abandon_task(task: Any) -> None:
    """It will not end, not even where it is cancelled: `asyncio.run` must not wait for it."""
    if task not in _left:
        _left.append(task)
        asyncio.tasks._unregister_task(task)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def _whose() -> Run | None:
    """The run whose code this is."""
    here = current.get()
    branch = here.branch if isinstance(here, StepScope) else here
    return None if branch is None else branch.run


def _is_transactional(spec: Spec) -> bool:
    return spec.consumer is not None and spec.consumer.transaction is not None


def message_of(run: Run) -> Any:
    """The handler's message, decoded by its annotation.

    Raises:
        CodecError: it cannot be.

    """
    claim = run.claim
    if claim is not None:
        message = run.spec.reader.read(
            run.value, run.key, run.headers, claim.topic, claim.partition, run.offset or 0, claim.incarnation,
            run.timestamp,
        )  # fmt: skip
        return message if claim.generation == 1 else of_generation(message, claim.generation)
    identity = parse_message_workflow_id(run.workflow_id)
    if identity is None:
        raise CodecError(f"{run.workflow_id} is no message")
    message = run.spec.reader.read(
        run.value, run.key, run.headers, identity.topic, identity.partition, identity.offset, identity.incarnation,
        run.timestamp,
    )  # fmt: skip
    return of_generation(message, identity.generation)


def _resolve_wait(future: "asyncio.Future[Any]", what: Any) -> None:
    if not future.done():
        future.set_result(what)


def _at_once(function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # the end of this executor was quicker
        function(*args)


def _resolve(future: Any, outcome: Any, failed: bool) -> None:
    if future.done():
        return
    if failed:
        future.set_exception(for_future(outcome))
        future.exception()
    else:
        future.set_result(outcome)


def _cancel(future: Any) -> None:
    if not future.done():
        future.cancel()
