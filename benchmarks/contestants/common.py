"""What the contestants share: their arguments, the stopwatch, the one line of JSON at the end."""

import argparse
import asyncio
import itertools
import json
import resource
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every contestant takes."""
    arguments = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    arguments.add_argument("--dsn", required=True)
    arguments.add_argument("--bootstrap", required=True)
    arguments.add_argument("--topic", required=True)
    arguments.add_argument("--group", required=True)
    arguments.add_argument("--count", type=int, required=True)
    arguments.add_argument("--uvloop", action="store_true")
    return arguments


def run(main: Coroutine[Any, Any, None], *, uvloop: bool) -> None:
    """Run a coroutine on asyncio's own loop or on uvloop."""
    if uvloop:
        import uvloop as fast

        fast.run(main)
    else:
        asyncio.run(main)


class Tally:
    """Counts handled messages from any thread; `wanted` of them make it full."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.handled = 0
        self.started = 0.0
        self.full = asyncio.Event()
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    def add(self) -> None:
        """One message arrived at its handler."""
        if not self.started:
            self.started = time.perf_counter()
        self.handled = number = next(self._numbers)
        if number == self.wanted:
            self._loop.call_soon_threadsafe(self.full.set)


def resident() -> float:
    """This process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def report(count: int, seconds: float, **more: object) -> None:
    """Print the result as the last line, for the parent to read."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "rate": count / seconds,
                "count": count,
                "seconds": seconds,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "max_rss_mb": usage.ru_maxrss / 1024,
                **more,
            }
        ),
        flush=True,
    )
