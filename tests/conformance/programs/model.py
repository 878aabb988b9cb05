"""What a family of programs must have come to, whatever died meanwhile, and whether it has.

Nothing is simulated: an operation says by itself what it must come to, what it must have written, and how often. What
only chance decides (a recorded value, which child was first, how far a block came before it was cancelled) is read once, from
the result or from what acted last, and everything else must agree with it.

How far an operation came is `DONE`, `NEVER`, or `PERHAPS` where a cancellation met it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.conformance.programs.composing import Family
from tests.conformance.programs.language import ALWAYS, ATTEMPTS, Call, Program, given_id

DONE, PERHAPS, NEVER = "done", "perhaps", "never"
_ENDED = ("succeeded", "failed", "cancelled")
_EARLY = (
    0.25  # seconds by which two clocks of this machine may differ, as a process estimates the ledger's on a busy one
)


@dataclass
class Row:
    """A workflow, as the ledger has it in the end."""

    workflow_id: str
    status: str
    output: Any
    error: Any
    reason: str | None
    parent: str | None


@dataclass
class Facts:
    """All that is known of a family in the end."""

    rows: dict[int, list[Row]]
    effects: list[tuple[int, int, str]]  # key, place, what was seen
    messages: list[tuple[str, str, str, bool]]  # to, topic, value, consumed
    events: dict[str, dict[str, str]]
    watches: list[tuple[str, str, str]]  # whose end or event, which, and who waits for it
    streams: dict[tuple[str, str], list[str | None]]
    calls: list[Call]
    excused: dict[
        int, int
    ]  # executors that were presumed dead and lived on -> how many calls there were when that began


def read_facts(connection: "psycopg.Connection[Any]", base: str, calls: list[Call], excused: dict[int, int]) -> Facts:
    """Ask the ledger for everything of a family."""

    def ask(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query.encode(), [f"{base}:"]).fetchall()

    rows: dict[int, list[Row]] = defaultdict(list)
    for workflow_id, status, output, error, reason, parent, arguments in ask(
        """select id, status::text, output, error, reason, parent, arguments from eventflow.workflows
           where starts_with(id, %s)"""
    ):
        key = json.loads(arguments)["args"][0]["key"]
        found = Row(workflow_id, status, json.loads(output or "null"), json.loads(error or "null"), reason, parent)
        rows[key].append(found)
    events: dict[str, dict[str, str]] = defaultdict(dict)
    for workflow_id, key, value in ask(
        "select workflow_id, key, value from eventflow.events where starts_with(workflow_id, %s)"
    ):
        events[workflow_id][key] = json.loads(value)
    streams: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    for workflow_id, key, value in ask(
        "select workflow_id, key, value from eventflow.stream_items where starts_with(workflow_id, %s) order by id"
    ):
        streams[workflow_id, key].append(json.loads(value or "null"))
    return Facts(
        rows=rows,
        effects=ask("select key, place, seen from public.effects where base || ':' = %s order by id"),
        messages=[
            (to, topic, json.loads(payload), consumed) for to, topic, payload, consumed in ask(
                """select workflow_id, topic, payload, consumed from eventflow.messages
                   where starts_with(workflow_id, %s) order by id"""
            )
        ],
        events=events,
        watches=ask("select target, key, workflow_id from eventflow.watches where starts_with(workflow_id, %s)"),
        streams=streams,
        calls=[call for call in calls if call.base == base],
        excused=excused,
    )  # fmt: skip


def programs_of(program: Program) -> Iterator[Program]:
    """It and all that descends from it."""
    yield program
    for run in program["runs"]:
        yield from _below(run)


def _below(operations: list[list[Any]]) -> Iterator[Program]:
    for kind, *args in operations:
        if kind in {"start", "call"}:
            yield from programs_of(args[0])
        elif kind == "gather":
            for branch in args[0]:
                yield from _below(branch)


def guard_of(program: Program) -> list[Any] | None:
    """The operation in which it waits to be told to end, if it has one."""
    return next((operation for run in program["runs"] for operation in run if operation[0] == "guard"), None)


class Check:
    """One family against the facts; `wrong` is what does not agree."""

    def __init__(self, family: Family, base: str, facts: Facts, *, loose: bool = False) -> None:
        self._base, self._facts, self._loose = base, facts, loose
        self.wrong: list[str] = []
        self._effects = Counter((key, place) for key, place, _ in facts.effects)
        self._calls: dict[int, list[Call]] = defaultdict(list)
        self._seen: dict[int, list[list[Any]]] = defaultdict(list)
        for call in facts.calls:
            self._calls[call.place].append(call)
            self._seen[call.place].append(json.loads(call.seen))
        for _, place, seen in facts.effects:
            self._seen[place].append(json.loads(seen))
        self._places: set[int] = set()
        self._said: Counter[tuple[str, str, str]] = Counter()  # messages that must be there
        self._maybe_said: Counter[tuple[str, str, str]] = Counter()
        self._heard: set[tuple[str, str, str]] = set()
        self._events: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        self._streams: dict[tuple[str, str], list[tuple[str | None, str]]] = defaultdict(list)
        self._programs = {p["key"]: p for root in family.roots for p in programs_of(root)}
        for root in family.roots:
            self._program(root, None, DONE, set())
        for key, values in family.outside.items():
            for value in values:
                self._said[given_id(base, key), "outside", value] += 1
        self._check_what_was_said()
        if not loose:
            self._expect(not facts.watches, f"who has ended waits: {facts.watches}")
        unknown = set(self._calls) | {place for _, place in self._effects}
        self._expect(unknown <= self._places, f"places acted that are no program's: {unknown - self._places}")

    def _expect(self, holds: bool, text: str) -> bool:
        if not holds:
            self.wrong.append(text)
        return holds

    # ---- a workflow ----

    def _row(self, program: Program) -> Row | None:
        rows = self._facts.rows.get(program["key"], [])
        return rows[0] if rows else None

    def _program(self, program: Program, parent: Row | None, came: str, before: set[int]) -> None:
        """One workflow, which was started after these had acted."""
        key, rows = program["key"], self._facts.rows.get(program["key"], [])
        if self._loose:
            came = PERHAPS
        self._expect(len(rows) <= 1, f"workflow {key} is there more than once: {rows}")
        if not rows:
            self._expect(came != DONE, f"workflow {key} is not there")
            self._forget(program)
            return
        row = rows[0]
        self._expect(row.parent == (parent and parent.workflow_id), f"workflow {key} has the parent {row.parent}")
        if self._loose:
            self._expect(row.status in _ENDED, f"workflow {key} is {row.status}: {row.reason}")
        else:
            self._check_end(program, row)
        runs, succeeded = program["runs"], row.status == "succeeded"
        outs: list[Any] = row.output if succeeded else [None] * len(runs)
        if not self._expect(len(outs) == len(runs), f"workflow {key} had {len(outs)} of {len(runs)} runs"):
            return
        for n, (operations, out) in enumerate(zip(runs, outs, strict=True)):
            self._line(_Line(program, row, f"{key}/{n}"), operations, out, came, before)
            before = _last_places(operations) or before

    def _forget(self, program: Program) -> None:
        """It never was: nothing of it may have acted."""
        for made in programs_of(program):
            for run in made["runs"]:
                self._line(_Line(made, None, ""), run, None, NEVER, set())

    def _check_end(self, program: Program, row: Row) -> None:
        guard, last = guard_of(program), program["runs"][-1][-1:]
        wanted = "succeeded"
        if guard is not None and not guard[4]:
            wanted = "failed" if guard[5] == "deadline" else "cancelled"
        elif last and last[0][0] == "raise":
            wanted = "failed"
        what = f"workflow {program['key']} is {row.status} ({row.reason}, {row.error}), not {wanted}"
        if self._expect(row.status == wanted, what) and wanted == "failed":
            name = "Boom" if guard is None or guard[4] else "WorkflowTimeoutError"
            self._expect(str(row.error["type"]).endswith(f".{name}"), what)

    # ---- what it did ----

    def _line(
        self, line: "_Line", operations: list[list[Any]], out: list[Any] | None, came: str, before: set[int]
    ) -> None:
        """Operations one after another; `out` is what they came to, as far as that is known."""
        known = self._known(line, operations, out)
        last, waited = before, 0.0
        for n, (kind, *args) in enumerate(operations):
            value = known[n] if n < len(known) else _UNKNOWN
            if value is not _UNKNOWN and came != NEVER:
                self._element(line, kind, args, value)
            if kind in {"step", "transaction"}:
                self._in_order(last, args[0], waited)
                last, waited = {args[0]}, 0.0
            elif kind == "sleep":
                waited += args[0] / 1000
            elif kind == "gather":
                outs = [None] * len(args[0]) if value is _UNKNOWN else value
                for i, (branch, one) in enumerate(zip(args[0], outs, strict=True)):
                    self._line(_Line(line.program, line.row, f"{line.name}.{n}.{i}"), branch, one, came, last)
                last, waited = _last_places([[kind, *args]]) or last, 0.0
            elif kind == "guard":
                last, waited = self._guard(line, args, value, came, last), 0.0
            elif kind in {"start", "call"} and line.row is not None:
                self._program(args[0], line.row, came, last)
            self._one(line, kind, args, came)

    def _known(self, line: "_Line", operations: list[list[Any]], out: list[Any] | None) -> list[Any]:
        """What the operations came to, as far as anybody knows; whoever acted upon it must have seen the same."""
        lists = [] if out is None else [out]
        for n, (kind, *args) in enumerate(operations, line.offset):
            if kind in {"step", "transaction"}:
                lists += self._seen[args[0]]
                lengths = {len(seen) for seen in self._seen[args[0]]}
                self._expect(lengths <= {n}, f"place {args[0]} acted after {lengths} operations, not {n}")
        lists.sort(key=len)
        for shorter, longer in zip(lists, lists[1:], strict=False):
            same = longer[: len(shorter)]
            self._expect(same == shorter, f"{line.name}: acted upon {shorter}, and it was {same}")
        return lists[-1][line.offset :] if lists else []

    def _guard(self, line: "_Line", args: list[Any], value: Any, came: str, before: set[int]) -> set[int]:
        """What acts last in it."""
        block, _, cleanup, *_ = args
        self._told(line, "ready", True, came)
        inner, after = _Line(line.program, line.row, f"{line.name}g"), _Line(line.program, line.row, f"{line.name}c", 1)
        seen = [s for kind, *a in cleanup if kind in {"step", "transaction"} for s in self._seen[a[0]]]
        cleaned: list[Any] | None = value if value is not _UNKNOWN else max(seen, key=len, default=None)
        if cleaned is None:  # how far it came, nobody knows
            self._line(inner, block, None, came if came == NEVER else PERHAPS, before)
            done = block
        else:
            done = block[: len(cleaned[0])]
            self._line(inner, done, cleaned[0], came, before)
            for n, (kind, *rest) in enumerate(block[len(done) :]):
                self._one(inner, kind, rest, PERHAPS if n == 0 else NEVER)
        middle = _last_places(done) or before
        self._line(after, cleanup, cleaned, came, middle)
        return _last_places(cleanup) or middle

    def _one(self, line: "_Line", kind: str, args: list[Any], came: str) -> None:
        if kind in {"step", "transaction"}:
            self._acting(line, kind, args, came)
        else:
            self._telling(line, kind, args, came)

    def _acting(self, line: "_Line", kind: str, args: list[Any], came: str) -> None:
        place, how, policy, fails, says, risky = args
        self._places.add(place)
        calls, what = len(self._calls[place]), f"{kind} {place} of workflow {line.program['key']} ({how})"
        attempts = fails + 1 if fails < ALWAYS else ATTEMPTS["few" if how == "called" else policy]
        if came == DONE:
            self._expect(calls >= attempts, f"{what} was called {calls} times, not {attempts}")
        elif came == NEVER:
            self._expect(calls == 0, f"{what} was called {calls} times, and never was to be")
        if kind == "transaction":
            count = self._effects[line.program["key"], place]
            wanted = 0 if fails >= ALWAYS or came == NEVER else 1
            well = count <= wanted if came == PERHAPS else count == wanted
            self._expect(well, f"{what} has {count} effects, not {wanted}")
        if fails < ALWAYS:
            for said, *rest in says:
                self._telling(line, "set_event" if said == "event" else said, rest, came)

    def _in_order(self, earlier: set[int], place: int, waited: float) -> None:
        """R12: what stands before it was durable when this first acted, and so did not act again."""
        calls = self._unexcused(place)
        for before in earlier if calls else ():
            mine, first = self._unexcused(before), calls[0]
            if mine:
                last, slept = mine[-1], first.at - mine[0].at
                self._expect(last.n < first.n, f"place {before} acted again ({last}) after place {place} had ({first})")
                self._expect(
                    slept >= waited - _EARLY, f"from place {before} to {place} {slept:.3f} s, and not {waited}"
                )

    def _unexcused(self, place: int) -> list[Call]:
        """Without those of executors that had been presumed dead: nothing can stop these, but they are not recorded."""
        return [call for call in self._calls[place] if call.n < self._facts.excused.get(call.executor, call.n + 1)]

    # ---- what it told others ----

    def _telling(self, line: "_Line", kind: str, args: list[Any], came: str) -> None:
        if line.row is None:
            return
        me = line.row.workflow_id
        if kind == "send":
            to = self._address(line, args[0])
            if to is not None:
                (self._said if came == DONE else self._maybe_said)[to, args[1], args[2]] += came != NEVER
        elif kind in {"recv", "outside"}:
            topic, value = (args[0], args[1]) if kind == "recv" else ("outside", args[0])
            if came == DONE:
                self._heard.add((me, topic, value))
        elif kind == "set_event":
            self._told(line, args[0], args[1], came)
        elif kind == "stream":
            self._streams[me, args[0]].append((args[1], came))
        elif kind == "close":
            self._streams[me, args[0]].append((None, came))

    def _told(self, line: "_Line", key: str, value: Any, came: str) -> None:
        if line.row is not None and came != NEVER:
            self._events[line.row.workflow_id][key] = (value, came)

    def _address(self, line: "_Line", to: list[Any]) -> str | None:
        if to[0] == "given":
            return given_id(self._base, to[1])
        if to[0] == "parent":
            return line.row and line.row.parent
        if to[0] == "self":
            return line.row and line.row.workflow_id
        row = self._row(self._programs[to[1]])
        return row and row.workflow_id

    def _check_what_was_said(self) -> None:
        found = Counter((to, topic, value) for to, topic, value, _ in self._facts.messages)
        for what, count in found.items():
            low, high = self._said[what], self._said[what] + self._maybe_said[what]
            self._expect(low <= count <= high, f"message {what} is there {count} times, not {low}")
        if not self._loose:
            self._expect(
                self._said.keys() <= found.keys(), f"messages that are lost: {self._said.keys() - found.keys()}"
            )
        for to, topic, value, consumed in self._facts.messages:
            if (to, topic, value) in self._heard:
                self._expect(consumed, f"message {(to, topic, value)} was received, and is there")
        for workflow_id, wanted in self._events.items():
            there = self._facts.events.get(workflow_id, {})
            for key, (value, came) in wanted.items():
                well = there.get(key) == value if came == DONE else there.get(key, value) == value
                self._expect(well, f"event {key} of {workflow_id} is {there.get(key)}, not {value}")
            self._expect(there.keys() <= wanted.keys(), f"events of {workflow_id} that nobody set: {there}")
        for where, items in self._streams.items():
            there_are = self._facts.streams.get(where, [])
            sure = [value for value, came in items if came == DONE]
            possible = [value for value, came in items if came != NEVER]
            self._expect(
                sure == there_are[: len(sure)] and there_are == possible[: len(there_are)],
                f"stream {where} holds {there_are}, not {possible}",
            )
        other = self._facts.streams.keys() - self._streams.keys()
        self._expect(not other, f"streams that nobody wrote: {other}")

    # ---- what it came to ----

    def _element(self, line: "_Line", kind: str, args: list[Any], value: Any) -> None:
        """What an operation must have come to."""
        wanted: Any = _UNKNOWN
        if kind in {"step", "transaction"}:
            wanted = ["Flaky", args[0]] if args[3] >= ALWAYS else args[0]
        elif kind == "sleep":
            wanted = "slept"
        elif kind == "value":
            self._expect(isinstance(value, float if args[0] == "random" else str), f"{args[0]} was {value}")
        elif kind == "patch":
            wanted = True
        elif kind == "nothing":
            wanted = "nothing"
        elif kind == "recv":
            wanted = args[1]
        elif kind == "event":
            wanted = args[2]
        elif kind == "outside":
            wanted = args[0]
        elif kind in {"send", "set_event", "stream", "close", "cancel"}:
            wanted = None
        elif kind == "start":
            wanted = args[0]["key"]
        elif kind == "first":
            self._expect(value in args[0], f"{value} was first of {args[0]}")
        elif kind in {"call", "result"} and not self._loose:
            wanted = self._outcome(args[0]["key"] if kind == "call" else args[0])
        if wanted is not _UNKNOWN:
            self._expect(value == wanted, f"{line.name}: {kind} {args[:3]} came to {value}, not {wanted}")

    def _outcome(self, key: int) -> Any:
        row = self._row(self._programs[key])
        if row is None or row.status not in _ENDED:
            return _UNKNOWN
        if row.status == "succeeded":
            return ["result", row.output]
        if row.status == "cancelled":
            return ["cancelled"]
        boom = str(row.error["type"]).endswith(".Boom")
        return ["Boom", self._programs[key]["runs"][-1][-1][1]] if boom else ["late"]


_UNKNOWN = object()


@dataclass(frozen=True)
class _Line:
    """Operations that are done one after another; `offset`: what stands in `out` before what the first came to."""

    program: Program
    row: Row | None
    name: str
    offset: int = 0


def _last_places(operations: list[list[Any]]) -> set[int]:
    """What acts last in these."""
    for kind, *args in reversed(operations):
        if kind in {"step", "transaction"}:
            return {args[0]}
        if kind == "gather":
            found = {place for branch in args[0] for place in _last_places(branch)}
            if found:
                return found
        if kind == "guard":
            found = _last_places(args[2]) or _last_places(args[0])
            if found:
                return found
    return set()
