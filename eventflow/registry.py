"""What a process has declared: workflows, Kafka handlers, transactions, lifespans; and what cannot be declared.

Decorators write here at import; `app` reads it once, when it starts.
"""

import asyncio
import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from eventflow.breaker import Circuit
from eventflow.codec import Arguments, Codec, codec_for
from eventflow.cron import Fire, Rule
from eventflow.errors import SettingsError, UsageError, first_line
from eventflow.kafka import Deserializer, Failure, Message, Reader, message_reader
from eventflow.retry import Retry
from eventflow.settings import KafkaProperties

Ordering = Literal["none", "partition", "key"]
OnIncident = Literal["stop", "earliest", "latest"]
Isolation = Literal["read committed", "repeatable read", "serializable"]


@dataclass
class Spec:
    """A registered workflow, or a Kafka handler, which is one whose input is a message.

    Attributes:
        circuit: what holds its calls back while what it depends on is away.
        acts: its function has been seen to wait, at a step, for the message before it in its scope to be durable (R12).

    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    retry: Retry
    recoveries: int
    file: str
    line: int
    timeout: float | None = None
    consumer: "ConsumerSpec | None" = None
    circuit: Circuit | None = None
    acts: bool = False

    @functools.cached_property
    def arguments(self) -> Arguments:
        return Arguments(self.function)

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)

    @functools.cached_property
    def reader(self) -> Reader:
        consumer = self.consumer
        foreign = () if consumer is None else (consumer.deserializer, consumer.key_deserializer)
        batch = consumer is not None and consumer.batch is not None
        return message_reader(message_annotation(self.function, batch=batch), *foreign)

    def forget_reader(self) -> None:
        """Its consumer's deserializers are others now."""
        self.__dict__.pop("reader", None)

    def check(self) -> None:
        """Whether what it takes and gives can be read and written.

        Raises:
            UsageError: an annotation is in the way; says whose, and where that is.

        """
        try:
            _ = self.result, self.arguments if self.consumer is None else self.reader
        except UsageError as error:
            raise UsageError(f"{self.file}:{self.line}: {self.name}: {first_line(error)}") from None


@dataclass
class ConsumerSpec:
    """One `@kafka_consumer`: what is read, by which group, in which order, by what.

    Attributes:
        rate_limit: messages a second, in each process.
        batch: how many messages its handler takes at once at most; None: each alone. batch_wait: for how many seconds it waits
            for so many.

    """

    topics: tuple[str, ...] | re.Pattern[str]  # their names, or what their whole names match
    group: str
    ordering: Ordering
    start: Literal["earliest", "latest"]
    identity: Literal["topic_id", "name"]
    max_in_flight: int | None
    kafka: KafkaProperties = field(repr=False)  # there may be secrets among them
    spec: Spec
    transaction: "TransactionSpec | None"
    deserializer: Deserializer | None = None
    key_deserializer: Deserializer | None = None
    on_failure: Failure = "dead_letter"
    batch: int | None = None
    batch_wait: float = 0.05
    rate_limit: float | None = None
    dead_letter_topic: str | None = None
    on_incident: OnIncident = "stop"

    def shares(self, other: "ConsumerSpec") -> str | None:
        """A topic that both read, or may read."""
        if isinstance(other.topics, tuple):
            return next((topic for topic in sorted(other.topics) if self.reads(topic)), None)
        if isinstance(self.topics, tuple):
            return other.shares(self)
        return f"{self.topics.pattern} and {other.topics.pattern}"

    def reads(self, topic: str) -> bool:
        """Whether it reads the topic of this name."""
        return topic in self.topics if isinstance(self.topics, tuple) else self.topics.fullmatch(topic) is not None

    @property
    def policy(self) -> Literal["earliest", "latest"] | None:
        """What settles an incident that stops it; None: a person does."""
        return None if self.on_incident == "stop" else self.on_incident

    @property
    def foreign(self) -> list[Deserializer]:
        """What makes its values and keys in place of us."""
        return [one for one in (self.deserializer, self.key_deserializer) if one is not None]


@dataclass
class ScheduleSpec:
    """One `@scheduled`: what it starts, and when."""

    name: str
    rule: Rule
    spec: Spec

    @functools.cached_property
    def takes_fire(self) -> bool:
        """Whether its function takes the fire.

        Raises:
            UsageError: it takes something else; says what, and where.

        """
        return takes_fire(self.spec, only=True)


@dataclass
class TransactionSpec:
    """A `@transaction`: the function, what it wants as its connection, and how and where it commits.

    `database` is the name of another one than the ledger's. Equal are those that may share a commit: a call's own name and
    policy are not part of it.
    """

    name: str = field(compare=False)
    function: Callable[..., Any]
    is_async: bool
    flavour: Literal["session", "async session", "connection", "async connection"]
    leading: int
    isolation: Isolation | None
    retry: Retry = field(compare=False)
    database: str | None = None
    pipeline: bool = False

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.function)

    def check(self, databases: Mapping[str, object]) -> None:
        """Whether its database is one of these.

        Raises:
            SettingsError: it is not; says which transaction that is, and where.

        """
        if self.database is None or self.database in databases:
            return
        code = inspect.unwrap(self.function).__code__
        raise SettingsError(
            f"EVENTFLOW_DATABASES names no database {self.database!r}, for which the transaction {self.name!r} is "
            f"({code.co_filename}:{code.co_firstlineno}); it names: {', '.join(sorted(databases)) or 'none'}"
        )


@dataclass
class Registry:
    """Everything that this process has declared."""

    specs: dict[str, Spec] = field(default_factory=dict[str, Spec])
    consumers: list[ConsumerSpec] = field(default_factory=list[ConsumerSpec])
    transactions: dict[tuple[str, str], TransactionSpec] = field(
        default_factory=dict[tuple[str, str], TransactionSpec]
    )  # of other databases, by module and qualified name: a redefinition takes the place of what it redefines
    lifespans: list[Callable[[], Any]] = field(default_factory=list[Callable[[], Any]])
    instances: list[tuple[str, object]] = field(default_factory=list[tuple[str, object]])  # with their names, in order
    queues: dict[str, str] = field(default_factory=dict[str, str])  # name -> settings, as the ledger keeps them
    schedules: dict[str, ScheduleSpec] = field(default_factory=dict[str, ScheduleSpec])

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

    def add_transaction(self, spec: TransactionSpec) -> None:
        """Register a transaction of another database, which is to be there when the application starts."""
        self.transactions[spec.function.__module__, spec.function.__qualname__] = spec

    def add_instance(self, instance: object, name: str, specs: Sequence[Spec]) -> None:
        """Register an instance, and its methods that are workflows, each under a name of its own.

        Raises:
            UsageError: another instance has the name, or this one another, or a workflow's name is taken.

        """
        known = self.name_of(instance)
        if known is not None and known != name:
            raise UsageError(f"this {_kind(instance)} is registered as {known!r} already, and cannot be {name!r}, too")
        for other in [other for called, other in self.instances if called == name and other is not instance]:
            if type(other) is type(instance) or _kind(other) != _kind(instance):  # else: its source was imported twice
                raise UsageError(f"two instances are named {name!r}: a {_kind(other)} and a {_kind(instance)}")
        for spec in specs:
            self.add(_of_instance(spec, instance, name))
        if known is None:
            self.instances.append((name, instance))

    def add_queue(self, name: str, settings: str) -> None:
        """Register a queue.

        Raises:
            UsageError: there is another one of this name.

        """
        if self.queues.setdefault(name, settings) != settings:
            raise UsageError(f"two queues are named {name!r}: with {self.queues[name]}, and with {settings}")

    def add_schedule(self, schedule: ScheduleSpec) -> None:
        """Register a schedule.

        Raises:
            UsageError: there is another one of this name.

        """
        known = self.schedules.get(schedule.name)
        if known is not None and (known.spec is schedule.spec or not _same_source(known.spec, schedule.spec)):
            raise UsageError(
                f"two schedules are named {schedule.name!r}: of {known.spec.file}:{known.spec.line} and of "
                f"{schedule.spec.file}:{schedule.spec.line}; give one another name="
            )
        self.schedules[schedule.name] = schedule

    def name_of(self, instance: object) -> str | None:
        """The name under which this very instance is registered, if it is."""
        return next((name for name, known in self.instances if known is instance), None)

    def spec_of(self, spec: Spec, instance: object) -> Spec | None:
        """A method's workflow as that of a registered instance; None where it is not registered."""
        name = self.name_of(instance)
        return None if name is None else self.specs.get(f"{spec.name}:{name}")

    def add_consumer(self, consumer: ConsumerSpec) -> None:
        """Register a Kafka handler.

        Raises:
            UsageError: its group already reads one of its topics, or may, or the name is taken.

        """
        self.add(consumer.spec)
        for other in self.consumers:
            both = consumer.shares(other) if other.group == consumer.group else None
            if both is not None:
                del self.specs[consumer.spec.name]
                raise UsageError(
                    f"two handlers read topic {both!r} in group {consumer.group!r}: "
                    f"{other.spec.name!r} and {consumer.spec.name!r}; give each its own group="
                )
        self.consumers.append(consumer)


registry = Registry()


def _kind(instance: object) -> str:
    return type(instance).__qualname__


def _of_instance(spec: Spec, instance: object, name: str) -> Spec:
    return dataclasses.replace(
        spec, name=check_name(f"{spec.name}:{name}"), function=types.MethodType(spec.function, instance)
    )


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
        is_async=is_async(function) or is_async(plain),
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


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """What stands below decorators and partials: for its annotations, name and colour, never to be called instead."""
    plain = inspect.unwrap(function)
    while isinstance(plain, functools.partial):
        plain = inspect.unwrap(cast("functools.partial[Any]", plain).func)
    if inspect.isroutine(plain) or inspect.isclass(plain):
        return plain
    return type(plain).__call__  # an object that can be called


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is known for a coroutine function, by its own code or by `colour_async`."""
    marked = getattr(function, "_is_coroutine", None) is asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return marked or inspect.iscoroutinefunction(function)


def colour_async(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a plain function that returns a coroutine be known for a coroutine function."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(call)
    call._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # as unittest.mock does
    return call


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's resolved annotations.

    Raises:
        UsageError: one names something that does not exist.

    """
    import typing

    plain = innermost(function)
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except Exception as error:
        raise UsageError(f"the annotations of {plain.__qualname__} cannot be resolved: {error}") from None


def result_codec(function: Callable[..., Any]) -> Codec:
    """The codec of what the function returns."""
    codec = codec_for(hints(function).get("return", inspect.Parameter.empty))
    return codec.named(f"the result of {innermost(function).__qualname__!r}")


def message_annotation(function: Callable[..., Any], *, batch: bool = False) -> Any:
    """The annotation of a handler's message, or of one of its batch: its last positional parameter.

    Raises:
        UsageError: it takes something else.

    """
    plain = inspect.unwrap(function)
    parameters = [
        p for p in inspect.signature(plain).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if not parameters:
        raise UsageError(f"the handler {plain.__qualname__} must take {'a list of Messages' if batch else 'a Message'}")
    annotation = given = hints(plain).get(parameters[-1].name, list[Message[Any]] if batch else Message)
    if batch:
        annotation = get_args(given)[0] if get_origin(given) is list else None
    if annotation is not Message and get_origin(annotation) is not Message:
        wanted = "a list[Message[...]], as it has batch=" if batch else "a Message[...]"
        hint = "; for a list of them, say batch=" if get_origin(given) is list and not batch else ""
        raise UsageError(f"the handler {plain.__qualname__} must take {wanted}, not {given!r}{hint}")
    return annotation


def takes_fire(spec: Spec, *, only: bool = False) -> bool:
    """Whether a workflow's first parameter is a schedule's fire.

    Raises:
        UsageError: `only`: it takes, or needs, something else.

    """
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = list(inspect.signature(spec.function).parameters.values())
    first = parameters[0] if parameters and parameters[0].kind in positional else None
    fire = first is not None and hints(spec.function).get(first.name) is Fire
    rest = parameters[1:] if fire else parameters
    if only and any(p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in rest):
        raise UsageError(
            f"{spec.file}:{spec.line}: {spec.name}: a scheduled function takes a Fire, annotated so, or nothing"
        )
    return fire


def names_with_files(specs: Mapping[str, Spec]) -> dict[str, str]:
    """Each workflow's name with the stem of its file, `__main__` being its file's."""
    return {name: Path(spec.file).stem if spec.file[:1] != "<" else spec.file for name, spec in specs.items()}
