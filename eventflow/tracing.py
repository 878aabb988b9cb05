"""Traces, where the program has set OpenTelemetry up: a span for each run of a workflow, attempt of a step, event and fire.

Nothing is imported and nothing is asked where it has not: `active` looks once, when an executor begins or a client starts
something, and what runs often looks at its `Run.trace`, which is None. A span carries names, places and ids, never a value, a
key or the text of an error.

Where a message comes without a trace, its run is the first span of one, and the program's sampler decides. By far most are not
taken, and asking it costs as much as a whole message does; so where its share is known, the runs that are to be taken are drawn
here, and begin under ids that it takes. What is not taken has no spans below it, and says so to whom it calls.
"""

import copy
import functools
import hashlib
import logging
import math
import random
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Token
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar, cast

from eventflow.idempotency import parse_message_workflow_id
from eventflow.records import Rider
from eventflow.telemetry import seldom

logger = logging.getLogger(__name__)

_LINKS = 128  # what an SDK keeps of a span's links, unless it is told otherwise
_ENDS = {  # what ends a run and is no error
    "Suspended": "suspended", "Dropped": "dropped", "ContinuedAsNew": "continued_as_new", "Cancelled": "cancelled",
    "CancelledError": "cancelled", "Unprepared": "unprepared",
}  # fmt: skip
Attributes = Mapping[str, str | int | bool]
F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
_NO_SPAN = nullcontext()


def _quietly(method: Callable[P, R]) -> Callable[P, R | None]:
    """Whatever a program's sampler, processor or propagator raises: a span is lost then, and the work goes on."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            seldom.say(logger, f"a span was lost: {type(error).__name__}")
            return None

    return call


class Trace:
    """What is traced of one run.

    Attributes:
        cause: the span that it was started by, as a traceparent; None where its message's headers tell, or nobody does.
        before: the span of its first run that is known, which may have been lost with its process.
        span: that of the run, or of its last attempt here, if it is recorded.

    """

    __slots__ = ("before", "cause", "span", "tracing")

    def __init__(self, cause: str | None = None, before: str | None = None) -> None:
        self.cause, self.before = cause, before
        self.span: Any = None
        self.tracing: Tracing | None = None

    def around(self, kind: str, function: F, name: str, position: str) -> F:
        """The same async function, in a span of its own for each call, where this run's is recorded."""
        if self.span is None:
            return function

        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._open(kind, name, position) or _NO_SPAN:
                return await function(*args, **kwargs)

        return cast("F", call)

    def around_sync(self, kind: str, function: F, name: str, position: str) -> F:
        """The same sync function, likewise."""
        if self.span is None:
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._open(kind, name, position) or _NO_SPAN:
                return function(*args, **kwargs)

        return cast("F", call)

    def _open(self, kind: str, name: str, position: str) -> "Open | None":
        assert self.tracing is not None
        attributes = {f"eventflow.{kind}.name": name, "eventflow.position": position}
        return self.tracing.below(self.span, f"{kind} {name}", attributes)

    def rider(self, workflow_id: str) -> Rider:
        """What keeps it beside its workflow's row, for whoever runs that next."""
        assert self.tracing is not None or self.span is None
        own = None if self.span is None or self.tracing is None else self.tracing.text(self.span)
        return Rider("insert_traces", (workflow_id, self.cause, own))


class Open:
    """A span that is current in this context until it is closed. `error`: what it came to, if that is known by then."""

    __slots__ = ("_token", "_tracing", "error", "span")

    def __init__(self, tracing: "Tracing", span: Any, token: "Token[Any] | None") -> None:
        self._tracing, self.span, self._token = tracing, span, token
        self.error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any, /) -> None:
        self.error = error
        self.close()

    @_quietly
    def close(self) -> None:
        """End it, and let what was current before be current again."""
        try:
            self._tracing.end(self.span, self.error)
        finally:
            if self._token is not None:
                self._tracing.context.detach(self._token)


class _Draw:
    """Which of many is one of a share: exactly as likely as if each were asked for, at the price of counting."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = self._gap()

    def _gap(self) -> int:
        if self._share >= 1.0:
            return 1
        if self._share <= 0.0:
            return sys.maxsize
        return 1 + int(math.log(1.0 - random.random()) / math.log1p(-self._share))

    def next(self) -> bool:
        self._left -= 1  # threads may lose one another's: so much the less is drawn
        if self._left > 0:
            return False
        self._left = self._gap()
        return True


class Tracing:
    """How this program traces: its provider's tracers, and what its sampler is known to do."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import context, propagate, trace

        self._provider = provider  # kept, for its id is what tells it from others
        self.context, self._propagate, self._trace = context, propagate, trace
        self._nowhere = context.Context()
        self._fields = frozenset(propagate.get_global_textmap().fields)
        self._tracer = self._roots = self._tracer_of(provider)
        share, self._follows = _sampling(getattr(provider, "sampler", None))
        self._draw = _Draw(1.0 if share is None else share)
        if share is not None and 0.0 < share < 1.0:
            self._roots = self._tracer_of(provider)
            if hasattr(self._roots, "id_generator"):
                self._roots.id_generator = _drawn(self._roots.id_generator, share)
            else:
                self._draw = _Draw(1.0)
        self.whose: Callable[[], Any] = lambda: None  # tells which run's code this is
        self._attach = context.attach
        self._nothing = trace.set_span_in_context(_unsampled(self), self._nowhere)

    def _tracer_of(self, provider: Any) -> Any:
        return provider.get_tracer("eventflow", version("eventflow"))

    # ---- runs ----

    def begin(self, run: Any) -> Open | None:
        """Begin a run's span, current in this context from here on; None where it is not recorded."""
        headers = run.headers
        if headers and any(name in self._fields for name, _ in headers):
            if not self._follows or not _left_out(headers):
                return self._begin(run, drawn=False)
        elif run.trace is not None or self._draw.next():
            return self._begin(run, drawn=run.trace is None)
        self._attach(self._nothing)
        return None

    @_quietly
    def _begin(self, run: Any, *, drawn: bool) -> Open | None:
        known: Trace | None = run.trace
        if known is not None and known.span is not None and known.before is None:
            known.before = self.text(known.span)
        parent = self.received(run.headers) if run.headers else None
        if parent is None and known is not None:
            parent = self._parent(known.cause or known.before)
        if parent is None:
            if not drawn and not self._draw.next():
                self._attach(self._nothing)
                return None
            span = self._start(self._roots, run, self._nowhere, None)
        elif self._follows and not self._span_context(parent).trace_flags.sampled:
            self.context.attach(parent)
            return None
        else:
            span = self._start(self._tracer, run, parent, known)
        here = self._trace.set_span_in_context(span, self._nowhere if parent is None else parent)
        token = self.context.attach(here)
        if not span.is_recording():
            return None
        if known is None:
            known = run.trace = Trace()
        known.span, known.tracing = span, self
        return Open(self, span, token)

    def _start(self, tracer: Any, run: Any, parent: Any, known: Trace | None) -> Any:
        links = None
        if known is not None:
            last = known.before if known.span is None else self.text(known.span)
            found = None if last is None else self._span_context(self._parent(last))
            if found is not None and found.span_id != self._span_context(parent).span_id:
                links = [self._trace.Link(found)]
        message = run.spec.consumer is not None
        name = f"process {_topic_of(run)}" if message else f"workflow {run.name}"
        attributes = {**(_message_attributes(run) if message else {}), **_run_attributes(run)}
        kind = self._trace.SpanKind.CONSUMER
        return tracer.start_span(name, context=parent, kind=kind, attributes=attributes, links=links)

    @_quietly
    def begin_batch(self, runs: Sequence[Any]) -> Open | None:
        """Begin the span of one call for many messages, which is linked with the trace of each."""
        received = [self.received(run.headers) for run in runs if run.headers]
        contexts = [self._span_context(one) for one in received if one is not None]
        links = [self._trace.Link(one) for one in contexts if one.trace_flags.sampled][:_LINKS]
        if not links and not self._draw.next():
            self._attach(self._nothing)
            return None
        first = runs[0]
        attributes = _message_attributes(first)
        attributes.pop("messaging.kafka.offset")
        attributes.pop("messaging.destination.partition.id")
        attributes |= {"messaging.batch.message_count": len(runs), "eventflow.workflow.name": first.name}
        span = self._roots.start_span(
            f"process {_topic_of(first)}", context=self._nowhere, kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes, links=links,
        )  # fmt: skip
        token = self.context.attach(self._trace.set_span_in_context(span, self._nowhere))
        return Open(self, span, token) if span.is_recording() else None

    # ---- what runs do ----

    @_quietly
    def below(self, parent: Any, name: str, attributes: Attributes) -> Open:
        """Begin a span below the current one, or below this one where there is none; it is current until it is closed."""
        current = self._trace.get_current_span()
        inside = None if current.get_span_context().is_valid else self._trace.set_span_in_context(parent)
        span = self._tracer.start_span(name, context=inside, attributes=attributes)
        return Open(self, span, self.context.attach(self._trace.set_span_in_context(span)))

    @_quietly
    def creation(self, topic: str) -> dict[str, str]:
        """The headers that carry the trace on with an event, whose creation is a span where the code around it has one."""
        return self._carried(self._made(f"create {topic}", {
            "messaging.system": "kafka", "messaging.operation.name": "create", "messaging.operation.type": "create",
            "messaging.destination.name": topic,
        }))  # fmt: skip

    @_quietly
    def start(self, verb: str, name: str) -> str | None:
        """The span of whoever starts a workflow, or puts it in line, as a traceparent; None where it is not recorded."""
        inside = self._made(f"{verb} {name}", {"eventflow.workflow.name": name})
        span = self._trace.get_current_span(inside)
        return self.text(span) if span.get_span_context().trace_flags.sampled else None

    def _made(self, name: str, attributes: Attributes) -> Any:
        """The context of a span that is over at once; the current one where that is not recorded."""
        here = self._trace.get_current_span()
        if here.get_span_context().is_valid and not here.is_recording():
            return None
        span = self._tracer.start_span(name, kind=self._trace.SpanKind.PRODUCER, attributes=attributes)
        span.end()
        return self._trace.set_span_in_context(span)

    def _carried(self, context: Any) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, context)
        return carrier

    # ---- what nobody's code does ----

    @_quietly
    def fire(self, schedule: str, fire_time: str, cause: str) -> str | None:
        """The span of a fire, as a traceparent; None where it is not recorded."""
        attributes = {
            "eventflow.schedule.name": schedule,
            "eventflow.fire.time": fire_time,
            "eventflow.fire.cause": cause,
        }
        span = self._tracer.start_span(f"fire {schedule}", context=self._nowhere, attributes=attributes)
        span.end()
        return self.text(span) if span.is_recording() or span.get_span_context().trace_flags.sampled else None

    @_quietly
    def send(
        self, topics: Iterable[str], headers: Iterable[Sequence[tuple[str, bytes | None]]], count: int
    ) -> Open | None:
        """Begin the span of a Kafka transaction that sends events, linked with their creations; None where none is recorded."""
        links: list[Any] = []
        for one in headers:
            found = self.received(one)
            if found is not None and self._span_context(found).trace_flags.sampled:
                links.append(self._trace.Link(self._span_context(found)))
                if len(links) == _LINKS:
                    break
        if not links:
            return None
        names = sorted(set(topics))
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka", "messaging.operation.name": "send", "messaging.operation.type": "send",
            "messaging.batch.message_count": count,
        }  # fmt: skip
        if len(names) == 1:
            attributes["messaging.destination.name"] = names[0]
        name = f"send {names[0]}" if len(names) == 1 else "send"
        kind = self._trace.SpanKind.CLIENT
        span = self._tracer.start_span(name, context=self._nowhere, kind=kind, attributes=attributes, links=links)
        return Open(self, span, None)

    @_quietly
    def takeover(self, dead: int, executor: int, since: int) -> None:
        """The span in which the work of a dead executor was taken over, since then, in nanoseconds."""
        attributes = {"eventflow.executor.dead": dead, "eventflow.executor.id": executor}
        self._tracer.start_span("takeover", context=self._nowhere, attributes=attributes, start_time=since).end()

    @_quietly
    def together(self, name: str, spans: Sequence[Any], since: int, count: int) -> None:
        """The span of a transaction that many messages have shared: below the first of theirs, linked with the others."""
        links = [self._trace.Link(span.get_span_context()) for span in spans[1 : 1 + _LINKS]]
        inside = self._trace.set_span_in_context(spans[0], self._nowhere)
        attributes = {"eventflow.transaction.name": name, "messaging.batch.message_count": count}
        self._tracer.start_span(
            f"transaction {name}", context=inside, attributes=attributes, links=links, start_time=since
        ).end()

    # ---- contexts ----

    def end(self, span: Any, error: BaseException | None) -> None:
        """End a span. Of an error it tells what kind it is: its text may be anybody's data."""
        if error is not None:
            kind = type(error)
            known = _ENDS.get(kind.__name__)
            if known is not None:
                span.set_attribute("eventflow.ended", known)
            elif isinstance(error, Exception):
                span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, kind.__name__))
        span.end()

    def text(self, span: Any) -> str:
        """A span as a traceparent (W3C Trace Context)."""
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    def received(self, headers: Sequence[tuple[str, bytes | None]]) -> Any:
        """The context that headers carry; None where they carry no trace."""
        carrier = {name: value.decode("ascii", "replace") for name, value in headers if value and name in self._fields}
        if not carrier:
            return None
        found = self._propagate.extract(carrier, self._nowhere)
        return found if self._span_context(found).is_valid else None

    def _parent(self, text: str | None) -> Any:
        """The context of a traceparent that the ledger keeps; None where it is none."""
        parts = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", text or "")
        if parts is None:
            return None
        flags = self._trace.TraceFlags(int(parts[3], 16))
        context = self._trace.SpanContext(int(parts[1], 16), int(parts[2], 16), True, flags)
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(context), self._nowhere)

    def _span_context(self, context: Any) -> Any:
        return self._trace.get_current_span(context).get_span_context()


def _drawn(generator: Any, share: float) -> Any:
    """A generator of ids of traces that a sampler of this share takes: what is drawn begins under one."""
    below = max(1, round(share * (1 << 64)))
    found = copy.copy(generator)
    found.generate_trace_id = lambda: ((random.getrandbits(63) + 1) << 64) | random.randrange(below)
    found.is_trace_id_random = lambda: False
    return found


def _unsampled(tracing: Tracing) -> Any:
    """The span of all that is not recorded. Its ids are found when a log or a call asks: as they were sent, or made."""
    from opentelemetry import trace

    class Unsampled(trace.NonRecordingSpan):
        def __init__(self) -> None:
            super().__init__(trace.INVALID_SPAN_CONTEXT)

        def get_span_context(self) -> trace.SpanContext:
            run = tracing.whose()
            if run is not None and run.headers and (sent := tracing.received(run.headers)) is not None:
                return trace.get_current_span(sent).get_span_context()
            digest = hashlib.blake2b(b"" if run is None else run.workflow_id.encode(), digest_size=24).digest()
            trace_id, span_id = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")
            return trace.SpanContext(trace_id or 1, span_id or 1, False, trace.TraceFlags(0))

    return Unsampled()


def _sampling(sampler: Any) -> tuple[float | None, bool]:
    """What share of new traces a sampler takes, None where that is not known; whether it leaves out what a caller left out."""
    try:
        said = str(sampler.get_description())
    except Exception:
        return None, False
    inner = re.fullmatch(r"ParentBased\{root:(.*?),remoteParentSampled:.*", said)
    root = said if inner is None else inner[1]
    follows = inner is not None and "remoteParentNotSampled:AlwaysOffSampler" in said
    ratio = re.fullmatch(r"TraceIdRatioBased\{([0-9.e-]+)\}", root)
    if ratio is not None:
        return float(ratio[1]), follows
    return {"AlwaysOnSampler": 1.0, "AlwaysOffSampler": 0.0}.get(root), follows


def _left_out(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether a message's trace was not sampled where it began, and nothing but that is sent along."""
    found = False
    for name, value in headers:
        if name == "traceparent":
            found = value is not None and len(value) == 55 and value.endswith(b"-00")
        elif name == "baggage":
            return False
    return found


# ---- what spans say ------------------------------------------------------------------------------


def _topic_of(run: Any) -> str:
    if run.claim is not None:
        return run.claim.topic
    identity = parse_message_workflow_id(run.workflow_id)
    return run.name if identity is None else identity.topic


def _message_attributes(run: Any) -> dict[str, str | int | bool]:
    place: Any = run.claim or parse_message_workflow_id(run.workflow_id)
    found: dict[str, str | int | bool] = {
        "messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": place.topic, "messaging.destination.partition.id": str(place.partition),
        "messaging.consumer.group.name": place.group, "messaging.kafka.offset": run.offset or 0,
    }  # fmt: skip
    if run.value is None:
        found["messaging.kafka.message.tombstone"] = True
    return found


def _run_attributes(run: Any) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {
        "eventflow.workflow.id": run.workflow_id, "eventflow.workflow.name": run.name, "eventflow.attempt": run.attempt,
    }  # fmt: skip
    if run.recoveries:
        found["eventflow.recoveries"] = run.recoveries
    return found


# ---- whether -------------------------------------------------------------------------------------

_known: dict[int, Tracing] = {}  # by its provider, of which a program has one


def active() -> Tracing | None:
    """How this program traces; None where it has set up nothing that does."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if type(provider).__name__ in {"ProxyTracerProvider", "NoOpTracerProvider"}:
        return None
    found = _known.get(id(provider))
    if found is None:
        _known.clear()
        found = _known[id(provider)] = Tracing(provider)
    return found


def creation(topic: str) -> dict[str, str]:
    """The headers that an event of this topic carries its trace in; none where nobody traces."""
    tracing = active()
    return {} if tracing is None else tracing.creation(topic) or {}


def started(verb: str, name: str, workflow_id: str) -> tuple[Rider, ...]:
    """What keeps, beside the row of a workflow that this code starts, of which trace it is; nothing where none is recorded."""
    tracing = active()
    cause = None if tracing is None else tracing.start(verb, name)
    return () if cause is None else (Rider("insert_traces", (workflow_id, cause, None)),)


def trace_of(cause: tuple[Rider, ...]) -> Trace | None:
    """What is traced of a run that begins with this."""
    return Trace(str(cause[0].row[1])) if cause else None
