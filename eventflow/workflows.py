"""Workflows, and what they are made of beside steps: the decorators `@workflow` and `@transaction`.

Decorators register and wrap thinly: a call decides where it is made, and the running application does the rest.
"""

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, cast, overload

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypeVar, TypeVarTuple, Unpack

from eventflow.context import StepScope, current, current_branch, refuse_loop, runtime
from eventflow.errors import UsageError
from eventflow.registry import (
    Isolation,
    Spec,
    TransactionSpec,
    check_function,
    check_name,
    hints,
    make_spec,
    registry,
)
from eventflow.retry import Retry, as_retry

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Self_ = TypeVar("Self_")
Conn = TypeVar("Conn", Session, AsyncSession, psycopg.Connection[Any], psycopg.AsyncConnection[Any])
Ts = TypeVarTuple("Ts")


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
    @overload
    def __call__(self, function: Callable[Concatenate[Conn, P], R], /) -> Callable[P, R]: ...
    @overload  # a method: self, then the connection
    def __call__(self, function: Callable[Concatenate[Self_, Conn, P], R], /) -> Callable[Concatenate[Self_, P], R]: ...


@overload
def transaction(function: Callable[Concatenate[Conn, P], R], /) -> Callable[P, R]: ...
@overload
def transaction(function: Callable[Concatenate[Self_, Conn, P], R], /) -> Callable[Concatenate[Self_, P], R]: ...
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
