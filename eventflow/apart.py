"""Blocking calls that a loop waits for, each in a thread of its own: those without which no executor begins or ends.

`asyncio.to_thread` shares its few threads with the user's code. Where that hangs in all of them, as on a network that is
gone, a process that was fenced could neither end its executor nor begin the next.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def apart(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """What the function returns or raises; whoever is cancelled meanwhile leaves it to itself."""
    future: Future[R] = Future()
    future.set_running_or_notify_cancel()  # so that a cancellation leaves it as it is, for the thread to set

    def call() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(call,), name="eventflow apart", daemon=True).start()
    return await asyncio.wrap_future(future)
