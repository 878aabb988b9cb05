"""eventflow: how long after it was produced a message is handled, and its first step durable.

Handled = the handler was called. Durable = a second step began, which waits for the first one's checkpoint.
"""

import time
from argparse import Namespace

import eventflow
from benchmarks.contestants import common
from benchmarks.contestants.eventflow_workflow import contest, parser
from benchmarks.contestants.ledger import Order
from eventflow import Message
from eventflow.migrations import migrate

tally: common.Tally


class Stamped(Order):
    """An order that says when it was sent."""

    sent_at: float


handled: list[tuple[int, float]] = []
durable: list[tuple[int, float]] = []


@eventflow.step
async def charge(order: Stamped) -> int:
    return order.amount


@eventflow.step
async def note(order: Stamped) -> None:
    durable.append((order.order_id, time.time() - order.sent_at))


async def bill(message: Message[Stamped]) -> int:
    handled.append((message.value.order_id, time.time() - message.value.sent_at))
    tally.add()
    paid = await charge(message.value)
    await note(message.value)
    return paid


async def main(arguments: Namespace) -> None:
    global tally
    tally = common.Tally(arguments.count)
    eventflow.kafka_consumer(arguments.topic, group=arguments.group)(bill)
    run = contest(arguments)
    migrate(arguments.dsn)
    async with run.running():
        print("ready", flush=True)
        await tally.full.wait()
        await run.durable()
        seconds = time.perf_counter() - tally.started
    common.report(arguments.count, seconds, delays=handled, durable_delays=durable)


if __name__ == "__main__":
    chosen = parser(__doc__).parse_args()
    common.run(main(chosen), uvloop=chosen.uvloop)
