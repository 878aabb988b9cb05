"""DBOS 3.4: `@DBOS.kafka_consumer`, one step per message.

Two rates: the whole run as everyone else's (first message received to last result durable), and the steady one,
between a tenth and nine tenths of the results. The better one counts, in DBOS's favour.
"""

import threading
import time
from typing import Any

import orjson
import psycopg
from dbos import DBOS, DBOSConfig, KafkaMessage

from benchmarks import databases
from benchmarks.contestants import common

SUCCEEDED = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"


class Watch:
    """When the first message came, how many handlers and steps ran, and how late they were."""

    def __init__(self) -> None:
        self.started = 0.0
        self.steps = 0
        self.delays: list[tuple[int, float]] = []
        self._lock = threading.Lock()

    def step(self, order: dict[str, Any]) -> int:
        """The step's body, the same for both colours."""
        with self._lock:
            self.started = self.started or time.perf_counter()
            self.steps += 1
        return order["amount"]

    def arrived(self, order: dict[str, Any]) -> None:
        """A handler was called."""
        if "sent_at" in order:
            self.delays.append((order["order_id"], time.time() - order["sent_at"]))


watch = Watch()


@DBOS.step()
def charge(order: dict[str, Any]) -> int:
    return watch.step(order)


@DBOS.step()
async def charge_async(order: dict[str, Any]) -> int:
    return watch.step(order)


def bill(message: KafkaMessage) -> int:
    order = _order(message)
    watch.arrived(order)
    return charge(order)


async def bill_async(message: KafkaMessage) -> int:
    order = _order(message)
    watch.arrived(order)
    return await charge_async(order)


def _order(message: KafkaMessage) -> dict[str, Any]:
    return orjson.loads(message.value or b"")


def consume(arguments: Any) -> None:
    """Register the consumer: the received time is that of the fetched batch, seen at the first call."""
    handler: Any = bill_async if arguments.kind == "async" else bill
    kafka = {"bootstrap.servers": arguments.bootstrap, "group.id": arguments.group}
    DBOS.kafka_consumer(kafka, [arguments.topic], ordering=arguments.ordering)(DBOS.workflow()(handler))


def results(dsn: str, count: int) -> tuple[list[tuple[float, int]], float]:
    """Watch the results come in; returns (time, results so far) and the time of the last one."""
    curve: list[tuple[float, int]] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            row = connection.execute(SUCCEEDED).fetchone()
            done, now = row[0] if row else 0, time.perf_counter()
            curve.append((now, done))
            if done >= count:
                return curve, now
            time.sleep(0.1)


def steady(curve: list[tuple[float, int]], count: int) -> float:
    """The rate between a tenth and nine tenths of all results."""
    inner = [point for point in curve if 0.1 * count <= point[1] <= 0.9 * count]
    if len(inner) < 2 or inner[-1][0] <= inner[0][0]:
        return 0.0
    return (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kind", choices=["sync", "async"], default="sync")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ordering", choices=["none", "partition"], default="none")
    parser.add_argument("--latency", action="store_true")
    arguments = parser.parse_args()
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": arguments.dsn,
        "application_version": "1",
        "log_level": "ERROR",
    }
    if arguments.threads:
        config["max_executor_threads"] = arguments.threads
    DBOS(config=config)
    DBOS.migrate(arguments.dsn)
    consume(arguments)
    before = databases.wal(arguments.dsn)
    DBOS.launch()
    print("ready", flush=True)
    curve, ended = results(arguments.dsn, arguments.count)
    seconds, even = ended - watch.started, steady(curve, arguments.count)
    after = databases.wal(arguments.dsn)
    DBOS.destroy()
    common.report(
        arguments.count,
        min(seconds, arguments.count / even) if even else seconds,
        whole_rate=arguments.count / seconds,
        steady_rate=even,
        steps=watch.steps,
        wal_bytes=after - before,
        **({"delays": watch.delays} if arguments.latency else {}),
    )


if __name__ == "__main__":
    main()
