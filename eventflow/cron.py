"""When a schedule fires, and what is to be done about it at a moment. Pure: the time is always an argument.

The rule where clocks change: an expression whose minute and hour are named (`30 2 * * *`) fires once for each day that it
names. A time that the change skips fires at the first moment behind the gap, one that it repeats fires the first time. An
expression whose minute or hour begins with `*` goes by the clock on the wall: what is skipped is left out, what is repeated
fires twice. Intervals count elapsed time, and know no zone.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from eventflow.errors import UsageError

Cause = Literal["schedule", "catch_up", "backfill", "trigger"]
Overlap = Literal["skip", "buffer_one", "buffer_all", "allow", "cancel_other"]

LATE = 30.0  # seconds after which a fire time is one that is caught up with
BATCH = 100  # fire times of one schedule in one transaction
_LOOK = timedelta(seconds=1)  # between two looks at whether what a fire time waits for has ended
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = timedelta(microseconds=1)
_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
_FIELDS = (
    ("minute", "0-59"), ("hour", "0-23"), ("day of the month", "1-31, L, LW"), ("month", "1-12, JAN-DEC"),
    ("day of the week", "0-7, SUN-SAT, 1#2, 5L"),
)  # fmt: skip
_SHORTEST, _LONGEST = 1.0, 366 * 86400.0  # seconds between two fire times of an interval
_MOST_JITTER, _MOST_CATCH_UP = 86400.0, 10 * 366 * 86400.0
_LOOK_BACK = (timedelta(hours=2), timedelta(days=2), timedelta(days=62), timedelta(days=740), timedelta(days=22000))


@dataclass(frozen=True)
class Fire:
    """One firing of a schedule: what the workflow's id is derived from.

    Attributes:
        schedule: its name. time: the fire time, in the schedule's zone; a jitter, or a delay, is not part of it.
        previous: the fire time before this one for which a workflow was started; of a backfill, the one before it by the rule.
        cause: "catch_up" is more than 30 s late. timezone: the schedule's zone.

    Raises:
        UsageError: a time without a zone, or a zone that there is not.

    """

    schedule: str
    time: datetime
    previous: datetime | None = None
    cause: Cause = "schedule"
    timezone: str | None = None

    def __post_init__(self) -> None:
        if self.time.tzinfo is None or (self.previous is not None and self.previous.tzinfo is None):
            raise UsageError(f"a fire time has a zone, {self.time!r} has none")
        if self.timezone is None:
            object.__setattr__(self, "timezone", getattr(self.time.tzinfo, "key", None))
            return
        zone = zone_of(self.timezone)
        object.__setattr__(self, "time", self.time.astimezone(zone))
        if self.previous is not None:
            object.__setattr__(self, "previous", self.previous.astimezone(zone))

    def plain(self) -> dict[str, object]:
        """As a workflow's argument."""
        return {
            "schedule": self.schedule, "time": self.time.isoformat(),
            "previous": self.previous and self.previous.isoformat(), "cause": self.cause, "timezone": self.timezone,
        }  # fmt: skip


def zone_of(name: str) -> ZoneInfo:
    """The zone of this name.

    Raises:
        UsageError: there is none; says which it may have been.

    """
    try:
        return ZoneInfo(name)
    except Exception:  # a key that is no file's name raises whatever opening it does
        known = available_timezones()
        near = difflib.get_close_matches(name, known, 1) if isinstance(name, str) else []  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = f"; did you mean {near[0]!r}?" if near else ", such as 'Europe/Berlin'"
        raise UsageError(f"there is no time zone {name!r}{hint}") from None


def check_cron(expression: str) -> str:
    """A cron expression of five fields, as it is.

    Raises:
        UsageError: it is none; says where its mistake is, or that it never fires.

    """
    if not isinstance(expression, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"a cron expression is a text such as '0 2 * * *', not {expression!r}")
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        names = ", ".join(name for name, _ in _FIELDS)
        seconds = "; for seconds, use every=" if len(fields) == len(_FIELDS) + 1 else ""
        raise UsageError(f"cron {expression!r} has {len(fields)} fields, and not five: {names}{seconds}")
    at = 0
    for n, (text, (name, range_)) in enumerate(zip(fields, _FIELDS, strict=True)):
        at = expression.index(text, at)
        for term in text.split(","):
            if not _fits(n, term):
                raise UsageError(f"cron {expression!r}, character {at + 1}: {term!r} is no {name} ({range_})")
            at += len(term) + 1
        at -= 1
    if not _fits_whole(expression):
        raise UsageError(f"cron {expression!r} never fires: no month has such a day")
    return expression


def _fits(n: int, term: str) -> bool:
    return _fits_whole(" ".join([*["*"] * n, term, *["*"] * (len(_FIELDS) - n - 1)]), parse_only=True)


def _fits_whole(expression: str, *, parse_only: bool = False) -> bool:
    try:
        ticks = CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001  # of days alone
        if not parse_only:
            next(ticks)
    except (CronSimError, StopIteration, ValueError, AssertionError, IndexError):
        return False
    return True


@dataclass(frozen=True)
class Rule:
    """When a schedule fires, and what becomes of fire times that overlap or are missed. In the ledger it is a JSON object.

    Attributes:
        cron, timezone: an expression of five fields, in this zone; or every: seconds, counted from start, else from 1970.
        catch_up: seconds that a fire time may be late and still fire. jitter: seconds that it may be put off, the same for
            all processes. start, end: nothing before the one or after the other.

    """

    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: float = 3600.0
    jitter: float = 0.0
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every is None):
            raise UsageError("a schedule has a cron expression or every=, one of them")
        zone_of(self.timezone)
        if self.cron is not None:
            check_cron(self.cron)
        elif not _SHORTEST <= (self.every or 0.0) <= _LONGEST:
            raise UsageError(f"every= is from one second to 366 days, not {timedelta(seconds=self.every or 0.0)}")
        if self.overlap not in get_args(Overlap):
            raise UsageError(f"no such overlap: {self.overlap!r}; there are {', '.join(get_args(Overlap))}")
        if self.jitter > _MOST_JITTER:
            raise UsageError(f"jitter= is a day at most, not {self.jitter:g} s")
        if self.catch_up > _MOST_CATCH_UP:
            raise UsageError(f"catch_up= is ten years at most, not {self.catch_up:g} s")
        for moment in (self.start, self.end):
            if moment is not None and moment.tzinfo is None:
                raise UsageError(f"start= and end= are times with a zone, not {moment!r}")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise UsageError(f"end= is before start=: {self.end} and {self.start}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rule":
        """As the ledger keeps it.

        Raises:
            UsageError: it cannot be, here: a zone that this machine does not know.

        """
        times: dict[str, Any] = {n: datetime.fromisoformat(settings[n]) for n in ("start", "end") if settings.get(n)}
        return cls(**{**settings, **times})

    def settings(self) -> dict[str, object]:
        """As the ledger keeps it: what is not the default."""
        found: dict[str, object] = {}
        for name, attribute in type(self).__dataclass_fields__.items():
            value = getattr(self, name)
            if value != attribute.default:
                found[name] = value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        return found

    def __str__(self) -> str:
        when = (
            f"cron {self.cron!r} in {self.timezone}" if self.cron else f"every {timedelta(seconds=self.every or 0.0)}"
        )
        others = {n: v for n, v in self.settings().items() if n not in {"cron", "every", "timezone"}}
        return ", ".join([when, *(f"{name} {value}" for name, value in others.items())])

    # ---- fire times ----

    def after(self, moment: datetime) -> datetime | None:
        """The first fire time after a moment, in UTC; None where there is none within 50 years."""
        if self.start is not None and moment < self.start:
            moment = self.start - _MOMENT
        found = self._interval_after(moment) if self.cron is None else self._cron_after(moment)
        return None if found is None or (self.end is not None and found > self.end) else found

    def _interval_after(self, moment: datetime) -> datetime:
        every, began = timedelta(seconds=self.every or 0.0), (self.start or _EPOCH).astimezone(UTC)
        return began + ((moment - began) // every + 1) * every

    def _cron_after(self, moment: datetime) -> datetime | None:
        zone, expression = zone_of(self.timezone), self.cron or ""
        by_the_wall = any(part.startswith("*") for part in expression.split()[:2])
        # Within an hour that is repeated CronSim goes on from its first pass: what has been is passed by. And it may name the
        # midnight of a day that begins with a gap, if it comes to it from another day.
        ticks = (
            tick.astimezone(UTC)
            for tick in CronSim(expression, moment.astimezone(zone))
            if not by_the_wall or _is_on_the_wall(tick)
        )
        try:
            found = next(time for time in ticks if time > moment)
        except (StopIteration, RuntimeError, OverflowError, ValueError):  # 50 years, or the calendar's end
            return None
        if not by_the_wall:
            return found
        # It goes hour by hour: where a clock is moved by half of one, it passes by what is in the other half.
        times = (_by_the_wall(expression, zone, max(change, moment)) for change in _changes(zone, moment, found))
        return min((time for time in times if time is not None and moment < time < found), default=found)

    def before(self, moment: datetime) -> datetime | None:
        """The last fire time before a moment, in UTC; None where there is none within 60 years."""
        for span in _LOOK_BACK:
            last: datetime | None = None
            for time in self.between(moment - span, moment - _MOMENT):
                last = time
            if last is not None:
                return last
        return None

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The fire times from one moment to another, both included."""
        time = self.after(first - _MOMENT)
        while time is not None and time <= last:
            yield time
            time = self.after(time)

    def due(self, name: str, time: datetime) -> datetime:
        """When a fire time of the schedule of this name is to fire: put off by its jitter."""
        if not self.jitter:
            return time
        digest = hashlib.sha256(f"{name}\0{time.astimezone(UTC).isoformat()}".encode()).digest()
        return time + timedelta(seconds=self.jitter * int.from_bytes(digest[:6], "big") / (1 << 48))


@lru_cache(10_000)
def rule_of(text: str) -> Rule:
    """The rule that this JSON says: checked once, for a thousand of them are read in the moment in which they fire.

    Raises:
        UsageError: as `Rule.of`.

    """
    return Rule.of(json.loads(text))


def _by_the_wall(expression: str, zone: ZoneInfo, begin: datetime) -> datetime | None:
    """The first fire time from a moment on, by a clock that nobody moves from there; None where one has skipped it."""
    wall = begin.astimezone(zone).replace(tzinfo=None)
    tick = next(CronSim(expression, wall - _MINUTE)).replace(tzinfo=zone, fold=1)
    return tick.astimezone(UTC) if _is_on_the_wall(tick) else None


def _is_on_the_wall(tick: datetime) -> bool:
    """Whether clocks show it, and do not skip it."""
    return tick.astimezone(UTC).astimezone(tick.tzinfo).replace(tzinfo=None) == tick.replace(tzinfo=None)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _changes(zone: ZoneInfo, moment: datetime, found: datetime) -> Iterator[datetime]:
    """When the zone's clocks are moved by less than an hour: from two hours before a moment until another one."""
    low = moment - 2 * _HOUR
    while low < found:
        high = min(low + 24 * _HOUR, found)
        moved = _offset(zone, high) - _offset(zone, low)
        if moved % _HOUR:
            yield _change(zone, low, high)
        low = high


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The moment between two others from which on the clock is that of the later one."""
    after = _offset(zone, high)
    while high - low > _MOMENT:
        middle = low + (high - low) / 2
        low, high = (low, middle) if _offset(zone, middle) == after else (middle, high)
    return high


# ---- what is to be done at a moment ----------------------------------------------------------------


class Waiting(NamedTuple):
    """A fire time that waits until what was started before it has ended."""

    time: datetime
    cause: Cause


@dataclass(frozen=True)
class Line:
    """Fire times that follow one another: the schedule's own, or those of its backfills.

    Attributes:
        busy: whether a workflow that they started has not ended. head: the first that waits. length: how many wait.

    """

    busy: bool = False
    head: Waiting | None = None
    length: int = 0


@dataclass(frozen=True)
class State:
    """Where a schedule stands: the fire time that comes next, and the last that started a workflow."""

    next_at: datetime | None
    fired_at: datetime | None
    own: Line = field(default_factory=Line)
    backfill: Line = field(default_factory=Line)


@dataclass
class Plan:
    """What is to be done with a schedule at a moment, and where it stands then.

    Attributes:
        fires: to be started now. waits: to be put in line. begun: of those in line, what is started. replaced: all that is
            in its own line goes. cancel: what runs is asked to end. skipped: how many fire times start nothing
            because of others. missed: how often times were passed by that were too late to be caught up with.

    """

    next_at: datetime | None
    fired_at: datetime | None
    due_at: datetime | None = None
    fires: list[Fire] = field(default_factory=list[Fire])
    waits: list[Waiting] = field(default_factory=list[Waiting])
    begun: list[Waiting] = field(default_factory=list[Waiting])
    replaced: bool = False
    cancel: bool = False
    skipped: int = 0
    missed: int = 0


def plan(rule: Rule, name: str, state: State, now: datetime) -> Plan:
    """Decide each fire time that is due, in order, a batch at most; and what waits and need not wait any more."""
    made = Plan(state.next_at, state.fired_at)
    busy, length = state.own.busy and rule.overlap != "allow", state.own.length

    def start(time: datetime, cause: Cause) -> bool:
        made.fires.append(Fire(name, time, made.fired_at, cause, rule.timezone))
        made.fired_at = max(time, made.fired_at or time)
        return rule.overlap != "allow"

    if state.own.head is not None and not busy:
        busy, length = start(*state.own.head), length - 1
        made.begun.append(state.own.head)
    for time, cause in _come_due(rule, name, made, now):
        if not busy and not length:
            busy = start(time, cause)
        elif rule.overlap == "buffer_all" or (rule.overlap == "buffer_one" and not length):
            made.waits.append(Waiting(time, cause))
            length += 1
        elif rule.overlap != "cancel_other":
            made.skipped += 1
        elif made.fires:  # what has not begun need not be cancelled
            made.fired_at = made.fires.pop().previous
            made.skipped += 1
            start(time, cause)
        else:
            made.cancel = made.replaced = True
            made.skipped += length
            made.waits, length = [Waiting(time, cause)], 1
    filling = _backfill(rule, name, state.backfill, made)
    made.due_at = None if made.next_at is None else rule.due(name, made.next_at)
    if length or filling:
        look = now + _LOOK
        made.due_at = look if made.due_at is None else min(made.due_at, look)
    return made


def _backfill(rule: Rule, name: str, line: Line, made: Plan) -> int:
    """Go on with what people asked to be fired again; how many wait then."""
    if line.head is None or line.busy:
        return line.length
    time = line.head.time
    made.fires.append(Fire(name, time, rule.before(time), "backfill", rule.timezone))
    made.begun.append(line.head)
    return line.length - 1


def _come_due(rule: Rule, name: str, made: Plan, now: datetime) -> Iterator[tuple[datetime, Cause]]:
    """The fire times that are due and not too late, in order; moves `made.next_at` behind each."""
    oldest = now - timedelta(seconds=rule.catch_up)
    for _ in range(BATCH):
        time = made.next_at
        if time is None:
            return
        due = rule.due(name, time)
        if due > now:
            return
        if due < oldest:
            made.missed += 1
            made.next_at = rule.after(max(time, oldest - timedelta(seconds=rule.jitter) - _MOMENT))
            continue
        made.next_at = rule.after(time)
        yield time, "catch_up" if now - due > timedelta(seconds=LATE) else "schedule"
