"""What is no rate: latency, round trips per message, an idle process's transactions, memory over many messages."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import databases, orders, verify
from benchmarks.catalogue import Contestant, contestants
from benchmarks.proxy import Proxy
from benchmarks.runs import Child, FailedError, arguments, process, verified
from benchmarks.services import Addresses

Figures = dict[str, Any]
MODULE = (sys.executable, "-m")
LATENCY = Contestant(
    "eventflow-latency",
    "eventflow, two steps, async",
    (*MODULE, "benchmarks.contestants.eventflow_latency"),
    "fast",
    verify.two_steps,
    "asyncio",
)
DBOS_LATENCY = Contestant(
    "dbos-latency",
    "DBOS 3.4, one step, sync",
    (*MODULE, "benchmarks.contestants.dbos_workflow", "--latency"),
    "dbos",
    verify.dbos,
)
WARM_UP = 5.0  # seconds of messages that are sent and not counted: a broker that has just begun compiles its own code
SETTLE = 3.0  # seconds between a process's start and what is measured of it
WINDOW, WINDOWS = 10.0, 3  # for idle transactions


def latency(where: Addresses, contestant: Contestant, rate: float, seconds: float) -> Figures:
    """Produce at a steady rate from a process of its own; how late is each message?"""
    count, warm = int(rate * (seconds + WARM_UP)), int(rate * WARM_UP)
    with _new_topic(where) as topic, databases.fresh(where.database_url) as dsn:
        command = arguments(contestant, dsn, where.bootstrap, topic, count)
        with process(command) as child:
            child.line("ready")
            time.sleep(SETTLE)
            _send(where, topic, rate, count)
            report = child.finish(count, 60)
        verified(dsn, count, report, contestant.verify)
    figures: Figures = {"contestant": contestant.name, "rate": rate, "messages": count - warm}
    for name, key in (("handled", "delays"), ("durable", "durable_delays")):
        if key in report:
            figures[name] = percentiles([d for order_id, d in report[key] if order_id >= warm])
    return figures


def _send(where: Addresses, topic: str, rate: float, count: int) -> None:
    command = (*MODULE, "benchmarks.producer", "--bootstrap", where.bootstrap, "--topic", topic)
    with process([*command, "--rate", str(rate), "--count", str(count)]) as producer:
        producer.popen.wait(timeout=count / rate + 60)
        if producer.popen.returncode:
            raise FailedError(f"the producer failed{producer.complaint()}")


def percentiles(delays: Sequence[float]) -> dict[str, float]:
    """Of delays in seconds; in milliseconds."""
    inner = sorted(delay * 1000 for delay in delays)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    last = len(inner) - 1
    return {name: inner[min(last, int(place * len(inner)))] for name, place in places.items()}


@contextmanager
def _new_topic(where: Addresses, count: int = 0) -> Iterator[str]:
    with orders.topic(where.bootstrap) as topic:
        orders.fill(where.bootstrap, topic, count)
        yield topic


def round_trips(where: Addresses, name: str, topic: str, count: int) -> Figures:
    """Count how often the library waits for PostgreSQL, through a proxy; its rate is not looked at."""
    [contestant] = contestants([name])
    with databases.fresh(where.database_url) as dsn, Proxy(dsn) as proxy:
        command = arguments(contestant, dsn, where.bootstrap, topic, count)
        with process(_through(command, contestant, proxy.address)) as child:
            report = child.finish(count)
        verified(dsn, count, report, contestant.verify)
        trips = proxy.trips
    return {"contestant": name, "messages": count, "trips": trips, "per_message": trips / count}


def _through(command: list[str], contestant: Contestant, address: str) -> list[str]:
    if contestant.name.startswith("eventflow"):
        return [*command, "--through", address]
    place = command.index("--dsn") + 1
    return [*command[:place], address, *command[place + 1 :]]


def idle(where: Addresses) -> Figures:
    """Transactions per second of a process that has a consumer, a schedule and nothing to do; the median of windows."""
    [contestant] = contestants(["eventflow-async"])
    with _new_topic(where) as topic, databases.fresh(where.database_url) as dsn, ExitStack() as end:
        command = arguments(contestant, dsn, where.bootstrap, topic, 1)
        child = end.enter_context(process([*command, "--idle"], stdin=subprocess.PIPE))
        child.line("ready")
        time.sleep(SETTLE)
        rates = [_transactions_per_second(where, dsn) for _ in range(WINDOWS)]
        _check_alive(child)
    return {"windows": rates, "per_second": statistics.median(rates)}


def _transactions_per_second(where: Addresses, dsn: str) -> float:
    before, started = databases.transactions(where.database_url, dsn), time.perf_counter()
    time.sleep(WINDOW)
    after = databases.transactions(where.database_url, dsn)
    return (after - before) / (time.perf_counter() - started)


def _check_alive(child: Child) -> None:
    if child.popen.poll() is not None:
        raise FailedError(f"the idle process ended{child.complaint()}")


def memory(where: Addresses, count: int, say: Callable[[str], None]) -> Figures:
    """Resident memory of one process over `count` messages: the last quarter against the second."""
    [contestant] = contestants(["eventflow-async"])
    limit = 120 + count / 2000
    say(f"filling a topic with {count:,} orders")
    with _new_topic(where, count) as topic, databases.fresh(where.database_url) as dsn:
        command = arguments(contestant, dsn, where.bootstrap, topic, count)
        with process([*command, "--memory", "--limit", str(limit)]) as child:
            report = child.finish(count, limit + 60)
        verified(dsn, count, report, contestant.verify)
    samples: list[tuple[int, float]] = report["memory"]
    second = [mib for handled, mib in samples if 0.25 * count <= handled < 0.5 * count]
    last = [mib for handled, mib in samples if 0.75 * count <= handled < count]
    return {
        "messages": count,
        "rate": report["rate"],
        "second_quarter_mib": statistics.median(second or [0.0]),
        "last_quarter_mib": statistics.median(last or [0.0]),
        "samples": samples[:: max(1, len(samples) // 40)],
    }
