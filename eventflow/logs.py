"""Log records know where they were written: in which workflow and step, and of which trace. What is replayed logs nothing.

handler.addFilter(eventflow.logs.Ids())
handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(where)s"))
"""

import contextlib
import logging
import sys
from collections.abc import Generator
from typing import Any

from eventflow.context import StepScope, current
from eventflow.replay import Branch

__all__ = ["Ids", "Once"]


class Ids(logging.Filter):
    """Lets every record pass, and gives it what tells where it was written; for a handler, which sees those of all loggers.

    Attributes of a record: `workflow_id`, `workflow` (its name), `attempt`, `step` and `position`, `trace_id` and `span_id` as
    hexadecimal texts; "" (`attempt`: 0) where there is none. `where` has the ids as one text, for a format.

    It asks the thread and the context that it runs in: with a `QueueHandler` it belongs to that, not to the listener's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        if hasattr(record, "where"):
            return True
        here = current.get()
        branch = here.branch if isinstance(here, StepScope) else here
        run: Any = None if branch is None else branch.run
        trace_id, span_id = _trace()
        found: dict[str, Any] = {
            "workflow_id": "" if run is None else run.workflow_id, "workflow": "" if run is None else run.name,
            "attempt": 0 if run is None else run.attempt, "step": here.name if isinstance(here, StepScope) else "",
            "position": here.position if isinstance(here, StepScope) else "", "trace_id": trace_id, "span_id": span_id,
        }  # fmt: skip
        ours = record.name.startswith("eventflow.")  # whose texts say which workflow they are about
        shown = ("step", "trace_id") if ours else ("workflow_id", "step", "trace_id")
        said = " ".join(f"{name}={found[name]}" for name in shown if found[name])
        vars(record).update(found, where=f" [{said}]" if said else "")
        return True


class Once(logging.Filter):
    """Lets through what a workflow logs for the first time, and nothing that it logs again while it is replayed; for a handler.

    A workflow that goes on after a wait or a crash runs from its first line. What it logs before an operation that a former
    run has begun was logged by that. A step logs in each of its attempts, and what eventflow itself logs passes always.
    After a crash a line may come twice: nothing is recorded between two operations; so may the one before a wait for a
    message, an event or a result without a timeout.

    `running()` gives it to the handlers of the root logger, as they are then. (Temporal's `workflow.logger` mutes likewise.)
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is said for the first time."""
        here = current.get()
        if not isinstance(here, Branch) or record.name.startswith("eventflow."):
            return True
        return not here.replays(here.run.executor.home())


@contextlib.contextmanager
def muted() -> Generator[None]:
    """The handlers of the root logger have `Once` meanwhile."""
    once = Once()
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(once)


def _trace() -> tuple[str, str]:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return "", ""
    context = trace.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else ("", "")
