"""One executor of this process, from its birth to its end: builds every part of it, wires it once, takes it apart.

When it is fenced, everything it held is dropped, and `app` begins the next one; lifespans and the caller go on.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from eventflow.adoption import Adoption
from eventflow.apart import apart
from eventflow.batches import takes_fetched
from eventflow.brokers import Brokers
from eventflow.consumer import Intake, Lag
from eventflow.context import Start
from eventflow.database import Connection, Database
from eventflow.dispatcher import Dispatcher
from eventflow.elsewhere import Elsewhere
from eventflow.errors import FencedError, UnavailableError, UnreadableError, WorkflowExistsError, first_line
from eventflow.executor import Executor
from eventflow.intakes import Intakes
from eventflow.journal import Identity, Journal, Lane, rider_statements
from eventflow.ledger import PATIENCE, who
from eventflow.payloads import unread
from eventflow.reader import Reader, Rows, Source
from eventflow.records import Rider
from eventflow.recovery import Lease, LedgerClock
from eventflow.registry import ConsumerSpec, Spec, TransactionSpec
from eventflow.relay import Relay
from eventflow.replay import LONG, Pace
from eventflow.runs import Claim, How, Life, Reprocess, Request, Run
from eventflow.scheduler import Scheduler
from eventflow.settings import Settings
from eventflow.slots import Slots
from eventflow.tracing import started, trace_of
from eventflow.transactions import Transactions
from eventflow.waits import Later

logger = logging.getLogger(__name__)

_FIRST_LANE = 2  # 0 is the journal's, 1 starts workflows
_QUEUE = 13  # the column of `read_workflow.sql`
_LEAVE = 10.0  # seconds to leave the consumer groups
R = TypeVar("R")


def lane_count(settings: Settings) -> int:
    """How many lanes an executor has: the journal's, the starter's, and four kinds for transactions."""
    return _FIRST_LANE + 4 * settings.transaction_lanes


@dataclass
class Others:
    """The other databases that this process knows, over all its incarnations.

    Attributes:
        databases: by name. ledger: who the ledger is, there. checked: names of those that have what is needed.

    """

    databases: dict[str, Database]
    ledger: UUID
    checked: set[str] = field(default_factory=set[str])


@dataclass(frozen=True)
class Fired:
    """Which schedules this process fires: those of these workflows; `only`: of these names; `any`: whether it has some."""

    workflows: list[str]
    only: list[str] | None
    any: bool

    @property
    def names(self) -> list[str] | None:
        """Their names; None: all that these workflows have."""
        return self.only if self.workflows else []


@dataclass(frozen=True)
class Surroundings:
    """What stands around an executor: Kafka, time and chance. The test harness has others.

    Attributes:
        kafka: whether there is one. brokers: makes what a consumer knows it by. clock: the ledger's, of how far it is ahead.
        later: calls a function on the loop in so many seconds of that clock; the loop's own by default.
        draw, long, live, hold: as a `replay.Pace` has them.

    """

    kafka: bool = True
    brokers: Callable[..., Any] = Brokers
    clock: Callable[[float], LedgerClock] = LedgerClock
    later: Later | None = None
    draw: Callable[[], float] = random.random
    long: float = LONG
    live: bool = True
    hold: float = 1.0


REAL = Surroundings()


class Incarnation:
    """One executor of this process, from its birth to its end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        database: Database,
        specs: dict[str, Spec],
        consumers: list[ConsumerSpec],
        queues: list[str],
        schedules: Fired,
        identity: Identity,
        others: Others,
        surroundings: Surroundings,
    ) -> None:
        self._loop, self._settings, self.database = loop, settings, database
        self._specs, self._fired = specs, schedules
        self._stopped = threading.Event()
        self._hurried = False
        self.ended: asyncio.Future[BaseException] = loop.create_future()
        application = settings.application
        self.id = identity.executor
        self._acknowledged = identity.acknowledged
        clock, self._reader = surroundings.clock(identity.ahead), Reader(database, self._stopped)
        pace = Pace(clock.now, surroundings.draw, surroundings.long, surroundings.live, surroundings.hold)
        self.executor = Executor(
            loop, accept_after=settings.accept_after, threads=settings.threads, pace=pace, later=surroundings.later,
            ask=self._reader.ask, suspend_after=settings.suspend_after, application=application,
            longest=settings.max_checkpoints,
        )  # fmt: skip
        self.journal = Journal(
            Lane(database, identity, 0, self._stopped), application,
            on_durable=self.executor.durable, on_dropped=self.executor.dropped, on_lost=self._lost,
            on_fenced=self._end, on_incident=self._incident, keeps=settings.keep_messages == "all",
        )  # fmt: skip
        self._starter = Lane(database, identity, 1, self._stopped, ["set local lock_timeout = '2s'"])
        self._starting = threading.Lock()
        lanes = [Lane(database, identity, n, self._stopped) for n in range(_FIRST_LANE, len(identity.acknowledged))]
        self.transactions = Transactions(
            database, self.executor, lanes, application, on_lost=self._lost, on_fenced=self._end,
            keeps=settings.keep_messages == "all",
        )  # fmt: skip
        self._elsewhere = {
            name: Elsewhere(
                other, self.executor, others.ledger, lanes=settings.transaction_lanes, heard=lambda: clock.heard,
                checked=others.checked, on_fenced=self._end,
            )
            for name, other in others.databases.items()
        }  # fmt: skip
        self.executor.journal = self.journal
        self.executor.transactions = self.transactions
        self._streams = Reader(database, self._stopped)  # apart: what wakes workflows does not wait behind long pages
        self._adoption = adoption = Adoption(
            database, self.id, application, specs, adopt=self._adopt, request=self._request
        )
        self._brokers = surroundings.brokers
        self.intakes = Intakes(consumers, self._intake, on_fatal=self._end, on_incident=self._incident)
        self.queues = Dispatcher(
            database, self.id, application, specs, queues, adoption=adoption, adopted=self._adopted,
            held=self.executor.in_queues, threads=self.executor.threads_free, now=clock.now, beat=settings.beat,
            on_fenced=self._end,
        )  # fmt: skip
        self.schedules = Scheduler(
            database, self.id, application, schedules.workflows, schedules.only, adoption=adoption, room=self.executor.room,
            now=clock.now, who=who(), on_fenced=self._end,
        )  # fmt: skip
        self.relay = Relay(
            database, self.id,
            functools.partial(
                Slots, settings.kafka_bootstrap_servers, settings.kafka, str(others.ledger), settings.relay_topic
            ),
            lease=settings.lease, on_incident=self._incident,
        )  # fmt: skip
        self._lease = Lease(
            database, identity, application, specs, beat=settings.beat, lease=settings.lease, adoption=adoption,
            queues=self.queues, schedules=self.schedules, relay=self.relay, consumers=self.intakes,
            running=self.executor.holds, room=self.executor.room, suspects=self.executor.suspects,
            stuck_for=self.journal.waiting_for, clock=clock, on_fenced=self._end,
        )  # fmt: skip
        self.executor.on_signal, self.executor.on_sleep = self._lease.look, self._lease.slept
        self.executor.on_rows, self.executor.on_told = self._lease.take, self._lease.told
        self.schedules.on_left, self.schedules.on_lost = self._lease.take, self._lease.reconcile
        self.queues.on_lost = self._lease.reconcile
        self.executor.on_published = self.relay.published
        self.executor.on_queued, self.executor.on_freed = self.queues.look, self.queues.freed
        self.executor.on_stop, self.executor.on_ordered = self.intakes.stand_still, self.intakes.take_turn

    def _intake(
        self, consumer: ConsumerSpec, on_fatal: Callable[[Exception], None], reprocess: Reprocess | None
    ) -> Intake:
        settings = self._settings
        return Intake(
            consumer, self.database, self.journal, executor=self.id, application=settings.application,
            bootstrap_servers=settings.kafka_bootstrap_servers, properties=settings.kafka,
            max_in_flight=settings.max_in_flight, max_bytes=settings.max_in_flight_bytes, dispatch=self.executor.dispatch,
            accept=self.executor.accept_claims, desk=self.executor, run_of=self._adoption.run_of,
            has_lease=self._has_lease, on_fatal=on_fatal, brokers=self._brokers, reprocess=reprocess,
            gather=self.executor.gather if self._takes_fetched(consumer) else None,
        )  # fmt: skip

    def _takes_fetched(self, consumer: ConsumerSpec) -> bool:
        return self.executor.tracing is None and takes_fetched(consumer, keeps=self._settings.keep_messages == "all")

    def _has_lease(self) -> bool:
        return self._lease.held()

    def transactions_of(self, spec: TransactionSpec) -> Transactions | Elsewhere:
        """Where this transaction is made.

        Raises:
            SettingsError: there is no such database.

        """
        if spec.database is None:
            return self.transactions
        spec.check(self._elsewhere)
        return self._elsewhere[spec.database]

    @property
    def over(self) -> bool:
        """Whether it has let go, or is about to, of what it holds; nothing that it is given now is seen to."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Start every part.

        Raises:
            SettingsError: librdkafka refuses a consumer's properties.

        """
        self.intakes.check()
        self.journal.start()
        self._lease.start()
        self.queues.start()
        self.schedules.start(look=self._fired.any)
        if self._settings.kafka_bootstrap_servers:
            self.relay.start()
        self.intakes.start()
        logger.info("executor %d runs", self.id)

    def _adopt(self, runs: list[Run], how: How) -> None:
        self._loop.call_soon_threadsafe(self.executor.adopt, runs, how)

    def _adopted(self) -> None:
        """Wait until the loop has seen what was handed to it. From the dispatcher's thread."""
        seen = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(seen.set)
            while not seen.wait(0.5) and not self._stopped.is_set():
                pass

    def _request(self, requests: list[Request]) -> None:
        self._loop.call_soon_threadsafe(self.executor.interrupts.request, requests)

    # ---- for who watches it: from any thread ----

    def loop_age(self) -> float:
        """For how many seconds the loop has stood still."""
        return self.executor.loop_age()

    def lease_age(self) -> float:
        """Seconds since the last beat that came through."""
        return self._lease.age()

    def runs(self) -> int:
        """How many workflows are in memory."""
        return len(self.executor.runs)

    def waiting_for_partitions(self) -> list[str]:
        """The consumers whose groups have not told them yet what they read; what is run again beside them does not count."""
        return [intake.name for intake in self.intakes if intake.reprocess is None and not intake.joined()]

    def lags(self) -> list[tuple[str, list[Lag]]]:
        """How far behind each consumer is."""
        now = self.executor.now()
        return [(intake.name, intake.lags(now)) for intake in self.intakes]

    # ---- for a test harness ----

    def acting(self) -> bool:
        """Whether anything goes on here that does not only wait."""
        transactions = self.transactions
        return bool(self.executor.acting() or transactions.active or transactions.waiting())

    async def flushed(self) -> None:
        """Wait until all that was recorded before is durable, or this executor has ended."""
        reached: asyncio.Future[None] = self._loop.create_future()

        def tell() -> None:
            self._loop.call_soon_threadsafe(done_with, reached, None)

        self.journal.mark(tell)
        await asyncio.wait({reached, self.ended}, return_when=asyncio.FIRST_COMPLETED)

    def flushes(self) -> int:
        """A number that grows with each flush."""
        return sum(self._acknowledged)

    def crash(self, error: FencedError) -> None:
        """Be as dead as a process that was killed; on the loop."""
        done_with(self.ended, error)

    def suspect(self, dead: int) -> None:
        """Take over an executor that is known to be dead."""
        self._lease.suspect(dead)

    def look_again(self) -> None:
        """Time has passed otherwise than by itself: whoever sleeps may be due."""
        self._lease.requested()
        self.queues.look()
        self.schedules.look()

    def requested(self) -> None:
        """A person of this process has asked for something."""
        self._lease.requested()
        self._lease.look()

    async def ask(self, source: Source) -> Rows | None:
        """What the ledger answers; None where this executor ended before it did."""
        answer: asyncio.Future[Rows] = self._loop.create_future()

        def come(rows: Rows) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(done_with, answer, rows)

        self._streams.ask(source, come)
        while not (answer.done() or self._stopped.is_set()):
            await asyncio.wait({answer, self.ended}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if self.ended.done():
                break
        return answer.result() if answer.done() and not self._stopped.is_set() else None

    def write(self, riders: list[Rider]) -> None:
        """Commit rows that no workflow writes, and tell who waits for them here. Blocks; for a thread.

        Raises:
            UnavailableError: what they need is held by a transaction that does not end.

        """

        def once() -> None:
            with self._starting:
                self._starter.commit(rider_statements(riders), ())

        self._patiently(once)
        self.executor.tell(riders)

    def _patiently(self, once: Callable[[], R]) -> R:
        """Try again where somebody's open transaction is in the way, for a while, with a turn for others in between."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return once()
            except psycopg.errors.LockNotAvailable as error:
                if time.monotonic() > until or self._stopped.is_set():
                    held = "another transaction, which neither commits nor rolls back, holds what this needs"
                    raise UnavailableError(
                        f"{held}; it may have enqueued or started the same id: {first_line(error)}"
                    ) from None

    def _lost(self, claims: list[Claim]) -> None:
        self.intakes.lose(claims)

    def _end(self, error: BaseException) -> None:
        """Fenced, or something that no retry can mend; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has left already
            self._loop.call_soon_threadsafe(done_with, self.ended, error)

    def _incident(self, kind: str, subject: str, detail: str) -> None:
        logger.error("%s: %s: %s", kind, subject, detail)
        with self.database.connect("incident") as connection:
            self.database.run(connection, "insert_incident", {"kind": kind, "subject": subject, "detail": detail})

    # ---- starting ----

    def start_workflow(self, start: Start) -> Run | None:
        """Write the row of a workflow whose id was given; the run, if it is ours to run. Blocks; for a thread.

        Raises:
            UnavailableError: the id is in a transaction that does not end.

        """
        return self._patiently(lambda: self._start_once(start))

    def _start_once(self, start: Start) -> Run | None:
        assert start.workflow_id is not None
        workflow_id = start.workflow_id
        cause: tuple[Rider, ...] = ()
        with self._starting, self.database.connect("start") as connection:
            found = self._existing(connection, start)
            is_new = found is None
            if is_new:
                deadline = None if start.timeout is None else self.executor.now() + start.timeout
                params = {
                    "id": workflow_id, "name": start.spec.name, "application": self._settings.application,
                    "executor": self.id, "arguments": start.arguments, "deadline": deadline,
                    "attributes": start.attributes, "parent": start.parent,
                }  # fmt: skip
                cause = started("start", start.spec.name, workflow_id)
                self._starter.commit([("start_workflow", params), *rider_statements(cause)], ())
                found = self._existing(connection, dataclasses.replace(start, if_exists="attach"))
            if found is None or found[6] != self.id or found[2] != "running" or self.executor.holds(workflow_id):
                return None
            if not is_new or found[_QUEUE] is not None:
                # It is being taken, or was without an answer, and what it has recorded has to be read first.
                self._lease.reconcile()
                return None
            run = self.new_run(start, workflow_id)
            run.trace, run.in_ledger = trace_of(cause), True
            self.executor.runs[workflow_id] = run
            return run

    def new_run(self, start: Start, workflow_id: str) -> Run:
        """A run of a workflow that begins here."""
        run = Run(start.spec, workflow_id, self._settings.application)
        run.arguments = start.arguments
        run.executor = self.executor
        if start.timeout is not None or start.attributes is not None or start.parent is not None:
            deadline = None if start.timeout is None else self.executor.now() + start.timeout
            run.life = Life(start.parent, deadline)
            run.life.attributes = start.attributes
        return run

    def _existing(self, connection: Connection, start: Start) -> tuple[Any, ...] | None:
        rows = self.database.run(connection, "read_workflow", {"id": start.workflow_id})
        if not rows:
            return None
        row = rows[0]
        unreadable = unread([row[7]])
        if unreadable is not None:
            raise UnreadableError(f"whether {start.workflow_id!r} has the same arguments: {unreadable}")
        if row[1] != start.spec.name or row[7] != start.arguments:
            raise WorkflowExistsError(
                f"the id {start.workflow_id!r} belongs to {row[1]!r} ({row[2]}), started at {row[4]:%Y-%m-%d %H:%M:%S} "
                "with other arguments or another name"
            )
        if start.if_exists == "reject":
            raise WorkflowExistsError(f"{start.workflow_id!r} exists: {row[1]!r} is {row[2]}, started at {row[4]}")
        return row

    # ---- the end ----

    async def drain(self) -> None:
        """SIGTERM's way out: let work end, record it, let go of everything. Fenced on the way: drop the rest at once."""
        leaving = asyncio.ensure_future(self._leave())
        await asyncio.wait({leaving, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            leaving.result()
        else:
            leaving.cancel()
            await self.abort()

    def hurry(self) -> None:
        """What still runs gets no more time to end; where it does not drain, it will get none."""
        self._hurried = True

    async def _leave(self) -> None:
        budget = self._settings.drain
        until = time.monotonic() + budget

        def left() -> bool:
            return not self._hurried and time.monotonic() < until

        logger.info("executor %d leaves; what runs has %g s to end", self.id, budget)
        self._lease.leave()
        self.queues.leave()
        self.schedules.leave()
        self.executor.waits.leave()
        self.intakes.hold()
        while self._busy() and left():
            await asyncio.sleep(0.01)
        self.intakes.stop()
        await self.executor.drain(left)
        await apart(self.intakes.join, _LEAVE)
        self.transactions.stop()
        self._lease.stop()
        closed = await apart(self.journal.close, 10.0)
        if closed and not self.ended.done():
            await apart(self.relay.leave)
            await apart(self._die)
        self._stopped.set()
        self.relay.stop()
        self._reader.stop()
        self._streams.stop()
        self.executor.abort()
        await self._close_transactions()
        await apart(self._lease.join, 2.0)
        await apart(self.queues.join, 2.0)
        await apart(self.schedules.join, 2.0)

    def _busy(self) -> bool:
        return bool(self.executor.busy() or self.transactions.active or self.transactions.waiting())

    def _die(self) -> None:
        try:
            with self.database.connect("end") as connection:
                self.database.run(connection, "die", {"executor": self.id})
        except (psycopg.Error, UnavailableError) as error:
            logger.warning("the lease was not released: %s", error)

    async def abort(self) -> None:
        """Fenced: nothing held here can be recorded; drop it all."""
        self._stopped.set()
        self.relay.stop()
        self.intakes.stop(abandon=True)
        self.executor.abort()
        self._reader.stop()
        self._streams.stop()
        self.transactions.stop()
        await self._close_transactions()
        self._lease.stop()
        self.queues.leave()
        self.schedules.leave()
        await apart(self.intakes.join, _LEAVE)
        await apart(self.journal.close, 2.0)
        await apart(self._lease.join, 2.0)
        await apart(self.queues.join, 2.0)
        await apart(self.schedules.join, 2.0)

    async def _close_transactions(self) -> None:
        await self.transactions.close()
        for place in self._elsewhere.values():
            await place.close()


def done_with(future: "asyncio.Future[Any]", value: Any) -> None:
    """Set a future's result, if it has none."""
    if not future.done():
        future.set_result(value)
