"""An app that traces into a file, a line for each span as it ends: message, steps, an event, and who consumes that."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from common import TOPIC, Order
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow import Message
from eventflow.queues import Queue


def line(span: ReadableSpan) -> str:
    context, parent = span.get_span_context(), span.parent
    return json.dumps({
        "name": span.name, "trace": f"{context.trace_id:032x}", "id": f"{context.span_id:016x}",
        "parent": parent and f"{parent.span_id:016x}", "kind": span.kind.name, "pid": os.getpid(),
        "attributes": dict(span.attributes or {}), "status": span.status.status_code.name,
        "description": span.status.description, "events": [event.name for event in span.events],
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    })  # fmt: skip


class Appending(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["SPANS"]).open("a") as out:
            out.write("".join(line(span) + "\n" for span in spans))
        return SpanExportResult.SUCCESS


provider = TracerProvider()
if "COLLECTOR" in os.environ:
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ["COLLECTOR"])))
else:
    provider.add_span_processor(SimpleSpanProcessor(Appending()))
trace.set_tracer_provider(provider)
OUT = os.environ["OUT"]
mail = Queue("mail")


@eventflow.step
async def price(message: Message[Order]) -> int:
    return message.value.n * 7


@eventflow.step
async def announce(n: int) -> None:
    await eventflow.publish(OUT, {"n": n, "secret": "hunter2"}, key="hunter2")


@eventflow.transaction
async def book(session: AsyncSession, n: int) -> int:
    await session.execute(text("select 1"))
    return n


@eventflow.workflow
async def child(n: int) -> int:
    return n


@eventflow.workflow
async def letter(n: int) -> int:
    return n


@eventflow.kafka_consumer(TOPIC, group="first")
async def first(message: Message[Order]) -> None:
    n = await price(message)
    await announce(n)
    await book(n)
    await child(n)
    await eventflow.enqueue(letter, n, queue="mail")


@eventflow.kafka_consumer(OUT, group="second")
async def second(message: Message[dict[str, object]]) -> None:
    await price(Message(Order(n=1)))
