"""Transactional handlers and steps: the user's effects, the record that they happened, and the fence, in one commit.

Many messages share a transaction (PROTOCOL.md R18): up to 50 run one after another on one connection, each with a
Session of its own and no savepoints. When one fails, the group is rolled back and runs again with a savepoint each, so
that the failure stays its own message's. The protocol is one generator; a sync and an async port do what it asks.
"""

import asyncio
import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, cast

import psycopg

from eventflow.codec import decode_error, encode_error
from eventflow.context import StepScope, current
from eventflow.database import Database, fenced, lost_claims
from eventflow.errors import FencedError, UnavailableError
from eventflow.executor import Executor, message_of
from eventflow.journal import Entry, Lane, backoff, flush_statements, nonce
from eventflow.ports import AsyncPort, Port, Protocol, ThreadPort, adrive, drive
from eventflow.records import Checkpoint
from eventflow.registry import TransactionSpec
from eventflow.replay import Branch
from eventflow.runs import Claim, Run
from eventflow.telemetry import crash_point

logger = logging.getLogger(__name__)

GROUP = 50
_CONFLICTS = {"40001", "40P01"}
_CONFLICTING = 20  # attempts of a transaction that conflicts, whatever its policy


class _Line:
    """Messages of transactional handlers that wait for a lane; while a suspect runs alone, no other may begin (R13)."""

    def __init__(self) -> None:
        self.waiting: deque[Run] = deque()
        self.alone: deque[Run] = deque()
        self.open = True

    def __bool__(self) -> bool:
        return bool(self.alone or (self.open and self.waiting))

    def __len__(self) -> int:
        return len(self.alone) + len(self.waiting)

    def next(self) -> deque[Run]:
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
    ) -> None:
        self._database, self._executor, self._application = database, executor, application
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
        self._steps: queue.Queue[tuple[Lane, Port]] = queue.Queue()
        for lane in lanes[2 * quarter : 3 * quarter]:
            self._steps.put((lane, Port(database)))
        self._async_steps: asyncio.Queue[tuple[Lane, AsyncPort, ThreadPort]] = asyncio.Queue()
        for lane in lanes[3 * quarter :]:
            self._async_steps.put_nowait((lane, AsyncPort(database), ThreadPort(database)))
        self._idle_async = [(lane, AsyncPort(database)) for lane in self._async_lanes]
        self.active = 0
        self._started = False

    # ---- handlers ----

    def put(self, runs: list[Run], *, alone: bool = False) -> None:
        """Queue messages of transactional handlers, in order; `alone` goes although the line is closed. From any thread."""
        if self._stopped.is_set():  # its waiters woke it although the incarnation is over
            for run in runs:
                run.dropped = True
            return
        sync = [r for r in runs if not _transaction(r).is_async]
        if sync:
            with self._ready:
                if not self._started:
                    self._started = True
                    for thread in self._threads:
                        thread.start()
                (self._line.alone if alone else self._line.waiting).extend(sync)
                self._ready.notify(min(len(self._threads), 1 + len(sync) // GROUP))
        if len(sync) < len(runs):
            rest = [r for r in runs if _transaction(r).is_async]
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

    def _put_async(self, line: deque[Run], runs: list[Run]) -> None:
        line.extend(runs)
        while self._async_line and self._idle_async and not self._stopped.is_set():
            task = self._executor.loop.create_task(self._work_async(*self._idle_async.pop()))
            self._async_tasks.add(task)
            task.add_done_callback(self._async_tasks.discard)
            if len(self._async_line) <= GROUP:
                break

    def _take(self, waiting: deque[Run]) -> list[Run]:
        """The next messages of one handler, dropping those that may not start any more."""
        group: list[Run] = []
        while waiting and len(group) < GROUP:
            if group and waiting[0].spec is not group[0].spec:
                break
            run = waiting.popleft()
            if run.may_begin():
                group.append(run)
            else:
                self._executor.abandon(run)
        return group

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
                if group:
                    await adrive(self.group(lane, group), port)
            self._idle_async.append((lane, port))
        except FencedError as error:
            self._on_fenced(error)
        except Exception as error:
            logger.exception("a transaction lane failed")
            self._on_fenced(FencedError(f"a transaction lane failed: {error!r}"))
        finally:
            self.active -= 1

    # ---- the protocol ----

    def group(self, lane: Lane, runs: list[Run]) -> Protocol:
        """Run these messages' handlers and commit effects, results and positions together (R18)."""
        plain = yield from self._attempt(lane, runs, savepoints=False)
        if plain is None:
            return
        if len(runs) == 1:
            self._executor.failed(runs[0], plain)
            return
        rest = [r for r in runs if not r.dropped and not r.ended]
        if _state(plain) not in _CONFLICTS:
            error = yield from self._attempt(lane, rest, savepoints=True)
            if error is None:
                return
        for run in rest:
            if not run.dropped and not run.ended:
                yield from self.group(lane, [run])

    def _attempt(self, lane: Lane, runs: list[Run], *, savepoints: bool) -> Protocol:
        """One transaction for all of them, until its outcome is known; the error of the one that fails it, or None."""
        tries = 0
        while runs:
            tries += 1
            mine = nonce()
            failed: list[tuple[Run, BaseException]] = []
            committing = False
            entries: list[Entry] = []
            try:
                yield ("begin", _transaction(runs[0]))
                entries = yield from self._run_all(runs, failed, savepoints=savepoints)
                crash_point("transactions.before_guard")
                yield from self._write(lane, mine, entries)
                crash_point("transactions.before_commit")
                committing = True
                yield ("commit",)
            except GeneratorExit:
                raise
            except BaseException as error:
                yield ("rollback",)
                verdict = yield from self._verdict(lane, error, committing=committing)
                if verdict == "committed":
                    self._settle([e.run for e in entries], failed)
                    return None
                if verdict == "conflict" and (len(runs) == 1 and tries < _CONFLICTING):
                    yield (self._stopped.wait, backoff(tries))
                    continue
                if verdict == "again":
                    if tries in {1, 10}:
                        logger.warning("a transaction of %s: %s; trying again", runs[0].name, error)
                    yield (self._stopped.wait, backoff(tries))
                    if self._stopped.is_set():
                        raise FencedError("stopped") from error
                    continue
                if verdict == "lost":
                    runs = self._without_lost(runs)
                    continue
                return error
            crash_point("transactions.after_commit")
            lane.advance()
            self._settle([e.run for e in entries], failed)
            return None
        return None

    def _settle(self, done: list[Run], failed: list[tuple[Run, BaseException]]) -> None:
        """The transaction is committed: what it recorded is over, and what failed in it is the executor's."""
        self._executor.settled(done)
        for run, error in failed:
            self._executor.failed(run, error)

    def _run_all(self, runs: list[Run], failed: list[tuple[Run, BaseException]], *, savepoints: bool) -> Protocol:
        entries: list[Entry] = []
        mode = "savepoint" if savepoints else "grouped"
        for run in runs:
            spec = _transaction(run)
            try:
                if savepoints:
                    yield ("execute", b"savepoint eventflow_message")
                result = yield ("user", spec, _call_handler(run, spec), mode)
                output = spec.result.encode(result)
                if savepoints:
                    yield ("execute", b"savepoint eventflow_check")
                    yield ("execute", b"set constraints all immediate")
                    yield ("execute", b"rollback to savepoint eventflow_check")  # checked, and deferred as it was
                    yield ("execute", b"release savepoint eventflow_message")
            except Exception as error:
                if not savepoints or _breaks(error) or _state(error) in _CONFLICTS:
                    raise
                yield ("execute", b"rollback to savepoint eventflow_message")
                failed.append((run, error))
            else:
                entries.append(Entry(run, [], "succeeded", output=output))
        yield ("flush",)
        return entries

    def _write(self, lane: Lane, mine: int, entries: list[Entry]) -> Protocol:
        text = self._database.text
        statements, claims = flush_statements(lane.executor, self._application, entries, [])
        batch: list[tuple[bytes, dict[str, Any] | None]] = [(text("guard"), lane.guard(mine, claims))]
        batch += [(text(name), params) for name, params in statements]
        yield ("batch", batch)

    def _verdict(self, lane: Lane, error: BaseException, *, committing: bool) -> Protocol:
        """What an error of the shared transaction means; an unknown outcome is settled before anything else (R3)."""
        if isinstance(error, UnavailableError):
            return "again"
        if not isinstance(error, Exception):
            return "user"  # never in a commit, which is not interrupted
        cause = _cause(error)
        if not isinstance(cause, psycopg.Error):
            return "user"
        state = cause.sqlstate
        if state in {"EF001", "EF003"}:
            raise fenced(cause) from error
        if state == "EF002":
            self._lose(lost_claims(cause))
            return "lost"
        if state in _CONFLICTS:
            return "conflict"
        if (state is None and isinstance(cause, psycopg.OperationalError)) or (state or "").startswith(("57P", "08")):
            if committing:
                closed = yield (lane._close_number,)  # pyright: ignore[reportPrivateUsage]
                if not closed:
                    lane.advance()
                    return "committed"
            return "again"
        if state is not None and (state.startswith(("53", "58")) or state == "25006"):
            return "again"  # a full disk or a server that became read-only is nobody's message's fault (R15)
        return "user"

    def _lose(self, ids: list[int]) -> None:
        self._lost_ids = set(ids)

    def _without_lost(self, runs: list[Run]) -> list[Run]:
        gone: set[Claim] = set()
        kept: list[Run] = []
        for run in runs:
            if run.claim is not None and run.claim.id in self._lost_ids and not run.in_ledger:
                run.claim.lose()
                run.dropped = True
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
        if branch is not None:
            self._executor.check(branch.run)
            self._executor.accept(branch.run)
            self._executor.barrier_sync(branch.run)
        place = self._steps.get()
        lane, port = place
        try:
            return drive(self._step(lane, spec, branch, args, kwargs), port)
        finally:
            self._steps.put(place)

    async def step(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any:
        """A transaction that is awaited: in a workflow, or outside one; a sync one's function runs in a thread."""
        if branch is not None:
            self._executor.check(branch.run)
            self._executor.accept(branch.run)
            await self._executor.barrier(branch.run)
        place = await self._async_steps.get()
        lane, port, threaded = place
        try:
            return await adrive(self._step(lane, spec, branch, args, kwargs), port if spec.is_async else threaded)
        finally:
            self._async_steps.put_nowait(place)

    def _step(self, lane: Lane, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Protocol:
        position = branch.next_position() if branch is not None else ""
        recorded = self._recorded(spec, branch, position)
        if recorded is not None:
            return spec.result.decode(recorded.output or "null")
        attempts, began = 0, time.perf_counter()
        while True:
            attempts += 1
            try:
                return (yield from self._step_once(lane, spec, branch, position, args, kwargs, attempts))
            except FencedError:
                raise
            except Exception as error:
                if spec.retry.wants(error, attempts) or (_state(error) in _CONFLICTS and attempts < _CONFLICTING):
                    yield (self._stopped.wait, _pause(spec, attempts))
                    continue
                if attempts > 1:
                    error.add_note(f"eventflow: transaction {spec.name!r} failed in each of {attempts} attempts")
                if branch is not None:
                    _note_failure(branch.run, position, spec, error, attempts, time.perf_counter() - began)
                raise

    def _recorded(self, spec: TransactionSpec, branch: Branch | None, position: str) -> Checkpoint | None:
        """What the transaction came to before; a recorded failure is raised."""
        if branch is None:
            return None
        history = branch.run.history
        with branch.run.lock:
            recorded = history.find(position, spec.name)
        if recorded is None or recorded.error is None:
            return recorded
        error = decode_error(recorded.error)
        history.failures.append((error, recorded.seq))
        raise error

    def _step_once(
        self, lane: Lane, spec: TransactionSpec, branch: Branch | None, position: str, args: Any, kwargs: Any,
        attempts: int,
    ) -> Protocol:  # fmt: skip
        tries, began = 0, time.perf_counter()
        while True:
            tries += 1
            committing, checkpoint = False, None
            try:
                yield ("begin", spec)
                result = yield ("user", spec, _call_step(spec, branch, position, args, kwargs), "alone")
                if branch is not None:
                    output = spec.result.encode(result)
                    seconds = time.perf_counter() - began
                    checkpoint = Checkpoint(position, _next_seq(branch.run), spec.name, output, None, attempts, seconds)
                    crash_point("transactions.before_guard")
                    yield ("batch", self._step_statements(lane, branch.run, checkpoint))
                crash_point("transactions.before_commit")
                committing = True
                yield ("commit",)
            except GeneratorExit:
                raise
            except BaseException as error:
                yield ("rollback",)
                if branch is None or not isinstance(error, Exception):
                    raise
                verdict = yield from self._verdict(lane, error, committing=committing)
                if verdict == "committed":
                    return (yield from self._read_result(lane, spec, branch, position))
                if verdict == "again" and not self._stopped.is_set():
                    yield (self._stopped.wait, backoff(tries))
                    continue
                raise
            crash_point("transactions.after_commit")
            if branch is not None and checkpoint is not None:
                lane.advance()
                _note(branch.run, checkpoint)
            return result

    def _step_statements(self, lane: Lane, run: Run, checkpoint: Checkpoint) -> list[Any]:
        params = {
            "workflow_id": run.workflow_id, "position": checkpoint.position, "seq": checkpoint.seq,
            "name": checkpoint.name, "output": checkpoint.output, "attempts": checkpoint.attempts,
            "seconds": checkpoint.seconds,
        }  # fmt: skip
        text = self._database.text
        return [(text("guard"), lane.guard(nonce(), ())), (text("transaction_checkpoint"), params)]

    def _read_result(self, lane: Lane, spec: TransactionSpec, branch: Branch, position: str) -> Protocol:
        rows = yield (
            self._read,
            lane,
            "read_checkpoint",
            {"workflow_id": branch.run.workflow_id, "position": position},
        )
        seq, output, _, attempts = rows[0]
        _note(branch.run, Checkpoint(position, seq, spec.name, output, None, attempts))
        return spec.result.decode(output)

    # ---- the end ----

    def waiting(self) -> int:
        return len(self._line) + len(self._async_line)

    def stop(self) -> None:
        """Begin nothing new; what waits is dropped, and stays Kafka's."""
        self._stopped.set()
        with self._ready:
            for line in (self._line, self._async_line):
                for waiting in (line.alone, line.waiting):
                    while waiting:
                        self._executor.abandon(waiting.popleft())
            self._ready.notify_all()


def _pause(spec: TransactionSpec, attempts: int) -> float:
    """Seconds before the next attempt; a conflict without a policy of the user's waits as the server's own refusals do."""
    return spec.retry.wait(attempts, random.random()) if spec.retry.retries else backoff(attempts)


# A transaction's records are made where its protocol runs, beside other branches of its workflow: hence the run's lock.


def _next_seq(run: Run) -> int:
    """The number of a checkpoint that is not recorded yet: taken now, so that no other branch takes it meanwhile."""
    with run.lock:
        run.history.seq += 1
        return run.history.seq


def _note(run: Run, checkpoint: Checkpoint) -> None:
    history = run.history
    with run.lock:
        history.seq = max(history.seq, checkpoint.seq)
        if history.recorded is None:
            history.recorded = {}
        history.recorded[checkpoint.position] = checkpoint


def _note_failure(
    run: Run, position: str, spec: TransactionSpec, error: Exception, attempts: int, seconds: float
) -> None:
    with run.lock:
        record = run.history.add(position, spec.name, None, encode_error(error), attempts, seconds)
        run.history.failures.append((error, record.seq))


def _transaction(run: Run) -> TransactionSpec:
    return cast("TransactionSpec", run.spec.consumer and run.spec.consumer.transaction)


def _cause(error: BaseException) -> BaseException:
    """The error as psycopg raised it, where SQLAlchemy has wrapped it."""
    return getattr(error, "orig", None) or error


def _state(error: BaseException) -> str | None:
    """The server's code for the error, if it is one of the server's."""
    return getattr(_cause(error), "sqlstate", None)


def _breaks(error: Exception) -> bool:
    """Whether the connection is gone, so that no savepoint helps."""
    cause = _cause(error)
    return isinstance(cause, psycopg.OperationalError) and (cause.sqlstate or "57P01")[:3] in {"57P", "080"}


def _call_handler(run: Run, spec: TransactionSpec) -> Callable[[Any], Any]:
    def call(connection: Any) -> Any:
        scope = StepScope(Branch(run, None), "1.1", spec.name)
        context = Context()
        context.run(current.set, scope)
        if spec.is_async:
            return _in_scope(scope, spec.function(connection, message_of(run)))
        return context.run(spec.function, connection, message_of(run))

    return call


async def _in_scope(scope: StepScope, coroutine: Any) -> Any:
    token = current.set(scope)
    try:
        return await coroutine
    finally:
        current.reset(token)


def _call_step(
    spec: TransactionSpec, branch: Branch | None, position: str, args: Any, kwargs: Any
) -> Callable[[Any], Any]:
    def call(connection: Any) -> Any:
        scope = StepScope(branch or Branch(None, None), position, spec.name)
        given = (*args[: spec.leading], connection, *args[spec.leading :])
        if spec.is_async:
            return _in_scope(scope, spec.function(*given, **kwargs))
        token = current.set(scope)
        try:
            return spec.function(*given, **kwargs)
        finally:
            current.reset(token)

    return call
