"""Transactional handlers and steps: the user's effects, the record that they happened, and the fence, in one commit.

Many messages share a transaction (PROTOCOL.md R18): as many as take 0.1 s run one after another on one connection, each with a
Session of its own and no savepoints. When one fails, the group is rolled back and runs again with a savepoint each, so
that the failure stays its own message's. Steps that wait for a lane share a transaction, too (`seats`), and run again alone
when one fails. The protocol is one generator; a sync and an async port do what it asks.
"""

import asyncio
import contextlib
import functools
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import psycopg

from eventflow.batches import Batch, halves, is_batched, take_up
from eventflow.codec import decode_error, encode_error
from eventflow.context import StepScope, current
from eventflow.database import Database, fenced, lost_claims
from eventflow.errors import Cancelled, CodecError, FencedError, HistoryTooLongError, UnavailableError
from eventflow.executor import Executor, message_of
from eventflow.fetched import Fetched
from eventflow.journal import (
    Entry,
    Gap,
    Lane,
    Statement,
    backoff,
    checkpoint_params,
    flush_statements,
    nonce,
    rider_statements,
)
from eventflow.kafka import Unprepared
from eventflow.ports import Ask, AsyncPort, Condition, Mode, Port, Protocol, RolledBackError, ThreadPort, adrive, drive
from eventflow.records import Checkpoint, Rider
from eventflow.registry import TransactionSpec
from eventflow.replay import Branch
from eventflow.runs import Claim, Dropped, Run
from eventflow.seats import STILL_OPEN, AsyncSeat, Member, Place, Places, Seat, tell
from eventflow.telemetry import crash_point
from eventflow.tracing import Open

logger = logging.getLogger(__name__)

GROUP = 50  # messages that share a transaction at most, and no more than take so many seconds
PIPED = 200  # the same where their statements may be kept back
_LONG = 0.1
_FIRST = 10  # while nobody knows how long one takes
Phase = Literal["begin", "user", "write", "commit"]
TransactionVerdict = Literal["user", "conflict", "broken", "again", "unknown", "lost", "gone", "fenced"]
Begin = Callable[[], Open | None]  # begins a span, if there is to be one
_NO_SPAN = contextlib.nullcontext()
_APART = 100  # calls of a transaction that run alone after one has failed among others
_CONFLICTS = {"40001", "40P01"}
_CONFLICTS_BORNE = 20  # tries of one message or step, before its conflicts are its own failure
BREAKS_BORNE = 5  # connections lost while user code had them, before that is its own failure
_FULL = ("53", "58")  # a full disk and the like: no statement of the user's is at fault
_OUTAGES = ("57", "08", "53", "58", "25006")  # a full disk or a read-only server is nobody's message's fault (R15)
_OURS: dict[str, TransactionVerdict] = {
    "EF001": "fenced", "EF002": "lost", "EF003": "fenced", "EF004": "fenced", "EF008": "gone",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error that the messages of a transaction have to bear, and what kind it is."""

    error: BaseException
    verdict: TransactionVerdict


@dataclass(slots=True)
class _At:
    """How far a transaction is, for who judges its error."""

    phase: Phase = "begin"


class _Isolated:
    """Keeps folds from the claims of a transaction that would conflict with them: above READ COMMITTED (R5)."""

    def __init__(self, spec: TransactionSpec, claims: Iterable[Claim | None]) -> None:
        above = spec.isolation is not None and spec.isolation != "read committed"
        self._claims = {claim for claim in claims if claim is not None} if above else set[Claim]()
        self._held = False

    def hold(self) -> None:
        self._count(1)
        self._held = True

    def let_go(self) -> None:
        if self._held:
            self._count(-1)
            self._held = False

    def _count(self, change: int) -> None:
        for claim in self._claims:
            with claim.lock:
                claim.isolated += change


@dataclass(slots=True)
class _Call:
    """One attempt of a transaction step: what it runs, how far it is, and what it came to.

    Attributes:
        seq: the number of its checkpoint, reserved.
        share: its transaction, where others' work may be in the same one.
        member: it, among those whose work the open transaction holds.

    """

    spec: TransactionSpec
    branch: Branch
    position: str
    args: Any
    kwargs: Any
    attempts: int
    seq: int
    share: TransactionSpec | None
    began: float = field(default_factory=time.perf_counter)
    tries: int = 0
    breaks: int = 0
    phase: Phase = "begin"
    member: Member | None = None
    result: Any = None
    checkpoint: Checkpoint = field(init=False)
    riders: list[Rider] = field(default_factory=list[Rider])

    def record(self, output: str, riders: list[Rider]) -> None:
        """Its function has returned."""
        seconds = time.perf_counter() - self.began
        self.checkpoint = Checkpoint(self.position, self.seq, self.spec.name, output, None, self.attempts, seconds)
        self.riders = riders

    def others(self, members: list[Member]) -> list[Member]:
        """Those of them that are not this call."""
        return [member for member in members if member is not self.member]


class _Line:
    """Messages of transactional handlers that wait for a lane; while a suspect runs alone, no other may begin (R13)."""

    def __init__(self) -> None:
        self.waiting: deque[Run | Batch] = deque()
        self.alone: deque[Run | Batch] = deque()
        self.open = True

    def __bool__(self) -> bool:
        return bool(self.alone or (self.open and self.waiting))

    def __len__(self) -> int:
        return len(self.alone) + len(self.waiting)

    def next(self) -> deque[Run | Batch]:
        """Where the next group is taken from."""
        return self.alone or self.waiting


class Transactions:
    """The lanes of one incarnation's transactional handlers and steps."""

    def __init__(
        self,
        database: Database,
        executor: Executor,
        lanes: list[Lane],
        application: str,
        *,
        on_lost: Callable[[list[Claim]], None],
        on_fenced: Callable[[FencedError], None],
        keeps: bool = True,
    ) -> None:
        self._database, self._executor, self._application = database, executor, application
        self._keeps = keeps
        self._on_lost, self._on_fenced = on_lost, on_fenced
        quarter = len(lanes) // 4
        self._stopped = threading.Event()
        self._ready = threading.Condition()
        self._line = _Line()
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name="eventflow transactions", daemon=True)
            for lane in lanes[:quarter]
        ]
        self._async_lanes = lanes[quarter : 2 * quarter]
        self._async_line = _Line()
        self._async_tasks: set[asyncio.Task[None]] = set()
        self._places = Places([Place(lane, Port(database)) for lane in lanes[2 * quarter : 3 * quarter]])
        self._async_places = Places(
            [Place(lane, AsyncPort(database), ThreadPort(database)) for lane in lanes[3 * quarter :]]
        )
        self._pace: dict[str, float] = {}  # by the handler's name, how many seconds a message has lately taken
        self._apart = Counter[str]()  # transactions of which one failed among others: how many more calls run alone
        self._idle_async = [(lane, AsyncPort(database)) for lane in self._async_lanes]
        self.active = 0
        self._started = False

    # ---- handlers ----

    def put(self, items: Sequence[Run | Batch], *, alone: bool = False) -> None:
        """Queue messages of transactional handlers, in order; `alone` goes although the line is closed. From any thread."""
        if self._stopped.is_set():  # its waiters woke it although the incarnation is over
            for run in _each(items):
                run.dropped = True
            return
        sync = [r for r in items if not _transaction(r).is_async]
        if sync:
            with self._ready:
                if not self._started:
                    self._started = True
                    for thread in self._threads:
                        thread.start()
                (self._line.alone if alone else self._line.waiting).extend(sync)
                self._ready.notify()  # who takes some and leaves others wakes the next lane
        if len(sync) < len(items):
            rest = [r for r in items if _transaction(r).is_async]
            line = self._async_line.alone if alone else self._async_line.waiting
            self._executor.loop.call_soon_threadsafe(self._put_async, line, rest)

    def open(self, value: bool) -> None:
        """Whether messages that wait may begin. On the loop's thread."""
        self._async_line.open = value
        with self._ready:
            self._line.open = value
            self._ready.notify_all()
        if value:
            self._put_async(self._async_line.waiting, [])

    def _put_async(self, line: deque[Run | Batch], items: list[Run | Batch]) -> None:
        line.extend(items)
        if self._async_line and self._idle_async and not self._stopped.is_set():
            task = self._executor.loop.create_task(self._work_async(*self._idle_async.pop()))
            self._async_tasks.add(task)
            task.add_done_callback(self._async_tasks.discard)

    def _take(self, waiting: deque[Run | Batch]) -> list[Run] | list[Fetched]:
        """The next messages of one handler, dropping those that may not start any more."""
        group: list[Run] = []
        most = 1
        while waiting and len(group) < most:
            if group and waiting[0].spec is not group[0].spec:
                break
            run = waiting.popleft()
            if isinstance(run, Batch):
                return self._executor.beginning(run.runs) or self._executor.begin_fetched(run.fetched)
            most = self._most(run)
            group += self._executor.able([run])
            if run.scope is not None:
                run.begun = True
                group += self._executor.company(run, most - len(group))
        return group

    def _most(self, run: Run) -> int:
        """How many messages of a handler may share a transaction: the first one's answer waits for the last one's."""
        pace = self._pace.get(run.name)
        most = PIPED if _transaction(run).pipeline else GROUP
        return _FIRST if pace is None else max(1, min(most, int(_LONG / pace)))

    def _note_pace(self, name: str, seconds: float, messages: int) -> None:
        lately = seconds / messages
        self._pace[name] = max(1e-6, lately + 0.7 * (self._pace.get(name, lately) - lately))

    def _work(self, lane: Lane) -> None:
        port = Port(self._database)
        try:
            while True:
                with self._ready:
                    while not self._line and not self._stopped.is_set():
                        self._ready.wait()
                    if self._stopped.is_set():
                        return
                    group = self._take(self._line.next())
                    self.active += 1
                    if self._line:
                        self._ready.notify()
                try:
                    if group:
                        drive(self.group(lane, group), port)
                finally:
                    with self._ready:
                        self.active -= 1
        except FencedError as error:
            self._on_fenced(error)
        except Exception as error:
            logger.exception("a transaction lane failed")
            self._on_fenced(FencedError(f"a transaction lane failed: {error!r}"))
        finally:
            port.close()
            lane.close()

    async def _work_async(self, lane: Lane, port: AsyncPort) -> None:
        self.active += 1
        try:
            while self._async_line and not self._stopped.is_set():
                group = self._take(self._async_line.next())
                self._put_async(self._async_line.waiting, [])  # what is left wakes the next lane
                if group:
                    await adrive(self.group(lane, group), port)
        except FencedError as error:
            self._on_fenced(error)
        except Exception as error:
            logger.exception("a transaction lane failed")
            self._on_fenced(FencedError(f"a transaction lane failed: {error!r}"))
        finally:
            self.active -= 1
            self._idle_async.append((lane, port))
            if self._stopped.is_set():
                await self._close_idle()

    # ---- the protocol ----

    def group(self, lane: Lane, group: list[Run] | list[Fetched]) -> Protocol:
        """Run these messages' handlers and commit effects, results and positions together (R18)."""
        if isinstance(group[0], Fetched):
            yield from self._fetched(lane, cast("list[Fetched]", group))
            return
        runs = cast("list[Run]", group)
        if is_batched(runs[0].spec):
            yield from self._batch(lane, [runs])
            return
        failure = yield from self._attempt(lane, runs, "grouped")
        if failure is None:
            return
        if len(runs) == 1:
            self._executor.outcomes.failed(runs[0], failure.error)
            return
        rest = [r for r in runs if not r.dropped and not r.ended]
        if failure.verdict == "user":
            failure = yield from self._attempt(lane, rest, "savepoint")
            if failure is None:
                return
        behind: list[Run] = []  # others of their scope that are tried again, or whose failure is not durable yet
        for run in rest:
            if run.dropped or run.ended:
                continue
            if run.scope is None or run.settled():
                yield from self.group(lane, [run])
            else:
                behind.append(run)
        if behind:
            self._executor.put_back(behind)

    def _fetched(self, lane: Lane, fetched: list[Fetched]) -> Protocol:
        """Call a batch handler with messages as they were fetched; where anything is amiss, with their runs."""
        failure = yield from self._attempt_fetched(lane, fetched)
        if failure is None:
            return
        runs = self._executor.beginning(self._runs_of(fetched))
        yield from self._batch(lane, self._blame(runs, failure.error) if failure.verdict == "user" else [runs])

    def _runs_of(self, fetched: list[Fetched]) -> list[Run]:
        runs = [run for one in fetched for run in one.runs(self._application)]
        for run in runs:
            run.executor = self._executor
        return runs

    def _attempt_fetched(self, lane: Lane, fetched: list[Fetched]) -> Protocol:
        """One transaction for all of them, tried once; the failure, which may be nobody's, or None."""
        try:
            messages = [message for one in fetched for message in one.read()]
        except (CodecError, Unprepared) as error:
            return _Failure(error, "again")
        spec, lead = _transaction(fetched[0]), self._runs_of([fetched[0].head()])[0]
        scope = StepScope(Branch(lead, None), "1.1", spec.name, kind="transaction", many=True)
        held, at = _Isolated(spec, {one.claim for one in fetched}), _At()
        try:
            yield ("begin", spec)
            at.phase = "user"
            held.hold()
            yield ("user", spec, _call_with(messages, spec, scope, None), "alone")
            yield ("flush",)
            yield from self._commit(lane, at, *_recorded(lead, scope.riders, fetched))
        except GeneratorExit:
            raise
        except BaseException as error:
            verdict = yield from self._verdict(lane, error, at.phase)
            if verdict != "committed":
                return None if self._stopped.is_set() else _Failure(error, verdict)
        else:
            crash_point("transactions.after_commit")
            lane.advance()
        finally:
            held.let_go()
        self._executor.settled_fetched(fetched)
        self._executor.tell(scope.riders)
        return None

    def _batch(self, lane: Lane, parts: list[list[Run]]) -> Protocol:
        """Call a batch handler with these; where that fails, with each half of them, until who is at fault fails alone."""
        while parts:
            part = self._executor.able([run for run in parts.pop() if not run.ended])
            failure = (yield from self._attempt(lane, part, "alone")) if part else None
            if failure is not None:
                parts += self._blame([run for run in part if not run.dropped and not run.ended], failure.error)

    def _blame(self, runs: list[Run], error: BaseException) -> list[list[Run]]:
        """A call with these has failed: with whom it is to be made again. One alone has to bear it."""
        if len(runs) > 1:
            return halves(runs, error)
        for run in runs:
            self._executor.outcomes.failed(run, error)
        return []

    def _attempt(self, lane: Lane, runs: list[Run], mode: Mode) -> Protocol:
        """One transaction for all of them, until its outcome is known; the failure that is theirs to bear, or None."""
        tries = breaks = 0
        held = _Isolated(_transaction(runs[0]), (run.claim for run in runs))
        while runs and not self._over(runs):
            tries += 1
            failed: list[tuple[Run, BaseException | None]] = []
            entries: list[Entry] = []
            at = _At()
            since = time.time_ns()
            try:
                yield ("begin", _transaction(runs[0]))
                at.phase = "user"
                held.hold()
                entries = yield from self._run_all(runs, failed, mode)
                yield from self._commit(lane, at, entries)
            except GeneratorExit:
                raise
            except BaseException as error:
                verdict = yield from self._verdict(lane, error, at.phase)
                if verdict == "committed":
                    self._settle(entries, failed)
                    return None
                breaks += verdict == "broken"
                alone = len(runs) == 1 or is_batched(runs[0].spec)
                if verdict == "lost":
                    runs = self._without(runs, lost_claims(cast("psycopg.Error", cause_of(error))))
                elif (verdict == "conflict" and alone and tries < _CONFLICTS_BORNE) or (
                    verdict == "broken" and alone and breaks < BREAKS_BORNE
                ):
                    yield (self._stopped.wait, backoff(tries))
                elif verdict == "again":
                    if tries in {1, 10}:
                        logger.warning("a transaction of %s: %s; trying again", runs[0].name, error)
                    yield (self._stopped.wait, backoff(tries))
                else:
                    return None if self._over(runs) else _Failure(error, verdict)
                continue
            finally:
                held.let_go()
            crash_point("transactions.after_commit")
            lane.advance()
            self._trace(entries, since)
            self._settle(entries, failed)
            return None
        return None

    def _over(self, runs: Iterable[Run]) -> bool:
        """Whether nothing of these can be recorded any more, so that no function of theirs is called again."""
        if self._stopped.is_set():
            for run in runs:
                self._executor.abandon(run)
        return self._stopped.is_set()

    def _trace(self, done: list[Entry], since: int) -> None:
        """The span of a transaction that is committed, where those of its messages are recorded."""
        tracing = self._executor.tracing
        if tracing is None:
            return
        spans = [e.run.trace.span for e in done if e.run.trace is not None and e.run.trace.span is not None]
        if spans:
            tracing.together(_transaction(done[0].run).name, spans, since, len(done))

    def _settle(self, done: list[Entry], failed: list[tuple[Run, BaseException | None]]) -> None:
        """The transaction is committed: what it recorded is over, and what failed in it is the executor's."""
        self._executor.settled([entry.run for entry in done])
        self._executor.tell(rider for entry in done if entry.riders for rider in entry.riders)
        for run, error in failed:
            if error is not None:
                self._executor.outcomes.failed(run, error)
        behind = [run for run, error in failed if error is None]
        if behind:
            self._executor.put_back(behind)

    def _run_all(self, runs: list[Run], failed: list[tuple[Run, BaseException | None]], mode: Mode) -> Protocol:
        """`failed` gets who fails, and, without an error, who stands behind one in its scope, and does not run (R18)."""
        if is_batched(runs[0].spec):
            return (yield from self._call_batch(runs, failed))
        entries: list[Entry] = []
        savepoints, began = mode == "savepoint", time.perf_counter()
        if mode == "grouped" and len(runs) > 1 and _transaction(runs[0]).pipeline:
            mode = "piped"  # one by itself finds its errors where they are
        tracing = self._executor.tracing
        for run in runs:
            if failed and run.before is not None and any(run.before is one for one, _ in failed):
                failed.append((run, None))
                continue
            spec = _transaction(run)
            try:
                if savepoints:
                    yield ("execute", b"savepoint eventflow_message")
                scope = StepScope(Branch(run, None), "1.1", spec.name, kind="transaction")
                begin = tracing and functools.partial(tracing.begin, run)
                result = yield ("user", spec, _call_handler(run, spec, scope, begin), mode)
                output = spec.result.encode(result)
                if savepoints:
                    yield ("execute", b"savepoint eventflow_check")
                    yield ("execute", b"set constraints all immediate")
                    yield ("execute", b"rollback to savepoint eventflow_check")  # checked, and deferred as it was
                    yield ("execute", b"release savepoint eventflow_message")
            except Exception as error:
                if not savepoints or judge_transaction(error, "user", (yield ("condition",))) != "user":
                    raise
                yield ("execute", b"rollback to savepoint eventflow_message")
                failed.append((run, error))
            else:
                entries.append(Entry(run, [], "succeeded", output=output))
                entries[-1].riders = list(scope.riders) or None
        yield ("flush",)
        self._note_pace(runs[0].name, time.perf_counter() - began, len(runs))
        return entries

    def _call_batch(self, runs: list[Run], failed: list[tuple[Run, BaseException | None]]) -> Protocol:
        """The same for a batch handler, which is called once; who cannot be decoded fails, and is left out."""
        spec = _transaction(runs[0])
        good, messages, others = take_up(runs, message_of)
        failed += others
        if not good:
            return []
        scope = StepScope(Branch(good[0], None), "1.1", spec.name, kind="transaction", many=True)
        tracing = self._executor.tracing
        begin = tracing and functools.partial(tracing.begin_batch, good)
        yield ("user", spec, _call_with(messages, spec, scope, begin), "alone")
        output = spec.result.encode(None)
        entries = [Entry(run, [], "succeeded", output=output) for run in good]
        entries[0].riders = list(scope.riders) or None
        return entries

    def _commit(self, lane: Lane, at: "_At", entries: list[Entry], gaps: Sequence[Gap] = ()) -> Protocol:
        """Write what is recorded beside the effects, under the lane's guard, and commit."""
        at.phase = "write"
        crash_point("transactions.before_guard")
        statements, claims = flush_statements(lane.executor, self._application, entries, gaps, keeps=self._keeps)
        guarded = [("guard", lane.guard(nonce(), claims)), *statements]
        yield ("batch", [self._database.statement(name, params) for name, params in guarded])
        crash_point("transactions.before_commit")
        at.phase = "commit"
        yield ("commit",)

    def _verdict(self, lane: Lane, error: BaseException, phase: Phase) -> Protocol:
        """What an error of a transaction means, once it is rolled back; an unknown outcome is settled first (R3)."""
        condition = yield ("condition",)
        yield ("rollback",)
        verdict = judge_transaction(error, phase, condition)
        if verdict == "fenced":
            raise fenced(cause_of(error)) from error
        if verdict == "gone":
            raise Dropped from error
        if verdict != "unknown":
            return verdict
        closed = yield (lane._close_number,)  # pyright: ignore[reportPrivateUsage]
        if closed:  # it was not committed: a deferred trigger's refusal is the user's, an outage nobody's
            verdict = judge_transaction(error, "write", condition)
            return "again" if verdict == "unknown" else verdict
        lane.advance()
        return "committed"

    def _without(self, runs: list[Run], lost: list[int]) -> list[Run]:
        """After EF002: those whose claims are still held."""
        gone: set[Claim] = set()
        kept: list[Run] = []
        for run in runs:
            if run.claim is not None and run.claim.id in lost and not run.in_ledger:
                run.claim.lose()
                gone.add(run.claim)
                self._executor.abandon(run)
            else:
                kept.append(run)
        self._on_lost(list(gone))
        return kept

    def _read(self, lane: Lane, name: str, params: dict[str, Any]) -> list[Any]:
        tries = 0
        while True:
            try:
                return self._database.run(lane.connection(), name, params)
            except psycopg.Error:
                tries += 1
                if self._stopped.wait(backoff(tries)):
                    raise FencedError("stopped") from None

    # ---- steps and plain calls ----

    def step_sync(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any:
        """A sync transaction called in a sync workflow, or outside one."""
        if branch is None:
            return self._on_a_lane_sync(spec, None, "", args, kwargs)
        executor, position = self._executor, self._position(branch)
        try:
            executor.interrupts.begin_sync(branch, position)
            recorded = recorded_at(position, spec, branch)
            if recorded is not None:
                return spec.result.decode(recorded.output or "null")
            executor.interrupts.raise_if_interrupted(branch)
            with acting(branch.run):
                executor.accept(branch.run)
                executor.barrier_sync(branch.run)
                return self._on_a_lane_sync(spec, branch, position, args, kwargs)
        except Cancelled:
            executor.interrupts.told(branch, position)
            raise

    def _on_a_lane_sync(
        self, spec: TransactionSpec, branch: Branch | None, position: str, args: Any, kwargs: Any
    ) -> Any:
        seat = Seat(self._places, spec)
        return drive(self._step(seat, spec, branch, position, args, kwargs), seat)

    async def step(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any:
        """A transaction that is awaited: in a workflow, or outside one; a sync one's function runs in a thread."""
        if branch is None:
            return await self._on_a_lane(spec, None, "", args, kwargs)
        executor, position = self._executor, self._position(branch)
        try:
            await executor.interrupts.begin_either(branch, position)
            recorded = recorded_at(position, spec, branch)
            if recorded is not None:
                return spec.result.decode(recorded.output or "null")
            if not branch.run.spec.is_async:
                executor.interrupts.raise_if_interrupted(branch)
            with acting(branch.run):
                executor.accept(branch.run)
                await executor.barrier(branch.run)
                return await self._on_a_lane(spec, branch, position, args, kwargs)
        except (asyncio.CancelledError, Cancelled):
            executor.interrupts.told(branch, position)
            raise

    async def _on_a_lane(
        self, spec: TransactionSpec, branch: Branch | None, position: str, args: Any, kwargs: Any
    ) -> Any:
        seat = AsyncSeat(self._async_places, spec)
        return await adrive(self._step(seat, spec, branch, position, args, kwargs), seat)

    def _position(self, branch: Branch) -> str:
        self._executor.check(branch.run, branch.attempt)
        return branch.next_position()

    def _step(
        self,
        seat: Seat | AsyncSeat,
        spec: TransactionSpec,
        branch: Branch | None,
        position: str,
        args: Any,
        kwargs: Any,
    ) -> Protocol:
        def once(attempts: int) -> Protocol:
            if branch is None:
                return self._outside(seat, spec, position, args, kwargs)
            call = _Call(spec, branch, position, args, kwargs, attempts, _next_seq(branch.run), self._may_share(spec))
            return self._step_once(seat, call)

        def pause(seconds: float) -> Ask:
            return (self._stopped.wait, seconds * self._executor.pace.hold)

        return (yield from persistently(spec, branch, position, once, pause))

    def _outside(
        self, seat: Seat | AsyncSeat, spec: TransactionSpec, position: str, args: Any, kwargs: Any
    ) -> Protocol:
        """One attempt outside a workflow: there is no record, and nobody else's work in it."""
        yield ("take", None)
        try:
            yield ("begin", spec)
            scope = StepScope(Branch(None, None), position, spec.name, kind="transaction")
            result = yield ("user", spec, call_step(spec, scope, args, kwargs), "alone")
            if scope.riders:
                statements = rider_statements(scope.riders)
                yield ("batch", [self._database.statement(name, params) for name, params in statements])
            crash_point("transactions.before_commit")
            yield ("commit",)
        except GeneratorExit:
            raise
        except BaseException:
            yield ("rollback",)
            raise
        finally:
            seat.give()
        crash_point("transactions.after_commit")
        self._executor.tell(scope.riders)
        return result

    def _step_once(self, seat: Seat | AsyncSeat, call: "_Call") -> Protocol:
        """One attempt, until it is known what it came to: alone, or with others in one transaction."""
        while True:
            if call.tries:
                self._executor.check(call.branch.run, call.branch.attempt)  # it may have been told to end meanwhile
            call.tries += 1
            call.phase, call.member = "begin", None
            yield ("take", call.share)
            place = cast("Place", seat.place)
            try:
                done = yield from self._run_step(seat, place, call)
            except GeneratorExit:
                if seat.place is not None:
                    tell(call.others(place.leave()), False)
                raise
            except BaseException as error:
                if seat.place is None:  # it was passed on, and is others'
                    raise
                others = call.others(place.leave())
                ended = (
                    self._end_shared(place.lane, call, error, others) if others else self._end(place.lane, call, error)
                )
                done = yield from ended
                if done is None:
                    raise
            finally:
                seat.give()
            if done:
                _note(call.branch.run, call.checkpoint)
                self._executor.tell(call.riders)
                return call.result

    def _run_step(self, seat: Seat | AsyncSeat, place: Place, call: "_Call") -> Protocol:
        """Run the function in the transaction that is open here, and pass it on or commit it; whether it is committed."""
        spec, branch = call.spec, call.branch
        if not place.members:
            place.begun(shares=(yield ("begin", spec)))
        call.phase = "user"
        shared = bool(place.members) or (call.share is not None and seat.crowded())
        scope = StepScope(branch, call.position, spec.name, kind="transaction")
        function = call_step(spec, scope, call.args, call.kwargs)
        call.result = yield ("user", spec, function, "grouped" if shared else "alone")
        call.record(spec.result.encode(call.result), list(scope.riders))
        self._executor.check(branch.run, branch.attempt)
        call.member = seat.member(branch.run, call.checkpoint, call.riders)
        if call.share is not None and place.has_room() and seat.crowded():
            if len(place.members) == 1:
                place.shares = yield ("open_to_others",)
            if place.shares and seat.pass_on():
                committed = yield ("outcome", call.member)
                if not committed:
                    call.share = None
                return committed
        if shared:
            yield ("flush",)
        call.phase = "write"
        crash_point("transactions.before_guard")
        yield ("batch", self._step_statements(place.lane, place.members))
        crash_point("transactions.before_commit")
        call.phase = "commit"
        yield ("commit",)
        crash_point("transactions.after_commit")
        place.lane.advance()
        tell(call.others(place.leave()), True)
        return True

    def _end(self, lane: Lane, call: "_Call", error: BaseException) -> Protocol:
        """After an error of a transaction that holds nobody else's work: whether it is committed; None: it is its own."""
        if not isinstance(error, Exception):
            yield ("rollback",)
            return None
        verdict = yield from self._verdict(lane, error, call.phase)
        if verdict == "committed" or (call.phase == "write" and _stands_already(error)):
            yield from self._read_result(lane, call)
            return True
        call.breaks += verdict == "broken"
        again = verdict == "again" or (verdict == "broken" and call.breaks < BREAKS_BORNE)
        if not again or self._stopped.is_set():
            return None
        yield (self._stopped.wait, backoff(call.tries))
        return False

    def _end_shared(self, lane: Lane, call: "_Call", error: BaseException, others: list[Member]) -> Protocol:
        """The same where it holds others' work, whose fault it may be: whoever is in it runs again, alone."""
        try:
            verdict = yield from self._verdict(lane, error, call.phase)
        except Dropped:  # somebody's workflow is gone: alone, each finds out whether it is his
            verdict = "gone"
        except BaseException as end:
            tell(others, end)
            raise
        tell(others, verdict == "committed")
        if verdict == "committed":
            return True
        self._apart[call.spec.name], call.share = _APART, None
        return False if isinstance(error, Exception) else None

    def _may_share(self, spec: TransactionSpec) -> TransactionSpec | None:
        """With whom a call may share a transaction: those of its own kind, if they have not failed together of late."""
        if spec.isolation not in {None, "read committed"}:
            return None
        if self._apart[spec.name]:
            self._apart[spec.name] -= 1
            return None
        return spec

    def _step_statements(self, lane: Lane, members: list[Member]) -> list[Any]:
        riders = [rider for member in members for rider in member.riders]  # as the functions ran
        members = sorted(members, key=lambda member: member.run.workflow_id)
        ids = sorted({member.run.workflow_id for member in members})
        held: list[Statement] = [("hold_workflows", {"executor": lane.executor, "ids": ids})]
        if any(rider.query == "insert_stream_items" for rider in riders):
            held = [one for workflow_id in ids for one in (
                ("hold_streams", {"workflow_id": workflow_id}),
                ("hold_workflows", {"executor": lane.executor, "ids": [workflow_id]}),
            )]  # fmt: skip
        guarded = [
            ("guard", lane.guard(nonce(), ())), *held,
            ("insert_checkpoints", checkpoint_params([(m.run.workflow_id, m.checkpoint) for m in members])),
            *rider_statements(riders),
        ]  # fmt: skip
        statements = [self._database.statement(name, values) for name, values in guarded]
        return [STILL_OPEN, *statements] if len(members) > 1 else statements

    def _read_result(self, lane: Lane, call: "_Call") -> Protocol:
        """What it came to, as it is recorded."""
        where = {"workflow_id": call.branch.run.workflow_id, "position": call.position}
        rows = yield (self._read, lane, "read_checkpoint", where)
        seq, output, _, attempts = rows[0]
        call.checkpoint = Checkpoint(call.position, seq, call.spec.name, output, None, attempts)
        call.result = call.spec.result.decode(output)

    # ---- the end ----

    def waiting(self) -> int:
        return len(self._line) + len(self._async_line)

    def stop(self) -> None:
        """Begin nothing new; what waits is dropped, and stays Kafka's."""
        self._stopped.set()
        with self._ready:
            for line in (self._line, self._async_line):
                for waiting in (line.alone, line.waiting):
                    for run in _each(waiting):
                        self._executor.abandon(run)
                    waiting.clear()
            self._ready.notify_all()

    async def close(self) -> None:
        """After `stop`: close the connections that nobody uses. A handler that still runs closes its own at its end."""
        await self._close_idle()
        for place in (*self._places.close(), *self._async_places.close()):
            place.lane.close()
            if place.threaded is None:
                place.port.close()
            else:
                await place.port.close()
                place.threaded.end()

    async def _close_idle(self) -> None:
        while self._idle_async:
            lane, port = self._idle_async.pop()
            lane.close()
            await port.close()


@contextlib.contextmanager
def acting(run: Run) -> Generator[None, None, None]:
    """While a transaction is under way, its workflow does not stand still, whatever its other branches wait for."""
    with run.lock:
        run.acting += 1
    try:
        yield
    finally:
        with run.lock:
            run.acting -= 1


def persistently(
    spec: TransactionSpec,
    branch: Branch | None,
    position: str,
    once: Callable[[int], Protocol],
    pause: Callable[[float], Ask],
) -> Protocol:
    """Run `once` until it succeeds, or its retries are spent and its failure is recorded; conflicts are borne longer."""
    attempts, began = 0, time.perf_counter()
    while True:
        attempts += 1
        try:
            return (yield from once(attempts))
        except (FencedError, HistoryTooLongError):
            raise
        except Exception as error:
            if spec.retry.wants(error, attempts) or (_state(error) in _CONFLICTS and attempts < _CONFLICTS_BORNE):
                yield pause(_pause(spec, attempts))
                continue
            if attempts > 1:
                error.add_note(f"eventflow: transaction {spec.name!r} failed in each of {attempts} attempts")
            if branch is not None:
                note_failure(branch.run, position, spec, error, attempts, time.perf_counter() - began)
            raise


def recorded_at(position: str, spec: TransactionSpec, branch: Branch) -> Checkpoint | None:
    """What the transaction came to before; a recorded failure is raised."""
    history = branch.run.history
    with branch.run.lock:
        recorded = history.find(position, spec.name)
    if recorded is None or recorded.error is None:
        return recorded
    error = decode_error(recorded.error)
    history.failures.append((error, recorded.seq))
    raise error


def _pause(spec: TransactionSpec, attempts: int) -> float:
    """Seconds before the next attempt; a conflict without a policy of the user's waits as the server's own refusals do."""
    return spec.retry.wait(attempts, random.random()) if spec.retry.retries else backoff(attempts)


# A transaction's records are made where its protocol runs, beside other branches of its workflow: hence the run's lock.


def _next_seq(run: Run) -> int:
    """The number of a checkpoint that is not recorded yet: reserved, what another branch records comes after it."""
    with run.lock:
        run.history.seq += 1
        return run.history.seq


def _stands_already(error: BaseException) -> bool:
    """Whether a task of the former attempt has committed the same step meanwhile; what it came to is recorded."""
    cause = cause_of(error)
    return isinstance(cause, psycopg.errors.UniqueViolation) and cause.diag.table_name == "checkpoints"


def _note(run: Run, checkpoint: Checkpoint) -> None:
    history = run.history
    with run.lock:
        history.seq = max(history.seq, checkpoint.seq)
        if history.recorded is None:
            history.recorded = {}
        history.recorded[checkpoint.position] = checkpoint


def note_failure(
    run: Run, position: str, spec: TransactionSpec, error: Exception, attempts: int, seconds: float
) -> None:
    """Record that a transaction has failed for good; nothing of it is committed."""
    with run.lock:
        run.history.fail(position, spec.name, error, encode_error(error), attempts, seconds)


def _each(items: Iterable[Run | Batch]) -> list[Run]:
    """The runs, also of batches."""
    return [run for item in items for run in (item.runs if isinstance(item, Batch) else [item])]


def _recorded(lead: Run, riders: tuple[Rider, ...], fetched: list[Fetched]) -> tuple[list[Entry], list[Gap]]:
    """What is written of a batch whose messages were taken as they were fetched: what goes with the first, and the ranges."""
    ranges = [(one.claim, one.first, one.end) for one in fetched]
    if not riders:
        return [], ranges
    entry = Entry(lead, [], "succeeded", output=lead.spec.result.encode(None))
    entry.riders = list(riders)
    claim, _, end = ranges[0]
    rest = (lead.offset or 0) + 1
    return [entry], [*([(claim, rest, end)] if rest < end else []), *ranges[1:]]


def _transaction(run: Run | Batch | Fetched) -> TransactionSpec:
    return cast("TransactionSpec", run.spec.consumer and run.spec.consumer.transaction)


def cause_of(error: BaseException) -> BaseException:
    """The error as psycopg raised it, where SQLAlchemy has wrapped it."""
    return getattr(error, "orig", None) or error


def _state(error: BaseException) -> str | None:
    """The server's code for the error, if it is one of the server's."""
    return getattr(cause_of(error), "sqlstate", None)


def judge_transaction(error: BaseException, phase: Phase, condition: Condition) -> TransactionVerdict:
    """What an error means, by what the transaction was doing and how its connection is (R2, R3, R15, R18).

    `user`: the user code's own. `conflict`: with another transaction; again, alone. `broken`: user code lost the connection,
    or the server did. `again`: the ledger's trouble, nobody's fault. `unknown`: it may have been committed.
    `lost`: claims went to another owner. `gone`: the workflow did. `fenced`: this executor is over.
    """
    cause, state = cause_of(error), _state(error) or ""
    if state in _OURS:
        return _OURS[state]
    if not isinstance(error, Exception):
        return "user"  # cancelled, which happens in user code only
    if state in _CONFLICTS:
        return "conflict"
    if phase == "user":
        if condition == "failed" and state.startswith(_FULL):
            return "again"  # on our own connection; that of another database is the user's
        return "broken" if condition == "broken" else "user"
    if phase == "commit":
        return "user" if state.startswith("23") or isinstance(error, RolledBackError) else "unknown"
    if isinstance(error, UnavailableError) or condition == "broken":
        return "again"
    if isinstance(cause, psycopg.Error) and state == "23505" and cause.diag.table_name == "flushes":
        return "unknown"
    if state.startswith(_OUTAGES) or (not state and isinstance(cause, psycopg.OperationalError)):
        return "again"
    return "user"


def _call_handler(run: Run, spec: TransactionSpec, scope: StepScope, begin: Begin | None) -> Callable[[Any], Any]:
    def call(connection: Any) -> Any:
        return _call_with(message_of(run), spec, scope, begin)(connection)

    return call


def _call_with(given: Any, spec: TransactionSpec, scope: StepScope, begin: Begin | None) -> Callable[[Any], Any]:
    """What calls a handler with a connection or Session, in the scope of its step, and in a span of its messages."""

    def call(connection: Any) -> Any:
        if spec.is_async:
            called = spec.function(connection, given)
            return _in_scope(scope, called if begin is None else _in_span(begin, called))
        context = Context()
        context.run(current.set, scope)
        if begin is None:
            return context.run(spec.function, connection, given)
        return context.run(_in_span_sync, begin, spec.function, connection, given)

    return call


async def _in_scope(scope: StepScope, coroutine: Any) -> Any:
    token = current.set(scope)
    try:
        return await coroutine
    finally:
        current.reset(token)


async def _in_span(begin: Begin, coroutine: Any) -> Any:
    with begin() or _NO_SPAN:
        return await coroutine


def _in_span_sync(begin: Begin, function: Callable[..., Any], connection: Any, given: Any) -> Any:
    with begin() or _NO_SPAN:
        return function(connection, given)


def call_step(spec: TransactionSpec, scope: StepScope, args: Any, kwargs: Any) -> Callable[[Any], Any]:
    """What calls the user's function with a connection or Session, in the scope of its step, and in a span of it."""
    function, trace = spec.function, None if scope.branch.run is None else scope.branch.run.trace
    if trace is not None:
        around = trace.around if spec.is_async else trace.around_sync
        function = around("transaction", function, spec.name, scope.position)

    def call(connection: Any) -> Any:
        given = (*args[: spec.leading], connection, *args[spec.leading :])
        if spec.is_async:
            return _in_scope(scope, function(*given, **kwargs))
        token = current.set(scope)
        try:
            return function(*given, **kwargs)
        finally:
            current.reset(token)

    return call
