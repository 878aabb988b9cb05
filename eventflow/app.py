"""The composition root: builds every part of a running eventflow, and wires it once.

`running()` enters the lifespans, then an *incarnation*: one executor with its journal, lease, lanes and consumers. When an
incarnation is fenced, everything it held is dropped and the next one begins; lifespans and the caller go on.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import faulthandler
import functools
import gc
import inspect
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from typing_extensions import TypeVar, TypeVarTuple

from eventflow.apart import apart
from eventflow.codec import Codec, error_line, limit
from eventflow.context import Hopeless, RunQuery, Start, never, slot
from eventflow.database import database_of
from eventflow.elsewhere import check_results, other_database
from eventflow.errors import (
    BlockingCallError,
    FencedError,
    LifespanError,
    NotRunningError,
    SettingsError,
    UnavailableError,
    UsageError,
    WorkflowTimeoutError,
    for_future,
)
from eventflow.health import Health, close, export, watch
from eventflow.idempotency import check_workflow_id
from eventflow.ids import new_id
from eventflow.incarnation import REAL, Fired, Incarnation, Others, Surroundings, done_with, lane_count
from eventflow.journal import Entry
from eventflow.ledger import Ledger, define_schedules
from eventflow.logs import muted
from eventflow.migrations import check_schema
from eventflow.outbox import Row
from eventflow.pruner import Pruner
from eventflow.queues import DEFAULT, Order
from eventflow.records import Choice, Operation, Rider
from eventflow.recovery import birth
from eventflow.registry import Registry, TransactionSpec, names_with_files, registry
from eventflow.runs import Run
from eventflow.schema_registry import connect
from eventflow.settings import Settings, load_settings
from eventflow.telemetry import seldom
from eventflow.threads import Threads
from eventflow.tracing import started, trace_of

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")
IfExists = Literal["attach", "reject"]
_UNWIND = 5.0  # seconds that a task which was cancelled at the end gets to unwind
_OVERDUE = 20.0  # seconds after the drain's budget, after which a process that has not ended is ended


def tune_garbage_collector() -> None:
    """Freeze what start-up made and collect less often: a third more throughput. What `eventflow run` does."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class App:
    """A running eventflow: what the verbs talk to."""

    def __init__(
        self, settings: Settings, consumers: bool | Sequence[str], queues: bool | Sequence[str], declared: Registry,
        schedules: bool | Sequence[str] = True, surroundings: Surroundings = REAL,
    ) -> None:  # fmt: skip
        self._settings, self._surroundings = settings, surroundings
        self.application = settings.application
        self._declared = declared
        self._consumers = _chosen({c.spec.name: c for c in declared.consumers}, consumers, "consumer")
        self._queues = _chosen({name: name for name in (DEFAULT, *declared.queues)}, queues, "queue")
        chosen = _chosen({name: name for name in declared.schedules}, schedules, "schedule")
        served = {c.spec.name for c in self._consumers}
        self._specs = {n: s for n, s in declared.specs.items() if s.consumer is None or n in served}
        fired = [n for n, s in self._specs.items() if s.consumer is None] if schedules else []
        self._fired = Fired(fired, None if isinstance(schedules, bool) else chosen, bool(chosen))
        self._database = database_of(settings)
        others, prepared = settings.databases.items(), settings.prepared_statements
        payloads = self._database.payloads
        self._databases = {n: other_database(n, u, prepared=prepared, payloads=payloads) for n, u in others}
        self._others: Others
        self.health: Health
        self._incarnation: Incarnation | None = None
        self._stop = threading.Event()
        self._ledger = Ledger(self._database, settings.application, keep=1, check=self._raise_failure)
        self.kafka = settings.kafka_bootstrap_servers, settings.kafka
        self.encoded = self._ledger.encoded
        self._known_queues: set[str] = {DEFAULT, *declared.queues}
        self._calls = Threads[Callable[[], None]](settings.threads, lambda call: call())
        self._supervisor: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[BaseException]

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator["App"]:
        """Check, enter the lifespans, start; at the end drain, and leave in reverse."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        self._check()
        limit.size = self._settings.max_payload
        self.health, server = watch(self._settings, self._database, lambda: self._incarnation)
        if server is not None:
            server.start()
        try:
            for work in (self._check_database, self._define_queues, self._define_schedules):
                await asyncio.to_thread(self._until_it_answers, work)
            async with contextlib.AsyncExitStack() as stack:
                stack.enter_context(muted())
                for lifespan in self._declared.lifespans:
                    await _enter(stack, lifespan)
                await self._begin()
                self.health.begun()
                export(self.health)
                async with self._serve():
                    yield self
        finally:
            if server is not None:
                server.stop()
            close(self.health)
            self._stop.set()  # cancelled while it enters, too: else a thread goes on asking for a server that is away
            self._ledger.close()

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncGenerator[None]:
        """What stands between the first incarnation's start and the last one's end."""
        self._supervisor = self._loop.create_task(self._supervise())
        settings = self._settings
        pruner = Pruner(
            self._database, settings.keep, self._databases, self._others.ledger, letters=settings.keep_dead_letters
        )
        pruner.start()
        slot.fill(self)
        try:
            yield
        finally:
            self._stop.set()
            self.health.leave()
            self._supervisor.cancel()
            pruner.stop()
            try:
                if self._incarnation is not None:
                    await self._incarnation.drain()
            finally:
                slot.runtime = None  # not before: what drains may call transactions and `run_step`
                self._calls.stop()

    @property
    def incarnation(self) -> Incarnation | None:
        """The executor that runs now; None between two."""
        return self._incarnation

    def hurry(self) -> None:
        """Let go at once of what still runs, where the application drains."""
        if self._incarnation is not None:
            self._incarnation.hurry()

    def _check(self) -> None:
        """Everything that can be wrong before anything starts."""
        for spec in self._specs.values():
            spec.check()
        for consumer in self._consumers:
            connect(consumer.foreign, self._settings, consumer.spec.name)
        for schedule in self._declared.schedules.values():
            _ = schedule.takes_fire
        for transaction in self._declared.transactions.values():
            transaction.check(self._databases)
        if self._consumers and self._surroundings.kafka and not self._settings.kafka_bootstrap_servers:
            raise SettingsError("KAFKA_BOOTSTRAP_SERVERS is not set, and there are consumers to run")

    def _until_it_answers(self, work: Callable[[], None]) -> None:
        """Do a part of starting, as often as it takes until Postgres is there for the whole of it."""
        attempt = 0
        while True:
            try:
                return work()
            except UnavailableError as error:
                if getattr(error, "permanent", False):
                    raise
                attempt += 1
                seldom.say(logger, f"{error}; trying again")
                if self._stop.wait(min(0.2 * attempt, 2.0)):
                    raise

    def _check_database(self) -> None:
        with self._database.connect("start") as connection:
            check_schema(connection, self._settings.database_schema)
            [(ledger,)] = self._database.run(connection, "ledger_id")
        self._others = Others(self._databases, ledger)
        self._check_others()

    def _check_others(self) -> None:
        """Whether the databases of this program's transactions are ready; one that is away holds up these alone, later."""
        used = {t.database for t in self._declared.transactions.values()}
        for name, database in self._databases.items():
            if name not in used:
                continue
            try:
                check_results(database)
            except UnavailableError as error:
                if getattr(error, "permanent", False):
                    raise
                seldom.say(logger, f"{error}; its transactions wait for it")
            else:
                self._others.checked.add(name)

    def _define_queues(self) -> None:
        """Tell the ledger what this code says of its queues, and learn which there are."""
        defined = {DEFAULT: "{}", **self._declared.queues}
        names = {"name": list(defined), "defined": list(defined.values())}
        self._ledger.query("define_queues", {"application": self.application, **names}, writes=True)
        self._known_queues |= {row[0] for row in self._ledger.query("queue_names", {"application": self.application})}

    def _define_schedules(self) -> None:
        """Tell the ledger what this code says of its schedules, and say what that changes."""
        for change in define_schedules(self._ledger, self._declared):
            if change.kind != "elsewhere":
                logger.info("schedule %r is %s: %s", change.name, change.kind, change.text)

    async def _begin(self) -> None:
        settings, specs = self._settings, self._specs
        identity = await apart(
            birth, self._database, settings.application, names_with_files(specs), lane_count(settings), self._stop,
            settings.application_version, self._queues, self._fired.names,
        )  # fmt: skip
        incarnation = Incarnation(
            self._loop, settings, self._database, specs, self._consumers, self._queues, self._fired, identity,
            self._others, self._surroundings,
        )  # fmt: skip
        incarnation.start()
        self._incarnation = incarnation

    async def _supervise(self) -> None:
        """When an incarnation ends, begin the next; what no retry can mend ends the program."""
        try:
            while self._incarnation is not None:
                error = await asyncio.shield(self._incarnation.ended)
                incarnation, self._incarnation = self._incarnation, None
                await incarnation.abort()
                if not isinstance(error, FencedError):
                    raise error
                logger.warning("%s; starting again as a new executor", error)
                await asyncio.sleep(0.1)
                await self._begin()
        except Exception as error:
            logger.error("eventflow has stopped: %s", error_line(error))
            done_with(self.failed, error)

    # ---- what the verbs need ----

    async def _current(self) -> Incarnation:
        until = time.monotonic() + 30
        while self._incarnation is None:
            self._raise_failure()
            if time.monotonic() > until:
                raise NotRunningError("this process lost its lease and has not come back")
            await asyncio.sleep(0.05)
        return self._incarnation

    def _raise_failure(self) -> None:
        """Raise what has ended the application, if something has."""
        if self.failed.done():
            raise_again(self.failed.result())

    async def start_soon(self, start: Start) -> str:
        """Start a workflow on this process; its id, once that is durable. From any loop."""
        if asyncio.get_running_loop() is not self._loop:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.start_soon(start), self._loop))
        if start.parent is None:  # what still runs may go on, to its children, too
            self._check_starting()
        incarnation = await self._current()
        if start.workflow_id is not None:
            check_workflow_id(start.workflow_id)
            await self._to_its_end(self._start_given(incarnation, start))
            return start.workflow_id
        accepted = self._loop.create_future()
        told = functools.partial(incarnation.executor.on_loop, done_with, accepted, None)
        run = self._begin_run(incarnation, start, self._loop.create_future(), told)
        await accepted
        if run.dropped:
            await self._refuse_dropped()
        return run.workflow_id

    async def call(self, start: Start, codec: Codec) -> Any:
        """Start a workflow on this process and wait for its result. From any loop."""
        if asyncio.get_running_loop() is not self._loop:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.call(start, codec), self._loop))
        self._check_starting()
        run = self._begin_run(await self._current(), start, self._loop.create_future())
        try:
            return await asyncio.shield(run.future)
        except asyncio.CancelledError:
            if not run.future.cancelled():
                raise
        return await self._elsewhere(run, codec)

    def call_sync(self, start: Start, codec: Codec) -> Any:
        """The same from a thread, which the loop has no part in. Blocks."""
        self._check_starting()
        incarnation = self._incarnation or self.on_loop(self._current())
        run = self._begin_run(incarnation, start, concurrent.futures.Future[Any]())
        if incarnation.over:  # it let go of what it held, and may not have seen this one
            run.future.cancel()
        try:
            return run.future.result()
        except concurrent.futures.CancelledError:
            if not run.future.cancelled():
                raise
        if self._stop.is_set():
            raise NotRunningError(
                f"this process leaves `running()`; {run.workflow_id!r} goes on, if it has begun, in another one"
            )
        return self.on_loop(self._elsewhere(run, codec))

    def _check_starting(self) -> None:
        if self._stop.is_set():
            raise NotRunningError("this process leaves `running()` and starts nothing more")

    def _begin_run(
        self, incarnation: Incarnation, start: Start, answer: Any, *accepted: Callable[[], None]
    ) -> Run:  # fmt: skip
        """A workflow under an id of ours: it runs once it is durable, whatever becomes of its caller meanwhile."""
        executor = incarnation.executor
        run = incarnation.new_run(start, new_id())
        run.future = answer
        executor.runs[run.workflow_id] = run
        run.submitted += 1
        run.waiters = [functools.partial(executor.dispatch, [run]), *accepted]
        entry, cause = Entry(run, []), started("start", start.spec.name, run.workflow_id)
        run.trace, entry.riders = trace_of(cause), list(cause) or None
        incarnation.journal.submit(entry)
        return run

    async def _elsewhere(self, run: Run, codec: Codec) -> Any:
        """The result of a run that this executor has let go of."""
        if not run.in_ledger:
            await self._refuse_dropped()
        return await self._ledger.result(run.workflow_id, codec, None)

    async def _refuse_dropped(self) -> NoReturn:
        await self._current()  # which raises what is fatal
        raise FencedError("this process lost its lease while the workflow was started")

    async def _start_given(self, incarnation: Incarnation, start: Start) -> None:
        run = await asyncio.to_thread(incarnation.start_workflow, start)
        if run is not None:
            run.future = self._loop.create_future()
            incarnation.executor.dispatch([run])

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for something that goes on when the caller is cancelled."""
        task = self._loop.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any:
        """The workflow's result: from memory where it runs here, else from the ledger."""
        until = None if timeout is None else time.monotonic() + timeout
        run = self._incarnation.executor.runs.get(workflow_id) if self._incarnation else None
        own: asyncio.Future[Any] | None = None
        if run is not None and not isinstance(run.future, concurrent.futures.Future):  # which is its thread's alone
            own = run.future
        if own is not None:
            future = own
            try:
                if asyncio.get_running_loop() is not self._loop:
                    future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_wait(future), self._loop))
                return await asyncio.wait_for(asyncio.shield(future), timeout)
            except TimeoutError:
                raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {timeout} s") from None
            except asyncio.CancelledError:
                if not own.cancelled():
                    raise
        left = None if until is None else max(0.0, until - time.monotonic())
        return await self._ledger.result(workflow_id, codec, left)

    async def write(self, riders: list[Rider]) -> None:
        """Commit rows that no workflow writes. From any loop."""
        await asyncio.to_thread((await self._current()).write, riders)

    async def enqueue(self, order: Order) -> str:
        """Put a workflow in line; the id of the one that there is now. From any loop."""
        workflow_id = await self._ledger.enqueue(order)
        self._look_for(order)
        return workflow_id

    def enqueue_sync(self, order: Order) -> str:
        """The same for blocking code."""
        workflow_id = self._ledger.enqueue_sync(order)
        self._look_for(order)
        return workflow_id

    def _look_for(self, order: Order) -> None:
        if self._incarnation is not None:
            self._incarnation.queues.look(order.wait if order.settle is None else order.settle)

    async def enqueue_on(self, session: Any, order: Order) -> str:
        """Put a workflow in line, in the caller's transaction."""
        return await self._ledger.enqueue_on(session, order)

    def enqueue_on_sync(self, session: Any, order: Order) -> str:
        """The same for blocking code."""
        return self._ledger.enqueue_on_sync(session, order)

    async def publish_on(self, session: Any, row: Row) -> None:
        """Publish an event in the caller's transaction."""
        await self._ledger.publish_on(session, row)
        self._published()

    def publish_on_sync(self, session: Any, row: Row) -> None:
        """The same for blocking code."""
        self._ledger.publish_on_sync(session, row)
        self._published()

    def _published(self) -> None:
        """The caller commits soon."""
        if self._incarnation is not None:
            self._incarnation.executor.on_published()

    async def delay(self, ids: Sequence[str], wait: float | None, until: float | None) -> int:
        """Let workflows that wait in their queues wait until another time."""
        count = await self._ledger.delay(ids, wait, until)
        if self._incarnation is not None:
            self._incarnation.queues.look(wait)
        return count

    def now(self) -> float:
        """Seconds since 1970, by the ledger's clock where this process knows it."""
        return time.time() if self._incarnation is None else self._incarnation.executor.now()

    def check_queue(self, name: str) -> None:
        """Whether a workflow may put something into this queue: one that is not there would be found out too late.

        Raises:
            UsageError: neither this program nor, when it started, the ledger knew it.

        """
        if name not in self._known_queues:
            there = ", ".join(sorted(self._known_queues))
            raise UsageError(f"there is no queue {name!r}: define it, in this program too; there are: {there}")

    async def event(self, workflow_id: str, key: str, timeout: float | None) -> str | None:
        """The value of a workflow's event, once it is set; None where it was not in time."""
        return await self._ledger.event(workflow_id, key, timeout)

    async def stream(self, workflow_id: str, key: str, after: int, skip: int) -> list[tuple[Any, ...]]:
        """The next rows of `read_streams.sql` for one stream. From any loop."""
        if asyncio.get_running_loop() is not self._loop:
            asked = self.stream(workflow_id, key, after, skip)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))
        while True:
            rows = await (await self._current()).ask(("stream", workflow_id, key, str(after), str(skip)))
            if rows is not None:
                return rows
            if self._stop.is_set():
                raise NotRunningError("this process leaves `running()` and reads nothing more")

    async def request(self, ids: Sequence[str], kind: str, *, children: bool) -> int:
        """Ask for workflows to end; of how many that is true."""
        count = await self._ledger.request(ids, kind, children=children)
        if self._incarnation is not None:
            self._incarnation.requested()
        return count

    async def manage(self, operation: Operation, ids: Sequence[str], **more: Any) -> int:
        """Do this to workflows that nobody holds; how many these are, or what it says."""
        count = await self._ledger.manage(operation, ids, **more)
        self._take_rows()
        return count

    async def fork(self, ids: Sequence[str], position: str | None, fork_ids: Sequence[str]) -> None:
        """New workflows of these ids, from what the others recorded before the position."""
        await self._ledger.fork(ids, position, fork_ids)
        self._take_rows()

    def _take_rows(self) -> None:
        """There are rows that nobody holds; they need not wait for the next beat."""
        if self._incarnation is not None:
            self._incarnation.executor.on_rows()

    def query(self, query: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """The named query's rows. Blocks."""
        return self._ledger.query(query, params)

    async def change_queue(self, name: str, changed: str, *, reset: bool = False, paused: bool | None = None) -> None:
        """Change a queue, live."""
        await self._ledger.change_queue(name, changed, reset=reset, paused=paused)

    async def on_schedules(self, work: Callable[[RunQuery], R]) -> R:
        """What this comes to, in one transaction; what it fires need not wait for the next beat."""
        found = await self._ledger.on_schedules(work)
        if self._incarnation is not None:
            self._incarnation.schedules.look()
        self._take_rows()
        return found

    async def settle(self, incident_id: int, choice: Choice) -> None:
        """Settle an incident."""
        await self._ledger.settle(incident_id, choice)

    def row(self, workflow_id: str) -> tuple[Any, ...]:
        """The workflow's row. Blocks."""
        return self._ledger.row(workflow_id)

    def read(self, query: str, workflow_id: str, missing: str | None = None) -> list[tuple[Any, ...]]:
        return self._ledger.read(query, workflow_id, missing)

    async def transact(self, spec: TransactionSpec, branch: Any, args: Any, kwargs: Any) -> Any:
        place = (await self._current()).transactions_of(spec)
        try:
            return await place.step(spec, branch, args, kwargs)
        except Hopeless:
            if branch is not None and branch.run.spec.is_async:
                return await never()
            raise

    def transact_sync(self, spec: TransactionSpec, branch: Any, args: Any, kwargs: Any) -> Any:
        incarnation = self._incarnation or self.on_loop(self._current())
        return incarnation.transactions_of(spec).step_sync(spec, branch, args, kwargs)

    async def in_thread(self, function: Callable[[], R]) -> R:
        """Call a user's function in a thread: one of its own kind, so that those who hang hold up nothing of ours."""
        context = contextvars.copy_context()
        future: concurrent.futures.Future[R] = concurrent.futures.Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(context.run(function))
                except BaseException as error:
                    future.set_exception(for_future(error))

        self._calls.put([call])
        return await asyncio.wrap_future(future)

    def in_threads(self, function: Callable[[], None], count: int) -> None:
        """Call it in so many threads, as they become free; for `sync.gather`, which goes on meanwhile."""
        self._calls.put([function] * count)

    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the application's loop from another thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def raise_again(error: BaseException) -> NoReturn:
    """Raise an error that has been seen elsewhere; with its own cause, and without what is handled here and now."""
    raise error from error.__cause__


async def _enter(stack: contextlib.AsyncExitStack, lifespan: Callable[[], Any]) -> None:
    try:
        if inspect.isasyncgenfunction(lifespan):
            await stack.enter_async_context(contextlib.asynccontextmanager(lifespan)())
        else:
            stack.enter_context(contextlib.contextmanager(lifespan)())
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error_line(error)} ({Path(at.filename).name}, line {at.lineno})"
        raise LifespanError(f"the lifespan {lifespan.__qualname__!r} raised {what}") from error


async def _wait(future: "asyncio.Future[Any]") -> Any:
    return await asyncio.shield(future)


def _chosen(known: Mapping[str, T], wanted: bool | Sequence[str], what: str) -> list[T]:
    """All, none, or those named, of what this program declares."""
    if isinstance(wanted, bool):
        return list(known.values()) if wanted else []
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UsageError(f"no {what} is named {missing[0]!r}; there are: {', '.join(sorted(known)) or 'none'}")
    return [known[name] for name in dict.fromkeys(wanted)]


# ---- the verbs ---------------------------------------------------------------------------------


class Running:
    """The context that `running()` gives: async on the caller's loop, or sync with a loop thread of its own."""

    def __init__(
        self, settings: Settings | None, consumers: bool | Sequence[str], queues: bool | Sequence[str],
        schedules: bool | Sequence[str], surroundings: Surroundings = REAL,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._wanted = consumers, queues, registry, schedules, surroundings
        self._stack: contextlib.AsyncExitStack | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._cancelling = 0
        self.app: App

    async def __aenter__(self) -> None:
        if slot.runtime is not None:
            where = f", and this one was forked from it: process {slot.pid}" if slot.forked() else ""
            raise UsageError(f"running() may be entered once per process{where}")
        self.app = App(self._settings or load_settings(), *self._wanted)
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(self.app.run())
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0
        self.app.failed.add_done_callback(self._interrupt)

    def _interrupt(self, _: Any) -> None:
        """The application has failed: whoever waits inside `async with running()` would wait for ever."""
        if self._task is not None:
            self._cancelled = self._task.cancel()  # not where it has ended, as that of `with running()` has

    async def __aexit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        if self._stack is None or slot.forked():
            return
        ours = self._take_back()
        await self._stack.__aexit__(kind, error, trace)
        if self.app.failed.done() and (error is None or (ours and isinstance(error, asyncio.CancelledError))):
            raise_again(self.app.failed.result())

    def _take_back(self) -> bool:
        """Take our cancellation back, so that it interrupts no more; whether it is the only one that there was."""
        task, self._task = self._task, None
        return task is not None and self._cancelled and task.uncancel() <= self._cancelling

    def __enter__(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise BlockingCallError("`with running()` would block the event loop; use `async with`")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="eventflow loop", daemon=True)
        self._thread.start()
        entering = asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop)
        try:
            entering.result()
        except BaseException:
            entering.cancel()
            self._end_loop()
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        if slot.forked():
            return  # the loop's thread is the parent's
        assert self._loop is not None
        leaving = asyncio.run_coroutine_threadsafe(self.__aexit__(kind, error, trace), self._loop)
        try:
            leaving.result()
        except KeyboardInterrupt:  # the program's second, most likely: what runs gets no more time
            self.app.hurry()
            leaving.result()
            raise
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        """End the loop as `asyncio.run` does: what it still runs is cancelled, and unwinds."""
        if self._loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_UNWIND)
    await asyncio.get_running_loop().shutdown_asyncgens()


def running(
    settings: Settings | None = None, *, consumers: bool | Sequence[str] = True, queues: bool | Sequence[str] = True,
    schedules: bool | Sequence[str] = True,
) -> Running:  # fmt: skip
    """Run eventflow inside this program: `async with running():` on its loop, or `with running():` beside it.

    Serves the consumers, the queues and the schedules (all that this program defines, and schedules made by people for its
    workflows; none, or those named), runs what the program starts, and takes over what dead peers left.

    What no retry can mend later (the broker revokes the credentials, another program takes a name) ends the context:
    `async with` cancels the task that entered it, and raises the error instead of that `CancelledError`; `with` raises
    it where the block ends and from each verb before. An exception of the block's own wins.

    Raises (on entering):
        SettingsError, SchemaError, UnavailableError: what is wrong, by name, before anything starts.
        UsageError: entered twice, or a name is taken by another program.
    """
    return Running(settings, consumers, queues, schedules)


def run(
    settings: Settings, *, consumers: bool | Sequence[str] = True, queues: bool | Sequence[str] = True,
    schedules: bool | Sequence[str] = True, uvloop: bool | None = None, ready: Callable[[], None] | None = None,
) -> int:  # fmt: skip
    """Run everything registered until SIGTERM or SIGINT, then drain; the exit status. What `eventflow run` calls.

    `ready` is called when it runs.

    Raises:
        EventflowError: where trying again is pointless.

    """

    async def main() -> int:
        loop = asyncio.get_running_loop()
        context = running(settings, consumers=consumers, queues=queues, schedules=schedules)
        leaving = _Leaving(loop, settings.drain)
        entering = loop.create_task(context.__aenter__())
        await asyncio.wait({entering, leaving.asked}, return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():
            _end_when_overdue(settings.drain)
            entering.cancel()
            await asyncio.wait({entering})
        if leaving.asked.done() and (entering.cancelled() or entering.exception() is not None):
            return 0
        entering.result()
        leaving.app = context.app
        tune_garbage_collector()
        if ready is not None:
            ready()
        await asyncio.wait({leaving.asked, context.app.failed}, return_when=asyncio.FIRST_COMPLETED)
        _end_when_overdue(settings.drain)
        await context.__aexit__(None, None, None)
        return 0

    factory = None
    if uvloop is not False and sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop as fast

            factory = fast.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())  # what ends an overdue process stays armed: threads of the user's may hang after this


def _end_when_overdue(budget: float) -> None:
    """A library that hangs must not keep a process that was told to go: peers take over what it held."""
    faulthandler.dump_traceback_later(budget + _OVERDUE, exit=True)


class _Leaving:
    """SIGTERM and SIGINT: the first asks the program to leave, a second one not to wait for what still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, budget: float) -> None:
        self.asked: asyncio.Future[None] = loop.create_future()
        self.app: App | None = None
        self._budget = budget
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)

    def _on_signal(self, name: str) -> None:
        if not self.asked.done():
            logger.info("%s: what runs has %g s to end; a second signal lets go of it at once", name, self._budget)
            self.asked.set_result(None)
        elif self.app is not None:
            logger.info("%s again: what runs is let go of", name)
            _end_when_overdue(0)
            self.app.hurry()
