"""What both standalone contestants share: their arguments, their callers, the order of a run, the figures at its end.

*Standalone* are workflows that no message starts: a program calls or enqueues them. Every one of `--callers` callers has
one of them under way at a time, and begins the next when it has the result. Each run begins with some that are not
measured, so that connections are open and statements are prepared on both sides; what is verified includes them.
"""

import argparse
import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks import databases
from benchmarks.contestants import common
from benchmarks.contestants.entries import ENTRIES

WORKS = ("direct", "three", "queued", "fan-out", "sleep", "session", "psycopg", "datasource", "latency")
TRANSACTIONAL = ("session", "psycopg", "datasource")
PAUSE = 0.02  # seconds between two calls of a caller whose latency is measured: the process is idle when one comes
WARM = {"latency": 20, "fan-out": 50}  # how many are not measured; of the others, one for each caller
STUCK = 280.0  # seconds
Batch = Callable[[Iterable[int]], Awaitable[int]]
Ended = Callable[[int], Awaitable[float]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every standalone contestant takes."""
    arguments = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    arguments.add_argument("--dsn", required=True)
    arguments.add_argument("--count", type=int, required=True, help="workflows that are measured")
    arguments.add_argument("--callers", type=int, default=1, help="how many are under way at once")
    arguments.add_argument("--work", choices=WORKS, required=True)
    arguments.add_argument("--colour", choices=["async", "sync"], default="async")
    arguments.add_argument("--unlimited", action="store_true", help="queued: without a limit of the queue's own")
    arguments.add_argument("--uvloop", action="store_true")
    return arguments


class Bodies:
    """Counts how often a step's function ran, from any thread."""

    def __init__(self) -> None:
        self.ran = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.ran += 1


@dataclass(slots=True)
class Figures:
    """What one run came to: how long it took, and what else was seen."""

    seconds: float = 0.0
    total: int = 0  # of all results, those of the warm-up included
    wal: int = 0
    cpu: float = 0.0  # seconds of this process's
    before: float = 0.0  # resident memory before and at most, in MiB
    peak: float = 0.0

    def report(self, count: int, warm: int, bodies: Bodies, **more: object) -> None:
        """Print it as the last line, for the parent."""
        common.report(
            count, self.seconds, cpu_seconds=self.cpu, warm=warm, total=self.total, ran=bodies.ran, wal_bytes=self.wal,
            before_mib=self.before, peak_mib=self.peak, **more,
        )  # fmt: skip


def prepare(dsn: str, work: str) -> None:
    """The user's own table, where there is one."""
    if work in TRANSACTIONAL:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(ENTRIES)


def tune() -> None:
    """Freeze what start-up made and collect garbage less often: for both sides alike."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


# ---- callers ---------------------------------------------------------------------------------------


def tasks(call: Callable[[int], Awaitable[int]], callers: int) -> Batch:
    """Call it with each number, so many tasks side by side; the sum of the results."""

    async def batch(numbers: Iterable[int]) -> int:
        shared = iter(numbers)

        async def caller() -> int:
            return sum([await call(n) for n in shared])

        return sum(await asyncio.gather(*(caller() for _ in range(callers))))

    return batch


def threads(call: Callable[[int], int], callers: int) -> Batch:
    """The same with so many threads, and the loop beside them."""
    pool = ThreadPoolExecutor(callers)

    async def batch(numbers: Iterable[int]) -> int:
        shared = iter(numbers)  # of a range: `next` is one operation, whichever thread asks
        loop = asyncio.get_running_loop()
        parts = [loop.run_in_executor(pool, lambda: sum(map(call, shared))) for _ in range(callers)]
        return sum(await asyncio.gather(*parts))

    return batch


# ---- a run -----------------------------------------------------------------------------------------


async def measure(
    dsn: str, batch: Batch, warm: Sequence[int], measured: Sequence[int], ended: Ended | None = None
) -> Figures:
    """A batch that is not measured, then one that is; `ended` waits until so many have, where a call does not."""
    figures = Figures(total=await batch(warm))
    if ended is not None:
        await ended(len(warm))
    tune()
    figures.before, figures.peak = common.resident(), 0.0
    sampler = asyncio.create_task(_sample(figures))
    before, cpu, started = databases.wal(dsn), time.process_time(), time.perf_counter()
    figures.total += await batch(measured)
    finished = time.perf_counter() if ended is None else await ended(len(warm) + len(measured))
    figures.seconds, figures.cpu = finished - started, time.process_time() - cpu
    figures.wal = databases.wal(dsn) - before
    sampler.cancel()
    figures.peak = max(figures.peak, common.resident())
    return figures


async def _sample(figures: Figures) -> None:
    while True:
        figures.peak = max(figures.peak, common.resident())
        await asyncio.sleep(0.1)


def ended_in(dsn: str, query: str, bodies: Bodies) -> Ended:
    """Waits until the database says that so many have ended; it is asked when so many bodies have run."""

    def wait(wanted: int) -> float:
        deadline = time.monotonic() + STUCK
        while bodies.ran < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        with psycopg.connect(dsn, autocommit=True) as connection:
            while True:
                row = connection.execute(query.encode()).fetchone()
                if row is not None and row[0] >= wanted:
                    return time.perf_counter()
                if time.monotonic() > deadline:
                    raise SystemExit(f"stuck: {row} of {wanted} ended, {bodies.ran} bodies ran")
                time.sleep(0.005)

    async def ended(wanted: int) -> float:
        return await asyncio.to_thread(wait, wanted)

    return ended


async def play(arguments: argparse.Namespace, call: Any, ended: Ended, bodies: Bodies) -> None:
    """One run of this call by these callers, warmed up, measured and reported."""
    count, work, sync = arguments.count, arguments.work, arguments.colour == "sync"
    delays: list[float] = []
    if work == "latency":
        call = (timed_sync if sync else timed)(call, delays)
    batch: Batch = (threads if sync else tasks)(call, arguments.callers)
    warm = WARM.get(work, arguments.callers)
    if work == "fan-out":  # one call each: a number is how many children
        parts: tuple[Sequence[int], Sequence[int]] = ([warm], [count])
    else:
        parts = (range(warm), range(warm, warm + count))
    figures = await measure(arguments.dsn, batch, *parts, ended if work == "queued" else None)
    figures.report(count, warm, bodies, **({"delays": delays[warm:]} if delays else {}))


# ---- one at a time -----------------------------------------------------------------------------------


def timed(call: Callable[[int], Awaitable[int]], delays: list[float]) -> Callable[[int], Awaitable[int]]:
    """The same call after a pause, and how long it took, in seconds."""

    async def pause_and_call(n: int) -> int:
        await asyncio.sleep(PAUSE)
        began = time.perf_counter()
        result = await call(n)
        delays.append(time.perf_counter() - began)
        return result

    return pause_and_call


def timed_sync(call: Callable[[int], int], delays: list[float]) -> Callable[[int], int]:
    """The same for a blocking call."""

    def pause_and_call(n: int) -> int:
        time.sleep(PAUSE)
        began = time.perf_counter()
        result = call(n)
        delays.append(time.perf_counter() - began)
        return result

    return pause_and_call
