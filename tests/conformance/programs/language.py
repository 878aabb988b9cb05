"""Programs as values: a small language of everything durable, and the one workflow (in two colours) that obeys it.

A program is a tree of plain JSON: `{"key", "colour", "runs": [[operation, ...], ...]}`, each operation a list that begins with
its name; the next run begins by `continue_as_new`. What an operation comes to goes to a list, `out`, which is the
workflow's result; and what acts (a step, a transaction) tells the world what `out` was when it acted. So whatever a
program has acted upon can be compared with what is recorded in the end: nothing may be acted upon that is not durable.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Retry, durable, sync
from eventflow.context import scope_of
from eventflow.errors import Cancelled, WorkflowCancelledError, WorkflowTimeoutError
from tests.conformance.colours import Body, Colour, Do, Pair, both
from tests.conformance.programs.processes import Killed, here

Program = dict[str, Any]
ALWAYS = 99  # how often something fails that never succeeds
SLOW = 0.4  # seconds that a slow step takes: longer than a process that leaves gives it

EFFECTS = """
create table public.effects (id bigserial, base text, key int, place int, seen text)
"""  # no unique constraint: a second effect must be seen, not refused


class Flaky(Exception):
    """A step that fails, as it is told to."""


class Boom(Exception):
    """A workflow that fails, as it is told to."""


POLICIES: dict[str, int | Retry] = {
    "none": 0,
    "few": Retry(3, delay=0.01, factor=1, jitter=0),
    "far": Retry(2, delay=0.05, factor=200, max_delay=6, jitter=0),  # far enough for attempts to be recorded
}
ATTEMPTS = {"none": 1, "few": 4, "far": 3}


# ---- the world outside -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """Something was done outside: by which place of which program, and what that program had come to before."""

    n: int
    base: str
    key: int
    place: int
    seen: str
    executor: int
    at: float


@dataclass
class Outside:
    """What the programs have done where no transaction reaches: it stands, whoever dies."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: list[Call] = field(default_factory=list[Call])
    times: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    def clear(self) -> None:
        with self.lock:
            self.calls.clear()
            self.times.clear()

    def call(self, base: str, key: int, place: int, seen: str) -> int:
        """Note it; how often this place has acted by now."""
        process, executor = here(), scope_of("a call")[0].executor.journal.executor
        with self.lock:
            if process is None or process.dead:
                raise Killed
            self.calls.append(Call(len(self.calls), base, key, place, seen, executor, time.time()))
            self.times[base, place] += 1
            return self.times[base, place]


OUTSIDE = Outside()


# ---- what acts ---------------------------------------------------------------------------------------


def _acted(base: str, key: int, place: int, seen: str, fails: int) -> int:
    if OUTSIDE.call(base, key, place, seen) <= fails:
        raise Flaky(place)
    return place


def _say(says: list[list[str]]) -> None:
    for kind, *what in says:
        if kind == "send":
            sync.send(what[0], what[2], topic=what[1])
        elif kind == "stream":
            sync.write_stream(*what)
        else:
            sync.set_event(*what)


async def _say_async(says: list[list[str]]) -> None:
    for kind, *what in says:
        if kind == "send":
            await durable.send(what[0], what[2], topic=what[1])
        elif kind == "stream":
            await durable.write_stream(*what)
        else:
            await durable.set_event(*what)


def act(base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]) -> int:
    _say(says)
    return _acted(base, key, place, seen, fails)


async def act_async(base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]) -> int:
    await _say_async(says)
    return _acted(base, key, place, seen, fails)


async def act_slowly(base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]) -> int:
    await asyncio.sleep(SLOW / 2)
    await _say_async(says)
    done = _acted(base, key, place, seen, fails)
    await asyncio.sleep(SLOW / 2)
    return done


@eventflow.step(retries=Retry(3, delay=0.01))
def declared(base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]) -> int:
    _say(says)
    return _acted(base, key, place, seen, fails)


@eventflow.step(name="declared", retries=Retry(3, delay=0.01))
async def declared_async(base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]) -> int:
    await _say_async(says)
    return _acted(base, key, place, seen, fails)


STEPS: dict[str, Callable[..., Any]] = {"plain": act, "async": act_async, "slow": act_slowly}
CALLED: dict[Colour, Callable[..., Any]] = {"sync": declared, "async": declared_async}
_INSERT = "insert into public.effects (base, key, place, seen) values (%s, %s, %s, %s)"
_INSERT_NAMED = text("insert into public.effects (base, key, place, seen) values (:base, :key, :place, :seen)")


@eventflow.transaction
def write(
    connection: "psycopg.Connection[Any]", base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]
) -> int:
    connection.execute(_INSERT, [base, key, place, seen])
    _say(says)
    return _acted(base, key, place, seen, fails)


@eventflow.transaction
async def write_async(
    connection: "psycopg.AsyncConnection[Any]", base: str, key: int, place: int, seen: str, fails: int,
    says: list[list[str]],
) -> int:  # fmt: skip
    await connection.execute(_INSERT, [base, key, place, seen])
    await _say_async(says)
    return _acted(base, key, place, seen, fails)


@eventflow.transaction(isolation="serializable")
def write_session(
    session: Session, base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]
) -> int:
    session.execute(_INSERT_NAMED, {"base": base, "key": key, "place": place, "seen": seen})
    _say(says)
    return _acted(base, key, place, seen, fails)


@eventflow.transaction(isolation="repeatable read")
async def write_async_session(
    session: AsyncSession, base: str, key: int, place: int, seen: str, fails: int, says: list[list[str]]
) -> int:
    await session.execute(_INSERT_NAMED, {"base": base, "key": key, "place": place, "seen": seen})
    await _say_async(says)
    return _acted(base, key, place, seen, fails)


TRANSACTIONS: dict[str, Callable[..., Any]] = {
    "connection": write, "async connection": write_async, "session": write_session, "async session": write_async_session,
}  # fmt: skip


# ---- who obeys ---------------------------------------------------------------------------------------


class Frame:
    """A workflow that obeys a program: what its operations need to know."""

    def __init__(self, do: Do, program: Program, base: str, parent: str) -> None:
        self.do, self.base, self.parent = do, base, parent
        self.key: int = program["key"]
        self.handles: dict[int, Any] = {}

    def address(self, to: list[Any]) -> str:
        """The id of another workflow, as this one knows it."""
        if to[0] == "given":
            return given_id(self.base, to[1])
        if to[0] == "parent":
            return self.parent
        return durable.workflow_id() if to[0] == "self" else self.handles[to[1]].workflow_id

    def arguments(self, place: int, out: list[Any], fails: int, says: list[list[Any]]) -> tuple[Any, ...]:
        """Those of whatever acts."""
        said = [[kind, self.address(what[0]), *what[1:]] if kind == "send" else [kind, *what] for kind, *what in says]
        return self.base, self.key, place, json.dumps(out), fails, said


def given_id(base: str, key: int) -> str:
    """The id of a workflow that is not derived from its parent's."""
    return f"{base}:{key}"


def obey(frame: Frame, operations: list[list[Any]], out: list[Any]) -> Body[None]:
    """Do these, one after another; what each comes to goes to `out`."""
    for kind, *args in operations:
        out.append((yield from _OPERATIONS[kind](frame, out, *args)))


def _step(
    frame: Frame, out: list[Any], place: int, kind: str, policy: str, fails: int, says: list[Any], risky: bool
) -> Body[Any]:
    args = frame.arguments(place, out, fails, says)
    try:
        if kind == "called":
            return (yield lambda: CALLED[frame.do.colour](*args))
        if kind == "timed":
            return (yield frame.do.run_step(act, *args, retries=POLICIES[policy], timeout=30))
        return (yield frame.do.run_step(STEPS[kind], *args, retries=POLICIES[policy]))
    except Flaky:
        if risky:
            raise
        return ["Flaky", place]


def _transaction(
    frame: Frame, out: list[Any], place: int, kind: str, policy: str, fails: int, says: list[Any], risky: bool
) -> Body[Any]:
    args = frame.arguments(place, out, fails, says)
    try:
        return (yield frame.do.run_step(TRANSACTIONS[kind], *args, retries=POLICIES[policy]))
    except Flaky:
        if risky:
            raise
        return ["Flaky", place]


def _sleep(frame: Frame, _: list[Any], milliseconds: int) -> Body[str]:
    yield frame.do.sleep(milliseconds / 1000)
    return "slept"


_VALUES: dict[str, Callable[[], Any]] = {
    "now": lambda: durable.now().isoformat(),
    "uuid4": lambda: str(durable.uuid4()),
    "random": durable.random,
}


def _value(_frame: Frame, _: list[Any], kind: str) -> Body[Any]:
    return _VALUES[kind]()
    yield


def _patch(_frame: Frame, _: list[Any], name: str) -> Body[bool]:
    return durable.patch(name)
    yield


def _nothing(frame: Frame, _: list[Any], kind: str, milliseconds: int) -> Body[str]:
    """Wait for what does not come in time."""
    limit, me = milliseconds / 1000, durable.workflow_id()
    try:
        if kind == "recv":
            yield frame.do.recv(str, topic="nothing", timeout=limit)
        else:
            yield frame.do.event(me, "nothing", str, timeout=limit)
    except WorkflowTimeoutError:
        return "nothing"
    return "something"


def _send(frame: Frame, _: list[Any], to: list[Any], topic: str, value: str) -> Body[None]:
    yield frame.do.send(frame.address(to), value, topic=topic)


def _recv(frame: Frame, _: list[Any], topic: str, _value: str, timed: bool) -> Body[str]:
    return (yield frame.do.recv(str, topic=topic, timeout=300 if timed else None))


def _set_event(frame: Frame, _: list[Any], key: str, value: str) -> Body[None]:
    yield frame.do.set_event(key, value)


def _event(frame: Frame, _: list[Any], of: list[Any], key: str, _value: str) -> Body[str]:
    return (yield frame.do.event(frame.address(of), key, str))


def _stream(frame: Frame, _: list[Any], key: str, value: str) -> Body[None]:
    yield frame.do.write_stream(key, value)


def _close(frame: Frame, _: list[Any], key: str) -> Body[None]:
    yield frame.do.close_stream(key)


def _start(frame: Frame, _: list[Any], program: Program, given: bool, limit: float | None) -> Body[int]:
    key, pair = program["key"], {frame.do.colour: interpret[program["colour"]]}
    options: dict[str, Any] = {"workflow_id": given_id(frame.base, key)} if given else {}
    if limit is not None:
        options["timeout"] = limit
    me = durable.workflow_id()
    frame.handles[key] = yield frame.do.start(Pair(pair), program, frame.base, me, 0, [], **options)
    return key


def _outcome(operation: Callable[[], Any]) -> Body[list[Any]]:
    try:
        return ["result", (yield operation)]
    except Boom as error:
        return ["Boom", error.args[0]]
    except WorkflowCancelledError:
        return ["cancelled"]
    except WorkflowTimeoutError:
        return ["late"]


def _call(frame: Frame, _: list[Any], program: Program) -> Body[list[Any]]:
    me = durable.workflow_id()
    return (yield from _outcome(lambda: interpret[frame.do.colour](program, frame.base, me, 0, [])))


def _result(frame: Frame, _: list[Any], key: int) -> Body[list[Any]]:
    return (yield from _outcome(frame.handles[key].result))


def _first(frame: Frame, _: list[Any], keys: list[int]) -> Body[int]:
    handles = [frame.handles[key] for key in keys]
    winner = yield frame.do.first(*handles)
    return keys[handles.index(winner)]


def _cancel(frame: Frame, _: list[Any], key: int) -> Body[None]:
    handle = frame.handles[key]
    yield frame.do.event(handle.workflow_id, "ready", bool)
    yield handle.cancel


def _gather(frame: Frame, _: list[Any], branches: list[list[Any]]) -> Body[list[Any]]:
    outs: list[list[Any]] = [[] for _ in branches]
    yield frame.do.gather(*(obey(frame, branch, out) for branch, out in zip(branches, outs, strict=True)))
    return outs


def _forever(do: Do, kind: str) -> Body[None]:
    if kind == "sleep":
        yield do.sleep(3600)
    elif kind == "recv":
        yield do.recv(str, topic="never")
    elif kind == "event":
        yield do.event(durable.workflow_id(), "never", str)
    else:
        yield do.gather(_forever(do, "sleep"), _forever(do, "recv"))


def _guard(
    frame: Frame, _: list[Any], block: list[Any], kind: str, cleanup: list[Any], survives: bool, _by: str
) -> Body[list[Any]]:
    """Do the block, and then wait until it is told to end, which may be before; clean up, and end or go on."""
    yield frame.do.set_event("ready", True)
    done: list[Any] = []
    try:
        yield from obey(frame, block, done)
        yield from _forever(frame.do, kind)
    except (asyncio.CancelledError, Cancelled):
        cleaned: list[Any] = [done]
        yield from obey(frame, cleanup, cleaned)
        if not survives:
            raise
        return cleaned
    raise AssertionError("forever is over")


def _raise(_frame: Frame, _: list[Any], place: int) -> Body[None]:
    raise Boom(place)
    yield


def _outside(frame: Frame, _: list[Any], _value: str) -> Body[str]:
    return (yield frame.do.recv(str, topic="outside"))


_OPERATIONS: dict[str, Callable[..., Body[Any]]] = {
    "step": _step, "transaction": _transaction, "sleep": _sleep, "value": _value, "patch": _patch, "nothing": _nothing,
    "send": _send, "recv": _recv, "set_event": _set_event, "event": _event, "stream": _stream, "close": _close,
    "start": _start, "call": _call, "result": _result, "first": _first, "cancel": _cancel, "gather": _gather,
    "guard": _guard, "raise": _raise, "outside": _outside,
}  # fmt: skip


@both(
    name="random program", recoveries=100_000,
    retries=Retry(1000, delay=0.02, factor=1, jitter=0, retry_if=(Flaky,)),
)  # fmt: skip
def interpret(do: Do, program: Program, base: str, parent: str, run: int, before: list[Any]) -> Body[list[Any]]:
    """One run of a program; its result is what its operations came to, a list for each run."""
    out: list[Any] = []
    yield from obey(Frame(do, program, base, parent), program["runs"][run], out)
    if run + 1 < len(program["runs"]):
        durable.continue_as_new(interpret[do.colour].bind(program, base, parent, run + 1, [*before, out]))
    return [*before, out]
