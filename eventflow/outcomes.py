"""How a run of a workflow ends: succeeded, failed, cancelled, parked, asleep, let go of, tried again or continued as new.

Each end is one entry for the journal; what follows from it (who is next, who waits for it) is the executor's.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from eventflow.codec import encode_error, error_line
from eventflow.context import ContinuedAsNew, Suspended
from eventflow.errors import (
    Cancelled,
    DeterminismError,
    HistoryTooLongError,
    UnreadableError,
    WorkflowCancelledError,
    WorkflowTimeoutError,
)
from eventflow.journal import Entry, failure, forwarded
from eventflow.kafka import Unprepared
from eventflow.metrics import RETRIES
from eventflow.records import Rider
from eventflow.replay import Await, History
from eventflow.runs import Dropped, Life, Run
from eventflow.swallowed import place_of
from eventflow.waits import Later, Timer, life_of

logger = logging.getLogger(__name__)


class Desk(Protocol):
    """What the executor does for those who see to how its runs end."""

    loop: asyncio.AbstractEventLoop
    later: Later
    stopping: bool

    def now(self) -> float: ...
    def hand(self, run: Run, entry: Entry, *, ended: bool = False) -> None: ...
    def abandon(self, run: Run) -> None: ...
    def when_settled(self, run: Run) -> None: ...
    def prepare(self, run: Run) -> None: ...
    def stop_consumer(self, run: Run, why: str) -> None: ...


class Outcomes:
    """What the runs of one executor come to."""

    def __init__(self, desk: Desk, draw: Callable[[], float]) -> None:
        self._desk, self._draw = desk, draw
        self._timers: dict[Run, Timer] = {}  # until the next attempt
        self._stopped = set[Run]()  # for which their consumers stand still

    def finish(self, run: Run, output: str, result: Any) -> None:
        """The workflow succeeded."""
        if run.dropped or run.ended:
            self._desk.abandon(run)
            return
        life = run.life
        if life is not None and life.suspending:
            text = "%s returned although it is suspended: `Suspended` was swallowed at %s; let it pass"
            logger.warning(text, run.workflow_id, place_of(life.raised))
            self._suspend(run, life)
            return
        if life is not None and isinstance(life.interrupted, WorkflowTimeoutError):
            self.fail(run, life.interrupted)  # whatever it still returned, its time was over
            return
        if self._desk.stopping and run.spec.is_async:  # it caught its cancellation: nobody but the process was to end
            self.release(run)
            return
        run.outcome = result
        if run.spec.circuit is not None:
            run.spec.circuit.succeeded(run)
        self._desk.hand(run, Entry(run, run.history.take_last(), "succeeded", output=output), ended=True)

    def failed(self, run: Run, error: BaseException) -> None:
        """The function raised: retry by policy, park, release, or fail for good."""
        if run.dropped or run.ended or isinstance(error, Dropped):
            self._desk.abandon(run)
        elif run.life is not None and run.life.suspending:
            self._suspend(run, run.life)
        elif isinstance(error, asyncio.CancelledError | Suspended) and self._desk.stopping:
            self.release(run)
        elif isinstance(error, asyncio.CancelledError | Cancelled) and run.life is not None and run.life.interrupted:
            self.interrupted(run, run.life.interrupted)
        elif isinstance(error, Unprepared):
            run.begun = False
            self._desk.prepare(run)
        elif isinstance(error, ContinuedAsNew):
            self._continue(run, error.arguments)
        elif _is_for_a_person(run, error):
            self.park(run, str(error))
        elif run.spec.circuit is not None and run.spec.circuit.failed(run, error):
            self._retry(run, error, charged=False)
        elif isinstance(error, Exception) and run.spec.retry.wants(error, run.retries + 1):
            self._retry(run, error)
        else:
            self.fail(run, error)

    def interrupted(self, run: Run, why: BaseException) -> None:
        """It was told to end, and did: cancelled, or failed where its time was over."""
        if not isinstance(why, WorkflowCancelledError):
            self.fail(run, why)
            return
        run.outcome = WorkflowCancelledError(f"{run.workflow_id!r} was {why}")
        entry = Entry(run, run.history.take_last(), "cancelled", reason=str(why))
        entry.failed_seq = _cut(run)
        self._desk.hand(run, entry, ended=True)

    def fail(self, run: Run, error: BaseException) -> None:
        """Keep it whole in the ledger as failed; what waits behind it goes on, where a message's policy says nothing else."""
        policy = None if run.spec.consumer is None else run.spec.consumer.on_failure
        if policy == "stop":
            self._stop(run, error)
            return
        level = logging.WARNING if run.claim is not None else logging.INFO
        logger.log(level, "%s failed: %s: %s", run.workflow_id, type(error).__name__, error_line(error))
        run.outcome = error
        record = encode_error(error)
        if policy == "park_key":
            reason = f"it failed for good: {type(error).__name__}"  # no more: reasons are never encrypted
            entry = Entry(run, run.history.take_last(), "parked", error=record, reason=reason, held=False)
        else:
            entry = Entry(run, run.history.take_last(), "failed", error=record)
        letter = [] if policy == "park_key" else forwarded(run, record)
        entry.riders = [*failure(run, record), *letter] or None
        entry.failed_seq = min((at for at in (run.history.failed_at(error), _cut(run)) if at is not None), default=None)
        self._desk.hand(run, entry, ended=True)

    def park(self, run: Run, reason: str) -> None:
        """Hold it for a person."""
        logger.error("%s is parked: %s", run.workflow_id, reason)
        entry = Entry(run, run.history.take_last(), "parked", reason=reason, held=False)
        self._desk.hand(run, entry, ended=True)

    def _suspend(self, run: Run, life: Life) -> None:
        """It has unwound: its row says when to wake it, and by what; nobody holds it until then (R8a)."""
        life.raised = ()  # which hold the frames that hold this
        awaited: tuple[Await, ...] = life.seen
        times = [one.until for one in awaited if one.until is not None]
        if life.deadline is not None:
            times.append(life.deadline)
        watches = [
            Rider("insert_watches", (source[1], source[2] if source[0] == "event" else "", run.workflow_id))
            for one in awaited for source in one.sources if source[0] != "inbox"
        ]  # fmt: skip
        entry = Entry(run, run.history.take_last(), "waiting", held=False)
        entry.wake_in = max(0.0, min(times) - self._desk.now()) if times else None
        if life.unread or life.is_to_be_told():
            entry.wake_in = 0.0
        entry.riders = watches or None
        self._desk.hand(run, entry, ended=True)

    def release(self, run: Run) -> None:
        """Let go of a run that has not ended, so that any process may go on with it at once (R8a)."""
        if run.ended or run.dropped:
            return
        self._desk.hand(run, Entry(run, run.history.take_last(), "queued", held=False), ended=True)

    def _retry(self, run: Run, error: BaseException, *, charged: bool = True) -> None:
        """Drop the failure that ended it, and run it again after a while; others go on meanwhile."""
        circuit = run.spec.circuit
        wait = run.spec.retry.wait(run.retries + 1, self._draw()) if charged or circuit is None else circuit.wait(None)
        run.retries += charged
        logger.info("%s failed, attempt %d in %.1f s: %s", run.workflow_id, run.attempt + 1, wait, error_line(error))
        RETRIES.add(1, run.name)
        self._keep(run, error, wait)
        self._desk.loop.call_soon_threadsafe(self._later, run, wait)

    def _stop(self, run: Run, error: BaseException) -> None:
        """Keep a message for the process that is started next, where it has all its retries anew; its consumer stands still."""
        kind = type(error).__name__
        logger.error("%s failed, and its consumer stops: %s: %s", run.workflow_id, kind, error_line(error))
        run.retries = 0
        self._stopped.add(run)
        self._keep(run, error, None)
        self._desk.stop_consumer(run, kind)

    def _keep(self, run: Run, error: BaseException, wait: float | None) -> None:
        """An attempt has failed, and this process holds its row for the next one, for so many seconds."""
        failed = failure(run, encode_error(error)) if run.spec.consumer is not None else []
        run.attempt += 1
        run.begun = False
        dropped = run.history.drop_failed(error)
        if run.life is not None:
            run.life.recall(run.history)
        # Queued, not running: if the process dies meanwhile, it was not this one that killed it (R13).
        entry = Entry(run, run.history.take_fresh(), "queued", wake_in=wait)
        entry.riders = failed or None
        if dropped is not None:
            entry.drop(*dropped)
        self._desk.hand(run, entry)

    def _continue(self, run: Run, arguments: str) -> None:
        """The next run of the same workflow, with an empty history; what it has recorded goes, in one commit."""
        life = life_of(run)
        if isinstance(life.interrupted, WorkflowTimeoutError):
            self.fail(run, life.interrupted)
            return
        run.arguments, run.attempt, run.begun = arguments, run.attempt + 1, False
        written = run.history.take_riders()
        run.history = History()
        entry = Entry(run, [], drop_from=0)
        entry.arguments, entry.riders = arguments, [*written, Rider("settle_stream_items", (run.workflow_id,))]
        if life.told:
            entry.riders.append(Rider("settle_requests", (run.workflow_id,)))
            life.begin_anew()
        life.generation += 1
        entry.generation = life.generation
        self._desk.hand(run, entry)
        self._desk.when_settled(run)

    def call_off(self, run: Run) -> bool:
        """Whether it waited for its next attempt, which is not made any more."""
        if run in self._stopped:
            self._stopped.discard(run)
            return True
        timer = self._timers.pop(run, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def call_off_all(self) -> list[Run]:
        """Those that waited for their next attempt."""
        return [run for run in (*self._timers, *self._stopped) if self.call_off(run)]

    def _later(self, run: Run, wait: float, then: Callable[[Run], None] | None = None) -> None:
        if not self._desk.stopping:
            self._timers[run] = self._desk.later(wait, then or self._again, run)

    def put_off(self, run: Run, wait: float) -> None:
        """Its breaker is open: it is launched later, and has not begun. From any thread."""
        self._desk.loop.call_soon_threadsafe(self._later, run, wait, self._launch)

    def _launch(self, run: Run) -> None:
        self._timers.pop(run, None)
        if not run.may_begin():
            self._desk.abandon(run)
        elif not run.ended:
            self._desk.when_settled(run)

    def _again(self, run: Run) -> None:
        self._timers.pop(run, None)
        circuit = run.spec.circuit
        if run.dropped:
            self._desk.abandon(run)
        elif circuit is not None and not run.ended and (wait := circuit.wait(run)):
            self._later(run, wait)
        elif not run.ended:
            self._desk.hand(run, Entry(run, [], changed=True))
            self._desk.when_settled(run)


def _is_for_a_person(run: Run, error: BaseException) -> bool:
    """Whether it is to be parked: another attempt, here and now, would come to the same."""
    if isinstance(error, UnreadableError):
        return run.history.failed_at(error) is None  # else a step has read something elsewhere, and failed
    return isinstance(error, DeterminismError | HistoryTooLongError)


def _cut(run: Run) -> int | None:
    """From which checkpoint on it recorded what it did because it was told to end."""
    return None if run.life is None else run.life.cut
