"""What tests put together without services."""

import asyncio
import random
import time

from eventflow.executor import Executor


def new_executor(*, accept_after: float = 10.0, threads: int = 1) -> Executor:
    """One on the running loop, whose waits no ledger answers."""
    return Executor(
        asyncio.get_running_loop(),
        accept_after=accept_after, threads=threads, draw=random.random, now=time.time, ask=lambda *_: None,
    )  # fmt: skip
