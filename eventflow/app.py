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
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Generic, Literal, cast, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.codec import Codec, decode_error
from eventflow.context import StepScope, current, runtime, slot
from eventflow.database import Database
from eventflow.errors import (
    BlockingCallError,
    FencedError,
    NotRunningError,
    SettingsError,
    UnavailableError,
    UsageError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowParkedError,
    WorkflowTimeoutError,
)
from eventflow.idempotency import check_workflow_id
from eventflow.incarnation import Incarnation, done_with, lane_count
from eventflow.journal import Entry
from eventflow.migrations import check_schema
from eventflow.pruner import Pruner
from eventflow.records import StepRecord, WorkflowRecord
from eventflow.recovery import birth
from eventflow.registry import Registry, Spec, TransactionSpec, names_with_files, registry
from eventflow.retry import Seconds, seconds
from eventflow.settings import Settings, load_settings
from eventflow.telemetry import seldom
from eventflow.threads import Threads
from eventflow.workflows import AsyncStartable, SyncStartable, Workflow

logger = logging.getLogger(__name__)

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")
IfExists = Literal["attach", "reject"]
_OVERDUE = 20.0  # seconds after the drain's budget, after which a process that has not ended is ended


def tune_garbage_collector() -> None:
    """Freeze what start-up made and collect less often: a third more throughput. What `eventflow run` does."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class App:
    """A running eventflow: what the verbs talk to."""

    def __init__(self, settings: Settings, consumers: bool | Sequence[str], declared: Registry) -> None:
        self._settings = settings
        self._declared = declared
        self._consumers = _wanted(declared, consumers)
        served = {c.spec.name for c in self._consumers}
        self._specs = {n: s for n, s in declared.specs.items() if s.consumer is None or n in served}
        self._database = Database(
            settings.database_url, settings.database_schema, prepared=settings.prepared_statements
        )
        self._incarnation: Incarnation | None = None
        self._stop = threading.Event()
        self._calls = Threads[Callable[[], None]](settings.threads, lambda call: call())
        self._supervisor: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[BaseException]

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator["App"]:
        """Check, enter the lifespans, start; at the end drain, and leave in reverse."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        self._check()
        await asyncio.to_thread(self._check_database)
        async with contextlib.AsyncExitStack() as stack:
            for lifespan in self._declared.lifespans:
                if inspect.isasyncgenfunction(lifespan):
                    await stack.enter_async_context(contextlib.asynccontextmanager(lifespan)())
                else:
                    stack.enter_context(contextlib.contextmanager(lifespan)())
            await self._begin()
            self._supervisor = self._loop.create_task(self._supervise())
            pruner = Pruner(self._database, self._settings.keep)
            pruner.start()
            slot.runtime = self
            try:
                yield self
            finally:
                slot.runtime = None
                self._stop.set()
                self._supervisor.cancel()
                pruner.stop()
                if self._incarnation is not None:
                    await self._incarnation.drain()
                self._calls.stop()

    def _check(self) -> None:
        """Everything that can be wrong before anything starts."""
        for spec in self._specs.values():
            spec.check()
        if self._consumers and not self._settings.kafka_bootstrap_servers:
            raise SettingsError("KAFKA_BOOTSTRAP_SERVERS is not set, and there are consumers to run")

    def _check_database(self) -> None:
        attempt = 0
        while True:
            try:
                with self._database.connect("start") as connection:
                    check_schema(connection, self._settings.database_schema)
            except UnavailableError as error:
                if getattr(error, "permanent", False):
                    raise
                attempt += 1
                seldom.say(logger, f"{error}; trying again")
                if self._stop.wait(min(0.2 * attempt, 2.0)):
                    raise
            else:
                return

    async def _begin(self) -> None:
        settings, specs = self._settings, self._specs
        identity = await asyncio.to_thread(
            birth, self._database, settings.application, names_with_files(specs), lane_count(settings), self._stop
        )
        incarnation = Incarnation(self._loop, settings, self._database, specs, self._consumers, identity)
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
            done_with(self.failed, error)

    # ---- what the verbs need ----

    async def _current(self) -> Incarnation:
        until = time.monotonic() + 30
        while self._incarnation is None:
            if time.monotonic() > until or self.failed.done():
                raise NotRunningError("this process lost its lease and has not come back")
            await asyncio.sleep(0.05)
        return self._incarnation

    async def start_soon(self, spec: Spec, arguments: str, workflow_id: str | None, if_exists: str) -> str:
        """Start a workflow on this process; its id, once that is durable. From any loop."""
        if asyncio.get_running_loop() is not self._loop:
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self.start_soon(spec, arguments, workflow_id, if_exists), self._loop)
            )
        incarnation = await self._current()
        if workflow_id is not None:
            check_workflow_id(workflow_id)
            run = await asyncio.to_thread(incarnation.start_workflow, spec, arguments, workflow_id, if_exists)
            if run is not None:
                run.future = self._loop.create_future()
                incarnation.executor.dispatch([run])
            return workflow_id
        workflow_id = str(uuid.uuid4())
        executor = incarnation.executor
        run = incarnation.new_run(spec, workflow_id, arguments)
        run.future = self._loop.create_future()
        executor.runs[workflow_id] = run
        run.submitted += 1
        accepted = self._loop.create_future()
        run.waiters = [functools.partial(_in_loop, self._loop, accepted)]
        incarnation.journal.submit(Entry(run, []))
        await accepted
        if run.dropped:
            raise FencedError("this process lost its lease while the workflow was started")
        executor.dispatch([run])
        return workflow_id

    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any:
        """The workflow's result: from memory where it runs here, else from the ledger."""
        until = None if timeout is None else time.monotonic() + timeout
        run = self._incarnation.executor.runs.get(workflow_id) if self._incarnation else None
        if run is not None and run.future is not None:
            try:
                future = run.future
                if asyncio.get_running_loop() is not self._loop:
                    future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_wait(future), self._loop))
                return await asyncio.wait_for(asyncio.shield(future), timeout)
            except TimeoutError:
                raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {timeout} s") from None
            except asyncio.CancelledError:
                if not run.future.cancelled():
                    raise
        return await self._poll_result(workflow_id, codec, until, timeout)

    async def _poll_result(self, workflow_id: str, codec: Codec, until: float | None, timeout: float | None) -> Any:
        pause = 0.02
        while True:
            row = await asyncio.to_thread(self.row, workflow_id)
            if row[2] in {"succeeded", "failed", "cancelled", "parked"}:
                return _outcome(row, codec)
            if until is not None and time.monotonic() > until:
                raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {timeout} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def row(self, workflow_id: str) -> tuple[Any, ...]:
        """The workflow's row. Blocks.

        Raises:
            WorkflowNotFoundError: there is none.

        """
        return self.read("read_workflow", workflow_id, f"no workflow has the id {workflow_id!r}")[0]

    def read(self, query: str, workflow_id: str, missing: str | None = None) -> list[tuple[Any, ...]]:
        with self._database.connect("read") as connection:
            rows = self._database.run(connection, query, {"id": workflow_id})
        if not rows and missing:
            raise WorkflowNotFoundError(missing)
        return rows

    async def transact(self, spec: TransactionSpec, branch: Any, args: Any, kwargs: Any) -> Any:
        return await (await self._current()).transactions.step(spec, branch, args, kwargs)

    def transact_sync(self, spec: TransactionSpec, branch: Any, args: Any, kwargs: Any) -> Any:
        incarnation = self._incarnation
        if incarnation is None:
            raise NotRunningError("this process lost its lease and has not come back")
        if branch is not None:
            incarnation.executor.check(branch.run)
        return incarnation.transactions.step_sync(spec, branch, args, kwargs)

    async def in_thread(self, function: Callable[[], R]) -> R:
        """Call a user's function in a thread: one of its own kind, so that those who hang hold up nothing of ours."""
        context = contextvars.copy_context()
        future: concurrent.futures.Future[R] = concurrent.futures.Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(context.run(function))
                except BaseException as error:
                    future.set_exception(error)

        self._calls.put([call])
        return await asyncio.wrap_future(future)

    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the application's loop from another thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _in_loop(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> None:
    loop.call_soon_threadsafe(done_with, future, None)


async def _wait(future: "asyncio.Future[Any]") -> Any:
    return await asyncio.shield(future)


def _outcome(row: tuple[Any, ...], codec: Codec) -> Any:
    workflow_id, status, reason, output, error = row[0], row[2], row[5], row[8], row[9]
    if status == "succeeded":
        return codec.decode(output)
    if status == "failed":
        raise decode_error(error)
    if status == "cancelled":
        raise WorkflowCancelledError(f"{workflow_id!r} was cancelled: {reason}")
    raise WorkflowParkedError(f"{workflow_id!r} is parked: {reason}")


def _wanted(declared: Registry, consumers: bool | Sequence[str]) -> list[Any]:
    if isinstance(consumers, bool):
        return list(declared.consumers) if consumers else []
    known = {c.spec.name: c for c in declared.consumers}
    missing = [name for name in consumers if name not in known]
    if missing:
        raise UsageError(f"no consumer is named {missing[0]!r}; there are: {', '.join(sorted(known)) or 'none'}")
    return [known[name] for name in consumers]


# ---- the verbs ---------------------------------------------------------------------------------


class Handle(Generic[R_co]):
    """A started workflow: its id, its state, its result."""

    def __init__(self, workflow_id: str, codec: Codec) -> None:
        self._workflow_id = workflow_id
        self._codec = codec

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self._workflow_id

    def __repr__(self) -> str:
        return f"Handle({self._workflow_id!r})"

    async def result(self, *, timeout: Seconds | None = None) -> R_co:
        """Wait for the workflow's result, `timeout` seconds at most.

        Raises:
            WorkflowTimeoutError: there is none yet.
            WorkflowParkedError, WorkflowCancelledError: there will be none.
            Exception: the workflow's own, as recorded.

        """
        if isinstance(current.get(), StepScope):
            raise UsageError("a handle cannot be awaited in a step or transaction")
        limit = None if timeout is None else seconds(timeout, "timeout")
        return await _app("a handle").result(self._workflow_id, self._codec, limit)

    async def get(self) -> WorkflowRecord:
        """The workflow as the ledger has it.

        Raises:
            WorkflowNotFoundError: it has none of this id.

        """
        row = await asyncio.to_thread(_app("a handle").row, self._workflow_id)
        return WorkflowRecord(*row[:6])

    async def steps(self) -> list[StepRecord]:
        """The workflow's recorded steps, in order."""
        rows = await asyncio.to_thread(_app("a handle").read, "read_steps", self._workflow_id)
        return [StepRecord(*row) for row in rows]


def _app(what: str) -> App:
    return cast("App", runtime(what))


@overload
async def start(
    workflow: AsyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
) -> Handle[R]: ...  # fmt: skip
@overload
async def start(
    workflow: SyncStartable[Unpack[Ts], R], /, *args: Unpack[Ts],
    workflow_id: str | None = None, if_exists: IfExists = "attach",
) -> Handle[R]: ...  # fmt: skip
async def start(
    workflow: Any, /, *args: Any, workflow_id: str | None = None, if_exists: IfExists = "attach"
) -> Handle[Any]:
    """Start a workflow on this process; returns once it is durable, whatever then happens to the process.

    An id that exists: `attach` returns its handle if name and arguments agree, `reject` never does.

    Raises:
        NotRunningError: outside `running()`.
        WorkflowExistsError: the id is taken.
        UsageError: no workflow, or an id that cannot be.

    """
    if not isinstance(workflow, Workflow):
        raise UsageError(f"start takes a function decorated with @workflow, not {workflow!r}")
    if current.get() is not None:
        raise UsageError("start inside a workflow or step is not built yet; call it outside")
    if if_exists not in {"attach", "reject"}:
        raise UsageError(f"if_exists is 'attach' or 'reject', not {if_exists!r}")
    chosen = cast("Workflow[..., Any]", workflow)
    app = _app("start")
    started = await app.start_soon(chosen.spec, chosen.encode(args, {}), workflow_id, if_exists)
    return Handle(started, chosen.spec.result)


class Running:
    """The context that `running()` gives: async on the caller's loop, or sync with a loop thread of its own."""

    def __init__(self, settings: Settings | None, consumers: bool | Sequence[str]) -> None:
        self._settings = settings
        self._wanted = consumers
        self._stack: contextlib.AsyncExitStack | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.app: App

    async def __aenter__(self) -> None:
        if slot.runtime is not None:
            raise UsageError("running() may be entered once per process")
        self.app = App(self._settings or load_settings(), self._wanted, registry)
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(self.app.run())

    async def __aexit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        if self._stack is not None:
            await self._stack.__aexit__(kind, error, trace)

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
        try:
            asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.__aexit__(kind, error, trace), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def running(settings: Settings | None = None, *, consumers: bool | Sequence[str] = True) -> Running:
    """Run eventflow inside this program: `async with running():` on its loop, or `with running():` beside it.

    Serves the consumers (all, none, or those named), runs what the program starts, and takes over what dead peers left.

    Raises (on entering):
        SettingsError, SchemaError, UnavailableError: what is wrong, by name, before anything starts.
        UsageError: entered twice, or a name is taken by another program.
    """
    return Running(settings, consumers)


def run(settings: Settings, *, consumers: bool | Sequence[str] = True, uvloop: bool | None = None) -> int:
    """Run everything registered until SIGTERM or SIGINT, then drain; the exit status. What `eventflow run` calls.

    Raises:
        EventflowError: where trying again is pointless.

    """

    async def main() -> int:
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, done_with, stop, 0)
        context = running(settings, consumers=consumers)
        entering = loop.create_task(context.__aenter__())
        await asyncio.wait({entering, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():
            entering.cancel()
            context.app._stop.set()  # pyright: ignore[reportPrivateUsage]
            await asyncio.wait({entering})
            return 0
        entering.result()
        tune_garbage_collector()
        await asyncio.wait({stop, context.app.failed}, return_when=asyncio.FIRST_COMPLETED)
        # A library that hangs must not keep a process that was told to go: peers take over what it held.
        faulthandler.dump_traceback_later(settings.drain + _OVERDUE, exit=True)
        await context.__aexit__(None, None, None)
        if context.app.failed.done():
            raise context.app.failed.result()
        return 0

    factory = None
    if uvloop is not False and sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop as fast

            factory = fast.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())
    finally:
        faulthandler.cancel_dump_traceback_later()
