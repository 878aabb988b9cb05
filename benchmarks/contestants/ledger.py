"""How an eventflow contestant runs: migrate, run, wait until the ledger says that everything is durable."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import psycopg
from pydantic import BaseModel

import eventflow
from benchmarks import databases
from benchmarks.contestants import common
from eventflow.app import tune_garbage_collector
from eventflow.migrations import migrate
from eventflow.settings import Settings

# Every offset accepted, and nothing accepted unfinished: one statement, so one snapshot.
DURABLE = """
select
  (select coalesce(sum(upper(r) - coalesce(lower(r), 0)), 0)
     from (select unnest(accepted) from eventflow.claims
           union all select unnest(ranges) from eventflow.deltas) as accepted (r)) >= %s
  and not exists (select from eventflow.workflows
                   where status in ('queued', 'running', 'waiting', 'parked'))
"""
STATE = {
    "workflows": "select status, count(*) from eventflow.workflows group by 1",
    "claims": "select partition, owner, epoch, accepted, released from eventflow.claims order by 1",
    "deltas": "select claim, epoch, range_agg(ranges) from eventflow.deltas group by 1, 2 order by 1, 2",
    "executors": "select id, alive, taken_by from eventflow.executors",
    "incidents": "select kind, subject, detail from eventflow.incidents limit 5",
}


class Order(BaseModel):
    """What the handlers read of an order."""

    order_id: int
    amount: int


@dataclass(frozen=True, slots=True)
class Contest:
    """One run: where the ledger is, and where the messages come from."""

    dsn: str
    bootstrap: str
    topic: str
    group: str
    count: int
    through: str  # the address the library is given: the ledger's, or a proxy before it
    limit: float  # seconds
    keep: Literal["all", "slow"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The library at work, its garbage collector tuned as `eventflow run` does."""
        settings = Settings(
            database_url=self.through or self.dsn, kafka_bootstrap_servers=self.bootstrap, keep_messages=self.keep
        )
        async with eventflow.running(settings):
            tune_garbage_collector()
            yield

    async def measure(self, tally: common.Tally, **more: object) -> None:
        """Handle `count` messages and report; the handlers are registered and count in `tally`."""
        await asyncio.to_thread(migrate, self.dsn)
        before = databases.wal(self.dsn)
        async with self.running():
            try:
                async with asyncio.timeout(self.limit):
                    await tally.full.wait()
                    await self.durable()
            except TimeoutError:
                raise SystemExit(f"stuck: {tally.handled} handler calls; {self.state()}") from None
            seconds = time.perf_counter() - tally.started
            after = databases.wal(self.dsn)
        written = after - before
        common.report(self.count, seconds, handled=tally.handled, wal_bytes=written, **more)

    def state(self) -> str:
        """What the ledger holds, for the message of a run that got stuck."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return "; ".join(
                f"{name}: {connection.execute(query.encode()).fetchall()}" for name, query in STATE.items()
            )

    async def durable(self) -> None:
        """Returns when all that was produced is accepted and final in the ledger."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as watch:
            while True:
                row = await (await watch.execute(DURABLE, [self.count])).fetchone()
                if row and row[0]:
                    return
                await asyncio.sleep(0.002)
