"""Transactions on other databases: the effect and the row that says what it came to are one commit there.

The ledger and another database cannot commit together, so they agree by *tickets* (docs/adr/0008-other-databases.md). A ticket
is recorded in the ledger before its transaction begins, and is used by that one attempt of that one process. The
transaction's last statement writes the row of its ticket, with the result and what the ledger is to write with it; only then
is the result recorded. Whoever finds a ticket without a result in the ledger *settles* it first: its row is there and tells the
result, or he makes it void, and nothing can commit under it any more.

The ledger's fence does not reach here, and need not: of all that hold a workflow one's commit counts, and the others read it.
"""

import asyncio
import functools
import json
import logging
import os
import queue
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import psycopg

from eventflow.context import StepScope
from eventflow.database import Connection, Database, evicting, fenced, in_transaction
from eventflow.errors import (
    Cancelled,
    DeterminismError,
    EventflowError,
    FencedError,
    SchemaError,
    UnavailableError,
    UsageError,
    first_line,
)
from eventflow.executor import Executor
from eventflow.idempotency import new_ticket
from eventflow.journal import backoff
from eventflow.migrations import RESULTS, RESULTS_SCHEMA, check_schema
from eventflow.payloads import Payloads, unread
from eventflow.ports import Ask, AsyncPort, Port, Protocol, ThreadPort, adrive, drive
from eventflow.records import Checkpoint, Rider
from eventflow.registry import TransactionSpec
from eventflow.replay import Await, Branch
from eventflow.runs import Dropped, Run
from eventflow.telemetry import crash_point, seldom
from eventflow.transactions import (
    BREAKS_BORNE,
    Phase,
    acting,
    call_step,
    cause_of,
    judge_transaction,
    persistently,
    recorded_at,
)

logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds that a commit under way gets to end, before who settles its ticket ends its session


def other_database(name: str, url: str, *, prepared: bool, payloads: Payloads) -> Database:
    """One of `EVENTFLOW_DATABASES`; the results that it keeps pass the ledger's payload codec.

    Raises:
        SettingsError: libpq cannot read its address.

    """
    return Database(url, RESULTS_SCHEMA, prepared, name, payloads)


def check_results(database: Database) -> None:
    """Whether transactions may leave their results there.

    Raises:
        SchemaError, UnavailableError: they may not, or nobody answers; names the database.

    """
    with database.connect("start") as connection:
        try:
            check_schema(connection, RESULTS_SCHEMA, RESULTS)
        except (SchemaError, UnavailableError) as error:
            raise type(error)(f"database {database.name!r}: {error}") from error


@dataclass
class _Step:
    """One call of a transaction in a workflow.

    Attributes:
        began: by the clock that measures.
        ticket: the last one that was issued for it; None: there is none that may be used.
        doubtful: whether something may have been committed under it, or may be yet.
        found: what it came to, as it was found where that was in doubt.

    """

    spec: TransactionSpec
    branch: Branch
    position: str
    args: Any
    kwargs: Any
    began: float
    ticket: Checkpoint | None = None
    doubtful: bool = False
    found: str | None = None

    @property
    def run(self) -> Run:
        return self.branch.run


class Elsewhere:
    """One other database, as the transactions of one incarnation use it: so many connections of each kind.

    `heard` tells when this process last heard from the ledger, by the ledger's clock; `checked` has the names of the
    databases that have what is needed.
    """

    def __init__(
        self, database: Database, executor: Executor, ledger: UUID, *, lanes: int, heard: Callable[[], float],
        checked: set[str], on_fenced: Callable[[FencedError], None],
    ) -> None:  # fmt: skip
        self._name, self._database, self.executor = str(database.name), database, executor
        self._ledger, self._heard, self._checked, self._on_fenced = ledger, heard, checked, on_fenced
        self._misses = 0  # since the server did last what it was asked for
        self.stopped = threading.Event()
        self.ports: queue.Queue[Port] = queue.Queue()
        self.async_ports: asyncio.Queue[tuple[AsyncPort, ThreadPort]] = asyncio.Queue()
        for _ in range(lanes):
            self.ports.put(Port(database))
            self.async_ports.put_nowait((AsyncPort(database), ThreadPort(database)))
        # Not the loop's threads: these may hang with their server.
        self.threads = ThreadPoolExecutor(lanes, f"eventflow database {self._name}")

    # ---- calls ----

    def step_sync(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any:
        """A sync transaction called in a sync workflow, or outside one."""
        desk = _Desk(self, branch)
        try:
            if branch is None:
                return drive(self._call(spec, None, "", args, kwargs), desk)
            position = self._position(branch)
            try:
                self.executor.interrupts.begin_sync(branch, position)
                with acting(branch.run):
                    return drive(self._call(spec, branch, position, args, kwargs), desk)
            except Cancelled:
                self.executor.interrupts.told(branch, position)
                raise
        finally:
            desk.put_back()

    async def step(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any:
        """A transaction that is awaited: in a workflow, or outside one; a sync one's function runs in a thread."""
        desk = _AsyncDesk(self, None if branch is None else branch.run, threaded=not spec.is_async)
        try:
            if branch is None:
                return await adrive(self._call(spec, None, "", args, kwargs), desk)
            position = self._position(branch)
            try:
                await self.executor.interrupts.begin_either(branch, position)
                with acting(branch.run):
                    return await adrive(self._call(spec, branch, position, args, kwargs), desk)
            except (asyncio.CancelledError, Cancelled):
                self.executor.interrupts.told(branch, position)
                raise
        finally:
            desk.put_back()

    async def close(self) -> None:
        """Begin nothing new; close the connections that nobody uses."""
        self.stopped.set()
        self.threads.shutdown(wait=False, cancel_futures=True)
        while not self.async_ports.empty():
            port, threaded = self.async_ports.get_nowait()
            await port.close()
            threaded.end()
        while not self.ports.empty():
            self.ports.get_nowait().close()

    # ---- the protocol ----

    def _position(self, branch: Branch) -> str:
        self.executor.check(branch.run, branch.attempt)
        return branch.next_position()

    def _call(self, spec: TransactionSpec, branch: Branch | None, position: str, args: Any, kwargs: Any) -> Protocol:
        def pause(seconds: float) -> Ask:
            return ("pause", seconds)

        if branch is None:
            return (yield from persistently(spec, None, "", lambda _: self._outside(spec, args, kwargs), pause))
        step = _Step(spec, branch, position, args, kwargs, time.perf_counter())
        with branch.run.lock:
            tickets = branch.run.history.tickets(position)
            recorded = branch.run.history.at(position)
        if recorded is not None or not tickets:
            recorded = recorded_at(position, spec, branch)
        if recorded is not None:
            return spec.result.decode(recorded.output or "null")
        if tickets:
            self._check_begun(step, tickets[-1])
            step.ticket, step.doubtful = tickets[-1], True
        result = yield from persistently(spec, branch, position, functools.partial(self._attempt, step), pause)
        return result if step.found is None else spec.result.decode(step.found)

    def _check_begun(self, step: _Step, ticket: Checkpoint) -> None:
        """Whether what began here is what the code now calls.

        Raises:
            DeterminismError: it is another transaction, or in another database.

        """
        database, _ = _read_ticket(ticket)
        if ticket.name != step.spec.name or database != self._name:
            raise DeterminismError(
                f"position {step.position}: the transaction {ticket.name!r} had begun in the database {database!r}, and may be "
                f"committed there; the code now calls {step.spec.name!r} in {self._name!r}"
            )

    def _outside(self, spec: TransactionSpec, args: Any, kwargs: Any) -> Protocol:
        """One attempt outside a workflow: it commits when it returns, and there is no record."""
        yield ("take",)
        try:
            yield from self._ready()
            yield ("begin", spec)
            scope = StepScope(Branch(None, None), "", spec.name, kind="elsewhere")
            result = yield ("user", spec, call_step(spec, scope, args, kwargs), "alone")
            if scope.riders:
                raise UsageError(
                    f"the transaction {spec.name!r} is called outside a workflow: what it sends or enqueues cannot be in its "
                    f"commit in the database {self._name!r}; call it in a workflow"
                )
            yield ("commit",)
        except GeneratorExit:
            raise
        except BaseException:
            yield ("rollback",)
            yield ("give",)
            raise
        yield ("give",)
        return result

    def _attempt(self, step: _Step, attempts: int) -> Protocol:
        """One attempt, whatever it takes to know what it came to; its result, unless that was found."""
        spec, run = step.spec, step.run
        breaks = 0
        while True:
            if step.doubtful and (yield from self._settle(step)):
                return None
            if step.ticket is None:
                yield from self._issue(step)
            phase: Phase = "begin"
            yield ("take",)
            try:
                yield from self._ready()
                yield ("begin", spec)
                self._misses, phase = 0, "user"
                scope = StepScope(step.branch, step.position, spec.name, kind="elsewhere")
                result = yield ("user", spec, call_step(spec, scope, step.args, step.kwargs), "alone")
                output = spec.result.encode(result)
                row = self._row(step, output, scope.riders, attempts)
                self.executor.check(run, step.branch.attempt)
                phase = "write"
                crash_point("elsewhere.before_result")
                yield ("execute", *self._database.statement("record_result", row))
                crash_point("elsewhere.before_commit")
                phase = "commit"
                yield ("commit",)
            except GeneratorExit:
                raise
            except BaseException as error:
                condition = yield ("condition",)
                yield ("rollback",)
                yield ("give",)
                verdict = judge_transaction(error, phase, condition)
                if phase == "write" and verdict == "fenced":
                    self._on_fenced(fenced(cause_of(error)))
                    raise Dropped from error
                if phase == "write" and _is_settled(error):  # by who has this workflow now
                    raise Dropped from error
                if verdict == "unknown" or (condition == "broken" and phase in {"write", "commit"}):
                    step.doubtful, verdict = True, "again"
                breaks += verdict == "broken"
                if verdict == "again" or (verdict == "broken" and breaks < BREAKS_BORNE):
                    yield from self._outlast(error)
                    continue
                raise
            crash_point("elsewhere.after_commit")
            yield ("give",)
            self._record(step, output, scope.riders, attempts, row["seconds"])
            return result

    def _ready(self) -> Protocol:
        """Look for what is needed here, where that was not done at start: nobody answered, or nobody was known to come."""
        if self._name not in self._checked:
            yield ("apart", functools.partial(check_results, self._database))
            self._checked.add(self._name)

    def _outlast(self, error: BaseException, *, surely: bool = False) -> Protocol:
        """Wait for the server, which is away, or not ready; other work goes on meanwhile.

        Raises:
            Suspended: the run leaves memory meanwhile.
            Dropped: this executor is over.

        """
        named = isinstance(error, SchemaError | UnavailableError)
        text = str(error) if named else f"database {self._name!r}: {first_line(error)}"
        level = logging.ERROR if isinstance(error, SchemaError) else logging.WARNING
        seldom.say(logger, f"{text}; trying again", level)
        self._misses += 1
        pause = ("outlast", backoff(self._misses))
        yield ("surely", *pause) if surely else pause
        if self.stopped.is_set():
            raise Dropped from error

    # ---- tickets ----

    def _issue(self, step: _Step) -> Protocol:
        """A new ticket; when this returns it is durable, with everything recorded before (R12)."""
        ticket = new_ticket(int(self.executor.now() * 1000), os.urandom(10))
        with step.run.lock:
            self.executor.check(step.run, step.branch.attempt)
            output = json.dumps([self._name, str(ticket)])
            step.ticket = step.run.history.issue(step.position, step.spec.name, output)
            self.executor.submit_fresh(step.run)
        yield ("barrier",)
        crash_point("elsewhere.after_ticket")

    def _settle(self, step: _Step) -> Protocol:
        """Settle the ticket. Whether it has a result, which is recorded then; else it is void, and another one is needed.

        One who is cancelled meanwhile learns of it after: what he would undo is known then.
        """
        assert step.ticket is not None
        _, ticket = _read_ticket(step.ticket)
        params: dict[str, Any] = {
            "ticket": ticket, "ledger": self._ledger, "workflow_id": step.run.workflow_id, "position": step.position,
            "name": step.spec.name,
        }  # fmt: skip
        while True:
            yield ("surely", "take")  # so that no more are settled at once than there are connections
            try:
                yield from self._ready()
                rows = yield ("apart", functools.partial(self._settle_now, params))
            except (psycopg.Error, EventflowError) as error:
                yield ("give",)
                yield from self._outlast(error, surely=True)
                continue
            self._misses = 0
            yield ("give",)
            break
        crash_point("elsewhere.after_settling")
        unreadable = unread(rows[0])
        if unreadable is not None:
            raise unreadable
        [(output, riders, attempts, seconds)] = rows
        step.doubtful, step.found = False, output
        if output is None:
            step.ticket = None
            return False
        self._record(step, output, _read_riders(riders), attempts, seconds)
        return True

    def _settle_now(self, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Blocks: who is about to commit under the ticket does so, or has his session ended."""
        database = self._database

        def settle(connection: Connection) -> list[tuple[Any, ...]]:
            with evicting(database, connection, after=_PATIENCE):
                database.run(connection, "void_ticket", params)
            return database.run(connection, "read_result", params)

        with database.connect("settle") as connection:
            return in_transaction(
                connection, settle, "set local lock_timeout = '10s'", "set local synchronous_commit = on"
            )

    def _row(self, step: _Step, output: str, riders: Sequence[Rider], attempts: int) -> dict[str, Any]:
        assert step.ticket is not None
        _, ticket = _read_ticket(step.ticket)
        return {
            "ticket": ticket, "ledger": self._ledger, "workflow_id": step.run.workflow_id, "position": step.position,
            "name": step.spec.name, "output": output, "riders": _write_riders(riders), "attempts": attempts,
            "seconds": time.perf_counter() - step.began, "heard": self._heard(),
        }  # fmt: skip

    def _record(self, step: _Step, output: str, riders: Sequence[Rider], attempts: int, seconds: float) -> None:
        """What is committed there goes to the ledger, soon; if it does not get there, the ticket leads to it.

        Raises:
            Dropped: the attempt is over.

        """
        assert step.ticket is not None
        run = step.run
        with run.lock:
            if run.dropped or run.ended or run.attempt != step.branch.attempt:
                raise Dropped
            run.history.settle(step.ticket, output, attempts, seconds, riders)
        self.executor.recorded(run)


def _read_ticket(ticket: Checkpoint) -> tuple[str, UUID]:
    """In which database it is, and what it is."""
    name, text = json.loads(ticket.output or "null")
    return name, UUID(text)


def _is_settled(error: BaseException) -> bool:
    cause = cause_of(error)
    if not isinstance(cause, psycopg.errors.UniqueViolation):
        return False
    return (cause.diag.schema_name, cause.diag.table_name) == (RESULTS_SCHEMA, "results")


def _write_riders(riders: Sequence[Rider]) -> str | None:
    """What goes with the checkpoint, as JSON, bytes as base64; None: nothing does."""
    if not riders:
        return None
    return json.dumps(
        [[rider.query, *rider.row] for rider in riders], default=lambda value: {"bytes": b64encode(value).decode()}
    )


def _read_riders(text: str | None) -> list[Rider]:
    rows: list[Any] = json.loads(text, object_hook=lambda value: b64decode(value["bytes"])) if text else []
    return [Rider(query, tuple(row)) for query, *row in rows]


# ---- desks: what the protocol asks for, on a connection that is lent while one is needed -------------------------------


class _Desk:
    """In a thread."""

    def __init__(self, place: Elsewhere, branch: Branch | None) -> None:
        self._place, self._branch = place, branch
        self._port: Port | None = None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return getattr(self._port, method)

    def take(self) -> None:
        if self._port is None:
            self._port = self._place.ports.get()

    def give(self) -> None:
        self.put_back()

    def put_back(self) -> None:
        if self._port is not None:
            self._place.ports.put(self._port)
            self._port = None

    def barrier(self) -> None:
        assert self._branch is not None
        self._place.executor.barrier_sync(self._branch.run)
        self._place.executor.interrupts.raise_if_interrupted(self._branch)

    def pause(self, seconds: float) -> None:
        self._place.stopped.wait(seconds)

    def outlast(self, seconds: float) -> None:
        """A pause in which the run may leave memory, and its thread be given to others."""
        assert self._branch is not None
        executor, run = self._place.executor, self._branch.run
        with run.lock:
            run.acting -= 1
        try:
            executor.wait_sync(self._branch, Await(executor.now() + seconds))
        finally:
            with run.lock:
                run.acting += 1

    def surely(self, method: str, *args: Any) -> None:
        """Whatever else is asked of the run meanwhile."""
        if method == "outlast":
            self.pause(*args)
        else:
            getattr(self, method)(*args)

    def apart(self, work: Callable[[], Any]) -> Any:
        return work()


class _AsyncDesk:
    """On the loop; a sync transaction's function runs in one of the user's threads."""

    def __init__(self, place: Elsewhere, run: Run | None, *, threaded: bool) -> None:
        self._place, self._run, self._threaded = place, run, threaded
        self._ports: tuple[AsyncPort, ThreadPort] | None = None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        assert self._ports is not None
        return getattr(self._ports[self._threaded], method)

    async def take(self) -> None:
        if self._ports is None:
            self._ports = await self._place.async_ports.get()

    async def give(self) -> None:
        self.put_back()

    def put_back(self) -> None:
        if self._ports is not None:
            self._place.async_ports.put_nowait(self._ports)
            self._ports = None

    async def barrier(self) -> None:
        assert self._run is not None
        await self._place.executor.barrier(self._run)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def outlast(self, seconds: float) -> None:
        executor, run = self._place.executor, cast("Run", self._run)
        run.acting -= 1
        try:
            await executor.wait(run, Await(executor.now() + seconds))
        finally:
            run.acting += 1

    async def surely(self, method: str, *args: Any) -> None:
        """The same, in a task of its own, which is not cancelled with the run's."""
        await getattr(self, method)(*args)

    async def apart(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._place.threads, work)
