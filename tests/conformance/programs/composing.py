"""Random programs that end: what Hypothesis draws is a list of small acts, which are composed to a family of programs.

The acts are laid out in one order over all programs of a family, as if they were done one after another; whatever waits
(a receipt, an event, a child's result) waits for what stands before it in that order. So no family can wait for itself, and
what each wait comes to is known. An act that makes no sense where it stands says nothing: any sublist of acts is a family, too,
which is what lets a failure shrink.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.conformance.colours import COLOURS, Colour
from tests.conformance.programs.language import ALWAYS, Program

_ACTORS = 7  # workflows of one family, at most
_DEPTH = 2  # of children of children
_RUNS = 4
_BY = 5  # where a guard says who is to cancel it

Act = tuple[Any, ...]


@dataclass
class Family:
    """Programs that know each other, and what the test has to do for them to end."""

    roots: list[Program]
    outside: dict[int, list[str]] = field(default_factory=dict[int, list[str]])  # messages to a root, by its key


@dataclass(eq=False)
class _Gather:
    joined: bool = False


@dataclass(eq=False)
class _Actor:
    """A workflow of the family."""

    program: Program
    parent: "_Actor | None"
    given: bool
    depth: int
    children: "list[_Actor]" = field(default_factory=list[Any])
    started_by: "_Line | None" = None
    in_run: int = 0  # of its parent
    awaited: bool = False
    guard: list[Any] | None = None
    guarded: bool = False  # it waits to be cancelled, or was
    waited_for: bool = False  # before its parent could cancel it
    closed_streams: set[str] = field(default_factory=set[str])
    receivers: "dict[str, _Line]" = field(default_factory=dict[str, Any])  # topic -> who receives it
    main: "_Line | None" = None

    @property
    def key(self) -> int:
        return self.program["key"]

    @property
    def run(self) -> int:
        return len(self.program["runs"]) - 1


@dataclass(eq=False)
class _Line:
    """What is done one after another: a workflow, or a branch of it."""

    actor: _Actor
    path: str
    operations: list[Any]
    within: "tuple[_Line, ...]" = ()  # the branches that it stands in, itself included
    gather: _Gather | None = None  # whose branch it is
    parent: "_Line | None" = None
    waits_for: "list[_Line]" = field(default_factory=list[Any])
    closed: bool = False

    @property
    def is_main(self) -> bool:
        return self.gather is None

    @property
    def open(self) -> bool:
        return not self.closed and all(line.closed for line in self.waits_for)


@dataclass(eq=False)
class _Said:
    """A message or an event: who said it, to whom, and what."""

    by: _Line
    actor: _Actor
    key: str
    value: str
    heard: bool = False


class _Composer:
    def __init__(self, colours: list[Colour]) -> None:
        self._places = itertools.count(1)
        self._keys = itertools.count(0)
        self._actors: list[_Actor] = []
        self._lines: list[_Line] = []
        self._messages: list[_Said] = []
        self._events: list[_Said] = []
        self.outside: dict[int, list[str]] = {}
        self.roots = [self._actor(colour, None, given=True).program for colour in colours]

    def _actor(self, colour: str, line: _Line | None, *, given: bool) -> _Actor:
        program = {"key": next(self._keys), "colour": colour, "runs": [[]]}
        parent = line and line.actor
        made = _Actor(program, parent, given, 0 if parent is None else parent.depth + 1, started_by=line)
        if line is not None:
            line.actor.children.append(made)
            made.in_run = line.actor.run
        made.main = _Line(made, f"{made.key}", program["runs"][0], () if line is None else line.within)
        self._actors.append(made)
        self._lines.append(made.main)
        return made

    # ---- acts ----

    def do(self, act: Act) -> None:
        """One act, by the first line from the one that is meant on for which it makes sense."""
        name, who, *rest = act
        lines = [line for line in self._lines if line.open]
        for n in range(len(lines)):
            if getattr(self, f"_{name}")(lines[(who + n) % len(lines)], *rest) is not False:
                break
        self._join()

    def _join(self) -> None:
        for line in self._lines:
            if line.waits_for and all(branch.closed for branch in line.waits_for):
                for branch in line.waits_for:
                    if branch.gather is not None:
                        branch.gather.joined = True
                line.waits_for = []

    def finish(self) -> None:
        for line in self._lines:
            line.closed = True
        self._join()

    def _skip(self, line: _Line) -> None:
        """What every act shrinks to."""

    def _step(self, line: _Line, kind: str, failing: tuple[str, int, bool], says: str, to: int) -> None:
        policy, fails, risky = failing
        policy = "few" if kind == "called" else policy
        self._acting(line, "step", kind, (policy, fails, risky and line.is_main), says, to)

    def _transaction(self, line: _Line, kind: str, failing: tuple[str, int, bool], says: str, to: int) -> None:
        policy, fails, risky = failing
        policy = "few" if policy == "far" else policy
        self._acting(line, "transaction", kind, (policy, fails, risky and line.is_main), says, to)

    def _acting(self, line: _Line, name: str, kind: str, failing: tuple[str, int, bool], says: str, to: int) -> None:
        policy, fails, risky = failing
        if policy == "none" and fails < ALWAYS and not risky:
            fails = 0
        place, said = next(self._places), list[Any]()
        if says == "send":
            said.append(["send", *self._message(line, to, lost=fails >= ALWAYS)])
        elif says == "event":
            said.append(["event", *self._told(line, lost=fails >= ALWAYS)])
        elif says == "stream" and line.path not in line.actor.closed_streams:
            said.append(["stream", line.path, f"s{next(self._places)}"])
        line.operations.append([name, place, kind, policy, fails, said, risky])

    def _sleep(self, line: _Line, milliseconds: int) -> None:
        line.operations.append(["sleep", milliseconds])

    def _value(self, line: _Line, kind: str) -> None:
        line.operations.append(["value", kind])

    def _patch(self, line: _Line) -> None:
        line.operations.append(["patch", f"p{next(self._places)}"])

    def _nothing(self, line: _Line, kind: str, milliseconds: int) -> None:
        line.operations.append(["nothing", kind, milliseconds])

    # ---- talking ----

    def _known(self, line: _Line) -> list[tuple[_Actor, list[Any]]]:
        """Whom this line can address, and how."""
        found: list[tuple[_Actor, list[Any]]] = [(line.actor, ["self"])]
        for other in self._actors:
            if other is line.actor:
                continue
            if other.given:
                found.append((other, ["given", other.key]))
            elif other is line.actor.parent:
                found.append((other, ["parent"]))
            elif self._holds(line, other):
                found.append((other, ["child", other.key]))
        return found

    def _holds(self, line: _Line, child: _Actor) -> bool:
        """Whether it has the child's handle."""
        by = child.started_by
        return (
            child.parent is line.actor and child.in_run == line.actor.run and by is not None
            and (by is line or by.is_main or (by.gather is not None and by.gather.joined))
        )  # fmt: skip

    @staticmethod
    def _has_come(said: _Said, line: _Line) -> bool:
        """Whether it may be waited for: not where it is said in a branch beside, which may not run before this one ends."""
        return all(b in line.within or (b.gather is not None and b.gather.joined) for b in said.by.within)

    def _message(self, line: _Line, to: int, *, lost: bool = False) -> list[Any]:
        known = self._known(line)
        actor, address = known[to % len(known)]
        said = _Said(line, actor, f"{line.path} to {actor.key}", f"m{next(self._places)}", heard=lost)
        self._messages.append(said)
        return [address, said.key, said.value]

    def _send(self, line: _Line, to: int) -> None:
        line.operations.append(["send", *self._message(line, to)])

    def _recv(self, line: _Line, which: int, timed: bool) -> bool:
        actor, first = line.actor, dict[str, _Said]()
        for said in self._messages:
            if said.actor is actor and not said.heard:
                first.setdefault(said.key, said)
        mine = [said for said in first.values() if self._has_come(said, line) and self._may_receive(line, said.key)]
        if not mine:
            return False
        said = mine[which % len(mine)]
        said.heard = True
        actor.receivers[said.key] = line
        line.operations.append(["recv", said.key, said.value, timed])
        return True

    @staticmethod
    def _may_receive(line: _Line, topic: str) -> bool:
        """Whether no branch beside receives from the same topic: which of them gets what is not known."""
        receiver = line.actor.receivers.get(topic)
        return receiver is None or receiver is line or receiver.is_main or receiver.closed

    def _told(self, line: _Line, *, lost: bool = False) -> list[str]:
        said = _Said(line, line.actor, f"e{next(self._places)}", f"v{next(self._places)}", heard=lost)
        if not lost:
            self._events.append(said)
        return [said.key, said.value]

    def _set_event(self, line: _Line) -> None:
        line.operations.append(["set_event", *self._told(line)])

    def _event(self, line: _Line, which: int) -> bool:
        known = {id(actor): address for actor, address in self._known(line)}
        mine = [said for said in self._events if id(said.actor) in known and self._has_come(said, line)]
        if not mine:
            return False
        said = mine[which % len(mine)]
        line.operations.append(["event", known[id(said.actor)], said.key, said.value])
        return True

    def _stream(self, line: _Line) -> None:
        if line.path not in line.actor.closed_streams:
            line.operations.append(["stream", line.path, f"s{next(self._places)}"])

    def _close(self, line: _Line) -> bool:
        if line.path in line.actor.closed_streams:
            return False
        line.actor.closed_streams.add(line.path)
        line.operations.append(["close", line.path])
        return True

    def _outside(self, line: _Line) -> bool:
        actor = line.actor
        if actor.parent is not None or not line.is_main:
            return False
        values = self.outside.setdefault(actor.key, [])
        values.append(f"o{len(values)}")
        line.operations.append(["outside", values[-1]])
        return True

    # ---- relatives ----

    def _may_start(self, line: _Line) -> bool:
        return line.actor.depth < _DEPTH and len(self._actors) < _ACTORS and not line.actor.guarded

    def _start(self, line: _Line, colour: Colour, given: bool) -> None:
        if self._may_start(line):
            child = self._actor(colour, line, given=given)
            line.operations.append(["start", child.program, given, None])

    def _limited(self, line: _Line, colour: Colour, milliseconds: int, kind: str, cleanup: list[Act]) -> None:
        """A child that waits for ever, and has no time."""
        if self._may_start(line):
            child = self._actor(colour, line, given=False)
            self._make_guard(child, [], kind, cleanup, survives=False, by="deadline")
            line.operations.append(["start", child.program, False, milliseconds / 1000])

    def _doomed(
        self, line: _Line, colour: Colour, block: list[Act], kind: str, cleanup: list[Act], survives: bool
    ) -> bool:
        """A child that is cancelled as soon as it is ready for it."""
        if not self._may_start(line) or not line.is_main:
            return False
        child = self._actor(colour, line, given=False)
        self._make_guard(child, block, kind, cleanup, survives=survives, by="parent")
        line.operations += [["start", child.program, False, None], ["cancel", child.key]]
        return True

    def _call(self, line: _Line) -> None:
        if self._may_start(line):
            child = self._actor(line.actor.program["colour"], line, given=False)
            child.awaited, child.started_by = True, None  # whoever calls has no handle
            assert child.main is not None
            line.waits_for = [child.main]
            line.operations.append(["call", child.program])

    def _held(self, line: _Line) -> list[_Actor]:
        return [child for child in line.actor.children if not child.awaited and self._holds(line, child)]

    def _result(self, line: _Line, which: int) -> bool:
        """Of a child that is not waited for yet; one that is under way does nothing more than it does by now."""
        children = [
            child for child in self._held(line) if child.main is not None and (child.main.closed or child.main.open)
        ]
        if not children:
            return False
        child = children[which % len(children)]
        assert child.main is not None
        child.awaited = child.main.closed = True
        line.operations.append(["result", child.key])
        return True

    def _first(self, line: _Line, count: int) -> bool:
        ended = [child for child in self._held(line) if child.main is not None and child.main.closed]
        if not ended:
            return False
        for child in ended[:count]:
            child.waited_for = True
        line.operations.append(["first", [child.key for child in ended[:count]]])
        return True

    def _cancel(self, line: _Line, which: int) -> bool:
        waiting = [child for child in self._held(line) if self._may_cancel(child)]
        if not waiting or not line.is_main:
            return False
        child = waiting[which % len(waiting)]
        assert child.guard is not None
        child.guard[_BY] = "parent"
        line.operations.append(["cancel", child.key])
        return True

    @staticmethod
    def _may_cancel(child: _Actor) -> bool:
        """Nobody waits yet for what it does when it is cancelled, or after that."""
        last = child.main.operations[-1:] if child.main is not None else []
        return (
            child.guard in last and not child.waited_for and child.guard is not None and child.guard[_BY] == "outside"
        )

    def _gather(self, line: _Line, count: int) -> None:
        if not line.is_main:
            return
        gather, branches = _Gather(), [list[Any]() for _ in range(count)]
        number = next(self._places)
        for n, branch in enumerate(branches):
            made = _Line(line.actor, f"{line.path}.{number}.{n}", branch, gather=gather, parent=line)
            made.within = (*line.within, made)
            self._lines.append(made)
            line.waits_for.append(made)
        line.operations.append(["gather", branches])

    # ---- ends ----

    def _end(self, line: _Line) -> bool:
        """Of a branch, or of a child."""
        if line.parent is None and line.actor.parent is None:
            return False
        line.closed = True
        return True

    def _again(self, line: _Line) -> None:
        runs = line.actor.program["runs"]
        if line.is_main and len(runs) < _RUNS:
            runs.append([])
            line.operations = runs[-1]

    def _raise(self, line: _Line) -> None:
        if line.is_main:
            line.operations.append(["raise", next(self._places)])
            line.closed = True

    def _guard(self, line: _Line, block: list[Act], kind: str, cleanup: list[Act], survives: bool) -> bool:
        """Not beside children, whom a cancellation reaches, too; and once, for it is told once."""
        alone = all(child.awaited for child in line.actor.children)
        if not line.is_main or not alone or line.actor.guarded:
            return False
        self._make_guard(line.actor, block, kind, cleanup, survives=survives, by="outside")
        return True

    def _make_guard(
        self, actor: _Actor, block: list[Act], kind: str, cleanup: list[Act], *, survives: bool, by: str
    ) -> None:
        line = actor.main
        assert line is not None
        parts: list[list[Any]] = []
        for acts in (block, cleanup):
            operations, line.operations = line.operations, list[Any]()
            for name, *rest in acts:
                getattr(self, f"_{name}")(line, *rest)
            parts.append(line.operations)
            line.operations = operations
        actor.guarded = True
        actor.guard = ["guard", parts[0], kind, parts[1], survives, by]
        line.operations.append(actor.guard)
        line.closed = line.closed or not survives


def compose(colours: list[Colour], acts: list[Act]) -> Family:
    """The family of programs that these acts make; so many roots as there are colours."""
    composer = _Composer(colours)
    for act in acts:
        composer.do(act)
    composer.finish()
    return Family(composer.roots, composer.outside)


# ---- what is drawn -----------------------------------------------------------------------------------

_who = st.integers(0, 6)
_colours = st.sampled_from(COLOURS)
_milliseconds = st.sampled_from([0, 10, 40, 120, 300])
_failing = st.sampled_from(
    [
        ("none", 0, False), ("none", 0, False), ("few", 1, False), ("none", ALWAYS, False), ("few", 3, False),
        ("few", ALWAYS, False), ("far", 1, False), ("none", 1, True), ("none", 2, True),
    ]
)  # fmt: skip
_tame = st.sampled_from([("none", 0, False), ("few", 1, False), ("none", ALWAYS, False)])
_says = st.sampled_from(["", "", "send", "stream", "event"])
_steps = st.sampled_from(["plain", "async", "called", "timed", "slow"])
_transactions = st.sampled_from(["connection", "async connection", "session", "async session"])
_kinds = st.sampled_from(["sleep", "recv", "event", "gather"])


def _act(name: str, *what: st.SearchStrategy[Any], who: bool = True) -> st.SearchStrategy[Act]:
    return st.tuples(st.just(name), *((_who,) if who else ()), *what)


def _quiet() -> list[st.SearchStrategy[Act]]:
    """What a guard holds: nothing that another one waits for, for it may not come to it."""
    return [
        _act("step", _steps, _tame, st.just(""), st.just(0), who=False),
        _act("transaction", _transactions, _tame, st.just(""), st.just(0), who=False),
        _act("sleep", _milliseconds, who=False),
        _act("value", st.sampled_from(["now", "uuid4", "random"]), who=False),
        _act("nothing", st.sampled_from(["recv", "event"]), _milliseconds, who=False),
    ]


_block = st.lists(st.one_of(_quiet()), max_size=3)
_acts = st.one_of(
    _act("skip"),
    *(_act("step", _steps, _failing, _says, _who) for _ in range(4)),
    *(_act("transaction", _transactions, _failing, _says, _who) for _ in range(4)),
    *(_act("sleep", _milliseconds) for _ in range(3)),
    *(_act("value", st.sampled_from(["now", "uuid4", "random"])) for _ in range(2)),
    *(_act("send", _who) for _ in range(3)),
    *(_act("recv", _who, st.booleans()) for _ in range(4)),
    *(_act("set_event") for _ in range(2)),
    *(_act("event", _who) for _ in range(2)),
    *(_act("stream") for _ in range(2)),
    *(_act("start", _colours, st.booleans()) for _ in range(3)),
    *(_act("call") for _ in range(2)),
    *(_act("result", _who) for _ in range(3)),
    _act("first", st.integers(1, 3)),
    *(_act("gather", st.integers(1, 3)) for _ in range(2)),
    *(_act("end") for _ in range(4)),
    *(_act("again") for _ in range(2)),
    _act("nothing", st.sampled_from(["recv", "event"]), _milliseconds),
    _act("outside"),
    *(_act("guard", _block, _kinds, _block, st.booleans()) for _ in range(2)),
    _act("cancel", _who),
    *(_act("doomed", _colours, _block, _kinds, _block, st.booleans()) for _ in range(2)),
    _act("limited", _colours, st.sampled_from([20, 200]), _kinds, _block),
    _act("patch"),
    _act("close"),
    _act("raise"),
)


def families() -> st.SearchStrategy[Family]:
    """Of one to three roots."""
    return st.builds(compose, st.lists(_colours, min_size=1, max_size=3), st.lists(_acts, min_size=8, max_size=40))
