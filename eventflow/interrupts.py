"""Having a workflow end before its function does: cancelled by a person, terminated, or out of time.

Its code is told once, where it acts next or waits, and that place is recorded: a replay is told there, and nowhere else.
"""

from collections.abc import Callable
from typing import Any, Protocol

from eventflow.errors import Cancelled, WorkflowCancelledError, WorkflowTimeoutError
from eventflow.journal import Entry
from eventflow.outcomes import Desk, Outcomes
from eventflow.replay import TOLD, Await, Branch
from eventflow.runs import Dropped, Life, Request, Run
from eventflow.waits import Timer, Waits, life_of

_LOOK = 0.01  # seconds between two looks at how far a replay has come
_REPLAYS = 1.0  # seconds without an operation after which a replay is over


class RunsDesk(Desk, Protocol):
    """What the executor does for it."""

    runs: dict[str, Run]

    def on_loop(self, function: Callable[..., None], *args: Any) -> None: ...
    async def wait(self, run: Run, awaited: Await) -> Any: ...


class Interrupts:
    """Those of one executor's runs."""

    def __init__(self, desk: RunsDesk, outcomes: Outcomes, waits: Waits) -> None:
        self._desk, self._outcomes, self._waits = desk, outcomes, waits
        self._deadlines: dict[Run, Timer] = {}

    def watch(self, run: Run, deadline: float) -> None:
        """Have it end when its time is over. On the loop."""
        self._deadlines[run] = self._desk.later(max(0.0, deadline - self._desk.now()), self._overdue, run)

    def unwatch(self, run: Run) -> None:
        """It has ended. From any thread."""
        timer = self._deadlines.pop(run, None)
        if timer is not None:
            self._desk.on_loop(timer.cancel)

    def _overdue(self, run: Run) -> None:
        self._deadlines.pop(run, None)
        if not run.ended and not run.dropped:
            self.interrupt(run, overdue(run))

    def interrupt(self, run: Run, why: Exception) -> None:
        """Have it end: its code is told once, where it acts next or waits, and may still clean up. On the loop."""
        life = life_of(run)
        if life.interrupted is not None:
            return
        life.interrupted = why
        if self._outcomes.call_off(run):
            self._outcomes.interrupted(run, why)
        elif not run.spec.is_async:
            if life.waits:
                life.tell(run.history)
                self._waits.end(run, Cancelled(str(why)))
        elif run.begun and run.home is not None:
            self._tell(run, run.attempt)

    def tell_late(self, run: Run) -> None:
        """It waits for the first time, and was to end before it began."""
        if run.life is not None and run.life.is_to_be_told():
            self._tell(run, run.attempt)

    def _tell(self, run: Run, attempt: int, ahead: int | None = None, until: float = 0.0) -> None:
        """Cancel an async run where it stands; one that replays comes first to where the former attempt stood.

        Ahead of that it may not have come to the `try` that cleans up. It may never come to what is ahead, where its code is
        not deterministic: it is told where it has not come further for a while. `ahead`: what was, at the last look.
        """
        life, history, loop = life_of(run), run.history, self._desk.loop
        if life.told or life.suspending or not run.begun or run.attempt != attempt or run.ended or run.dropped:
            return
        left, now = len(history.ahead), loop.time()
        if history.replays and left != ahead:
            until = now + _REPLAYS
        elif not left or now >= until:
            life.tell(history)
            run.home.cancel()
            return
        loop.call_later(_LOOK, self._tell, run, attempt, left, until)

    def terminate(self, run: Run, why: str) -> None:
        """It is cancelled here and now: whatever its code still does is not recorded. On the loop."""
        home = run.home
        with run.lock:
            if run.ended or run.dropped:
                return
            self._desk.hand(run, Entry(run, [], "cancelled", reason=why), ended=True)
        self._waits.end(run, Dropped())
        if home is not None and run.begun:
            home.cancel()

    def request(self, requests: list[Request]) -> None:
        """People want workflows of this executor to end; each request has its number. On the loop.

        Parents are told first, all in one turn of the loop: else one would see that its child was cancelled, and fail.
        """
        asked = {workflow_id for workflow_id, *_ in requests}
        for one in sorted(requests, key=lambda one: self._depth(one[0], asked)):
            self._request(*one)

    def _depth(self, workflow_id: str, asked: set[str]) -> int:
        """How many of those asked it descends from."""
        depth, above = 0, self._parent(workflow_id)
        while above in asked and depth < len(asked):
            depth, above = depth + 1, self._parent(above)
        return depth

    def _parent(self, workflow_id: str | None) -> str | None:
        run = self._desk.runs.get(workflow_id or "")
        return None if run is None or run.life is None else run.life.parent

    def _request(self, workflow_id: str, kind: str, who: str, number: int) -> None:
        run = self._desk.runs.get(workflow_id)
        if run is None or run.ended or number <= life_of(run).heard:
            return
        life_of(run).heard = number
        if kind == "terminate":
            self.terminate(run, f"terminated by {who}")
        else:
            self.interrupt(run, WorkflowCancelledError(f"cancelled by {who}"))

    def raise_if_interrupted(self, branch: Branch) -> None:
        """In a sync run, before it acts or waits.

        Raises:
            Cancelled: it is to end; once on each branch.

        """
        life = branch.run.life
        if life is not None and life.interrupted is not None and not branch.told:
            if not life.told:
                life.tell(branch.run.history)
            raise Cancelled(str(life.interrupted))

    def told(self, branch: Branch, position: str) -> None:
        """An operation ends because the workflow is to end: recorded here, so that a replay is told here, and not elsewhere.

        What it waited for may have come by then, and what it did may have been committed after all.
        """
        run, life = branch.run, branch.run.life
        if (
            life is None
            or not life.told
            or branch.told
            or life.suspending
            or self._desk.stopping
            or run.ended
            or run.dropped
        ):
            return
        branch.told = True
        with run.lock:
            run.history.note(f"{position}!", TOLD, life.why())

    async def begin(self, branch: Branch, position: str) -> None:
        """An operation begins: one at which a former attempt was told to end is told again, and does not act.

        All branches stand where they were told, or are to begin, when the first of them is cancelled, as it was then.
        """
        run, life = branch.run, branch.run.life
        branch.told = branch.told or life.told
        if life.to_tell and (position in life.to_tell or run.history.at(position) is None):
            if life.to_tell == {position}:
                self._desk.loop.call_soon(self._tell_again, run, life)
            else:
                life.to_tell.discard(position)
            await self._desk.wait(run, Await(None))

    def _tell_again(self, run: Run, life: Life) -> None:
        life.to_tell.clear()
        run.home.cancel()

    async def begin_either(self, branch: Branch, position: str) -> None:
        """The same on the loop, where the operation may be that of a sync run, too."""
        if not branch.run.spec.is_async:
            self.begin_sync(branch, position)
        elif branch.run.life is not None:
            await self.begin(branch, position)

    def begin_sync(self, branch: Branch, position: str) -> None:
        """The same in a worker thread.

        Raises:
            Cancelled: it was told to end here.

        """
        life = branch.run.life
        if life is not None and position in life.to_tell:
            life.to_tell.discard(position)
            branch.told = True
            raise Cancelled(str(life.interrupted))


def overdue(run: Run) -> WorkflowTimeoutError:
    """What a workflow is told whose time is over."""
    return WorkflowTimeoutError(f"{run.workflow_id!r} did not end in the time that it had")
