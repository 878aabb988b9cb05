"""Publishing, end to end and exactly once: `python -m benchmarks.publishing`.

A process relays. For throughput, another one writes events by SQL in transactions of 500; for latency, workflows of the
relay's own process publish a thousand events a second. How late one is counts from when its workflow's caller knows that it is
committed, and, apart, from when the workflow publishes it, with the commit in it. The first seconds are left out, for a broker
that was just started. A consumer that reads committed messages counts each event.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
import uuid
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import eventflow
from benchmarks.databases import fresh
from benchmarks.services import services
from eventflow.migrations import migrate
from eventflow.settings import Settings

EVENTS, PARTITIONS, TOGETHER = 300_000, 4, 500
RATE, SECONDS, WARM = 1000, 13, 3  # the last ten seconds count


@eventflow.workflow
async def tell(topic: str, n: int) -> None:
    await eventflow.publish(topic, {"n": n, "at": time.time()}, key=str(n % 100))


async def relay(settings: Settings, topic: str, rate: int, ready: Any, over: Any) -> dict[int, float]:
    """When each event was known to be committed."""
    known: dict[int, float] = {}

    async def told(n: int) -> None:
        await tell(topic, n)
        known[n] = time.time()

    async with eventflow.running(settings, consumers=False, queues=False, schedules=False):
        await eventflow.start(tell, topic, -1)  # so that it relays
        ready.set()
        due, n, under_way = time.monotonic(), 0, set[asyncio.Task[None]]()
        while not over.is_set():
            if not rate or n == rate * SECONDS:
                await asyncio.sleep(0.1)
                continue
            if time.monotonic() < due:
                await asyncio.sleep(0.001)
                continue
            under_way.add(one := asyncio.create_task(told(n)))
            one.add_done_callback(under_way.discard)
            await asyncio.sleep(0)
            n, due = n + 1, due + 1 / rate
    return known


def run_relay(url: str, servers: str, topic: str, rate: int, ready: Any, over: Any, answer: Any) -> None:
    settings = Settings(database_url=url, kafka_bootstrap_servers=servers)
    answer.send(asyncio.run(relay(settings, topic, rate, ready, over)))


def write(url: str, topic: str) -> None:
    value = "convert_to(jsonb_build_object('n', g, 'pad', repeat('x', 100))::text, 'UTF8')"
    rows = f"select %s, convert_to((g %% 1000)::text, 'UTF8'), {value}"
    with psycopg.connect(url, autocommit=True) as connection:
        for low in range(0, EVENTS, TOGETHER):
            connection.execute(
                f"insert into eventflow.outbox (topic, key, value) {rows} from generate_series(%s::int, %s::int) g",
                [topic, low, low + TOGETHER - 1],
            )


def reader(servers: str, topic: str) -> Consumer:
    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": uuid.uuid4().hex, "isolation.level": "read_committed",
        "fetch.wait.max.ms": 5,
    })  # fmt: skip
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer


def read(consumer: Consumer, count: int, together: int) -> tuple[dict[int, int], dict[int, tuple[float, float]], float]:
    """How often each number came, when it was published and came, and when the last one did.

    `together`: messages asked for at once; the client waits for all of them, or for 20 ms, so that one at a time is not late.
    """
    seen: dict[int, int] = {}
    came: dict[int, tuple[float, float]] = {}
    last, until = time.monotonic(), time.monotonic() + 100
    while time.monotonic() < until and (len(seen) < count or time.monotonic() < last + 1):
        for message in consumer.consume(together, 0.02):
            value = json.loads(message.value() or b"{}")
            if value["n"] >= 0:
                seen[value["n"]] = seen.get(value["n"], 0) + 1
                last = time.monotonic()
                if "at" in value:
                    came[value["n"]] = value["at"], time.time()
    consumer.close()
    return seen, came, last


def spread(seconds: list[float]) -> str:
    seconds.sort()
    half, most = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    return f"p50 {half * 1000:.1f} ms, p99 {most * 1000:.1f} ms"


def measure(url: str, servers: str, rate: int) -> str:
    topic = f"bench-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": servers})  # its futures fail once it is gone
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    consumer = reader(servers, topic)
    context = multiprocessing.get_context("spawn")
    ready, over, (answer, answers) = context.Event(), context.Event(), context.Pipe(duplex=False)
    relaying = context.Process(target=run_relay, args=(url, servers, topic, rate, ready, over, answers))
    relaying.start()
    answers.close()
    ready.wait(60)
    began, count = time.monotonic(), rate * SECONDS or EVENTS
    writing = None if rate else context.Process(target=write, args=(url, topic))
    if writing is not None:
        writing.start()
    seen, came, last = read(consumer, count, 1 if rate else 5000)
    over.set()
    known = answer.recv()
    relaying.join(30)
    exact = len(seen) == count and set(seen.values()) == {1}
    if rate:
        counted = [(n, *times) for n, times in came.items() if n >= rate * WARM]
        committed = spread([seen_at - known[n] for n, _, seen_at in counted])
        published = spread([seen_at - at for _, at, seen_at in counted])
        return f"latency at {rate}/s from the commit: {committed}; from publish: {published}; each event once: {exact}"
    return f"throughput: {count / (last - began):,.0f} events/s; each event once: {exact}"


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with services() as addresses:
        for rate in (0, RATE):
            with fresh(addresses.database_url) as url:
                migrate(url)
                print(measure(url, addresses.bootstrap, rate), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
