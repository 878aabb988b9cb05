"""Which intake a message is, and when a reprocessing that could not be read is tried again."""

from types import SimpleNamespace
from typing import Any

import pytest

from eventflow import intakes
from eventflow.errors import UnavailableError
from eventflow.intakes import Intakes
from eventflow.registry import ConsumerSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Reprocess


async def handle(message: Any) -> None: ...


SPEC = ConsumerSpec(
    ("orders",), "g", "none", "earliest", "topic_id", None, {}, make_spec(handle, "handle", Retry(0), 0), None
)


class FakeIntake:
    """Lives until it fails."""

    def __init__(self, spec: Any, on_fatal: Any, reprocess: Reprocess | None) -> None:
        self.spec = spec
        self.reprocess = reprocess
        self.fail = on_fatal
        self.lives = False
        self.turns: list[str] = []

    def start(self) -> None:
        self.lives = True

    def alive(self) -> bool:
        return self.lives

    def stop(self, *, abandon: bool = False) -> None:
        self.lives = False

    def told(self, reprocesses: list[Reprocess], _: Any) -> None:
        mine = self.reprocess
        self.reprocess = mine and next((one for one in reprocesses if one.id == mine.id), mine)

    def is_of(self, _: Reprocess) -> bool:
        return True

    def take_again(self, run: Any) -> None:
        self.turns.append(run.workflow_id)


class Made:
    """The intakes of one consumer, and what they tell."""

    def __init__(self) -> None:
        self.incidents: list[str] = []
        self.all: list[FakeIntake] = []
        self.intakes = Intakes(
            [SPEC], self._make, on_fatal=lambda _: None, on_incident=lambda *what: self.incidents.append(what[2])
        )
        self.intakes.start()

    def _make(self, spec: Any, on_fatal: Any, reprocess: Reprocess | None) -> Any:
        self.all.append(FakeIntake(spec, on_fatal, reprocess))
        return self.all[-1]

    def take_turn(self, workflow_id: str) -> None:
        self.intakes.take_turn(SimpleNamespace(workflow_id=workflow_id, spec=SPEC.spec))  # pyright: ignore[reportArgumentType]


def again(*parts: list[int]) -> Reprocess:
    return Reprocess(1, "g", "orders", 2, False, None, list(parts))


def test_a_redelivered_message_goes_where_its_partitions_generation_is_read() -> None:
    """Another partition's log may have been cut off, and be the live one's in the same generation; and one that is run again, too."""
    made = Made()
    made.intakes.told([again([0, 2], [3, 2])], [])
    live, beside = made.all
    made.intakes.told([again([0, 2], [3, 4])], [])
    for place in ("0:7", "0:7:g2", "1:7:g2", "3:7:g2", "3:7:g4"):
        made.take_turn(f"kafka:g:orders:1:{place}")
    assert [turn.removeprefix("kafka:g:orders:1:") for turn in beside.turns] == ["0:7:g2", "3:7:g4"]
    assert len(live.turns) == 3


def test_what_cannot_be_read_is_tried_again_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(intakes.time, "monotonic", lambda: now)
    made = Made()
    made.intakes.told([again([0, 2])], [])
    for wait in (2, 4, 8, 16, 32, 60, 60):
        tries = len(made.all)
        made.all[-1].fail(UnavailableError("forbidden"))
        made.all[-1].lives = False
        now += wait - 0.1
        made.intakes.told([again([0, 2])], [])
        assert len(made.all) == tries
        now += 0.1
        made.intakes.told([again([0, 2])], [])
        assert len(made.all) == tries + 1
    assert made.incidents[:2] == [f"cannot be read: forbidden; trying again in {wait} s" for wait in (2, 4)]
    tries = len(made.all)
    made.all[-1].fail(UnavailableError("forbidden"))
    now += 100
    made.intakes.told([again([0, 2])], [])
    assert len(made.all) == tries, "its thread has yet to end"
    made.all[-1].lives = False
    made.intakes.told([], [])
    now += 100
    made.intakes.told([], [])
    assert len(made.all) == tries, "it has ended"
