"""What is written of schedules: fire times become workflows, in the transaction that moves the schedule behind them.

So one workflow per fire time, through any crash and with any number of processes: whoever fires holds the schedule's row,
and the workflow's id is the fire time's. Whether something is due is the ledger's clock's to say. The decisions are
`cron.plan`'s; the firing executor (`scheduler`), a starting application and a client's call all go through here.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from eventflow.context import RunQuery
from eventflow.cron import Fire, Line, Plan, Rule, State, Waiting, plan, rule_of, zone_of
from eventflow.errors import UsageError, WorkflowExistsError
from eventflow.idempotency import schedule_workflow_id, schedule_workflow_id_prefix
from eventflow.journal import packed, rider_statements
from eventflow.metrics import LATENESS
from eventflow.payloads import Unread
from eventflow.records import Rider
from eventflow.tracing import active

logger = logging.getLogger(__name__)

MOST_BACKFILLED = 10_000  # fire times
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Definition:
    """What code, or a person, says of a schedule.

    Attributes:
        workflow: the name of what it starts. takes_fire: whether that takes the fire, before the arguments.
        arguments: encoded; None: no others. timeout: seconds that each has. rule: when.

    """

    name: str
    workflow: str
    rule: Rule
    takes_fire: bool = False
    arguments: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Schedule:
    """A schedule's row, as this transaction has locked it; `made_by` is None where code defines it; `now` is the ledger's."""

    definition: Definition
    made_by: str | None
    next_at: datetime | None
    fired_at: datetime | None
    paused: bool
    now: datetime

    @classmethod
    def of(cls, row: Row) -> "Schedule":
        """From the rows of the queries that lock schedules.

        Raises:
            UsageError: its zone is not known here.

        """
        name, workflow, arguments, takes_fire, timeout, defined, made_by, next_at, fired_at, paused, now = row
        rule = rule_of(defined)
        definition = Definition(name, workflow, rule, takes_fire, arguments, timeout)
        return cls(definition, made_by, _utc(next_at), _utc(fired_at), paused, now.astimezone(UTC))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


@dataclass(frozen=True)
class Change:
    """What a program's code changes about the schedules that the ledger knows, in words."""

    name: str
    kind: Literal["new", "changed", "elsewhere"]
    text: str


# ---- firing ----------------------------------------------------------------------------------------


def fire_due(
    run: RunQuery,
    application: str,
    workflows: Sequence[str],
    only: Sequence[str] | None,
    who: str,
    executor: int,
    room: int,
) -> tuple[int, list[Row]]:
    """Fire what is due of these workflows' schedules; of how many schedules, and the rows that this executor is to run."""
    rows = run("lock_due_schedules", {"application": application, "workflows": workflows, "only": only})
    due: list[Schedule] = []
    unread: list[str] = []
    for row in rows:
        try:
            schedule = Schedule.of(row)
            _check_readable(schedule.definition)
            due.append(schedule)
        except (
            UsageError
        ) as error:  # a zone, or a key, that only others know: the rest fires, and this one where it can
            logger.error("schedule %r does not fire here: %s", row[0], error)
            unread.append(row[0])
    if unread:
        run("put_off_schedules", {"application": application, "name": unread})
    return len(rows), _Firing(run, application, who).fire(due, executor, room)


@dataclass
class _Firing:
    """One transaction's fires."""

    run: RunQuery
    application: str
    who: str
    moves: list[Row] = field(default_factory=list[Row])

    def fire(self, schedules: list[Schedule], executor: int | None = None, room: int = 0) -> list[Row]:
        """Decide what is due of schedules that are locked, and write it; the rows that were given to the executor."""
        if not schedules:
            return []
        self.moves = []
        lines = self._lines(schedules)
        plans = [(s, self._plan(s, lines[s.definition.name][0])) for s in schedules]
        started = self.start([(s.definition, fire) for s, p in plans for fire in p.fires], executor, room)
        self._move_lines(plans)
        for schedule, made in plans:
            self._count(schedule, made)
            self._move(schedule, made, *lines[schedule.definition.name][1:])
        names = ("name", "next_at", "due_at", "fired_at", "running", "filling", "skipped", "missed")
        columns = {name: [row[n] for row in self.moves] for n, name in enumerate(names)}
        self.run("move_schedules", {"application": self.application, **packed(columns)})
        self._cancel([(s, lines[s.definition.name][1]) for s, p in plans if p.cancel])
        return [row for row in started if row[2] == "running"]

    def _count(self, schedule: Schedule, made: Plan) -> None:
        """How late it is for what is fired because its time has come."""
        rule, name = schedule.definition.rule, schedule.definition.name
        times = [fire.time.astimezone(UTC) for fire in made.fires if fire.cause in {"schedule", "catch_up"}]
        LATENESS.observe([(max(0.0, (schedule.now - rule.due(name, at)).total_seconds()), 1) for at in times], name)

    def _lines(self, schedules: list[Schedule]) -> dict[str, tuple[State, list[str], list[str]]]:
        """Where each stands, and the ids of what it has started, and its backfills, that has not ended."""
        asked = {"application": self.application, "name": [s.definition.name for s in schedules]}
        rows = {row[0]: row[1:] for row in self.run("read_lines", asked)}
        found: dict[str, tuple[State, list[str], list[str]]] = {}
        for schedule in schedules:
            running, filling, at, cause, length, fill_at, fill_length = rows[schedule.definition.name]
            own = Line(bool(running), at and Waiting(at.astimezone(UTC), cause), length)
            fill = Line(bool(filling), fill_at and Waiting(fill_at.astimezone(UTC), "backfill"), fill_length)
            state = State(schedule.next_at, schedule.fired_at, own, fill)
            found[schedule.definition.name] = state, running, filling
        return found

    def _plan(self, schedule: Schedule, state: State) -> Plan:
        definition = schedule.definition
        made = plan(definition.rule, definition.name, state, schedule.now)
        if made.missed:
            logger.warning(
                "schedule %r: fire times more than %g s late start nothing any more", definition.name,
                definition.rule.catch_up,
            )  # fmt: skip
        if made.skipped:
            text = "schedule %r: %d fire times start nothing, for the one before has not ended (overlap %s)"
            logger.warning(text, definition.name, made.skipped, definition.rule.overlap)
        return made

    def start(self, fires: list[tuple[Definition, Fire]], executor: int | None = None, room: int = 0) -> list[Row]:
        """Start fire times' workflows, but for those that have been started; so many of them on this executor."""
        if not fires:
            return []
        columns: dict[str, list[Any]] = {
            "id": [schedule_workflow_id(self.application, d.name, fire.time) for d, fire in fires],
            "name": [d.workflow for d, _ in fires],
            "executor": [executor if n < room else None for n in range(len(fires))],
            "arguments": [_arguments(d, fire) for d, fire in fires],
            "timeout": [d.timeout for d, _ in fires],
        }
        started = self.run("start_fires", {"application": self.application, **packed(columns)})
        self._trace(started, dict(zip(columns["id"], fires, strict=True)))
        return started

    def _trace(self, started: list[Row], fires: dict[str, tuple[Definition, Fire]]) -> None:
        """Each fire is the beginning of a trace."""
        tracing = active()
        if tracing is None or not started:
            return
        fired = [(row[0], fires[row[0]][1]) for row in started]
        causes = [(i, tracing.fire(fire.schedule, fire.time.isoformat(), fire.cause)) for i, fire in fired]
        for query, values in rider_statements(Rider("insert_traces", (i, cause, None)) for i, cause in causes if cause):
            self.run(query, values)

    def _move_lines(self, plans: list[tuple[Schedule, Plan]]) -> None:
        gone = [(s.definition.name, waiting.time.isoformat()) for s, p in plans for waiting in p.begun]
        gone += [(s.definition.name, None) for s, p in plans if p.replaced]
        if gone:
            columns = {"name": [name for name, _ in gone], "at": [at for _, at in gone]}
            self.run("delete_fires", {"application": self.application, **packed(columns)})
        self.wait([(s.definition.name, waiting) for s, p in plans for waiting in p.waits])

    def wait(self, waits: list[tuple[str, Waiting]]) -> None:
        """Put fire times in line."""
        if waits:
            columns = {
                "name": [name for name, _ in waits], "at": [w.time.isoformat() for _, w in waits],
                "cause": [w.cause for _, w in waits],
            }  # fmt: skip
            self.run("insert_fires", {"application": self.application, **packed(columns)})

    def _move(self, schedule: Schedule, made: Plan, running: list[str], filling: list[str]) -> None:
        definition = schedule.definition
        ids = {f.cause == "backfill": [] for f in made.fires} | {True: list[str](), False: list[str]()}
        for fire in made.fires:
            ids[fire.cause == "backfill"].append(schedule_workflow_id(self.application, definition.name, fire.time))
        own = [] if definition.rule.overlap == "allow" else running + ids[False]
        self.moves.append((
            definition.name, _iso(made.next_at), _iso(made.due_at), _iso(made.fired_at), json.dumps(own),
            json.dumps(filling + ids[True]), made.skipped, made.missed,
        ))  # fmt: skip

    def _cancel(self, others: list[tuple[Schedule, list[str]]]) -> None:
        for schedule, ids in others:
            who = f"schedule {schedule.definition.name!r}, by {self.who}"
            self.run("request", {"ids": sorted(ids), "kind": "cancel", "who": who, "children": True})


def _now(run: RunQuery) -> datetime:
    [(seconds,)] = run("ledger_time", {})
    return datetime.fromtimestamp(seconds, UTC)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _check_readable(definition: Definition) -> None:
    """Whether its arguments can be read here.

    Raises:
        UsageError: they cannot: their key is gone.

    """
    if isinstance(definition.arguments, Unread):
        raise UsageError(f"the arguments of the schedule {definition.name!r}: {definition.arguments.why}")


def _arguments(definition: Definition, fire: Fire) -> str:
    """What a fire's workflow is started with, encoded."""
    found: dict[str, Any] = (
        {"args": [], "kwargs": {}} if definition.arguments is None else json.loads(definition.arguments)
    )
    if definition.takes_fire:
        found["args"].insert(0, fire.plain())
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


# ---- what code says --------------------------------------------------------------------------------


def define(
    run: RunQuery, application: str, who: str, declared: Iterable[Definition], *, dry: bool = False
) -> list[Change]:
    """Tell the ledger what this code says of its schedules; what that changes. `dry`: only say so.

    A new rule holds from now on: its first fire time is the first from here. What was due by the old one is fired by it.

    Raises:
        UsageError: a person has made a schedule of this name.

    """
    wanted = {definition.name: definition for definition in declared}
    for name in wanted:
        schedule_workflow_id_prefix(application, name)
    rows = {row[0]: row for row in run("lock_schedules", {"application": application, "name": None})}
    changes: list[Change] = []
    now = _now(run)
    for name, definition in sorted(wanted.items()):
        known = _read(rows[name]) if name in rows else None
        change = _define_one(_Firing(run, application, who), definition, known, now, dry=dry)
        if change is not None:
            changes.append(change)
    for name, row in rows.items():
        known = _read(row)
        if name not in wanted and (known is None or known.made_by is None):
            rule = "a rule that cannot be read here" if known is None else str(known.definition.rule)
            changes.append(
                Change(name, "elsewhere", f"{rule}: not in this code; it fires while a process that has it lives")
            )
    return changes


def _read(row: Row) -> Schedule | None:
    """None where it says what only others know: code that defines it anew takes its place."""
    try:
        return Schedule.of(row)
    except UsageError:
        return None


def _define_one(
    firing: _Firing, definition: Definition, known: Schedule | None, now: datetime, *, dry: bool
) -> Change | None:
    name, rule = definition.name, definition.rule
    if known is not None and known.made_by is not None:
        raise UsageError(
            f"the schedule {name!r} was made by {known.made_by}: give the one in code another name=, or delete that one"
        )
    if known is not None and known.definition == definition:
        _follow_zone(firing, known, now, dry=dry)
        return None
    first = rule.after(now if known is None else known.now)
    then = "never" if first is None else first.astimezone(zone_of(rule.timezone)).isoformat()
    if not dry:
        if known is not None:
            _fire_overdue(firing, known)
        write(firing.run, firing.application, definition, first)
    if known is None:
        return Change(name, "new", f"{rule}; next: {then}")
    was = known.definition
    other = "" if was.workflow == definition.workflow else f", of {definition.workflow!r} and not {was.workflow!r}"
    return Change(name, "changed", f"{was.rule} -> {rule}{other}; next: {then}")


def _fire_overdue(firing: _Firing, schedule: Schedule) -> None:
    """Fire what is due by a rule that is about to change."""
    if schedule.paused or isinstance(schedule.definition.arguments, Unread):
        return
    name, rule = schedule.definition.name, schedule.definition.rule
    while schedule.next_at is not None and rule.due(name, schedule.next_at) <= schedule.now:
        firing.fire([schedule])
        schedule = lock(firing.run, firing.application, name)


def _follow_zone(firing: _Firing, known: Schedule, now: datetime, *, dry: bool) -> None:
    """A zone's rules may have changed since the next fire time was found: by those that this process knows, it is another."""
    rule = known.definition.rule
    if known.next_at is None or known.next_at <= now:
        return
    found = rule.after(now)
    if found != known.next_at and not dry and (found is None or found > now):
        logger.warning(
            "schedule %r: next is %s and not %s, by the zone's rules here", known.definition.name, found, known.next_at
        )
        write(firing.run, firing.application, known.definition, found)


def write(
    run: RunQuery, application: str, definition: Definition, first: datetime | None, made_by: str | None = None
) -> None:
    """Write a schedule that fires from `first` on."""
    due = None if first is None else definition.rule.due(definition.name, first)
    run("define_schedule", {
        "application": application, "name": definition.name, "workflow": definition.workflow,
        "arguments": definition.arguments, "takes_fire": definition.takes_fire, "timeout": definition.timeout,
        "defined": json.dumps(definition.rule.settings()), "made_by": made_by, "next_at": _iso(first), "due_at": _iso(due),
    })  # fmt: skip


# ---- what people do --------------------------------------------------------------------------------


def lock(run: RunQuery, application: str, name: str) -> Schedule:
    """The schedule, locked.

    Raises:
        UsageError: there is none of this name.

    """
    rows = run("lock_schedules", {"application": application, "name": [name]})
    if not rows:
        raise UsageError(f"there is no schedule {name!r} in application {application!r}")
    return Schedule.of(rows[0])


def create(run: RunQuery, application: str, who: str, definition: Definition, *, replace: bool) -> None:
    """Make a schedule that fires from now on.

    Raises:
        UsageError: code has one of this name, or a person has, and it is not to be replaced.

    """
    schedule_workflow_id_prefix(application, definition.name)
    rows = run("lock_schedules", {"application": application, "name": [definition.name]})
    known = Schedule.of(rows[0]) if rows else None
    if known is not None and known.made_by is None:
        raise UsageError(f"the schedule {definition.name!r} is defined in code; give this one another name")
    if known is not None and not replace:
        raise UsageError(
            f"there is a schedule {definition.name!r}, made by {known.made_by}; replace=True takes its place"
        )
    if known is not None:
        _fire_overdue(_Firing(run, application, who), known)
    write(run, application, definition, definition.rule.after(known.now if known else _now(run)), made_by=who)


def pause(run: RunQuery, application: str, who: str, name: str, note: str) -> None:
    """Let a schedule fire no more."""
    lock(run, application, name)
    asked = {"application": application, "name": name, "who": who, "next_at": None, "due_at": None}
    run("pause_schedule", {**asked, "paused": True, "note": note})


def resume(run: RunQuery, application: str, who: str, name: str) -> None:
    """Let a paused schedule fire again, from now on; what waits in its line goes on."""
    schedule = lock(run, application, name)
    if not schedule.paused:
        return
    first = schedule.definition.rule.after(schedule.now)
    asked = {"application": application, "name": name, "who": who, "next_at": _iso(first), "due_at": _iso(schedule.now)}
    run("pause_schedule", {**asked, "paused": False, "note": ""})


def trigger(run: RunQuery, application: str, who: str, name: str) -> str:
    """Fire a schedule now, whatever it is set to; the workflow's id.

    Raises:
        UsageError: there is none of this name, or its arguments cannot be read here.

    """
    schedule = lock(run, application, name)
    definition, firing = schedule.definition, _Firing(run, application, who)
    _check_readable(definition)
    fire = Fire(name, schedule.now, schedule.fired_at, "trigger", definition.rule.timezone)
    if not firing.start([(definition, fire)]):
        raise WorkflowExistsError(f"the schedule {name!r} has been fired for {schedule.now} already")
    workflow_id = schedule_workflow_id(application, name, schedule.now)
    if definition.rule.overlap != "allow":
        run("add_running", {"application": application, "name": name, "id": workflow_id})
    return workflow_id


def backfill(
    run: RunQuery,
    application: str,
    who: str,
    name: str,
    first: datetime,
    last: datetime,
    *,
    at_once: bool,
    dry: bool = False,
) -> list[datetime]:
    """Fire the fire times from one moment to another that started nothing: one after another, or at once; which these are."""
    schedule = lock(run, application, name)
    definition, firing = schedule.definition, _Firing(run, application, who)
    rule = definition.rule
    _check_readable(definition)
    if last > schedule.now:
        raise UsageError(f"a backfill is of what has been, and {last.isoformat()} is to come")
    times = list(islice(rule.between(first, last), MOST_BACKFILLED + 1))
    if len(times) > MOST_BACKFILLED:
        raise UsageError(f"the range has more than {MOST_BACKFILLED:,} fire times; take it in parts")
    ids = {schedule_workflow_id(application, name, time): time for time in times}
    done = {workflow_id for (workflow_id,) in run("started_fires", {"ids": list(ids)})}
    left = [time for workflow_id, time in ids.items() if workflow_id not in done]
    here = [time.astimezone(zone_of(rule.timezone)) for time in left]
    if dry or not left:
        return here
    if at_once:
        previous = dict(zip(times, [rule.before(times[0]), *times], strict=False))
        fires = [Fire(name, time, previous[time], "backfill", rule.timezone) for time in left]
        firing.start([(definition, fire) for fire in fires])
    else:
        firing.wait([(name, Waiting(time, "backfill")) for time in left])
        run("nudge_schedule", {"application": application, "name": name})
    return here
