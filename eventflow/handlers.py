"""What a process serves and opens: Kafka handlers, and lifespans."""

import inspect
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, Protocol, cast, get_args, overload

from typing_extensions import TypeVar

from eventflow.breaker import Breaker, Circuit
from eventflow.errors import UsageError
from eventflow.kafka import Deserializer, Failure, Message
from eventflow.outbox import check_topic
from eventflow.registry import (
    ConsumerSpec,
    OnIncident,
    Ordering,
    check_function,
    hints,
    make_spec,
    message_annotation,
    registry,
)
from eventflow.retry import Retry, Seconds, as_retry, seconds
from eventflow.settings import check_kafka_properties

H = TypeVar("H", bound=Callable[[Message[Any, Any]], object])
B = TypeVar("B", bound=Callable[[list[Message[Any, Any]]], object])
MOST = 50_000  # messages of a batch
L = TypeVar("L", bound=Callable[[], AsyncIterator[None] | Iterator[None]])


class _Handler(Protocol):
    def __call__(self, handler: H, /) -> H: ...


class _BatchHandler(Protocol):
    def __call__(self, handler: B, /) -> B: ...


@overload
def kafka_consumer(
    topics: str | re.Pattern[str] | Sequence[str],
    /,
    *,
    group: str,
    batch: int,
    batch_wait: Seconds = 0.05,
    name: str | None = None,
    ordering: Ordering = "none",
    retries: int | Retry = 5,
    recoveries: int = 5,
    start: Literal["earliest", "latest"] = "earliest",
    identity: Literal["topic_id", "name"] = "topic_id",
    on_failure: Failure = "dead_letter",
    dead_letter_topic: str | None = None,
    on_incident: OnIncident = "stop",
    deserializer: Deserializer | None = None,
    key_deserializer: Deserializer | None = None,
    max_in_flight: int | None = None,
    rate_limit: float | None = None,
    breaker: Breaker | None = None,
    kafka: Mapping[str, str | int | float | bool] | None = None,
) -> _BatchHandler: ...
@overload
def kafka_consumer(
    topics: str | re.Pattern[str] | Sequence[str],
    /,
    *,
    group: str,
    name: str | None = None,
    ordering: Ordering = "none",
    retries: int | Retry = 5,
    recoveries: int = 5,
    start: Literal["earliest", "latest"] = "earliest",
    identity: Literal["topic_id", "name"] = "topic_id",
    on_failure: Failure = "dead_letter",
    dead_letter_topic: str | None = None,
    on_incident: OnIncident = "stop",
    deserializer: Deserializer | None = None,
    key_deserializer: Deserializer | None = None,
    max_in_flight: int | None = None,
    rate_limit: float | None = None,
    breaker: Breaker | None = None,
    kafka: Mapping[str, str | int | float | bool] | None = None,
) -> _Handler: ...
def kafka_consumer(
    topics: str | re.Pattern[str] | Sequence[str],
    /,
    *,
    group: str,
    batch: int | None = None,
    batch_wait: Seconds = 0.05,
    name: str | None = None,
    ordering: Ordering = "none",
    retries: int | Retry = 5,
    recoveries: int = 5,
    start: Literal["earliest", "latest"] = "earliest",
    identity: Literal["topic_id", "name"] = "topic_id",
    on_failure: Failure = "dead_letter",
    dead_letter_topic: str | None = None,
    on_incident: OnIncident = "stop",
    deserializer: Deserializer | None = None,
    key_deserializer: Deserializer | None = None,
    max_in_flight: int | None = None,
    rate_limit: float | None = None,
    breaker: Breaker | None = None,
    kafka: Mapping[str, str | int | float | bool] | None = None,
) -> Any:
    """Handle each message of these topics exactly once per group, as a durable workflow.

    The handler takes a `Message[V]` and stays what it was: calling it calls the function. Stacked on `@transaction`
    its effects and the message's position are one commit; on one with `database=`, it is a handler with that one step.

    With `batch=` it takes a `list[Message[V]]` and returns nothing; stacked on `@transaction`, effects and positions of all
    are one commit, else its effects happen at least once. One that fails is split, until the message at fault fails alone.
    What it calls is plain, as in a step: it records no steps and cannot wait.

    Args:
        topics: one name, several, or a pattern: all topics whose whole name matches it, also those that come later.
        group: the consumer group; a message is handled once by each.
        batch: how many messages a batch handler takes at most.
        batch_wait: seconds that it waits for so many, from the first on.
        name: the workflow's name in the ledger; the handler's `__qualname__` by default.
        ordering: "key" runs messages of one key one after another, "partition" those of a partition; others go on beside
            them. A parked one holds those behind it back. Messages without a key are in no order.
        retries: attempts after the first; then `on_failure` says what becomes of it. Its steps' retries multiply with it.
        recoveries: how many deaths of the process that runs it a message may survive before it is parked.
        start: where a partition begins that neither the ledger nor the group's committed offsets know.
        identity: what a topic is told by: its id, so that a recreated one is another. "name" is not built yet.
        on_failure: what becomes of a message that fails for good, or cannot be decoded. "dead_letter": it is kept whole as a
            dead letter, and those behind it go on. "park_key": it is parked, and what is kept in order with it waits until
            a person has redelivered or dropped it. "stop": the consumer fetches nothing more in this process, and says so;
            the message is tried again when the process is started again.
        dead_letter_topic: where each dead letter is published, too, exactly once, as it came, with headers that say where it
            was and what it failed with. The topic must exist.
        on_incident: what comes of a partition whose log is not what was read: its topic recreated or in another cluster, its
            position deleted by retention, its end cut off. "stop": it stands still until a person settles the incident;
            "earliest": it goes on at the first message that was not read; "latest": at the end. What is skipped stands in
            the incident.
        deserializer: makes the values, in place of JSON: Avro of `eventflow.schema_registry`, say, or one of your own.
        key_deserializer: the same for keys, which otherwise are text, or JSON where their type has parts.
        max_in_flight: messages in flight in this process; `EVENTFLOW_MAX_IN_FLIGHT` by default.
        rate_limit: messages a second that are begun in this process, in even steps; those of other processes count for
            themselves.
        breaker: when what the handler depends on is away, and how that is found out: `eventflow.breaker.Breaker`.
        kafka: librdkafka properties for this consumer, over those of `EVENTFLOW_KAFKA`.

    Raises:
        UsageError: the handler, an option, or the pair of topic and group cannot be.
        SettingsError: a Kafka property that belongs to eventflow, by its name.

    """
    properties = dict(kafka or {})
    names = _topics(topics)
    check_kafka_properties(properties, f"@kafka_consumer({topics!r})")
    _check_consumer(group, ordering, start, identity, max_in_flight, rate_limit)
    wait = _check_batch(batch, batch_wait, max_in_flight)
    if on_failure not in get_args(Failure):
        raise UsageError(f"@kafka_consumer: on_failure is 'dead_letter', 'park_key' or 'stop', not {on_failure!r}")
    if dead_letter_topic is not None:
        _check_dead_letter_topic(dead_letter_topic, names, on_failure)
    if isinstance(names, re.Pattern) and start != "earliest":
        raise UsageError(
            "@kafka_consumer: start='latest' and a pattern: a topic that comes later would begin at its end, and what was "
            "sent to it before it was found would be skipped; name the topics, or start at 'earliest'"
        )
    if on_incident not in get_args(OnIncident):
        raise UsageError(f"@kafka_consumer: on_incident is 'stop', 'earliest' or 'latest', not {on_incident!r}")

    def decorate(handler: H) -> H:
        check_function(handler, "kafka_consumer")
        if _resolvable(handler):
            message_annotation(handler, batch=batch is not None)
            _check_result(handler) if batch is not None else None
        spec = make_spec(handler, name, as_retry(retries), recoveries)
        spec.circuit = None if breaker is None else Circuit(breaker, time.monotonic)
        transaction = _transaction(handler)
        if (
            batch is not None
            and transaction is None
            and getattr(handler, "__eventflow_transaction__", None) is not None
        ):
            raise UsageError(
                "@kafka_consumer: a batch handler's transaction is on the ledger's database, not elsewhere"
            )
        if batch is not None and transaction is not None and transaction.pipeline:
            raise UsageError(
                "@kafka_consumer: pipeline=True is for handlers of single messages; a batch has `executemany`"
            )
        spec.consumer = ConsumerSpec(
            names, group, ordering, start, identity, max_in_flight, properties, spec, transaction, deserializer,
            key_deserializer, on_failure, batch, wait, rate_limit, dead_letter_topic, on_incident,
        )  # fmt: skip
        registry.add_consumer(spec.consumer)
        return handler

    return decorate


def _check_batch(batch: int | None, wait: Seconds, bound: int | None) -> float:
    """The wait in seconds.

    Raises:
        UsageError: one of them cannot be.

    """
    if batch is not None and not 1 <= batch <= MOST:
        raise UsageError(f"@kafka_consumer: batch= is a number from 1 to {MOST}, not {batch}")
    if batch is not None and bound is not None and bound < batch:
        raise UsageError(f"@kafka_consumer: max_in_flight={bound} lets no batch of {batch} come together")
    return seconds(wait, "batch_wait=")


def _check_dead_letter_topic(topic: str, read: tuple[str, ...] | re.Pattern[str], on_failure: Failure) -> None:
    check_topic(topic)
    if on_failure != "dead_letter":
        raise UsageError(
            f"@kafka_consumer: dead_letter_topic, and on_failure={on_failure!r}, which makes no dead letters"
        )
    if topic in read if isinstance(read, tuple) else read.fullmatch(topic) is not None:
        raise UsageError(
            f"@kafka_consumer: it reads its dead_letter_topic {topic!r}: what fails would come again, for ever"
        )


def _check_result(handler: Callable[..., Any]) -> None:
    result = hints(handler).get("return")
    if result is not None and result is not NoneType:
        raise UsageError(f"the batch handler {handler.__qualname__} returns nothing: say `-> None`")


def _transaction(handler: Callable[..., Any]) -> Any:
    """The transaction that the handler is, if it is one on the ledger's database; one elsewhere is a step of its handler.

    Raises:
        UsageError: a decorator stands between, which the lanes, that call the function itself, would leave out.

    """
    spec = getattr(handler, "__eventflow_transaction__", None)
    if spec is not None and getattr(handler, "__wrapped__", None) is not spec.function:
        raise UsageError(f"@kafka_consumer: put the decorator of the transaction {spec.name!r} below @transaction")
    return spec if spec is None or spec.database is None else None


def _resolvable(function: Callable[..., Any]) -> bool:
    """Whether the annotations resolve now; classes defined further down do so only at start."""
    try:
        hints(function)
    except UsageError:
        return False
    return True


def _topics(topics: str | re.Pattern[str] | Sequence[str]) -> tuple[str, ...] | re.Pattern[str]:
    if isinstance(topics, re.Pattern):
        if not isinstance(cast("object", topics.pattern), str):
            raise UsageError(f"@kafka_consumer: a pattern of text, not of bytes: {topics!r}")
        return topics
    names = (topics,) if isinstance(topics, str) else tuple(topics)
    if not names:
        raise UsageError("@kafka_consumer needs a topic")
    for topic in names:
        if not isinstance(cast("object", topic), str) or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic):
            raise UsageError(f"@kafka_consumer: not a topic's name: {topic!r}")
    return names


def _check_consumer(
    group: str, ordering: str, start: str, identity: str, bound: int | None, rate: float | None
) -> None:
    if not group or not group.isprintable() or len(group) > 255:
        raise UsageError(f"@kafka_consumer: not a group: {group!r}")
    if ordering not in {"none", "partition", "key"}:
        raise UsageError(f"@kafka_consumer: no such ordering: {ordering!r}")
    if start not in {"earliest", "latest"}:
        raise UsageError(f"@kafka_consumer: start is 'earliest' or 'latest', not {start!r}")
    if identity == "name":
        raise UsageError("@kafka_consumer: identity='name' is not built yet; brokers must give topics an id")
    if identity != "topic_id":
        raise UsageError(f"@kafka_consumer: identity is 'topic_id' or 'name', not {identity!r}")
    if bound is not None and bound < 1:
        raise UsageError("@kafka_consumer: max_in_flight must be at least 1")
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"@kafka_consumer: rate_limit is a number of messages a second, not {rate}")


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
