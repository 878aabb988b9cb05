"""The step protocol, written once, and what a workflow has recorded: pure, without I/O, clock or loop.

`step` is a generator that yields what it cannot do itself: BARRIER (wait until everything recorded before is durable),
CALL (run the user's function; its result or exception comes back), or a number of seconds to wait before the next
attempt. A sync and an async driver of a few lines run it (psycopg's way of writing a protocol once for both).

Positions: the root of a workflow is branch "1"; each asyncio task (or `sync.gather` call) that reaches a durable
operation is a branch of its own, numbered below the branch that started it. An operation's position is
"{branch}.{number}", so what finishes first cannot change what is found on replay.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, cast

from eventflow.errors import DeterminismError
from eventflow.records import Checkpoint
from eventflow.retry import Retry

BARRIER: Literal["barrier"] = "barrier"
CALL: Literal["call"] = "call"
Effect = Literal["barrier", "call"] | float


class History:
    """What one workflow has recorded: read on replay, appended to by live operations."""

    __slots__ = ("failures", "fresh", "recorded", "seq")

    def __init__(self, recorded: dict[str, Checkpoint] | None = None) -> None:
        self.recorded = recorded
        self.seq = max((c.seq for c in recorded.values()), default=0) if recorded else 0
        self.fresh: list[Checkpoint] = []
        self.failures: list[tuple[BaseException, int]] = []

    def find(self, position: str, name: str) -> Checkpoint | None:
        """The checkpoint at this position.

        Raises:
            DeterminismError: another operation was recorded there.

        """
        if self.recorded is None:
            return None
        found = self.recorded.get(position)
        if found is not None and found.name != name:
            raise DeterminismError(f"position {position}: {found.name!r} was recorded, the code now calls {name!r}")
        return found

    def add(
        self, position: str, name: str, output: str | None, error: str | None, attempts: int, seconds: float
    ) -> Checkpoint:
        """Record what an operation came to; the journal makes it durable."""
        self.seq += 1
        checkpoint = Checkpoint(position, self.seq, name, output, error, attempts, seconds)
        self.fresh.append(checkpoint)
        return checkpoint

    def take_fresh(self) -> list[Checkpoint]:
        """The checkpoints not handed to the journal yet; they are the caller's from now on."""
        fresh, self.fresh = self.fresh, []
        if self.recorded is None:
            self.recorded = {}
        for checkpoint in fresh:
            self.recorded[checkpoint.position] = checkpoint
        return fresh

    def take_last(self) -> list[Checkpoint]:
        """The same where the attempt is over and nothing will be looked up again."""
        last, self.fresh = self.fresh, []
        return last

    def failed_together(self, raised: BaseException, others: Iterable[BaseException]) -> None:
        """These failed on other branches beside the one that is raised for all: what drops its failure drops theirs."""
        theirs = {id(e) for other in others for e in _causes(other)}
        self.failures += [(raised, seq) for failure, seq in self.failures if id(failure) in theirs]

    def drop_failed(self, error: BaseException) -> int | None:
        """Drop the checkpoint whose exception ended the workflow and everything after it (API.md 2.3.7).

        Returns the first sequence number dropped, or None where no step's exception ended it.
        """
        chain = {id(e) for e in _causes(error)}
        first = min((seq for failure, seq in self.failures if id(failure) in chain), default=None)
        self.failures.clear()
        if first is None:
            return None
        self.fresh = [c for c in self.fresh if c.seq < first]
        if self.recorded:
            self.recorded = {p: c for p, c in self.recorded.items() if c.seq < first}
        self.seq = first - 1
        return first


def _causes(error: BaseException) -> Generator[BaseException, None, None]:
    """An exception, those it wraps, and those it came from."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [e for e in (current.__cause__, current.__context__) if e is not None]
        if isinstance(current, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[Any]", current).exceptions


class Branch:
    """Where a workflow's operations take their positions. `home` is the task or thread that it belongs to.

    A task may outlive the attempt that started it (`asyncio.gather` ends none): it records nothing in the next one.
    """

    __slots__ = ("attempt", "children", "home", "number", "path", "run")

    def __init__(self, run: Any, home: object, path: str = "1", attempt: int | None = None) -> None:
        self.run = run
        self.attempt = getattr(run, "attempt", 0) if attempt is None else attempt
        self.home = home
        self.path = path
        self.number = 0
        self.children = 1

    def next_position(self) -> str:
        self.number += 1
        return f"{self.path}.{self.number}"

    def child(self, home: object) -> "Branch":
        """The branch of a task that this branch started, numbered in the order of their first operations."""
        self.children += 1
        path = str(self.children) if self.path == "1" else f"{self.path}/{self.children}"
        return Branch(self.run, home, path, self.attempt)


def step(
    history: History,
    position: str,
    name: str,
    policy: Retry,
    encode: Callable[[Any], str],
    decode: Callable[[str], Any],
    encode_error: Callable[[BaseException], str],
    decode_error: Callable[[str], Exception],
    settled: Callable[[], bool],
    clock: Callable[[], float],
    draw: Callable[[], float],
) -> Generator[Effect, Any, Any]:
    """Return the recorded result of this step, or run it until it succeeds or its retries are spent, and record that.

    `settled` tells whether everything recorded before is durable; only then may the function act (R12).

    Raises:
        DeterminismError: another step was recorded at this position.
        Exception: the step's own, recorded too and raised again by every replay.

    """
    recorded = history.find(position, name)
    if recorded is not None:
        if recorded.error is not None:
            error = decode_error(recorded.error)
            history.failures.append((error, recorded.seq))
            raise error
        return decode(recorded.output or "null")
    if not settled():
        yield BARRIER
    attempts, began = 0, clock()
    while True:
        attempts += 1
        try:
            result = yield CALL
        except Exception as error:
            if policy.wants(error, attempts):
                yield policy.wait(attempts, draw())
                continue
            if attempts > 1:
                error.add_note(f"eventflow: step {name!r} failed in each of {attempts} attempts")
            checkpoint = history.add(position, name, None, encode_error(error), attempts, clock() - began)
            history.failures.append((error, checkpoint.seq))
            raise
        history.add(position, name, encode(result), None, attempts, clock() - began)
        return result
