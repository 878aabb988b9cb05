"""One body, two workflows: an async one and a sync one, through the public API only.

A body is a generator that yields what it would await: `yield do.sleep(1)` is `await durable.sleep(1)` in the async
workflow and `sync.sleep(1)` in the sync one. What never waits (`durable.now()`) it calls itself.
"""

import asyncio
import functools
import inspect
import time
import typing
from collections import defaultdict
from collections.abc import Callable, Generator
from typing import Any, Literal, TypeVar

import eventflow
from eventflow import durable, sync
from tests.patience import until_next_look

T = TypeVar("T")
Colour = Literal["async", "sync"]
COLOURS: tuple[Colour, ...] = ("async", "sync")
Body = Generator[Callable[[], Any], Any, T]


class Do:
    """The verbs of one colour, as what is to be done when yielded."""

    def __init__(self, colour: Colour) -> None:
        self.colour: Colour = colour

    def __getattr__(self, verb: str) -> Callable[..., Callable[[], Any]]:
        verbs = durable if self.colour == "async" else sync
        return lambda *args, **kwargs: lambda: getattr(verbs, verb)(*args, **kwargs)

    def start(self, pair: "Pair", *args: Any, **options: Any) -> Callable[[], Any]:
        verb: Any = eventflow.start if self.colour == "async" else sync.start
        return lambda: verb(pair[self.colour], *args, **options)

    def call(self, pair: "Pair", *args: Any) -> Callable[[], Any]:
        return lambda: pair[self.colour](*args)

    def gather(self, *bodies: Body[Any]) -> Callable[[], Any]:
        if self.colour == "async":
            return lambda: asyncio.gather(*map(drive, bodies))
        return lambda: sync.gather(*(functools.partial(drive_sync, body) for body in bodies))


async def drive(body: Body[T]) -> T:
    send, value = body.send, None
    try:
        while True:
            operation = send(value)
            try:
                value = await operation()
                send = body.send
            except BaseException as error:
                send, value = body.throw, error  # type: ignore[assignment]
    except StopIteration as stop:
        return stop.value


def drive_sync(body: Body[T]) -> T:
    send, value = body.send, None
    try:
        while True:
            operation = send(value)
            try:
                value = operation()
                send = body.send
            except BaseException as error:
                send, value = body.throw, error  # type: ignore[assignment]
    except StopIteration as stop:
        return stop.value


class Pair(dict[Colour, Any]):
    """The workflows of one body, by colour."""


def both(body: Callable[..., Body[Any]] | None = None, /, **options: Any) -> Any:
    """Make a body an async and a sync workflow, with the options of `@workflow`."""
    if body is None:
        return lambda body: both(body, **options)
    function: Callable[..., Body[Any]] = body

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        return await drive(function(Do("async"), *args, **kwargs))

    def run_sync(*args: Any, **kwargs: Any) -> Any:
        return drive_sync(function(Do("sync"), *args, **kwargs))

    pair = Pair()
    hints = typing.get_type_hints(function)
    result = typing.get_args(hints.pop("return"))[2]
    parameters = [
        p.replace(annotation=hints.get(p.name, p.empty))
        for p in list(inspect.signature(function).parameters.values())[1:]
    ]
    for colour, run in (("async", run_async), ("sync", run_sync)):
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty} | {
            "return": result
        }
        name = options.get("name", f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}")
        pair[colour] = eventflow.workflow(**(options | {"name": f"{name} {colour}"}))(run)
    return pair


# ---- what has been seen, by workflow ---------------------------------------------------------------

_seen: dict[str, list[Any]] = defaultdict(list)


def trace(what: Any) -> None:
    """Note that this has happened in the workflow that this code runs in."""
    _seen[durable.workflow_id()].append(what)


def traced(workflow_id: str) -> list[Any]:
    return list(_seen[workflow_id])


def until(condition: Callable[[], T], timeout: float = 10) -> T:
    """Poll until it is true; its value."""
    began = time.monotonic()
    while not (value := condition()):
        passed = time.monotonic() - began
        assert passed < timeout, "did not come true"
        time.sleep(until_next_look(passed))
    return value
