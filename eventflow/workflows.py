"""Workflows, and what they are made of beside steps: the decorators `@workflow` and `@transaction`.

Decorators register and wrap thinly: a call decides where it is made, and the running application does the rest.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, cast, overload

import psycopg
from typing_extensions import TypeVar, TypeVarTuple, Unpack

import eventflow.talk as talk
from eventflow.context import (
    Start,
    StepScope,
    current,
    current_branch,
    refuse_loop,
    refuse_sync_workflow,
    runtime,
    slot,
)
from eventflow.errors import UsageError
from eventflow.operations import awaited, note, operate, operate_sync
from eventflow.registry import (
    Isolation,
    Spec,
    TransactionSpec,
    check_function,
    check_name,
    colour_async,
    hints,
    is_async,
    make_spec,
    registry,
)
from eventflow.retry import Retry, Seconds, as_retry, seconds

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
Self_ = TypeVar("Self_")
Conn = TypeVar("Conn", "Session", "AsyncSession", psycopg.Connection[Any], psycopg.AsyncConnection[Any])
Raw = TypeVar("Raw", psycopg.Connection[Any], psycopg.AsyncConnection[Any])
Ts = TypeVarTuple("Ts")


class Workflow(Generic[P, R_co]):
    """A registered workflow. `R_co` is what a call returns: a coroutine, or the result itself if sync.

    Calling it runs it durably under a generated id; `eventflow.start` gives it one of yours.
    """

    def __init__(self, spec: Spec, arguments: str | None = None, *, method: bool = False) -> None:
        self.spec = spec
        self._bound = arguments
        self.of_class = method  # a method, of no instance
        functools.update_wrapper(self, spec.function)

    @overload
    def __get__(self, instance: None, owner: type, /) -> "Workflow[P, R_co]": ...
    @overload
    def __get__(self: "Workflow[Concatenate[Self_, Q], R]", instance: Self_, owner: type, /) -> "Workflow[Q, R]": ...
    def __get__(self, instance: object, owner: type, /) -> Any:
        """The workflow of a registered instance; that of another one is refused where it is called or started."""
        spec = registry.spec_of(self.spec, instance) if self.of_class and instance is not None else None
        return self if spec is None else Workflow[..., Any](spec)

    @property
    def name(self) -> str:
        """The name under which the ledger knows it."""
        return self.spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        if isinstance(current.get(), StepScope):
            raise UsageError(f"the workflow {self.name!r} cannot be called in a step or transaction")
        encoded = self.encode(args, kwargs)
        if self.spec.is_async:
            refuse_sync_workflow(f"the async workflow {self.name!r}: start it with sync.start({self.name}, ...)")
            return cast("R_co", self._call(encoded))
        refuse_loop(f"the sync workflow {self.name!r}", f"await eventflow.start({self.name}, ...)")
        if current_branch() is not None:
            child = note(f"the workflow {self.name!r}", talk.start(self._start(encoded)))
            return cast("R_co", operate_sync("a result", "await", talk.result(child, self.spec.result, None)))
        app = runtime(f"the workflow {self.name!r}")
        return cast("R_co", app.call_sync(self._start(encoded), self.spec.result))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> "Workflow[[], R_co]":
        """A workflow of no arguments: these are its arguments, keywords too.

        Raises:
            UsageError: they do not fit the signature.
            CodecError: one cannot be encoded by its annotation.

        """
        return Workflow(self.spec, self.encode(args, kwargs))

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The arguments as the ledger keeps them.

        Raises:
            UsageError: they do not fit, or it is a method and its instance is not registered.
            CodecError: one cannot be encoded by its annotation.

        """
        if self.of_class:
            raise UsageError(
                f"{self.name!r} is a method, and what `self` is in another process nobody knows: call it on an instance "
                "that was registered before `running()`, by eventflow.workflows.register(instance, name=...)"
            )
        if self._bound is not None:
            if args or kwargs:
                raise UsageError(f"{self.name!r} is bound already and takes no arguments")
            return self._bound
        return self.spec.arguments.encode(tuple(args), dict(kwargs))

    def _start(self, arguments: str) -> Start:
        return Start(self.spec, arguments, timeout=self.spec.timeout)

    async def _call(self, arguments: str) -> Any:
        asked = self._start(arguments)
        if current_branch() is not None:
            child = await awaited(lambda: note(f"the workflow {self.name!r}", talk.start(asked)))
            return await operate("a result", talk.result(child, self.spec.result, None))
        return await runtime(f"the workflow {self.name!r}").call(asked, self.spec.result)


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> Workflow[P, R]: ...


@overload
def workflow(function: Callable[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str | None = None, timeout: Seconds | None = None, retries: int | Retry = 0, recoveries: int = 5
) -> _WorkflowDecorator: ...
def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: Seconds | None = None,
    retries: int | Retry = 0,
    recoveries: int = 5,
) -> Any:
    """Make a function a durable workflow: it resumes at its last completed step, in any process.

    Its default name is `__qualname__`. `timeout` is how many seconds it has until it is over, crashes and waits included:
    then its code is cancelled, may clean up, and it fails with `WorkflowTimeoutError`. `retries` is a policy for failures;
    `recoveries` is how many deaths of the process that runs it are tolerated before it is parked. A method is a workflow of
    each instance of its class that is registered (`register`), for `self` must mean the same in every process.

    Raises:
        UsageError: no function, or the name is taken.

    """

    def decorate(function: Callable[..., Any]) -> Workflow[..., Any]:
        check_function(function, "workflow")
        spec = make_spec(function, name, as_retry(retries), recoveries)
        spec.timeout = None if timeout is None else seconds(timeout, "timeout")
        method = next(iter(inspect.signature(function).parameters), "") == "self"
        if not method:  # those of methods are registered with their instances
            registry.add(spec)
        return Workflow(spec, method=method)

    return decorate if function is None else decorate(function)


def register(instance: T, /, *, name: str) -> T:
    """Make an instance known by a name, before `running()`; in every process that is to run its methods' workflows.

    Each `@workflow` method of its class is a workflow of its own then, named "Billing.refund:name" for the instance that is
    registered under that name. A process without it leaves these workflows to others. Returns the instance.

    Raises:
        UsageError: the name is another instance's, the instance has another name, it has no workflows, or it is too late.

    """
    if slot.runtime is not None:
        raise UsageError(f"register {name!r} before `running()` is entered: what a process serves is fixed there")
    parts = [part for kind in type(instance).__mro__ for part in vars(kind).values()]
    specs = [part.spec for part in parts if isinstance(part, Workflow) and part.of_class]
    if not specs:
        raise UsageError(f"register: {type(instance).__qualname__} has no method decorated with @workflow")
    registry.add_instance(instance, check_name(name), specs)
    return instance


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
    kinds: dict[type, str] = {psycopg.AsyncConnection: "async connection", psycopg.Connection: "connection"}
    if "sqlalchemy" in sys.modules:  # else nobody can have named a Session
        from sqlalchemy.ext.asyncio import AsyncSession
        from sqlalchemy.orm import Session

        kinds |= {AsyncSession: "async session", Session: "session"}
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
    function: Callable[..., Any],
    name: str | None,
    isolation: Isolation | None,
    retries: int | Retry,
    database: str | None,
    pipeline: bool,
) -> TransactionSpec:
    check_function(function, "transaction")
    flavour, leading = _flavour(function)
    awaited = is_async(function)
    if awaited != flavour.startswith("async"):
        raise UsageError(
            f"@transaction: {function.__qualname__} is {'async' if awaited else 'sync'}, its connection is not"
        )
    if isolation not in {None, "read committed", "repeatable read", "serializable"}:
        raise UsageError(f"@transaction: no such isolation level: {isolation!r}")
    if database is not None and not (isinstance(cast("object", database), str) and database):
        raise UsageError(f"@transaction: database= is a name of EVENTFLOW_DATABASES, not {database!r}")
    if pipeline:
        _check_pipeline(function, flavour, database)
    spec = TransactionSpec(
        check_name(name or function.__qualname__), function, awaited, flavour, leading, isolation, as_retry(retries),
        database, pipeline,
    )  # fmt: skip
    if database is not None:
        registry.add_transaction(spec)
    return spec


def _check_pipeline(function: Callable[..., Any], flavour: str, database: str | None) -> None:
    if "session" in flavour:
        raise UsageError(
            f"@transaction: pipeline=True is for psycopg connections, and {function.__qualname__} has a Session, which sends "
            "what messages only add together by itself"
        )
    if database is not None:
        raise UsageError("@transaction: pipeline=True is for the ledger's database, where messages share transactions")


class _TransactionDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[Conn, P], R], /) -> Callable[P, R]: ...
    @overload  # a method: self, then the connection
    def __call__(self, function: Callable[Concatenate[Self_, Conn, P], R], /) -> Callable[Concatenate[Self_, P], R]: ...


class _PipelineDecorator(Protocol):
    def __call__(self, function: Callable[Concatenate[Raw, P], R], /) -> Callable[P, R]: ...


@overload
def transaction(function: Callable[Concatenate[Conn, P], R], /) -> Callable[P, R]: ...
@overload
def transaction(function: Callable[Concatenate[Self_, Conn, P], R], /) -> Callable[Concatenate[Self_, P], R]: ...
@overload
def transaction(
    *,
    name: str | None = None,
    isolation: Isolation | None = None,
    retries: int | Retry = 0,
    database: str | None = None,
    pipeline: Literal[False] = False,
) -> _TransactionDecorator: ...
@overload
def transaction(
    *,
    name: str | None = None,
    isolation: Isolation | None = None,
    retries: int | Retry = 0,
    pipeline: Literal[True],
) -> _PipelineDecorator: ...
def transaction(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    isolation: Isolation | None = None,
    retries: int | Retry = 0,
    database: str | None = None,
    pipeline: bool = False,
) -> Any:
    """A function whose database effects, and the record that it ran, are one commit on the ledger's database.

    Its first parameter, by annotation, is a SQLAlchemy `Session` or `AsyncSession` or a psycopg connection; callers
    leave it out. Stacked under `@kafka_consumer` it is a transactional handler: effect and position commit together.
    `retries` counts attempts after the first; serialization failures and deadlocks are retried without it, too.

    `database` names another database of `EVENTFLOW_DATABASES`: its effects and its result are one commit there, once
    through any crash, and the ledger learns of it after. As a handler it is one whose only step it is.

    `pipeline=True`, for handlers on a psycopg connection: an INSERT, UPDATE, DELETE or MERGE without RETURNING waits for no
    answer, unless its result is looked at; up to 200 messages share a transaction. Order and effects are the same. Their
    errors come at the end, or at the next statement that waits; then each message runs again by itself, with errors at their
    own lines. Not for a handler to which such a statement is a lock, or a guard before an effect elsewhere. Called in a
    workflow, or with one message in its transaction, each statement waits as ever.

    Raises:
        UsageError: no function, the first parameter's annotation names no connection, or `pipeline` and a Session or
            `database`.

    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        spec = _transaction_spec(function, name, isolation, retries, database, pipeline)
        call = _async_transaction(spec) if spec.is_async else _sync_transaction(spec)
        call.__eventflow_transaction__ = spec  # type: ignore[attr-defined]
        return call

    return decorate if function is None else decorate(function)


def _async_transaction(spec: TransactionSpec) -> Callable[..., Any]:
    async def transact(args: Any, kwargs: Any) -> Any:
        _refuse_nested(spec)
        return await runtime(f"the transaction {spec.name!r}").transact(spec, current_branch(), args, kwargs)

    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        refuse_sync_workflow(f"the transaction {spec.name!r}")
        return transact(args, kwargs)

    return colour_async(call)


def _sync_transaction(spec: TransactionSpec) -> Callable[..., Any]:
    @functools.wraps(spec.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_nested(spec)
        app = runtime(f"the transaction {spec.name!r}")
        refuse_loop(f"the sync transaction {spec.name!r}", "await eventflow.durable.run_step(...)")
        return app.transact_sync(spec, current_branch(), args, kwargs)

    return call


def transaction_of(
    function: Callable[..., Any], args: Sequence[Any], name: str | None, retries: int | Retry
) -> tuple[TransactionSpec, Sequence[Any]] | None:
    """The transaction that `run_step` runs, under the name and policy given, and its arguments; None if it is none.

    Raises:
        UsageError: a decorator of the user's stands above `@transaction`, which could only run it as a plain function.

    """
    spec = getattr(function, "__eventflow_transaction__", None)
    if not isinstance(spec, TransactionSpec):
        return None
    if getattr(function, "__wrapped__", None) is not spec.function:  # handed on by functools.wraps
        raise UsageError(f"run_step: put the decorator of the transaction {spec.name!r} below @transaction")
    policy = spec.retry if retries == 0 else as_retry(retries)
    bound = (function.__self__, *args) if inspect.ismethod(function) else args
    return dataclasses.replace(spec, name=check_name(name or spec.name), retry=policy), bound


def _refuse_nested(spec: TransactionSpec) -> None:
    if isinstance(current.get(), StepScope):
        raise UsageError(f"the transaction {spec.name!r} cannot be called in a step or transaction")
