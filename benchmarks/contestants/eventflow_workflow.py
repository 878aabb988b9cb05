"""eventflow: a message becomes a workflow with one step; sync, async, or with a step that really suspends."""

import asyncio
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable

import eventflow
from benchmarks.contestants import common
from benchmarks.contestants.ledger import Contest, Order
from eventflow import Message
from eventflow.migrations import migrate

tally: common.Tally


@eventflow.step
async def charge(order: Order) -> int:
    return order.amount


@eventflow.step
async def charge_suspending(order: Order) -> int:
    await asyncio.sleep(0)
    return order.amount


@eventflow.step
def charge_sync(order: Order) -> int:
    return order.amount


async def bill(message: Message[Order]) -> int:
    tally.add()
    return await charge(message.value)


async def bill_suspending(message: Message[Order]) -> int:
    tally.add()
    return await charge_suspending(message.value)


def bill_sync(message: Message[Order]) -> int:
    tally.add()
    return charge_sync(message.value)


HANDLERS: dict[str, Callable[[Message[Order]], object]] = {
    "async": bill,
    "suspending": bill_suspending,
    "sync": bill_sync,
}


def contest(arguments: Namespace) -> Contest:
    """The run that these arguments ask for."""
    return Contest(
        dsn=arguments.dsn,
        bootstrap=arguments.bootstrap,
        topic=arguments.topic,
        group=arguments.group,
        count=arguments.count,
        through=arguments.through,
        limit=arguments.limit,
        keep=arguments.keep,
    )


def parser(description: str | None) -> common.argparse.ArgumentParser:
    """The arguments of every eventflow contestant."""
    arguments = common.parser(description)
    arguments.add_argument("--through", default="", help="a proxy's address for the library")
    arguments.add_argument("--ordering", choices=["none", "key", "partition"], default="none")
    arguments.add_argument("--keep", choices=["all", "slow"], default="all", help="rows of messages")
    arguments.add_argument("--limit", type=float, default=120.0, help="seconds until giving up")
    return arguments


def sample_memory(samples: list[tuple[int, float]]) -> None:
    """Write down (messages handled, resident MiB) twice a second, from a thread."""

    def watch() -> None:
        while True:
            samples.append((tally.handled, common.resident()))
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


async def idle(run: Contest) -> None:
    """Run without messages until standard input ends, with a schedule that fires once a year."""

    @eventflow.scheduled("0 0 1 1 *")
    async def yearly() -> None: ...

    await asyncio.to_thread(migrate, run.dsn)
    async with run.running():
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    common.report(1, 1.0)


async def main(arguments: Namespace) -> None:
    global tally
    tally = common.Tally(arguments.count)
    eventflow.kafka_consumer(arguments.topic, group=arguments.group, ordering=arguments.ordering)(
        HANDLERS[arguments.kind]
    )
    if arguments.idle:
        await idle(contest(arguments))
        return
    samples: list[tuple[int, float]] = []
    if arguments.memory:
        sample_memory(samples)
    await contest(arguments).measure(tally, **({"memory": samples} if arguments.memory else {}))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--kind", choices=list(HANDLERS), default="async")
    options.add_argument("--idle", action="store_true")
    options.add_argument("--memory", action="store_true")
    chosen = options.parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
