"""One executor of this process, from its birth to its end: builds every part of it, wires it once, takes it apart.

When it is fenced, everything it held is dropped, and `app` begins the next one; lifespans and the caller go on.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from typing import Any

import psycopg

from eventflow.consumer import Intake
from eventflow.database import Connection, Database
from eventflow.errors import UnavailableError, WorkflowExistsError
from eventflow.executor import Executor
from eventflow.journal import Identity, Journal, Lane
from eventflow.recovery import Lease
from eventflow.registry import ConsumerSpec, Spec
from eventflow.runs import Claim, Run
from eventflow.settings import Settings
from eventflow.transactions import Transactions

logger = logging.getLogger(__name__)

_FIRST_LANE = 2  # 0 is the journal's, 1 starts workflows
_LEAVE = 10.0  # seconds to leave the consumer groups


def lane_count(settings: Settings) -> int:
    """How many lanes an executor has: the journal's, the starter's, and four kinds for transactions."""
    return _FIRST_LANE + 4 * settings.transaction_lanes


class Incarnation:
    """One executor of this process, from its birth to its end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        database: Database,
        specs: dict[str, Spec],
        consumers: list[ConsumerSpec],
        identity: Identity,
    ) -> None:
        self._loop, self._settings, self.database = loop, settings, database
        self._specs = specs
        self._stopped = threading.Event()
        self.ended: asyncio.Future[BaseException] = loop.create_future()
        application = settings.application
        self.id = identity.executor
        self.executor = Executor(loop, accept_after=settings.accept_after, threads=settings.threads, draw=random.random)
        self.journal = Journal(
            Lane(database, identity, 0, self._stopped), application,
            on_durable=self.executor.durable, on_dropped=self.executor.dropped, on_lost=self._lost,
            on_fenced=self._end, on_incident=self._incident,
        )  # fmt: skip
        self._starter = Lane(database, identity, 1, self._stopped, ["set local lock_timeout = '2s'"])
        self._starting = threading.Lock()
        lanes = [Lane(database, identity, n, self._stopped) for n in range(_FIRST_LANE, len(identity.acknowledged))]
        self.transactions = Transactions(
            database, self.executor, lanes, application, on_lost=self._lost, on_fenced=self._end
        )
        self.executor.journal = self.journal
        self.executor.transactions = self.transactions
        self._lease = Lease(
            database, identity, application, specs, beat=settings.beat, lease=settings.lease,
            adopt=self._adopt, running=self.executor.holds, room=self.executor.room, stuck_for=self.journal.waiting_for,
            on_fenced=self._end,
        )  # fmt: skip
        self.intakes = [
            Intake(
                consumer, database, self.journal, executor=self.id, application=application,
                bootstrap_servers=settings.kafka_bootstrap_servers, properties=settings.kafka,
                max_in_flight=settings.max_in_flight, dispatch=self.executor.dispatch,
                accept=self.executor.accept_claims, unblock=self.executor.unblock, has_lease=self._lease.held,
                on_fatal=self._end,
            )
            for consumer in consumers
        ]  # fmt: skip

    def start(self) -> None:
        """Start every part.

        Raises:
            SettingsError: librdkafka refuses a consumer's properties.

        """
        for intake in self.intakes:
            intake.check()
        self.journal.start()
        self._lease.start()
        for intake in self.intakes:
            intake.start()
        logger.info("executor %d runs", self.id)

    def _adopt(self, claimed: list[tuple[Run, bool]]) -> None:
        def on_loop() -> None:
            for recovered in (False, True):
                self.executor.adopt([r for r, was in claimed if was is recovered], recovered=recovered)

        self._loop.call_soon_threadsafe(on_loop)

    def _lost(self, claims: list[Claim]) -> None:
        for intake in self.intakes:
            intake.lose(claims)

    def _end(self, error: BaseException) -> None:
        """Fenced, or something that no retry can mend; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has left already
            self._loop.call_soon_threadsafe(done_with, self.ended, error)

    def _incident(self, kind: str, subject: str, detail: str) -> None:
        logger.error("%s: %s: %s", kind, subject, detail)
        with self.database.connect("incident") as connection:
            self.database.run(connection, "insert_incident", {"kind": kind, "subject": subject, "detail": detail})

    # ---- starting ----

    def start_workflow(self, spec: Spec, arguments: str, workflow_id: str, if_exists: str) -> Run | None:
        """Write the workflow's row; the run, if it is ours to run. Blocks; for a thread."""
        with self._starting, self.database.connect("start") as connection:
            found = self._existing(connection, spec, arguments, workflow_id, if_exists)
            if found is None:
                params = {
                    "id": workflow_id, "name": spec.name, "application": self._settings.application,
                    "executor": self.id, "arguments": arguments,
                }  # fmt: skip
                self._starter.commit([("start_workflow", params)], ())
                found = self._existing(connection, spec, arguments, workflow_id, "attach")
            if found is None or found[6] != self.id or found[2] != "running" or workflow_id in self.executor.runs:
                return None
            run = self.new_run(spec, workflow_id, arguments)
            run.in_ledger = True
            self.executor.runs[workflow_id] = run
            return run

    def new_run(self, spec: Spec, workflow_id: str, arguments: str) -> Run:
        run = Run(spec, workflow_id, self._settings.application)
        run.arguments = arguments
        run.executor = self.executor
        return run

    def _existing(
        self, connection: Connection, spec: Spec, arguments: str, workflow_id: str, if_exists: str
    ) -> tuple[Any, ...] | None:
        rows = self.database.run(connection, "read_workflow", {"id": workflow_id})
        if not rows:
            return None
        row = rows[0]
        if row[1] != spec.name or row[7] != arguments:
            raise WorkflowExistsError(
                f"the id {workflow_id!r} belongs to {row[1]!r} ({row[2]}), started at {row[4]:%Y-%m-%d %H:%M:%S} "
                "with other arguments or another name"
            )
        if if_exists == "reject":
            raise WorkflowExistsError(f"{workflow_id!r} exists: {row[1]!r} is {row[2]}, started at {row[4]}")
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

    async def _leave(self) -> None:
        budget = self._settings.drain
        until = time.monotonic() + budget
        logger.info("executor %d leaves; what runs has %g s to end", self.id, budget)
        self._lease.leave()
        for intake in self.intakes:
            intake.hold()
        while self._busy() and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for intake in self.intakes:
            intake.stop()
        await self.executor.drain(max(0.0, until - time.monotonic()))
        await self._join_intakes()
        self.transactions.stop()
        self._lease.stop()
        if await asyncio.to_thread(self.journal.close, 10.0) and not self.ended.done():
            await asyncio.to_thread(self._die)
        self._stopped.set()
        self.executor.abort()
        await asyncio.to_thread(self._lease.join, 2.0)

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
        for intake in self.intakes:
            intake.stop(abandon=True)
        self.executor.abort()
        self.transactions.stop()
        self._lease.stop()
        await self._join_intakes()
        await asyncio.to_thread(self.journal.close, 2.0)
        await asyncio.to_thread(self._lease.join, 2.0)

    async def _join_intakes(self) -> None:
        """Wait until the consumers have left their groups; for all of them together no longer than for one."""
        until = time.monotonic() + _LEAVE
        for intake in self.intakes:
            await asyncio.to_thread(intake.join, max(0.0, until - time.monotonic()))


def done_with(future: "asyncio.Future[Any]", value: Any) -> None:
    """Set a future's result, if it has none."""
    if not future.done():
        future.set_result(value)
