"""eventflow: a handler without steps, in an order; where one key is slow, the rate of all others."""

import asyncio
import os
import time
from argparse import Namespace

import psycopg

import eventflow
from benchmarks import orders
from benchmarks.contestants import common
from benchmarks.contestants.eventflow_workflow import contest, parser
from benchmarks.contestants.ledger import Contest, Order
from eventflow import Message
from eventflow.migrations import migrate

tally: common.Tally
SLOW = orders.key(0, orders.KEYS["hot"])
OTHERS = "select count(*) from eventflow.workflows where status = 'succeeded' and key <> %s"


async def quick(message: Message[Order]) -> int:
    if message.key != SLOW:
        tally.add()
    return message.value.amount


async def slow(message: Message[Order]) -> int:
    if message.key == SLOW:
        await asyncio.sleep(1)
    return await quick(message)


HANDLERS = {"quick": quick, "slow": slow}


async def durable(run: Contest, by_key: bool) -> None:
    """Returns when all that counts is."""
    if not by_key:
        await run.durable()
        return
    async with await psycopg.AsyncConnection.connect(run.dsn, autocommit=True) as watch:
        while True:
            row = await (await watch.execute(OTHERS, [SLOW])).fetchone()
            if row and row[0] == tally.wanted:
                return
            await asyncio.sleep(0.002)


async def main(arguments: Namespace) -> None:
    """By key, what counts is all but the key that may be slow, which has hours of work; it is left."""
    global tally
    run, by_key = contest(arguments), arguments.ordering == "key"
    held = len(range(0, run.count, orders.KEYS["hot"])) if by_key else 0
    tally = common.Tally(run.count - held)
    eventflow.kafka_consumer(run.topic, group=run.group, ordering=arguments.ordering)(HANDLERS[arguments.kind])
    await asyncio.to_thread(migrate, run.dsn)
    async with run.running(), asyncio.timeout(run.limit):
        await tally.full.wait()
        await durable(run, by_key)
        common.report(run.count, time.perf_counter() - tally.started)
        if by_key:
            os._exit(0)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--kind", choices=list(HANDLERS), default="quick")
    chosen = options.parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
