"""Runs that were under way when their process died, and may be why: one by one, with nothing beside them (R13).

One that kills its process again so dies alone, and is parked after as many deaths as its workflow allows; no neighbour is
charged. Between two of them everything else runs for as long as it stood still.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Protocol

from eventflow.context import Suspended
from eventflow.errors import HistoryTooLongError
from eventflow.journal import Entry
from eventflow.outcomes import Desk, Outcomes
from eventflow.runs import Dropped, Run

logger = logging.getLogger(__name__)

_ALONE = 1.0  # seconds that a suspect runs alone, doubled with each recovery


class GateDesk(Desk, Protocol):
    """What the executor does for it."""

    def open(self, value: bool) -> None: ...
    def spawn(self) -> None: ...
    async def silence(self, timeout: float) -> None: ...
    async def barrier(self, run: Run) -> None: ...
    def start_alone(self, run: Run) -> None: ...


class Suspects:
    """Those that one executor has taken over."""

    def __init__(self, desk: GateDesk, outcomes: Outcomes) -> None:
        self._desk, self._outcomes = desk, outcomes
        self._waiting: deque[Run] = deque()
        self._task: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def under_way(self) -> bool:
        """Whether one runs alone, or is to."""
        return self._task is not None and not self._task.done()

    def add(self, runs: list[Run]) -> None:
        """Run them, too. On the loop."""
        self._waiting.extend(runs)
        if self._waiting and (self._task is None or self._task.done()):
            self._task = self._desk.loop.create_task(self._run_all())

    async def _run_all(self) -> None:
        try:
            while self._waiting and not self._desk.stopping:
                began = time.monotonic()
                await self._run_next(self._waiting.popleft())
                self._desk.open(True)  # for as long as it was closed: the others get half of the time
                self._desk.spawn()
                await asyncio.sleep(time.monotonic() - began)
        finally:
            self._desk.open(True)
            self._desk.spawn()

    async def _run_next(self, run: Run) -> None:
        """Whatever becomes of it, those behind it have their turns."""
        try:
            await self._run_one(run)
        except (Dropped, Suspended):
            pass  # its attempt is over, or this process leaves
        except Exception:
            logger.exception("%s cannot run alone here", run.workflow_id)
            if not run.begun:
                self._outcomes.release(run)

    async def _run_one(self, run: Run) -> None:
        if run.ended or run.dropped:
            return
        if run.recoveries >= run.spec.recoveries:
            self._outcomes.park(run, f"its process died while it ran, {_times(run.recoveries + 1)}")
            return
        self._desk.open(False)
        await self._desk.silence(1.0)
        if run.ended or run.dropped:
            return  # it was terminated, or let go of, while it waited for its turn
        run.attempt += 1
        run.recoveries += 1
        self._desk.hand(run, Entry(run, [], changed=True))
        try:
            await self._desk.barrier(run)
        except Dropped:
            return
        except HistoryTooLongError as error:
            self._outcomes.failed(run, error)
            return
        logger.info("%s runs again after its process died (%d)", run.workflow_id, run.recoveries)
        ended = self._desk.loop.create_future()
        alone = _ALONE * 2 ** (run.recoveries - 1)
        self._desk.start_alone(run)
        self._poll_end(run, ended)
        await asyncio.wait([ended], timeout=alone)
        ended.cancel()  # its time alone may be over before it is

    def _poll_end(self, run: Run, ended: "asyncio.Future[None]") -> None:
        """It has ended, or waits for something from outside: that kills no process."""
        if ended.done():
            return
        waits = run.life is not None and run.life.waits and not run.acting
        if run.ended or run.dropped or waits or self._desk.stopping:
            ended.set_result(None)
        else:
            self._desk.loop.call_later(0.002, self._poll_end, run, ended)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
