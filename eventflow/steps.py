"""Steps: what runs at least once until its result is recorded, and never after that.

A wrapper decides one thing: where it is called. Outside a workflow a step is the plain function; inside, the step protocol
of `replay` runs it, by one of the two drivers here.
"""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, cast, overload

from typing_extensions import TypeVar

from eventflow.codec import Codec, codec_for, decode_error, encode_error
from eventflow.context import StepScope, checked, current, current_branch, refuse_sync_workflow, runtime, would_block
from eventflow.errors import Cancelled
from eventflow.registry import check_function, check_name, colour_async, innermost, is_async, result_codec
from eventflow.replay import BARRIER, CALL, Await, Branch, Kind
from eventflow.replay import step as run_protocol
from eventflow.retry import Retry, Seconds, as_retry, seconds

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class StepSpec:
    """A `@step`."""

    name: str
    function: Callable[..., Any]
    policy: Retry
    timeout: float | None = None

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)

    @classmethod
    def ours(cls, name: str, call: Callable[..., Any], result: type[Any]) -> "StepSpec":
        """A step that is no function of the user's: what it gives is of this type, and it is tried once."""
        spec = cls(name, call, Retry(0))
        spec.__dict__["result"] = codec_for(result)
        return spec

    def called_by(self, call: Callable[..., Any]) -> "StepSpec":
        """The same step, whose function `call` calls in a way of its own."""
        spec = StepSpec(self.name, call, self.policy, self.timeout)
        spec.__dict__["result"] = self.result  # `call` has no annotations
        return spec

    @functools.cached_property
    def kind(self) -> Kind:
        """What the step protocol wants to know of it."""
        codec = self.result
        return Kind(
            self.name, self.policy, codec.encode, codec.decode, encode_error, decode_error, time.perf_counter
        )  # fmt: skip


async def drive(branch: Branch | None, spec: StepSpec, args: Any, kwargs: Any) -> Any:
    """The async driver of the step protocol; `branch`: None for the one that this is awaited in, if it is in one."""
    if branch is None:
        branch = current_branch()
        if branch is None:
            return await spec.function(*args, **kwargs)
    run, executor = branch.run, branch.run.executor
    await checked(branch)
    position = branch.next_position()
    scope = StepScope(branch, position, spec.name)
    procedure = run_protocol(run.history, position, spec.kind, run.settled, executor.pace, scope)
    send: Callable[[Any], Any] = procedure.send
    outcome: Any = None
    function = spec.function if run.trace is None else run.trace.around("step", spec.function, spec.name, position)
    limit = spec.timeout
    acting = False
    try:
        if run.life is not None:
            await executor.interrupts.begin(branch, position)
        while True:
            effect = send(outcome)
            send, outcome = procedure.send, None
            if acting is (type(effect) is Await):
                acting = not acting
                run.acting += 1 if acting else -1
            if effect is CALL:
                attempt = scope if limit is None else scope.attempt()
                token = current.set(attempt)
                try:
                    called = function(*args, **kwargs)
                    outcome = await (called if limit is None else _within(limit, spec.name, called))
                    scope.riders = attempt.riders
                except BaseException as error:
                    attempt.left = attempt is not scope
                    if scope.progress is not None:
                        executor.keep_details(scope)  # now: the run may leave memory, or the process end
                    if not isinstance(error, Exception):
                        raise
                    send, outcome = procedure.throw, error
                finally:
                    current.reset(token)
            elif effect is BARRIER:
                await executor.barrier(run)
            elif acting:
                await asyncio.sleep(cast("float", effect))
            else:
                await executor.wait(run, cast("Await", effect))
            executor.check(run, branch.attempt)
    except StopIteration as stop:
        return stop.value
    except asyncio.CancelledError:
        executor.interrupts.told(branch, position)
        raise
    finally:
        run.acting -= acting
        executor.recorded(run)


async def _within(limit: float, name: str, called: Coroutine[Any, Any, Any]) -> Any:
    """What was called, cancelled when its time is over."""
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            return await called
    except TimeoutError:
        if scope.expired():
            raise TimeoutError(f"the step {name!r} took longer than {limit:g} s") from None
        raise


def drive_sync(branch: Branch, spec: StepSpec, args: Any, kwargs: Any) -> Any:
    """The sync driver of the step protocol; the run's lock keeps its history from the loop and from other branches."""
    run, executor = branch.run, branch.run.executor
    executor.check(run)
    position = branch.next_position()
    scope = StepScope(branch, position, spec.name)
    procedure = run_protocol(run.history, position, spec.kind, run.settled, executor.pace, scope)
    send: Callable[[Any], Any] = procedure.send
    outcome: Any = None
    function = spec.function if run.trace is None else run.trace.around_sync("step", spec.function, spec.name, position)
    limit = spec.timeout
    acting = False
    try:
        if run.life is not None:
            executor.interrupts.begin_sync(branch, position)
        while True:
            with run.lock:
                effect = send(outcome)
                send, outcome = procedure.send, None
                if acting is (type(effect) is Await):
                    acting = not acting
                    run.acting += 1 if acting else -1
            if type(effect) is Await:
                executor.wait_sync(branch, effect)
            elif effect is CALL:
                executor.interrupts.raise_if_interrupted(branch)
                attempt = scope if limit is None else scope.attempt()
                token = current.set(attempt)
                try:
                    if limit is None:
                        outcome = function(*args, **kwargs)
                    else:
                        outcome = _within_sync(limit, spec.name, functools.partial(function, *args, **kwargs))
                    scope.riders = attempt.riders
                except BaseException as error:
                    attempt.left = attempt is not scope
                    if scope.progress is not None:
                        executor.keep_details(scope)
                    if not isinstance(error, Exception):
                        raise
                    send, outcome = procedure.throw, error
                finally:
                    current.reset(token)
            elif effect is BARRIER:
                executor.barrier_sync(run)
            else:
                executor.pause_sync(run, cast("float", effect))
    except StopIteration as stop:
        return stop.value
    except Cancelled:
        executor.interrupts.told(branch, position)
        raise
    finally:
        with run.lock:
            run.acting -= acting
        executor.recorded(run)


def _within_sync(limit: float, name: str, call: Callable[[], Any]) -> Any:
    """What was called, in a thread that is left to itself when its time is over; what it still returns is dropped."""
    app, context = runtime(f"the timeout of the step {name!r}"), copy_context()
    scope = app.on_loop(_left_alone(app.in_thread(lambda: context.run(call)), limit))
    if scope is None:
        raise TimeoutError(f"the step {name!r} took longer than {limit:g} s")
    return scope[0]


async def _left_alone(work: Coroutine[Any, Any, Any], limit: float) -> tuple[Any] | None:
    """The result in a tuple; None when it did not come in time."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=limit)
    if task.done():
        return (task.result(),)
    task.cancel()
    return None


def step_of(function: Callable[..., Any], name: str | None, retries: int | Retry, timeout: Seconds | None) -> StepSpec:
    """What `run_step` runs: the function as it is, with all its decorators; a `@step`'s name and policy, if not given."""
    declared = getattr(function, "__eventflow_step__", None)  # a user's `functools.wraps` above `@step` hands it on
    if isinstance(declared, StepSpec):
        policy = declared.policy if retries == 0 else as_retry(retries)
        limit = declared.timeout if timeout is None else seconds(timeout, "timeout")
        spec = StepSpec(check_name(name or declared.name), function, policy, limit)
        spec.__dict__["result"] = declared.result
        return spec
    limit = None if timeout is None else seconds(timeout, "timeout")
    return StepSpec(check_name(name or innermost(function).__qualname__), function, as_retry(retries), limit)


@overload
def step(function: F, /) -> F: ...
@overload
def step(*, name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None) -> Callable[[F], F]: ...
def step(
    function: F | None = None, /, *, name: str | None = None, retries: int | Retry = 0, timeout: Seconds | None = None
) -> F | Callable[[F], F]:
    """Make a function a step: in a workflow its result is recorded, and a replay returns the record.

    Runs at least once until its checkpoint is durable, and never after that. Outside a workflow, and inside another
    step, it is the plain function. `retries` counts attempts after the first; where they may be far apart they are
    recorded, and a crash does not start them over. `timeout` is how many seconds an attempt may take, which then fails with
    `TimeoutError`: an async one is cancelled, a sync one left to itself, and may run beside the next.

    Raises:
        UsageError: what is decorated is no function.

    """

    def decorate(function: F) -> F:
        check_function(function, "step")
        limit = None if timeout is None else seconds(timeout, "timeout")
        spec = StepSpec(check_name(name or function.__qualname__), function, as_retry(retries), limit)
        return cast("F", _async_step(spec) if is_async(function) else _sync_step(spec))

    return decorate if function is None else decorate(function)


def _async_step(spec: StepSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        refuse_sync_workflow("the step", spec.name)
        return drive(None, spec, args, kwargs)

    call.__eventflow_step__ = spec  # type: ignore[attr-defined]
    return colour_async(call)


def _sync_step(spec: StepSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        branch = current_branch()
        if branch is None:
            return spec.function(*args, **kwargs)
        if not isinstance(branch.home, threading.Thread):
            raise would_block(f"the sync step {spec.name!r}", "await eventflow.durable.run_step(...)")
        return drive_sync(branch, spec, args, kwargs)

    call.__eventflow_step__ = spec  # type: ignore[attr-defined]
    return call
