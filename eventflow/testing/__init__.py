"""Run handlers and workflows in pytest: a real Postgres, no Kafka, and time that only moves when it is told.

    async with testing.harness() as flow:
        workflow_id = await flow.deliver("orders", Order(number=1), key="1")
        await flow.settle()
        assert (await flow.workflow(workflow_id)).status == "succeeded"

There is no second ledger. What is delivered goes through the consumer, the executor and the journal that run in
production, into a schema that is made for the harness and dropped with it. In place of Kafka stand topics in memory, and in
place of clocks one that stands still. Every wait leaves memory, and every wake replays.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

from pydantic_core import to_json
from typing_extensions import TypeVar

from eventflow.app import App, Running, raise_again
from eventflow.codec import recorded_line
from eventflow.errors import FencedError, UsageError
from eventflow.idempotency import message_workflow_id, parse_message_workflow_id
from eventflow.incarnation import Incarnation, Surroundings
from eventflow.kafka import Headers, Message, by_header, headers_from_json, message_reader
from eventflow.records import WorkflowRecord
from eventflow.registry import ConsumerSpec, registry
from eventflow.retry import Seconds, seconds
from eventflow.schema_registry import without_registry
from eventflow.settings import Settings, load_settings
from eventflow.testing.clock import Clock
from eventflow.testing.ledger import Ledger, database
from eventflow.testing.memory import Topics

__all__ = ["DeadLetter", "Harness", "Published", "fail_once", "harness"]

T = TypeVar("T")

_BEAT = 0.05  # seconds; real ones, as all that are not the harness's
_QUIET = 3 * _BEAT  # for which nothing may happen, before it is said that nothing will
_NEVER = 3600.0
_TICK = (
    2e-6  # seconds that a timestamp of Postgres and a float may differ by, so that no sleeper wakes a little too early
)
_EARLY = 1e-3  # seconds that these may come to, over many wakes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed for good, or is parked: as it came, why ("Type: message"), and in how many attempts.

    Inside a harness `Client.dead_letters` and what redelivers them work as they do elsewhere.
    """

    message: Message[bytes]
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Published:
    """An event as it would be in Kafka."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    def decode(self, type: type[T], /) -> T:  # noqa: A002
        """The value, as a handler that takes `Message[type]` reads it.

        Raises:
            CodecError: it cannot be decoded.

        """
        annotation: Any = Message[type]
        return message_reader(annotation).read(self.value, None, None, self.topic, 0, 0, 1, None).value


class Harness:
    """A running eventflow for one test. `async with`; one at a time in a process.

    Attributes:
        database_url: the database that it is in, for a test's own connections, whose clocks are the server's.

    """

    def __init__(self, database_url: str | None, now: datetime | None, suspend: bool) -> None:
        if now is not None and now.tzinfo is None:
            raise UsageError("harness(now=...) needs a time with a zone")
        self._given, self._suspend = database_url, suspend
        self._clock = Clock(time.time() if now is None else now.timestamp())
        self._topics = Topics()
        self._stack = contextlib.AsyncExitStack()
        self._running: Running
        self._ledger: Ledger
        self.database_url = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._ledger = stack.enter_context(database(self._given))
            self.database_url = self._ledger.url
            await asyncio.to_thread(self._ledger.prepare, self._clock.now())
            stack.enter_context(_read_without_registry())
            stack.callback(_failures.clear)
            settings = self._settings()
            named = [c.spec.name for c in registry.consumers if isinstance(c.topics, tuple)]
            self._running = Running(settings, named or False, True, True, Surroundings(
                kafka=False, brokers=self._topics.brokers, clock=lambda _: self._clock, later=self._clock.later,
                draw=lambda: 0.5, long=0.0, hold=0.0, live=False,
            ))  # fmt: skip
            await stack.enter_async_context(self._running)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _settings(self) -> Settings:
        return load_settings(
            database_url=self._ledger.clocked_url, database_schema=self._ledger.schema, kafka_bootstrap_servers="",
            beat=_BEAT, lease=600.0, accept_after=0.0, suspend_after=0.0 if self._suspend else _NEVER, drain=0.5,
        )  # fmt: skip

    # ---- messages ----

    async def deliver(
        self, topic: str, value: object, /, *, key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | Headers | None = None, group: str | None = None,
    ) -> str:  # fmt: skip
        """Put a message into a topic, for all groups that read it; the id of its workflow, for `group` where there are several.

        Bytes, text and None (a tombstone) are sent as they are, anything else as JSON. It is handled as time goes on: `settle`
        waits for that.

        Raises:
            UsageError: no handler reads the topic, or several do and `group` does not say whose id is wanted.

        """
        consumer = _reader_of(topic, group)
        sent = headers if isinstance(headers, Headers) else Headers(headers)
        raw = [(name, one) for name in sent for one in sent.all(name)]
        data = _encoded(consumer, value)
        sent_key = key.encode() if isinstance(key, str) else key
        offset = self._topics.append(topic, data, sent_key, cast("Any", raw), int(self._clock.now() * 1000))
        return message_workflow_id(consumer.group, topic, 1, 0, offset)

    async def dead_letters(self) -> list[DeadLetter]:
        """The messages that failed for good or are held for a person, in the order in which they did."""
        return [_dead_letter(row) for row in await self._query("failed_messages")]

    async def published(self, topic: str | None = None) -> list[Published]:
        """What was published, to this topic or to all, in order; no event leaves a harness."""
        rows = await asyncio.to_thread(self._app.query, "published_events", {"topic": topic})
        return [
            Published(topic, key, value, Headers.received(headers_from_json(raw))) for topic, key, value, raw in rows
        ]

    async def workflow(self, workflow_id: str, /) -> WorkflowRecord:
        """A workflow as the ledger has it.

        Raises:
            WorkflowNotFoundError: there is none of this id, or not yet.

        """
        row = await asyncio.to_thread(self._app.row, workflow_id)
        return WorkflowRecord(*row[:6], *row[10:])

    # ---- time ----

    @property
    def now(self) -> datetime:
        """The harness's time. SQL's `now()` is the same, on the connections that eventflow lends."""
        return datetime.fromtimestamp(self._clock.now(), UTC)

    async def settle(self, *, timeout: Seconds = 30) -> None:
        """Wait until nothing goes on before time does: all has ended, is held for a person, or waits.

        `timeout` is in real seconds.

        Raises:
            TimeoutError: something still runs.
            EventflowError: what has ended the application meanwhile.

        """
        until = time.monotonic() + seconds(timeout, "timeout")
        seen: object = None
        since = time.monotonic()
        while time.monotonic() - since < _QUIET:
            if time.monotonic() > until:
                raise TimeoutError(f"not settled after {seconds(timeout):g} s: {await self._what_runs()}")
            state = await self._state()
            if state is None or state != seen:
                seen, since = state, time.monotonic()
            await asyncio.sleep(_BEAT / 10)

    async def advance(self, by: Seconds, /) -> None:
        """Let so much time pass. What is due meanwhile happens at its time, one after another, each settled before the next."""
        target = self._clock.now() + seconds(by, "by")
        await self.settle()
        while True:
            due = await self._next_due()
            if due is None or due > target + _EARLY:
                break
            await self._move(max(due + _TICK, self._clock.now()))
            await self.settle()
        await self._move(target)
        await self.settle()

    async def crash(self) -> None:
        """Let the process die, as SIGKILL would, and another one take over: what was not recorded is lost and done again.

        Raises:
            EventflowError: what has ended the application.

        """
        dead = await self._incarnation()
        dead.crash(FencedError("the test has let this executor crash"))
        heir = await self._incarnation(after=dead)
        heir.suspect(dead.id)
        await self.settle()

    async def _move(self, to: float) -> None:
        await asyncio.to_thread(self._ledger.move_clock, to)
        self._clock.move(to)
        (await self._incarnation()).look_again()

    async def _next_due(self) -> float | None:
        [(asleep,)] = await self._query("next_wake")
        return min((one for one in (asleep, self._clock.due()) if one is not None), default=None)

    # ---- what goes on ----

    @property
    def _app(self) -> App:
        return self._running.app

    async def _incarnation(self, *, after: Incarnation | None = None) -> Incarnation:
        while True:
            if self._app.failed.done():
                raise_again(self._app.failed.result())
            found = self._app.incarnation
            if found is not None and found is not after:
                return found
            await asyncio.sleep(_BEAT / 10)

    async def _state(self) -> object:
        """Where all stands, for two looks to be compared; None where something goes on."""
        incarnation = await self._incarnation()
        if incarnation.acting() or not self._has_read(incarnation):
            return None
        await incarnation.flushed()
        [(unsettled,)] = await self._query("unsettled")
        return None if unsettled or incarnation.acting() else (incarnation.id, incarnation.flushes())

    def _has_read(self, incarnation: Incarnation) -> bool:
        return len(self._topics.consumers) == len(incarnation.intakes) and self._topics.read()

    async def _what_runs(self) -> str:
        rows = await self._query("unfinished")
        return ", ".join(f"{row[0]} is {row[1]}" for row in rows) or "a message has not begun"

    async def _query(self, name: str) -> list[tuple[Any, ...]]:
        params = {"application": self._app.application}
        return await asyncio.to_thread(self._app.query, name, params)


def harness(database_url: str | None = None, *, now: datetime | None = None, suspend: bool = True) -> Harness:
    """Everything that this program declares, running for one test.

    Args:
        database_url: a database that has the tables which handlers use; the harness makes a schema of its own in it, and
            drops that. None: a database of its own, on the server that `EVENTFLOW_TEST_DATABASE_URL` names, else on a local
            one, which needs the extra `local`.
        now: the time at which it begins to stand still; the real one by default.
        suspend: whether what waits leaves memory at once, and is replayed when it wakes; else it stays.

    Raises (on entering):
        SettingsError, UnavailableError: there is no Postgres to be had.
        UsageError: a harness, or `running()`, is entered already.

    """
    return Harness(database_url, now, suspend)


# ---- failures -------------------------------------------------------------------------------------


class _Failures:
    """Steps that are to fail, with their own functions."""

    def __init__(self) -> None:
        self._armed: list[tuple[Any, Callable[..., Any]]] = []

    def arm(self, spec: Any, error: Exception, times: int) -> None:
        function = spec.function
        left = times

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left > 0:
                left -= 1
                raise error
            return function(*args, **kwargs)

        self._armed.append((spec, function))
        spec.function = call

    def clear(self) -> None:
        """Give each step its own function back."""
        while self._armed:
            spec, function = self._armed.pop()
            spec.function = function


_failures = _Failures()


def fail_once(step: Callable[..., Any], error: Exception, /, *, times: int = 1) -> None:
    """Let the next call of a step, or the next `times` calls, raise this error in place of its function.

    It holds until the harness is left. Arm it inside the harness.

    Raises:
        UsageError: it is no `@step`.

    """
    spec = getattr(step, "__eventflow_step__", None)
    if spec is None:
        raise UsageError(f"fail_once takes a function that is decorated with @step, not {step!r}")
    if times < 1:
        raise UsageError(f"fail_once(times={times}): once at least")
    _failures.arm(spec, error, times)


# ---- messages ---------------------------------------------------------------------------------------


def _reader_of(topic: str, group: str | None) -> ConsumerSpec:
    reading = [c for c in registry.consumers if c.reads(topic)]
    for consumer in reading:
        if not isinstance(consumer.topics, tuple):
            raise UsageError(
                f"{consumer.spec.name!r} reads a pattern, and a harness serves handlers of named topics only"
            )
    if not reading:
        topics = sorted({t for c in registry.consumers if isinstance(c.topics, tuple) for t in c.topics})
        raise UsageError(f"no handler reads the topic {topic!r}; those that are read: {', '.join(topics) or 'none'}")
    found = [c for c in reading if group in {None, c.group}]
    if len(found) == 1:
        return found[0]
    groups = ", ".join(sorted(c.group for c in reading))
    said = "say whose workflow is meant" if group is None else f"not {group!r}"
    raise UsageError(f"the topic {topic!r} is read by the groups {groups}: {said} by group=")


def _encoded(consumer: ConsumerSpec, value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if hasattr(value, "SerializeToString"):  # Protobuf's
        return cast("Any", value).SerializeToString()
    deserializer = consumer.deserializer
    if deserializer is not None and not (isinstance(deserializer, by_header) and deserializer.inner is None):
        raise UsageError(f"{consumer.spec.name!r} has a deserializer of its own: deliver what it reads, as bytes")
    return to_json(value)


@contextlib.contextmanager
def _read_without_registry() -> Generator[None]:
    """No harness asks a schema registry: values that come by one are JSON, or plain Protobuf."""
    changed = [(c, c.deserializer, c.key_deserializer) for c in registry.consumers if c.foreign]
    try:
        for consumer, deserializer, key_deserializer in changed:
            consumer.deserializer = without_registry(deserializer)
            consumer.key_deserializer = without_registry(key_deserializer)
            consumer.spec.forget_reader()
        yield
    finally:
        for consumer, deserializer, key_deserializer in changed:
            consumer.deserializer, consumer.key_deserializer = deserializer, key_deserializer
            consumer.spec.forget_reader()


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    workflow_id, offset, timestamp, key, value, headers, error, reason, attempts = row
    identity = parse_message_workflow_id(workflow_id)
    assert identity is not None
    message: Message[bytes] = Message(
        value, key, headers=Headers.received(headers_from_json(headers)), topic=identity.topic,
        partition=identity.partition, offset=offset, timestamp=datetime.fromtimestamp(timestamp / 1000, UTC),
    )  # fmt: skip
    return DeadLetter(message, str(reason) if error is None else recorded_line(error), attempts)
