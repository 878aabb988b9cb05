"""What users declare: workflows, steps, transactions, Kafka handlers. Decorators register and wrap thinly.

A wrapper decides one thing: where it is called. Outside a workflow a step is the plain function; inside, the step
protocol of `replay` runs it. What needs the running application (starting, transactions) goes through the one slot
`runtime`, which `running()` fills.
"""

import asyncio
import functools
import inspect
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, cast, overload

from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.codec import Arguments, Codec, codec_for, decode_error, encode_error
from eventflow.errors import BlockingCallError, NotRunningError, UsageError
from eventflow.idempotency import step_idempotency_key
from eventflow.kafka import Message, Reader, message_reader
from eventflow.replay import BARRIER, CALL, Branch, Effect
from eventflow.replay import step as run_protocol
from eventflow.retry import Retry, as_retry
from eventflow.settings import KafkaProperties, check_kafka_properties

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Callable[[Message[Any, Any]], object])
Self_ = TypeVar("Self_")
Ts = TypeVarTuple("Ts")
Ordering = Literal["none", "partition"]
Isolation = Literal["read committed", "repeatable read", "serializable"]


@dataclass(slots=True)
class StepScope:
    """What is current while a step's function runs: durable calls in it are plain, or refused."""

    branch: Branch
    position: str
    name: str


current: ContextVar[Branch | StepScope | None] = ContextVar("eventflow_current", default=None)


# ---- the registry ------------------------------------------------------------------------------


@dataclass
class Spec:
    """A registered workflow, or a Kafka handler, which is one whose input is a message."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    retry: Retry
    recoveries: int
    file: str
    line: int
    consumer: "ConsumerSpec | None" = None

    @functools.cached_property
    def arguments(self) -> Arguments:
        return Arguments(self.function)

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)

    @functools.cached_property
    def reader(self) -> Reader:
        return message_reader(message_annotation(self.function))


@dataclass
class ConsumerSpec:
    """One `@kafka_consumer`: what is read, by which group, in which order, by what."""

    topics: tuple[str, ...]
    group: str
    ordering: Ordering
    start: Literal["earliest", "latest"]
    identity: Literal["topic_id", "name"]
    max_in_flight: int | None
    kafka: KafkaProperties
    spec: Spec
    transaction: "TransactionSpec | None"


@dataclass
class TransactionSpec:
    """A `@transaction`: the function, what it wants as its connection, and how it commits."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    flavour: Literal["session", "async session", "connection", "async connection"]
    leading: int
    isolation: Isolation | None
    retry: Retry

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)


@dataclass
class Registry:
    """Everything that this process has declared."""

    specs: dict[str, Spec] = field(default_factory=dict[str, Spec])
    consumers: list[ConsumerSpec] = field(default_factory=list[ConsumerSpec])
    lifespans: list[Callable[[], Any]] = field(default_factory=list[Callable[[], Any]])

    def add(self, spec: Spec) -> None:
        """Register a workflow by its name.

        Raises:
            UsageError: another function has the name.

        """
        known = self.specs.get(spec.name)
        if known is not None and not _same_source(known, spec):
            raise UsageError(
                f"two workflows are named {spec.name!r}: {known.file}:{known.line} and "
                f"{spec.file}:{spec.line}; give one another name="
            )
        if known is not None:
            self.consumers = [c for c in self.consumers if c.spec is not known]
        self.specs[spec.name] = spec

    def add_consumer(self, consumer: ConsumerSpec) -> None:
        """Register a Kafka handler.

        Raises:
            UsageError: its group already reads one of its topics, or the name is taken.

        """
        self.add(consumer.spec)
        for other in self.consumers:
            both = set(other.topics) & set(consumer.topics)
            if other.group == consumer.group and both:
                del self.specs[consumer.spec.name]
                raise UsageError(
                    f"two handlers read topic {min(both)!r} in group {consumer.group!r}: "
                    f"{other.spec.name!r} and {consumer.spec.name!r}; give each its own group="
                )
        self.consumers.append(consumer)


registry = Registry()


def _same_source(known: Spec, new: Spec) -> bool:
    return (known.file, known.line) == (new.file, new.line) or new.file.startswith("<")


def make_spec(function: Callable[..., Any], name: str | None, retry: Retry, recoveries: int) -> Spec:
    """What the decorators register of a function."""
    plain = inspect.unwrap(function)
    code = plain.__code__
    if recoveries < 0:
        raise UsageError("recoveries= can not be negative")
    return Spec(
        name=check_name(name or plain.__qualname__),
        function=function,
        is_async=inspect.iscoroutinefunction(plain),
        retry=retry,
        recoveries=recoveries,
        file=str(Path(code.co_filename).resolve()) if code.co_filename[:1] != "<" else code.co_filename,
        line=code.co_firstlineno,
    )


def check_name(name: str) -> str:
    """Refuse a name that the ledger could not hold or people could not read."""
    if not name or len(name) > 300 or not name.isprintable():
        raise UsageError(f"not a name for a workflow or step: {name!r}")
    return name


def check_function(function: object, decorator: str) -> None:
    """Refuse what is no function: a class, a partial, a call's result."""
    if not inspect.isfunction(inspect.unwrap(cast("Any", function))):
        raise UsageError(f"@{decorator} decorates functions, not {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(f"@{decorator} cannot decorate the generator {function!r}")


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's resolved annotations.

    Raises:
        UsageError: one names something that does not exist.

    """
    import typing

    plain = inspect.unwrap(function)
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except Exception as error:
        raise UsageError(f"the annotations of {plain.__qualname__} cannot be resolved: {error}") from None


def result_codec(function: Callable[..., Any]) -> Codec:
    """The codec of what the function returns."""
    return codec_for(hints(function).get("return", inspect.Parameter.empty))


def message_annotation(function: Callable[..., Any]) -> Any:
    """The annotation of a handler's message: its last positional parameter."""
    plain = inspect.unwrap(function)
    parameters = [
        p for p in inspect.signature(plain).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if not parameters:
        raise UsageError(f"the handler {plain.__qualname__} must take a Message")
    annotation = hints(plain).get(parameters[-1].name, Message)
    if annotation is not Message and getattr(annotation, "__origin__", None) is not Message:
        raise UsageError(f"the handler {plain.__qualname__} must take a Message[...], not {annotation!r}")
    return annotation


# ---- the running application ---------------------------------------------------------------------


class Runtime(Protocol):
    """What the running application does for the verbs; `app` provides it."""

    def start_soon(self, spec: Spec, arguments: str, workflow_id: str | None, if_exists: str) -> Any: ...
    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any: ...
    async def transact(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    def transact_sync(self, spec: TransactionSpec, branch: Branch | None, args: Any, kwargs: Any) -> Any: ...
    async def in_thread(self, function: Callable[[], R]) -> R: ...
    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R: ...


@dataclass
class _Slot:
    runtime: Runtime | None = None


slot = _Slot()


def runtime(what: str) -> Runtime:
    """The running application.

    Raises:
        NotRunningError: there is none.

    """
    if slot.runtime is None:
        raise NotRunningError(f"{what} needs a running eventflow: enter `async with eventflow.running():` first")
    return slot.runtime


def refuse_loop(what: str, instead: str) -> None:
    """Raise where a blocking call would stop this thread's event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise _would_block(what, instead)


def _would_block(what: str, instead: str) -> BlockingCallError:
    return BlockingCallError(f"{what} would block the running event loop; use {instead}")


# ---- where am I --------------------------------------------------------------------------------


def current_branch() -> Branch | None:
    """The workflow branch that this call belongs to; None outside a workflow and inside a step.

    Raises:
        UsageError: from a thread that the workflow does not know.

    """
    branch = current.get()
    if branch is None or type(branch) is StepScope:
        return None
    branch = cast("Branch", branch)
    home = branch.run.executor.home()
    if branch.home is home:
        return branch
    if isinstance(home, threading.Thread):
        raise UsageError(
            "a durable operation from a thread of its own: use sync.gather, which makes a branch for each call"
        )
    child = branch.child(home)
    current.set(child)
    return child


def scope_of(what: str) -> tuple[Any, str]:
    """The run and the position of what runs now."""
    here = current.get()
    if here is None:
        raise UsageError(f"{what} belongs into a workflow or a step")
    if isinstance(here, StepScope):
        return here.branch.run, here.position
    return here.run, ""


# ---- steps -------------------------------------------------------------------------------------


@dataclass
class StepSpec:
    """A `@step`."""

    name: str
    function: Callable[..., Any]
    policy: Retry

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)

    def procedure(self, branch: Branch, position: str) -> "Generator[Effect, Any, Any]":
        """The step protocol for one call of this step."""
        codec = self.result
        return run_protocol(
            branch.run.history, position, self.name, self.policy, codec.encode, codec.decode,
            encode_error, decode_error, branch.run.settled, time.perf_counter, random.random,
        )  # fmt: skip


async def drive(branch: Branch, spec: StepSpec, args: Any, kwargs: Any) -> Any:
    """The async driver of the step protocol."""
    run, executor = branch.run, branch.run.executor
    executor.check(run)
    position = branch.next_position()
    procedure = spec.procedure(branch, position)
    send: Callable[[Any], Any] = procedure.send
    outcome: Any = None
    function, scope = spec.function, StepScope(branch, position, spec.name)
    try:
        while True:
            effect = send(outcome)
            send, outcome = procedure.send, None
            if effect is CALL:
                token = current.set(scope)
                try:
                    outcome = await function(*args, **kwargs)
                except Exception as error:
                    send, outcome = procedure.throw, error
                finally:
                    current.reset(token)
            elif effect is BARRIER:
                await executor.barrier(run)
            else:
                await asyncio.sleep(cast("float", effect))
                executor.check(run)
    except StopIteration as stop:
        return stop.value
    finally:
        executor.recorded(run)


def drive_sync(branch: Branch, spec: StepSpec, args: Any, kwargs: Any) -> Any:
    """The sync driver of the step protocol."""
    run, executor = branch.run, branch.run.executor
    executor.check(run)
    position = branch.next_position()
    procedure = spec.procedure(branch, position)
    send: Callable[[Any], Any] = procedure.send
    outcome: Any = None
    function, scope = spec.function, StepScope(branch, position, spec.name)
    try:
        while True:
            effect = send(outcome)
            send, outcome = procedure.send, None
            if effect is CALL:
                token = current.set(scope)
                try:
                    outcome = function(*args, **kwargs)
                except Exception as error:
                    send, outcome = procedure.throw, error
                finally:
                    current.reset(token)
            elif effect is BARRIER:
                executor.barrier_sync(run)
            else:
                executor.pause_sync(run, cast("float", effect))
    except StopIteration as stop:
        return stop.value
    finally:
        executor.recorded(run)


@overload
def step(function: F, /) -> F: ...
@overload
def step(*, name: str | None = None, retries: int | Retry = 0) -> Callable[[F], F]: ...
def step(function: F | None = None, /, *, name: str | None = None, retries: int | Retry = 0) -> F | Callable[[F], F]:
    """Make a function a step: in a workflow its result is recorded, and a replay returns the record.

    Runs at least once until its checkpoint is durable, and never after that. Outside a workflow, and inside another
    step, it is the plain function. `retries` counts attempts after the first; times are in seconds.

    Raises:
        UsageError: what is decorated is no function.

    """

    def decorate(function: F) -> F:
        check_function(function, "step")
        spec = StepSpec(check_name(name or function.__qualname__), function, as_retry(retries))
        return cast("F", _async_step(spec) if inspect.iscoroutinefunction(function) else _sync_step(spec))

    return decorate if function is None else decorate(function)


def _async_step(spec: StepSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        branch = current_branch()
        if branch is None:
            return await spec.function(*args, **kwargs)
        return await drive(branch, spec, args, kwargs)

    return call


def _sync_step(spec: StepSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        branch = current_branch()
        if branch is None:
            return spec.function(*args, **kwargs)
        if not isinstance(branch.home, threading.Thread):
            raise _would_block(f"the sync step {spec.name!r}", "await eventflow.durable.run_step(...)")
        return drive_sync(branch, spec, args, kwargs)

    call.__eventflow_step__ = spec  # type: ignore[attr-defined]
    return call


# ---- workflows ---------------------------------------------------------------------------------


class Workflow(Generic[P, R_co]):
    """A registered workflow. `R_co` is what a call returns: a coroutine, or the result itself if sync.

    Calling it runs it durably under a generated id; `eventflow.start` gives it one of yours.
    """

    def __init__(self, spec: Spec, arguments: str | None = None) -> None:
        self.spec = spec
        self._bound = arguments
        functools.update_wrapper(self, spec.function)

    @property
    def name(self) -> str:
        """The name under which the ledger knows it."""
        return self.spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        encoded = self.encode(args, kwargs)
        if self.spec.is_async:
            return cast("R_co", self._call(encoded))
        refuse_loop(f"the sync workflow {self.name!r}", f"await eventflow.start({self.name}, ...)")
        return cast("R_co", runtime(f"the workflow {self.name!r}").on_loop(self._call(encoded)))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> "Workflow[[], R_co]":
        """A workflow of no arguments: these are its arguments, keywords too.

        Raises:
            UsageError: they do not fit the signature.
            CodecError: one cannot be encoded by its annotation.

        """
        return Workflow(self.spec, self.encode(args, kwargs))

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The arguments as the ledger keeps them."""
        if self._bound is not None:
            if args or kwargs:
                raise UsageError(f"{self.name!r} is bound already and takes no arguments")
            return self._bound
        return self.spec.arguments.encode(tuple(args), dict(kwargs))

    async def _call(self, arguments: str) -> Any:
        here = current.get()
        if isinstance(here, StepScope):
            raise UsageError(f"the workflow {self.name!r} cannot be called in a step or transaction")
        if here is not None:
            raise UsageError(f"{self.name!r}: child workflows are not built yet; call a step")
        app = runtime(f"the workflow {self.name!r}")
        workflow_id = await app.start_soon(self.spec, arguments, None, "attach")
        return await app.result(workflow_id, self.spec.result, None)


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> Workflow[P, R]: ...


@overload
def workflow(function: Callable[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(*, name: str | None = None, retries: int | Retry = 0, recoveries: int = 5) -> _WorkflowDecorator: ...
def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retries: int | Retry = 0,
    recoveries: int = 5,
) -> Any:
    """Make a function a durable workflow: it resumes at its last completed step, in any process.

    Its default name is `__qualname__`. `retries` is a policy for failures; `recoveries` is how many deaths of the
    process that runs it are tolerated before it is parked.

    Raises:
        UsageError: no function, or the name is taken.

    """

    def decorate(function: Callable[..., Any]) -> Workflow[..., Any]:
        check_function(function, "workflow")
        spec = make_spec(function, name, as_retry(retries), recoveries)
        registry.add(spec)
        return Workflow(spec)

    return decorate if function is None else decorate(function)


class AsyncStartable(Protocol[Unpack[Ts], R_co]):
    """An async workflow, as `start` sees it."""

    @property
    def name(self) -> str: ...
    def __call__(self, *args: Unpack[Ts]) -> Coroutine[Any, Any, R_co]: ...


class SyncStartable(Protocol[Unpack[Ts], R_co]):
    """A sync workflow, as `start` sees it."""

    @property
    def name(self) -> str: ...
    def __call__(self, *args: Unpack[Ts]) -> R_co: ...


# ---- transactions ------------------------------------------------------------------------------


def _flavour(function: Callable[..., Any]) -> tuple[Any, int]:
    """Which connection the function wants, and how many parameters stand before it (self)."""
    import psycopg
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    kinds: dict[type, str] = {
        AsyncSession: "async session", Session: "session",
        psycopg.AsyncConnection: "async connection", psycopg.Connection: "connection",
    }  # fmt: skip
    resolved = hints(function)
    names = list(inspect.signature(function).parameters)
    for leading, name in enumerate(names[:2]):
        annotation = resolved.get(name)
        annotation = getattr(annotation, "__origin__", annotation)
        for kind, flavour in kinds.items():
            if isinstance(annotation, type) and issubclass(annotation, kind):
                return flavour, leading
    raise UsageError(
        f"@transaction: the first parameter of {function.__qualname__} must be annotated as a SQLAlchemy Session or "
        "AsyncSession, or as a psycopg Connection or AsyncConnection"
    )


def _transaction_spec(
    function: Callable[..., Any], name: str | None, isolation: Isolation | None, retries: int | Retry
) -> TransactionSpec:
    check_function(function, "transaction")
    flavour, leading = _flavour(function)
    is_async = inspect.iscoroutinefunction(function)
    if is_async != flavour.startswith("async"):
        raise UsageError(
            f"@transaction: {function.__qualname__} is {'async' if is_async else 'sync'}, its connection is not"
        )
    if isolation not in {None, "read committed", "repeatable read", "serializable"}:
        raise UsageError(f"@transaction: no such isolation level: {isolation!r}")
    return TransactionSpec(
        check_name(name or function.__qualname__), function, is_async, flavour, leading, isolation, as_retry(retries)
    )


class _TransactionDecorator(Protocol):
    def __call__(self, function: "Callable[Concatenate[Any, P], R]", /) -> Callable[P, R]: ...


@overload
def transaction(function: "Callable[Concatenate[Any, P], R]", /) -> Callable[P, R]: ...
@overload
def transaction(
    *, name: str | None = None, isolation: Isolation | None = None, retries: int | Retry = 0
) -> _TransactionDecorator: ...
def transaction(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    isolation: Isolation | None = None,
    retries: int | Retry = 0,
) -> Any:
    """A function whose database effects, and the record that it ran, are one commit on the ledger's database.

    Its first parameter, by annotation, is a SQLAlchemy `Session` or `AsyncSession` or a psycopg connection; callers
    leave it out. Stacked under `@kafka_consumer` it is a transactional handler: effect and position commit together.

    Raises:
        UsageError: no function, or the first parameter's annotation names no connection.

    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        spec = _transaction_spec(function, name, isolation, retries)
        call = _async_transaction(spec) if spec.is_async else _sync_transaction(spec)
        call.__eventflow_transaction__ = spec  # type: ignore[attr-defined]
        return call

    return decorate if function is None else decorate(function)


def _async_transaction(spec: TransactionSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_nested(spec)
        return await runtime(f"the transaction {spec.name!r}").transact(spec, current_branch(), args, kwargs)

    return call


def _sync_transaction(spec: TransactionSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_nested(spec)
        app = runtime(f"the transaction {spec.name!r}")
        refuse_loop(f"the sync transaction {spec.name!r}", "await eventflow.durable.run_step(...)")
        return app.transact_sync(spec, current_branch(), args, kwargs)

    return call


def _refuse_nested(spec: TransactionSpec) -> None:
    if isinstance(current.get(), StepScope):
        raise UsageError(f"the transaction {spec.name!r} cannot be called in a step or transaction")


# ---- Kafka handlers ----------------------------------------------------------------------------


def kafka_consumer(
    topics: str | Sequence[str],
    /,
    *,
    group: str,
    name: str | None = None,
    ordering: Ordering = "none",
    retries: int | Retry = 5,
    recoveries: int = 5,
    start: Literal["earliest", "latest"] = "earliest",
    identity: Literal["topic_id", "name"] = "topic_id",
    max_in_flight: int | None = None,
    kafka: Mapping[str, str | int | float | bool] | None = None,
) -> Callable[[H], H]:
    """Handle each message of these topics exactly once per group, as a durable workflow.

    The handler takes a `Message[V]` and stays what it was: calling it calls the function. Stacked on `@transaction`
    its effects and the message's position are one commit. `ordering="partition"` runs a partition's messages one after
    another. After `retries` attempts the message is kept whole in the ledger as failed, and the partition passes on.
    `start` is where a partition begins that neither the ledger nor the group's committed offsets know.

    Raises:
        UsageError: the handler, an option, or the pair of topic and group cannot be.
        SettingsError: a Kafka property that belongs to eventflow, by its name.

    """
    properties = dict(kafka or {})
    names = _topics(topics)
    check_kafka_properties(properties, f"@kafka_consumer({names[0]!r})")
    _check_consumer(group, ordering, start, identity, max_in_flight)

    def decorate(handler: H) -> H:
        check_function(handler, "kafka_consumer")
        message_annotation(handler) if _resolvable(handler) else None
        spec = make_spec(handler, name, as_retry(retries), recoveries)
        transaction = getattr(handler, "__eventflow_transaction__", None)
        spec.consumer = ConsumerSpec(
            names, group, ordering, start, identity, max_in_flight, properties, spec, transaction
        )
        registry.add_consumer(spec.consumer)
        return handler

    return decorate


def _resolvable(function: Callable[..., Any]) -> bool:
    """Whether the annotations resolve now; classes defined further down do so only at start."""
    try:
        hints(function)
    except UsageError:
        return False
    return True


def _topics(topics: str | Sequence[str]) -> tuple[str, ...]:
    names = (topics,) if isinstance(topics, str) else tuple(topics)
    if not names:
        raise UsageError("@kafka_consumer needs a topic")
    for topic in names:
        if not isinstance(topic, str) or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic):
            raise UsageError(f"@kafka_consumer: not a topic's name: {topic!r}")
    return names


def _check_consumer(group: str, ordering: str, start: str, identity: str, bound: int | None) -> None:
    if not group or not group.isprintable() or len(group) > 255:
        raise UsageError(f"@kafka_consumer: not a group: {group!r}")
    if ordering == "key":
        raise UsageError("@kafka_consumer: ordering='key' is not built yet; use 'partition' or 'none'")
    if ordering not in {"none", "partition"}:
        raise UsageError(f"@kafka_consumer: no such ordering: {ordering!r}")
    if start not in {"earliest", "latest"}:
        raise UsageError(f"@kafka_consumer: start is 'earliest' or 'latest', not {start!r}")
    if identity == "name":
        raise UsageError("@kafka_consumer: identity='name' is not built yet; brokers must give topics an id")
    if identity != "topic_id":
        raise UsageError(f"@kafka_consumer: identity is 'topic_id' or 'name', not {identity!r}")
    if bound is not None and bound < 1:
        raise UsageError("@kafka_consumer: max_in_flight must be at least 1")


L = TypeVar("L", bound=Callable[[], Any])


def lifespan(function: L, /) -> L:
    """Enter around everything this process runs: open clients before the `yield`, close them after.

    Takes an async generator function or a generator function; registered ones enter in order, exit in reverse.

    Raises:
        UsageError: it is neither.

    """
    if not (inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)):
        raise UsageError(f"@lifespan decorates a generator function with one yield, not {function!r}")
    registry.lifespans.append(function)
    return function


def idempotency_key() -> str:
    """A key for the outside world: the same for all attempts of a step, different between steps."""
    run, position = scope_of("idempotency_key()")
    return step_idempotency_key(run.workflow_id, position)


def names_with_files(specs: Mapping[str, Spec]) -> dict[str, str]:
    """Each workflow's name with the stem of its file, `__main__` being its file's."""
    return {name: Path(spec.file).stem if spec.file[:1] != "<" else spec.file for name, spec in specs.items()}


def in_interactive() -> bool:
    """Whether this process is a notebook or a prompt."""
    return hasattr(sys, "ps1")
