"""The consumers of one executor: one intake per handler, and one for each topic that is run again beside it.

What is run again, everybody learns with the beat; who serves its handler reads it, in a consumer group of its own, so that
the processes share its partitions.
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from eventflow.consumer import Intake
from eventflow.errors import FencedError
from eventflow.idempotency import parse_message_workflow_id
from eventflow.records import Pause
from eventflow.registry import ConsumerSpec
from eventflow.retry import doubled
from eventflow.runs import Claim, Reprocess, Run

logger = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 2.0, 60.0  # seconds until a reprocessing that cannot be read here is tried again

_Make = Callable[[ConsumerSpec, Callable[[Exception], None], Reprocess | None], Intake]


class Intakes:
    """The intakes of one executor. From any thread."""

    def __init__(
        self, consumers: Iterable[ConsumerSpec], make: _Make, *, on_fatal: Callable[[Exception], None],
        on_incident: Callable[[str, str, str], None],
    ) -> None:  # fmt: skip
        self._make, self._on_fatal, self._on_incident = make, on_fatal, on_incident
        self._live = [make(consumer, on_fatal, None) for consumer in consumers]
        self._beside: dict[int, Intake] = {}  # by the number of the reprocessing
        self._left: list[Intake] = []  # told to stop
        self._failures: dict[int, tuple[int, float]] = {}  # of those not read: how often, and when to try again
        self._lock = threading.Lock()
        self._leaving = False

    def __iter__(self) -> Iterator[Intake]:
        with self._lock:
            return iter([*self._live, *self._beside.values(), *self._left])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def check(self) -> None:
        """Whether librdkafka takes their configurations.

        Raises:
            SettingsError: it does not; names the property.

        """
        for intake in self._live:
            intake.check()

    def start(self) -> None:
        """Start those of the handlers."""
        for intake in self._live:
            intake.start()

    def told(self, reprocesses: list[Reprocess], pauses: list[Pause]) -> None:
        """What is run again, and what is paused, now."""
        for intake in self:
            intake.told(reprocesses, pauses)
        beside = {one.id: one for one in reprocesses if not one.instead}
        if not beside and not self._beside and not self._left:
            return
        with self._lock:
            self._left = [intake for intake in self._left if intake.alive()]
            for number in self._beside.keys() - beside.keys():
                intake = self._beside.pop(number)
                intake.stop()
                self._left.append(intake)
                self._failures.pop(number, None)
            for number, one in beside.items():
                if number not in self._beside or self._is_due_again(number):
                    self._begin(one)

    def _is_due_again(self, number: int) -> bool:
        """Whether it has failed, and long enough ago: an ACL may be mended by now."""
        _, due = self._failures.get(number, (0, math.inf))
        return time.monotonic() >= due and not self._beside[number].alive()

    def _begin(self, one: Reprocess) -> None:
        live = next((intake for intake in self._live if intake.is_of(one)), None)
        if live is not None and not self._leaving:
            spec = dataclasses.replace(live.spec, topics=(one.topic,))
            self._beside[one.id] = intake = self._make(spec, lambda error: self._failed(one, error), one)
            intake.start()

    def _failed(self, one: Reprocess, error: Exception) -> None:
        """A reprocessing that cannot be read here: another process may read it, or this one later; the live consumers go on."""
        if isinstance(error, FencedError):
            self._on_fatal(error)
            return
        times = self._failures.get(one.id, (0, 0.0))[0] + 1
        wait = doubled(_SHORTEST, times - 1, _LONGEST)
        self._failures[one.id] = times, time.monotonic() + wait
        subject = f"{one.group} {one.topic}, reprocessing {one.id}"
        self._on_incident("reprocessing", subject, f"cannot be read: {error}; trying again in {wait:g} s")

    # ---- whose a message is ----

    def lose(self, claims: list[Claim]) -> None:
        """The journal learnt that these belong to others."""
        for intake in self:
            intake.lose(claims)

    def take_turn(self, run: Run) -> None:
        """A message that is kept in order has come from the ledger."""
        self._of(run).take_again(run)

    def stand_still(self, run: Run, why: str) -> None:
        """A message has failed for good, and its consumer stops."""
        self._of(run).stand_still(run, why)

    def _of(self, run: Run) -> Intake:
        """Whose it is: that of its partition's generation, where that is run again; else its handler's."""
        place = parse_message_workflow_id(run.workflow_id)
        mine = [intake for intake in self if intake.spec.spec is run.spec]
        for intake in mine:
            if place and intake.reprocess and intake.reprocess.has(place.topic, place.partition, place.generation):
                return intake
        return mine[0]

    # ---- the end ----

    def hold(self) -> None:
        """Fetch nothing more, and begin no more reprocessing."""
        self._leaving = True
        for intake in self:
            intake.hold()

    def stop(self, *, abandon: bool = False) -> None:
        """Leave the groups."""
        self._leaving = True
        for intake in self:
            intake.stop(abandon=abandon)

    def join(self, timeout: float) -> None:
        """Wait until they have left their groups; for all of them together no longer than for one."""
        until = time.monotonic() + timeout
        for intake in self:
            intake.join(max(0.0, until - time.monotonic()))
