"""What spans there are of each kind of work, through an in-memory exporter; what they never say; and what costs nothing."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import opentelemetry.metrics
import opentelemetry.propagate
import opentelemetry.trace
import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from prometheus_client.parser import text_string_to_metric_families

import eventflow
import eventflow.durable
from eventflow import Fire, Message, health, sync, testing, tracing
from eventflow.logs import Ids
from eventflow.metrics import FAMILIES
from tests.integration.test_harness import Shop, shop

__all__ = ["shop"]

PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8


class Traced:
    """The spans of a program that has set its SDK up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exporter = InMemorySpanExporter()
        self._monkeypatch = monkeypatch
        self.sample(None)

    def sample(self, sampler: Sampler | None) -> None:
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def parent(self, name: str) -> str:
        """The name of its parent's span."""
        parent = self.one(name).parent
        assert parent is not None
        return next(
            s.name for s in self.exporter.get_finished_spans() if s.get_span_context().span_id == parent.span_id
        )


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> Iterator[Traced]:
    yield Traced(monkeypatch)


def trace_id(span: ReadableSpan) -> str:
    return f"{span.get_span_context().trace_id:032x}"


async def test_a_failure_says_what_kind_it_is_and_nothing_of_its_text(traced: Traced) -> None:
    @eventflow.step(name="charge")
    async def charge(card: str) -> str:
        raise ValueError(f"no such card: {card}")

    @eventflow.kafka_consumer("orders", group="billing", retries=1)
    async def bill(message: Message[dict[str, str]]) -> None:
        await charge(message.value["card"])

    async with testing.harness() as flow:
        await flow.deliver("orders", {"card": "4111-secret"}, key="secret", headers={"x": "secret"})
        await flow.settle()
        await flow.advance(timedelta(minutes=1))
        await flow.settle()
    steps, runs = traced.named("step charge"), traced.named("process orders")
    assert (len(steps), len(runs)) == (2, 2)
    assert {span.status.status_code.name for span in (*steps, *runs)} == {"ERROR"}
    assert {(span.attributes or {})["error.type"] for span in (*steps, *runs)} == {"ValueError"}
    assert [(span.attributes or {})["eventflow.attempt"] for span in runs] == [1, 2]
    assert len({trace_id(span) for span in runs}) == 1
    assert not [span for span in traced.exporter.get_finished_spans() if "secret" in span.to_json()]


async def test_transactions_and_batches(traced: Traced) -> None:
    @eventflow.kafka_consumer("orders", group="ledger")
    @eventflow.transaction(name="enter")
    def enter(connection: "psycopg.Connection[tuple[object, ...]]", message: Message[int]) -> None:
        connection.execute("select 1")
        sync.publish("entered", message.value)

    @eventflow.kafka_consumer("entries", group="search", batch=10)
    async def index(messages: list[Message[int]]) -> None: ...

    async with testing.harness() as flow:
        await flow.deliver("orders", 7, headers={"traceparent": PARENT + "-01"})
        await flow.deliver("entries", 8, headers={"traceparent": PARENT + "-01"})
        await flow.settle()
        [event] = await flow.published("entered")
    assert traced.parent("create entered") == "process orders"
    assert traced.parent("transaction enter") == "process orders"
    created = traced.one("create entered").get_span_context()
    assert event.headers["traceparent"] == f"00-{'ab' * 16}-{created.span_id:016x}-01".encode()
    batch = traced.one("process entries")
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == ["ab" * 16]
    assert batch.parent is None


async def test_a_schedule_a_child_and_a_start_are_one_trace_each(traced: Traced) -> None:
    @eventflow.workflow(name="child")
    async def child() -> None: ...

    @eventflow.scheduled(every=timedelta(minutes=5), name="poll")
    async def poll(fire: Fire) -> None:
        await child()

    @eventflow.workflow(name="blocking")
    def blocking() -> int:
        return sync.run_step(five, name="five")

    def five() -> int:
        return 5

    async with testing.harness() as flow:
        await flow.advance(timedelta(minutes=5))
        await flow.settle()
        assert await (await eventflow.start(blocking)).result() == 5
        assert await (await eventflow.start(blocking, workflow_id="mine")).result() == 5
    assert traced.parent("workflow poll") == "fire poll"
    assert traced.parent("start child") == "workflow poll"
    assert traced.parent("workflow child") == "start child"
    assert trace_id(traced.one("workflow child")) == trace_id(traced.one("fire poll"))
    starts, runs = traced.named("start blocking"), traced.named("workflow blocking")
    assert {trace_id(span) for span in starts} == {trace_id(span) for span in runs}
    assert len(traced.named("step five")) == 2


async def test_a_workflow_that_slept_goes_on_in_its_trace(traced: Traced) -> None:
    @eventflow.step(name="before")
    async def before() -> None: ...

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        await before()
        await eventflow.durable.sleep(3600)

    async with testing.harness() as flow:
        await flow.deliver("orders", 7)
        await flow.settle()
        await flow.advance(timedelta(hours=2))
        await flow.settle()
    first, second = traced.named("process orders")
    assert (first.attributes or {})["eventflow.ended"] == "suspended"
    assert (first.status.status_code.name, second.status.status_code.name) == ("UNSET", "UNSET")
    assert trace_id(first) == trace_id(second)
    assert second.parent is not None
    assert second.parent.span_id == first.get_span_context().span_id
    assert len(traced.named("step before")) == 1


class Answering(ThreadingHTTPServer):
    """Another service, on this machine: what comes as `traceparent`, by path."""

    def __init__(self) -> None:
        self.heard: dict[str, str | None] = {}
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def call(self, path: str) -> int:
        """Ask it, as instrumentation of an HTTP client does."""
        headers: dict[str, str] = {}
        opentelemetry.propagate.inject(headers)
        request = urllib.request.Request(f"http://127.0.0.1:{self.server_port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status


class Answer(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.heard[self.path] = self.headers["traceparent"]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


async def test_who_is_called_over_http_goes_on_in_the_steps_trace(traced: Traced) -> None:
    other = Answering()

    @eventflow.step(name="ask")
    async def ask() -> int:
        return await asyncio.to_thread(other.call, "/step-ask")

    @eventflow.transaction(name="enter")
    def enter(connection: "psycopg.Connection[tuple[object, ...]]") -> int:
        return other.call("/transaction-enter")

    @eventflow.step(name="look")
    def look() -> int:
        return other.call("/step-look")

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> list[int]:
        return [await ask(), await eventflow.durable.run_step(enter)]

    @eventflow.kafka_consumer("refunds", group="refunding")
    def refund(message: Message[int]) -> int:
        return look()

    with other:
        async with testing.harness() as flow:
            for topic in ("orders", "refunds"):
                await flow.deliver(topic, 7, headers={"traceparent": PARENT + "-01"})
            await flow.settle()
        other.shutdown()
    spans = {name: traced.one(name.replace("-", " ", 1)) for name in ("step-ask", "transaction-enter", "step-look")}
    assert {trace_id(span) for span in spans.values()} == {"ab" * 16}
    assert other.heard == {
        f"/{name}": f"00-{'ab' * 16}-{span.get_span_context().span_id:016x}-01" for name, span in spans.items()
    }


async def test_what_is_not_sampled_says_so_to_whom_it_calls(traced: Traced) -> None:
    traced.sample(ParentBased(ALWAYS_OFF))
    seen: list[tuple[bool, bool]] = []

    @eventflow.step(name="look")
    async def look() -> None:
        context = opentelemetry.trace.get_current_span().get_span_context()
        seen.append((context.is_valid, context.trace_flags.sampled))

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        await look()
        await eventflow.publish("receipts", 1)

    async with testing.harness() as flow:
        await flow.deliver("orders", 7)
        await flow.deliver("orders", 7, headers={"traceparent": PARENT + "-00"})
        await flow.settle()
        events = await flow.published("receipts")
        with psycopg.connect(flow.database_url) as connection:
            assert connection.execute("select count(*) from eventflow.traces").fetchone() == (0,)
    assert seen == [(True, False)] * 2
    assert all(event.headers["traceparent"].endswith(b"-00") for event in events)
    assert sum(event.headers["traceparent"].startswith(f"00-{'ab' * 16}-{'cd' * 8}".encode()) for event in events) == 1
    assert len({event.headers["traceparent"] for event in events}) == 2
    assert traced.exporter.get_finished_spans() == ()


def test_a_provider_is_never_taken_for_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one at the same place in memory would have its tracers."""
    provider = TracerProvider(shutdown_on_exit=False)
    with monkeypatch.context() as patched:
        patched.setattr(opentelemetry.trace, "get_tracer_provider", lambda: kept[0])
        kept = [provider]
        tracing.active()
        kept.clear()
    gone = weakref.ref(provider)
    del provider
    gc.collect()
    assert gone() is not None


async def test_a_share_of_the_messages_is_sampled_and_each_whole(traced: Traced) -> None:
    traced.sample(ParentBased(TraceIdRatioBased(0.2)))

    @eventflow.step(name="act")
    async def act() -> None: ...

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        await act()

    async with testing.harness() as flow:
        for n in range(500):
            await flow.deliver("orders", n)
        await flow.settle()
    runs, steps = traced.named("process orders"), traced.named("step act")
    assert 50 <= len(runs) <= 160
    assert {trace_id(span) for span in runs} == {trace_id(span) for span in steps}


class Broken(Sampler):
    def should_sample(self, *args: object, **kwargs: object) -> SamplingResult:
        raise RuntimeError("secret")

    def get_description(self) -> str:
        return "Broken"


async def test_a_sampler_that_fails_does_not_hold_the_work_up(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    traced.sample(Broken())
    done: list[int] = []

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        await eventflow.publish("receipts", 1)
        done.append(message.value)

    async with testing.harness() as flow:
        await flow.deliver("orders", 7, headers={"traceparent": "nonsense"})
        await flow.settle()
    assert done == [7]
    assert "secret" not in caplog.text


class Raising(SimpleSpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("secret")


async def test_a_processor_that_fails_does_not_hold_the_work_up(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Raising(traced.exporter))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: provider)
    done: list[int] = []

    @eventflow.step(name="act")
    async def act(n: int) -> None:
        done.append(n)

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        await act(message.value)
        await eventflow.publish("receipts", 1)

    async with testing.harness() as flow:
        for n in range(3):
            await flow.deliver("orders", n)
        await flow.settle()
        assert len(await flow.published("receipts")) == 3
    assert done == [0, 1, 2]
    assert "secret" not in caplog.text


async def test_log_records_know_their_workflow_and_trace(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("shop")
    caplog.handler.addFilter(Ids())

    @eventflow.step(name="charge")
    async def charge() -> None:
        log.warning("in a step")

    @eventflow.kafka_consumer("orders", group="billing")
    async def bill(message: Message[int]) -> None:
        log.warning("in a workflow")
        await charge()

    async with testing.harness() as flow:
        workflow_id = await flow.deliver("orders", 7)
        await flow.settle()
        log.warning("outside")
    by = {record.getMessage(): record for record in caplog.records if record.name == "shop"}
    inside, step, outside = (vars(by[text]) for text in ("in a workflow", "in a step", "outside"))
    assert (inside["workflow_id"], inside["step"], step["step"]) == (workflow_id, "", "charge")
    assert inside["trace_id"] == step["trace_id"] == trace_id(traced.one("process orders"))
    assert inside["span_id"] != step["span_id"]
    assert outside["where"] == outside["trace_id"] == outside["workflow_id"] == ""
    assert inside["where"] == f" [workflow_id={workflow_id} trace_id={inside['trace_id']}]"


def test_nothing_is_imported_for_a_program_that_does_not_trace() -> None:
    """Neither OpenTelemetry nor what serves health: whoever runs a consumer loads none of it."""
    code = (
        "import sys, eventflow, eventflow.app, eventflow.cli, eventflow.client, eventflow.sync, eventflow.tracing as t;"
        "assert t.active() is None;"
        "print(', '.join(m for m in sys.modules if m.split('.')[0] in "
        "{'opentelemetry', 'starlette', 'uvicorn', 'prometheus_client'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (0, "\n", "")


async def test_metrics_by_opentelemetry_are_those_of_the_endpoint(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(opentelemetry.metrics, "get_meter_provider", lambda: provider)

    @eventflow.step(name="act")
    async def act() -> None: ...

    @eventflow.kafka_consumer("orders", group="billing", name="metered")
    async def bill(message: Message[int]) -> None:
        await act()

    async with testing.harness() as flow:
        for n in range(250):
            await flow.deliver("orders", n)
        await flow.settle()
        found = await asyncio.to_thread(reader.get_metrics_data)
    assert found is not None
    metrics = {m.name: m for r in found.resource_metrics for s in r.scope_metrics for m in s.metrics}
    points = {tuple((p.attributes or {}).values()): p for p in metrics["eventflow.messages"].data.data_points}
    assert points["metered", "succeeded"].value == 250
    latency = {tuple((p.attributes or {}).values()): p for p in metrics["eventflow.message_latency"].data.data_points}
    assert latency["metered",].count == 250
    assert metrics["eventflow.message_latency"].unit == "s"
    assert {"eventflow.lease_age", "eventflow.ledger_up", "eventflow.flush", "eventflow.in_flight"} <= metrics.keys()
    for instrument in FAMILIES.values():
        monkeypatch.setattr(instrument, "sink", None, raising=False)


class Named:
    """A provider of meters that only keeps what its instruments are called in Prometheus, as OpenTelemetry's exporters do that."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def get_meter(self, _: str) -> "Named":
        return self

    def _name(self, name: str, unit: str, kind: str) -> None:
        units = {"s": "_seconds", "By": "_bytes", "1": "_ratio" if kind == "gauge" else "", "": ""}
        ending = "" if unit.startswith("{") else units[unit]
        self.names.add(name.replace(".", "_").removesuffix(ending) + ending + ("_total" if kind == "counter" else ""))

    def create_histogram(self, name: str, *, unit: str = "", **_: object) -> "Named":
        self._name(name, unit, "histogram")
        return self

    def create_observable_counter(self, name: str, *, unit: str = "", **_: object) -> None:
        self._name(name, unit, "counter")

    def create_observable_gauge(self, name: str, *, unit: str = "", **_: object) -> None:
        self._name(name, unit, "gauge")

    def record(self, value: float, attributes: object) -> None: ...


async def test_prometheus_has_one_name_for_what_comes_by_opentelemetry_and_from_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, shop: Shop
) -> None:
    named = Named()
    monkeypatch.setattr(opentelemetry.metrics, "get_meter_provider", lambda: named)
    async with testing.harness():
        text = await asyncio.to_thread(health.metrics)
    for instrument in FAMILIES.values():
        monkeypatch.setattr(instrument, "sink", None, raising=False)
    families = [f for f in text_string_to_metric_families(text.decode()) if f.name.startswith("eventflow_")]
    assert named.names == {f.name + ("_total" if f.type == "counter" else "") for f in families}
