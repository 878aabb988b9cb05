"""Who is told first that a whole family of workflows is to end, and a deadline that comes with the end."""

from typing import Any, cast

from eventflow.interrupts import Interrupts
from eventflow.registry import make_spec
from eventflow.retry import Retry
from eventflow.runs import Life, Run


class Told(Interrupts):
    """Notes whom it tells."""

    def __init__(self, runs: dict[str, Run]) -> None:
        desk = cast("Any", type("Desk", (), {"runs": runs})())
        super().__init__(desk, cast("Any", None), cast("Any", None))
        self.order: list[str] = []

    def interrupt(self, run: Run, why: Exception) -> None:
        self.order.append(run.workflow_id)


def test_parents_are_told_before_their_children() -> None:
    """A child that is told first may be seen as cancelled by its parent, which then fails and is not cancelled."""
    spec = make_spec(lambda: None, "w", Retry(0), 5)
    runs: dict[str, Run] = {}
    for workflow_id, parent in (("a child", "the parent"), ("b grandchild", "a child"), ("the parent", "elsewhere")):
        run = runs[workflow_id] = Run(spec, workflow_id, "app")
        run.life = Life(parent)
    told = Told(runs)
    told.request([(workflow_id, "cancel", "somebody", n) for n, workflow_id in enumerate([*sorted(runs), "gone"], 1)])
    assert told.order == ["the parent", "a child", "b grandchild"]
    told.request([("a child", "cancel", "somebody", 1)])
    assert told.order[3:] == [], "a request that was heard says nothing"


class Gone(dict[Run, Any]):
    """What another thread takes between the look at it and the taking."""

    def __contains__(self, run: object) -> bool:
        return True


def test_a_deadline_that_has_come_while_its_run_ends_is_no_error() -> None:
    interrupts = Told({})
    interrupts._deadlines = Gone()
    interrupts.unwatch(cast("Run", None))
