"""eventflow, a message with one step: as it is, with telemetry set up, or with all of telemetry taken out of its code."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import eventflow.consumer
import eventflow.executor
import eventflow.steps
from benchmarks.contestants import common, eventflow_workflow

TRACED = ("self.tracing is None", "run.trace is None", "span is None")


class Without(ast.NodeTransformer):
    """What the code would be if nobody traced: each question whether somebody does is answered, and what follows is gone."""

    def __init__(self) -> None:
        self.answered = 0

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        asked = ast.unparse(node)
        if asked in TRACED or asked.replace(" is not ", " is ") in TRACED:
            self.answered += 1
            return ast.Constant(" is not " not in asked)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        known = next((v for v in node.values if isinstance(v, ast.Constant) and v.value is False), None)
        return known if known is not None and isinstance(node.op, ast.And) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return (node.body if node.test.value else node.orelse) if isinstance(node.test, ast.Constant) else node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Constant):
            return node
        return (node.body if node.test.value else node.orelse) or ast.Pass()


def strip(module: ModuleType, holder: Any, name: str) -> None:
    """Compile a function anew, without what it asks of telemetry."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(holder, name))))
    without = Without()
    changed = ast.fix_missing_locations(without.visit(tree))
    assert without.answered, f"{name} asks nothing of telemetry"
    found: dict[str, Callable[..., Any]] = {}
    exec(compile(changed, f"<{name} without telemetry>", "exec"), vars(module), found)
    setattr(holder, name, found[name])


def remove() -> None:
    """Neither tracing nor counting is in the way of a message any more."""
    executor: Any = eventflow.executor
    for name in ("_run", "_run_sync", "hand"):
        strip(executor, executor.Executor, name)
    for name in ("drive", "drive_sync"):
        strip(eventflow.steps, eventflow.steps, name)
    executor.flushed = executor.committed = lambda *_: None
    eventflow.consumer._see = lambda _: None  # type: ignore[attr-defined]


def trace(share: float) -> None:
    """Set the SDK up: what is sampled is encoded for a collector, and thrown away."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class Thrown(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
    provider.add_span_processor(BatchSpanProcessor(Thrown()))
    trace.set_tracer_provider(provider)


def measure() -> None:
    """Set metrics up, read every second."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    metrics.set_meter_provider(MeterProvider(metric_readers=[InMemoryMetricReader()]))


MODES: dict[str, Callable[[], None]] = {
    "removed": remove,
    "off": lambda: None,
    "sampled": lambda: trace(0.01),
    "all": lambda: trace(1.0),
    "metrics": measure,
}

if __name__ == "__main__":
    options = eventflow_workflow.parser(__doc__)
    options.add_argument("--mode", choices=list(MODES), default="off")
    chosen = options.parse_args()
    chosen.kind, chosen.idle, chosen.memory = "async", False, False
    MODES[chosen.mode]()
    assert "opentelemetry" not in sys.modules or chosen.mode not in {"removed", "off"}
    common.run(eventflow_workflow.main(chosen), uvloop=chosen.uvloop)
