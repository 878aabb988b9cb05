"""What people read and ask of the ledger, and write into it without holding a workflow: what stands behind handles.

The running application asks through it, and so does a `Client`, whose process runs no workflows. Each operation on
workflows is one SQL function, so one transaction; it only touches what no executor holds (PROTOCOL.md R14).
"""

import asyncio
import contextlib
import dataclasses
import functools
import getpass
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

import psycopg
from typing_extensions import TypeVar

import eventflow.borrowed as borrowed
import eventflow.firing as firing
import eventflow.talk as talk
from eventflow.codec import Codec
from eventflow.context import RunQuery
from eventflow.database import Connection, Database, columns, in_transaction, rollback, unavailable
from eventflow.errors import (
    EventflowError,
    UnavailableError,
    UsageError,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from eventflow.journal import RIDERS, Statement, packed, rider_statements
from eventflow.outbox import Row
from eventflow.queues import Order
from eventflow.records import Choice, Operation, Rider
from eventflow.registry import Registry
from eventflow.settings import KafkaProperties
from eventflow.telemetry import crash_point
from eventflow.tracing import active

R = TypeVar("R")

_ERRORS: dict[str, type[EventflowError]] = {
    "EF009": WorkflowStateError,
    "EF010": WorkflowNotFoundError,
    "EF011": WorkflowExistsError,
    "EF012": UsageError,
    "EF013": UsageError,
}
_CONFLICTS = {"40001", "40P01"}  # nothing was done; once more
_DURABLE = "set local synchronous_commit = on"
_TOGETHER = 500  # orders in one transaction
_LINGER = 1.0  # seconds
PATIENCE = 30.0  # seconds for which somebody's open transaction may be in the way of what is started, enqueued or sent
_HASTE = "200ms"  # the same among others, behind which it is tried again, alone


def who() -> str:
    """Who asks, as the ledger keeps it: user, machine and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


class Ledger:
    """The ledger, for those who hold no workflow. From any thread or loop."""

    def __init__(
        self, database: Database, application: str, *, keep: int = 0, check: Callable[[], None] = lambda: None,
        kafka: tuple[str, KafkaProperties] = ("", {}),
    ) -> None:  # fmt: skip
        """Of the connections, so many are kept open; `check` raises where waiting has become pointless."""
        self.kafka = kafka
        self._database, self._keep, self._check = database, keep, check
        self.application = application
        self.encoded = database.payloads.encodes
        self.orders = Orders(self)
        self._idle = deque[Connection]()
        self._who = who()

    def close(self) -> None:
        """Close what is kept open."""
        self._keep = 0
        self.orders.close()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    @contextlib.contextmanager
    def _lent(self) -> Generator[Connection, None, None]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._database.connect("read")
        try:
            yield connection
        except psycopg.Error as error:
            if connection.closed:
                raise unavailable(error, self._database.url) from error
            raise
        finally:
            if connection.closed or len(self._idle) >= self._keep:
                connection.close()
            else:
                self._idle.append(connection)

    def query(
        self, query: str, params: dict[str, Any], *, writes: bool = False, setup: Sequence[str] = (),
        then: Sequence[Statement] = (),
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        """The named query's rows, in a transaction with these settings where there are any, and `then` with it. Blocks.

        Raises:
            WorkflowStateError, WorkflowNotFoundError, WorkflowExistsError, UsageError: it was refused.
            UnavailableError: the server is away; where the query writes, it may have done so.

        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._lent() as connection:
                    if setup:
                        return self._commit(
                            connection, lambda run: [run(*one) for one in ((query, params), *then)], *setup
                        )[0]
                    if writes:
                        crash_point("ledger.before_commit")  # one statement, which commits itself
                    rows = self._database.run(connection, query, params)
                    if writes:
                        crash_point("ledger.after_commit")
                    return rows
            except psycopg.Error as error:
                ours = _ours(error)
                if ours is not error:
                    raise ours from None
                if error.sqlstate not in _CONFLICTS or attempt == 5:
                    raise
            except UnavailableError:
                if writes or not self._keep or attempt > 1:
                    raise  # else it was a connection that broke while it was idle

    def _commit(self, connection: Connection, work: Callable[[RunQuery], R], *setup: str) -> R:
        """What this comes to, in one transaction with these settings."""
        run = functools.partial(self._database.run, connection)

        def all_of_it(_: Connection) -> R:
            done = work(run)
            crash_point("ledger.before_commit")
            return done

        done = in_transaction(connection, all_of_it, *setup)
        crash_point("ledger.after_commit")
        return done

    # ---- reading ----

    def row(self, workflow_id: str) -> tuple[Any, ...]:
        """The workflow's row. Blocks.

        Raises:
            WorkflowNotFoundError: there is none.

        """
        return self.read("read_workflow", workflow_id, f"no workflow has the id {workflow_id!r}")[0]

    def read(self, query: str, workflow_id: str, missing: str | None = None) -> list[tuple[Any, ...]]:
        rows = self.query(query, {"id": workflow_id})
        if not rows and missing:
            raise WorkflowNotFoundError(missing)
        return rows

    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any:
        """The workflow's result, once it has one."""
        until, pause = None if timeout is None else time.monotonic() + timeout, 0.02
        while True:
            row = await asyncio.to_thread(self.row, workflow_id)
            if row[2] in {"succeeded", "failed", "cancelled", "parked"}:
                return talk.result_of(workflow_id, row[2], row[8], row[9], row[5], codec)
            self._check()
            if until is not None and time.monotonic() > until:
                raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {timeout} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def event(self, workflow_id: str, key: str, timeout: float | None) -> str | None:
        """The value of a workflow's event, once it is set; None where it was not in time."""
        until, pause = None if timeout is None else time.monotonic() + timeout, 0.01
        asked = {"workflow_id": [workflow_id], "key": [key]}
        while True:
            rows = await asyncio.to_thread(self.query, "read_events", asked)
            if rows:
                return rows[0][1]
            self._check()
            if until is not None and time.monotonic() > until:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def stream(self, workflow_id: str, key: str, after: int, skip: int) -> list[tuple[Any, ...]]:
        """The next rows of `read_streams.sql` for one stream."""
        asked = {"workflow_id": [workflow_id], "key": [key], "after": [str(after)], "skip": [str(skip)]}
        return [row[1:] for row in await asyncio.to_thread(self.query, "read_streams", asked)]

    # ---- asking ----

    async def request(self, ids: Sequence[str], kind: str, *, children: bool) -> int:
        """Ask for workflows to end; of how many that is true."""
        asked = {"ids": _checked(ids), "kind": kind, "who": self._who, "children": children}
        [(count,)] = await asyncio.to_thread(self.query, "request", asked, writes=True)
        return count

    async def manage(self, operation: Operation, ids: Sequence[str], **more: Any) -> int:
        """Do this to workflows, all of them or none; how many these are, or what it says."""
        asked = {"ids": _checked(ids), "who": self._who, **more}
        [(count,)] = await asyncio.to_thread(self.query, operation, asked, writes=True)
        return count

    async def fork(self, ids: Sequence[str], position: str | None, fork_ids: Sequence[str]) -> None:
        """New workflows of these ids, from what the others recorded before the position: all of them or none."""
        asked = {"ids": _checked(ids), "position": position, "fork_ids": list(fork_ids), "who": self._who}
        await asyncio.to_thread(self.query, "fork", asked, writes=True)

    async def settle(self, incident_id: int, choice: Choice) -> None:
        """Settle an incident; whose partition it has stopped, notices."""
        asked = {"incident": incident_id, "choice": choice, "who": self._who}
        await asyncio.to_thread(self.query, "settle", asked, writes=True)

    async def write(self, riders: list[Rider]) -> None:
        """Commit rows that no workflow writes."""
        await asyncio.to_thread(self._write, riders)

    def _write(self, riders: list[Rider]) -> None:
        def work(run: RunQuery) -> None:
            for query, params in rider_statements(riders):
                run(query, params)

        with self._lent() as connection:
            self._commit(connection, work, _DURABLE)

    async def enqueue(self, order: Order) -> str:
        """Put a workflow in line; the id of the one that there is now. From any loop."""
        return await self.orders.place(_caused(order))

    def enqueue_sync(self, order: Order) -> str:
        """The same for blocking code."""
        return self.orders.place_sync(_caused(order))

    async def enqueue_on(self, session: Any, order: Order) -> str:
        """Put a workflow in line, in the caller's transaction."""
        order = _caused(order)
        query, params = self._database.statement("enqueue", self._params([order]))
        try:
            found = await borrowed.aexecute(session, query, params)
            for name, values in _causes([order]):
                await borrowed.aexecute(session, *self._database.statement(name, values))
        except Exception as error:
            raise _said(error) from None
        [row] = self._database.payloads.read("enqueue", *found)
        return order.answered(row[1:])

    def enqueue_on_sync(self, session: Any, order: Order) -> str:
        """The same for blocking code."""
        order = _caused(order)
        query, params = self._database.statement("enqueue", self._params([order]))
        try:
            found = borrowed.execute(session, query, params)
            for name, values in _causes([order]):
                borrowed.execute(session, *self._database.statement(name, values))
        except Exception as error:
            raise _said(error) from None
        [row] = self._database.payloads.read("enqueue", *found)
        return order.answered(row[1:])

    async def publish_on(self, session: Any, row: Row) -> None:
        """Publish an event in the caller's transaction."""
        query, params = self._database.statement("insert_outbox", columns([row], RIDERS["insert_outbox"]))
        await borrowed.aexecute(session, query, params)

    def publish_on_sync(self, session: Any, row: Row) -> None:
        """The same for blocking code."""
        query, params = self._database.statement("insert_outbox", columns([row], RIDERS["insert_outbox"]))
        borrowed.execute(session, query, params)

    async def change_queue(self, name: str, changed: str, *, reset: bool = False, paused: bool | None = None) -> None:
        """Change a queue, live."""
        asked = {
            "application": self.application, "name": name, "changed": changed, "reset": reset, "paused": paused,
            "who": self._who,
        }  # fmt: skip
        if not await asyncio.to_thread(self.query, "change_queue", asked, writes=True):
            raise UsageError(f"there is no queue {name!r}: no process that defines it has ever run")

    async def on_schedules(self, work: Callable[[RunQuery], R]) -> R:
        """What this comes to, in one transaction."""
        return await asyncio.to_thread(self.transact, work)

    def transact(self, work: Callable[[RunQuery], R], *, dry: bool = False) -> R:
        """Run queries in one transaction, again after a conflict; `dry`: and roll it back. Blocks.

        Raises:
            UsageError: it was refused.
            UnavailableError: the server is away; it may have been done.

        """
        for left in range(4, -1, -1):
            try:
                with self._lent() as connection:
                    if dry:
                        connection.execute("begin")
                        try:
                            return work(functools.partial(self._database.run, connection))
                        finally:
                            rollback(connection)
                    return self._commit(connection, work, _DURABLE)
            except psycopg.Error as error:
                if error.sqlstate not in _CONFLICTS or not left:
                    raise _ours(error) from None
        raise AssertionError

    async def delay(self, ids: Sequence[str], wait: float | None, until: float | None) -> int:
        """Let workflows that wait in their queues wait until another time."""
        if wait is None and until is None:
            raise UsageError("delay takes seconds from now, or a time with a zone")
        asked = {"ids": _checked(ids), "who": self._who, "wait": wait, "until": until}
        [(count,)] = await asyncio.to_thread(self.query, "delay", asked, writes=True)
        return count

    def place(self, orders: Sequence[Order], patience: str) -> list[tuple[Any, ...]]:
        """The answers of `enqueue.sql`, in one transaction, which waits so long for a lock at most. Blocks.

        In the order given, but for ids that others may have, which two transactions must take in the same order.
        """
        ordered = sorted(range(len(orders)), key=lambda n: orders[n].shared)
        params = packed(self._params([orders[n] for n in ordered]))
        patient = (f"set local lock_timeout = '{patience}'",)
        answers = self.query("enqueue", params, setup=patient, then=_causes(orders))
        return [row for _, row in sorted(zip(ordered, answers, strict=True))]

    def _params(self, orders: Sequence[Order]) -> dict[str, list[Any]]:
        return columns([order.row(self.application) for order in orders], RIDERS["enqueue"])

    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine from blocking code."""
        return asyncio.run(coroutine)


def define_schedules(ledger: Ledger, declared: Registry, *, dry: bool = False) -> list[firing.Change]:
    """Tell the ledger what this code says of its schedules; what that changes. `dry`: only say so. Blocks.

    Raises:
        UsageError: a person has made one of this name, or one's function takes what no schedule gives.

    """
    definitions = [
        firing.Definition(s.name, s.spec.name, s.rule, s.takes_fire, timeout=s.spec.timeout)
        for s in declared.schedules.values()
    ]
    if not definitions and not dry:
        return []
    return ledger.transact(lambda run: firing.define(run, ledger.application, who(), definitions, dry=dry), dry=dry)


class _Caller:
    """One in a thread, who waits. A `concurrent.futures.Future` costs twice as much in switches of threads."""

    __slots__ = ("_answered", "_outcome")

    def __init__(self) -> None:
        self._answered = threading.Lock()
        self._answered.acquire()
        self._outcome: str | BaseException | None = None

    def tell(self, outcome: str | BaseException) -> None:
        if self._outcome is None:
            self._outcome = outcome
            with contextlib.suppress(RuntimeError):  # two threads told it at once
                self._answered.release()

    def wait(self) -> str:
        self._answered.acquire()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


_Placed = asyncio.Future[str] | _Caller  # of a caller on a loop, or in a thread
_Waiting = tuple[Order, _Placed]
_Answer = tuple[_Placed, str | BaseException]


def _caused(order: Order) -> Order:
    """The same, with the span of its caller, which this is called by."""
    tracing = active()
    return order if tracing is None else dataclasses.replace(order, cause=tracing.start("enqueue", order.name))


def _causes(orders: Sequence[Order]) -> list[Statement]:
    """What keeps the spans of their callers."""
    return rider_statements(
        Rider("insert_traces", (order.workflow_id, order.cause, None)) for order in orders if order.cause is not None
    )


class Orders:
    """What callers put in line. What comes while one transaction is under way goes out together in the next.

    Apart from the journal: an id that a caller gives may be held by a stranger's open transaction (PROTOCOL.md R4), and
    then it waits alone. In a thread of its own, for callers may hold all of the loop's; it stays for a while when there is
    nothing to do, so that the first of many callers need not go alone. Sent twice, an order is placed once, by its id.
    """

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger = ledger
        self._waiting = deque[_Waiting]()
        self._ready = threading.Condition()
        self._at_work = False
        self._linger = _LINGER

    async def place(self, order: Order) -> str:
        """Place it; the id of the workflow that there is now.

        Raises:
            WorkflowExistsError: another one has the id, or one has it and none was to.
            UsageError: there is no such queue.
            UnavailableError: the server is away, or an open transaction has the id and keeps it.

        """
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._put(order, future)
        return await future

    def place_sync(self, order: Order) -> str:
        """The same for blocking code."""
        caller = _Caller()
        self._put(order, caller)
        return caller.wait()

    def close(self) -> None:
        """The thread ends when there is nothing to do."""
        with self._ready:
            self._linger = 0.0
            self._ready.notify()

    def _put(self, order: Order, future: _Placed) -> None:
        with self._ready:
            self._waiting.append((order, future))
            if not self._at_work:
                threading.Thread(target=self._send_all, name="eventflow orders", daemon=True).start()
                self._at_work = True
            elif len(self._waiting) == 1:
                self._ready.notify()

    def _send_all(self) -> None:
        while some := self._next():
            try:
                _tell(self._send(some))
            except BaseException as error:  # nobody may wait for ever, whatever this is
                _tell([(future, error) for _, future in some])

    def _next(self) -> list[_Waiting]:
        with self._ready:
            if not self._waiting and self._linger:
                self._ready.wait(self._linger)
            some = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            self._at_work = bool(some)
            return some

    def _send(self, some: list[_Waiting]) -> list[_Answer]:
        try:
            rows = self._ledger.place([order for order, _ in some], _HASTE)
        except (psycopg.Error, EventflowError) as error:
            if isinstance(error, UnavailableError):
                raise
            if len(some) > 1:
                return [answer for one in some for answer in self._send([one])]
            if isinstance(error, psycopg.errors.LockNotAvailable):
                threading.Thread(target=self._wait_alone, args=some[0], name="eventflow orders", daemon=True).start()
                return []
            return [(some[0][1], error)]
        return [_answer(order, future, row) for (order, future), row in zip(some, rows, strict=True)]

    def _wait_alone(self, order: Order, future: _Placed) -> None:
        """It has an id that somebody's open transaction has enqueued."""
        try:
            [row] = self._ledger.place([order], f"{PATIENCE:g}s")
        except psycopg.errors.LockNotAvailable:
            open_still = "a transaction that is open has enqueued it, too, and neither commits nor rolls back"
            _tell([(future, UnavailableError(f"{order.shared!r}: {open_still}"))])
        except BaseException as error:
            _tell([(future, error)])
        else:
            _tell([_answer(order, future, row)])


def _answer(order: Order, future: _Placed, row: tuple[Any, ...]) -> _Answer:
    try:
        return future, order.answered(row[1:])
    except EventflowError as error:
        return future, error


def _tell(answers: list[_Answer]) -> None:
    """Tell each caller, those of one loop by one call; a loop that is closed has nobody who waits."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[str], str | BaseException]]] = {}
    for future, outcome in answers:
        if isinstance(future, _Caller):
            future.tell(outcome)
        else:
            by_loop.setdefault(future.get_loop(), []).append((future, outcome))
    for loop, its in by_loop.items():
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, its)


def _settle(answers: list[tuple[asyncio.Future[str], str | BaseException]]) -> None:
    for future, outcome in answers:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _ours(error: psycopg.Error) -> Exception:
    """What the ledger refused as an error of ours; others as they are."""
    kind = _ERRORS.get(error.sqlstate or "")
    return error if kind is None else kind(error.diag.message_primary)


def _said(error: Exception) -> Exception:
    """The same of what a caller's own driver raises."""
    state, message = borrowed.said(error)
    kind = _ERRORS.get(state)
    return error if kind is None else kind(message)


def _checked(ids: Sequence[str]) -> list[str]:
    """Refuse what can be no list of ids."""
    if isinstance(ids, str | bytes):
        raise UsageError(f"a list of workflow ids, not {ids!r}")
    for workflow_id in ids:
        talk.check_address(workflow_id)
    return list(ids)
