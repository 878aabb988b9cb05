"""Publishing, end to end and exactly once: `python -m benchmarks.publishing`.

A process relays. For throughput, another one writes events by SQL in transactions of 500; for latency, workflows of the
relay's own process publish a thousand events a second. A consumer that reads committed messages counts each event.
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
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

import eventflow
from benchmarks.databases import fresh
from benchmarks.services import services
from eventflow.migrations import migrate
from eventflow.settings import Settings

EVENTS, PARTITIONS, TOGETHER = 300_000, 4, 500
RATE, SECONDS = 1000, 10


@eventflow.workflow
async def tell(topic: str, n: int) -> None:
    await eventflow.publish(topic, {"n": n, "at": time.time()}, key=str(n % 100))


async def relay(settings: Settings, topic: str, rate: int, ready: Any, over: Any) -> None:
    async with eventflow.running(settings, consumers=False, queues=False, schedules=False):
        await eventflow.start(tell, topic, -1)  # so that it relays
        ready.set()
        due, n = time.monotonic(), 0
        while not over.is_set():
            if not rate or n == rate * SECONDS:
                await asyncio.sleep(0.1)
                continue
            if time.monotonic() < due:
                await asyncio.sleep(0.001)
                continue
            await eventflow.start(tell, topic, n)
            n, due = n + 1, due + 1 / rate


def run_relay(url: str, servers: str, topic: str, rate: int, ready: Any, over: Any) -> None:
    asyncio.run(relay(Settings(database_url=url, kafka_bootstrap_servers=servers), topic, rate, ready, over))


def write(url: str, topic: str) -> None:
    value = "convert_to(jsonb_build_object('n', g, 'pad', repeat('x', 100))::text, 'UTF8')"
    rows = f"select %s, convert_to((g %% 1000)::text, 'UTF8'), {value}"
    with psycopg.connect(url, autocommit=True) as connection:
        for low in range(0, EVENTS, TOGETHER):
            connection.execute(
                f"insert into eventflow.outbox (topic, key, value) {rows} from generate_series(%s::int, %s::int) g",
                [topic, low, low + TOGETHER - 1],
            )


def read(servers: str, topic: str, count: int) -> tuple[dict[int, int], list[float], float]:
    """How often each number came, how late, and when the last one did."""
    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": uuid.uuid4().hex, "isolation.level": "read_committed",
        "auto.offset.reset": "earliest", "fetch.wait.max.ms": 5,
    })  # fmt: skip
    consumer.subscribe([topic])
    seen: dict[int, int] = {}
    late: list[float] = []
    last, until = time.monotonic(), time.monotonic() + 100
    while time.monotonic() < until and (len(seen) < count or time.monotonic() < last + 1):
        for message in consumer.consume(5000, 0.02):
            value = json.loads(message.value() or b"{}")
            if value["n"] >= 0:
                seen[value["n"]] = seen.get(value["n"], 0) + 1
                last = time.monotonic()
                if "at" in value:
                    late.append(time.time() - value["at"])
    consumer.close()
    return seen, late, last


def measure(url: str, servers: str, rate: int) -> str:
    topic = f"bench-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": servers})  # its futures fail once it is gone
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    context = multiprocessing.get_context("spawn")
    ready, over = context.Event(), context.Event()
    relaying = context.Process(target=run_relay, args=(url, servers, topic, rate, ready, over))
    relaying.start()
    ready.wait(60)
    began, count = time.monotonic(), rate * SECONDS or EVENTS
    writing = None if rate else context.Process(target=write, args=(url, topic))
    if writing is not None:
        writing.start()
    seen, late, last = read(servers, topic, count)
    over.set()
    relaying.join(30)
    exact = len(seen) == count and set(seen.values()) == {1}
    if rate:
        late.sort()
        half, most = late[len(late) // 2], late[int(len(late) * 0.99)]
        return f"latency at {rate}/s: p50 {half * 1000:.1f} ms, p99 {most * 1000:.1f} ms; each event once: {exact}"
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
