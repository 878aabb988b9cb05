"""Schedules: what a program, or a person, says of workflows that are started by the time.

`@scheduled` defines one in code; a `Client` makes and changes others, live. When it fires: `cron.Rule`.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, cast, overload

from typing_extensions import TypeVar

from eventflow.cron import Fire, Overlap, Rule, zone_of
from eventflow.errors import UsageError
from eventflow.queues import plain_arguments
from eventflow.registry import ScheduleSpec, check_function, check_name, make_spec, registry, takes_fire
from eventflow.retry import Retry, Seconds, seconds
from eventflow.workflows import Workflow

R = TypeVar("R")
_PLACEHOLDER = Fire("-", datetime(2000, 1, 1, tzinfo=zone_of("UTC")))


class _Scheduled(Protocol):
    @overload
    def __call__(self, function: Callable[[Fire], R], /) -> Workflow[[Fire], R]: ...
    @overload
    def __call__(self, function: Callable[[], R], /) -> Workflow[[], R]: ...


@overload
def scheduled(
    cron: str, /, *, timezone: str = "UTC", name: str | None = None, overlap: Overlap = "skip",
    catch_up: Seconds = 3600, jitter: Seconds = 0, start: datetime | None = None, end: datetime | None = None,
) -> _Scheduled: ...  # fmt: skip
@overload
def scheduled(
    *, every: timedelta, name: str | None = None, overlap: Overlap = "skip",
    catch_up: Seconds = 3600, jitter: Seconds = 0, start: datetime | None = None, end: datetime | None = None,
) -> _Scheduled: ...  # fmt: skip
def scheduled(
    cron: str | None = None, /, *, every: timedelta | None = None, timezone: str = "UTC", name: str | None = None,
    overlap: Overlap = "skip", catch_up: Seconds = 3600, jitter: Seconds = 0, start: datetime | None = None,
    end: datetime | None = None,
) -> Any:  # fmt: skip
    """Start a function by the time, as a durable workflow: one per fire time, with any number of processes.

    The function takes the `Fire`, or nothing. Over `@eventflow.workflow` it is that workflow, with its name and policies.

    Args:
        cron: minute, hour, day of the month, month, day of the week: `"0 2 * * *"`.
        every: or an interval, a second at least, counted from `start`, else from 1970.
        timezone: the zone whose clock the expression goes by. Where clocks change: docs/schedules.md.
        name: the schedule's name, and the workflow's where it has none; by default the function's `__qualname__`.
        overlap: what happens at a fire time while the workflow of one before has not ended. "skip": nothing. "buffer_one"
            and "buffer_all": it waits, one or any number of them. "allow": it starts. "cancel_other": the other is
            cancelled, and the newest starts when that has ended.
        catch_up: seconds that a fire time may be late, because nothing ran, and still fire.
        jitter: seconds that each may be put off, by its name and time.
        start: no fire time is before it.
        end: no fire time is after it.

    Raises:
        UsageError: an expression, with the place of its mistake; a zone, an option or a function that cannot be; a name
            that is taken.

    """
    rule = make_rule(cron, every, timezone, overlap, catch_up, jitter, start, end)

    def decorate(function: Callable[..., Any]) -> Workflow[..., Any]:
        if isinstance(cast("object", function), Workflow):
            found = cast("Workflow[..., Any]", function)
        else:
            check_function(function, "scheduled")
            found = Workflow[..., Any](make_spec(function, name, Retry(0), 5))
        schedule = ScheduleSpec(check_name(name or found.name), rule, found.spec)
        if found.of_class or next(iter(inspect.signature(found.spec.function).parameters), "") == "self":
            raise UsageError(f"@scheduled cannot decorate the method {found.name!r}: nobody knows of which instance")
        registry.add(found.spec)
        registry.add_schedule(schedule)
        return found

    return decorate


def make_rule(
    cron: str | None, every: timedelta | None, timezone: str, overlap: Overlap, catch_up: Seconds, jitter: Seconds,
    start: datetime | None, end: datetime | None,
) -> Rule:  # fmt: skip
    """A rule of what people write.

    Raises:
        UsageError: one that cannot be, by name.

    """
    for moment, what in ((start, "start"), (end, "end")):
        if moment is not None and not isinstance(moment, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}= is a time with a zone, not {moment!r}")
    return Rule(
        cron, None if every is None else seconds(every, "every"), timezone, overlap, seconds(catch_up, "catch_up"),
        seconds(jitter, "jitter"), start, end,
    )  # fmt: skip


def called(
    workflow: Any, args: tuple[object, ...], kwargs: Mapping[str, object], with_fire: bool | None, timeout: Seconds | None
) -> dict[str, Any]:  # fmt: skip
    """What a schedule starts, and with what: of a workflow, whose signature tells whether it takes the fire, or of its name.

    Raises:
        UsageError: no workflow, or arguments that do not fit.
        CodecError: one that cannot be encoded.

    """
    limit = None if timeout is None else seconds(timeout, "timeout")
    if isinstance(workflow, str):
        arguments = plain_arguments(args, kwargs) if args or kwargs else None
        return {
            "workflow": check_name(workflow), "arguments": arguments, "takes_fire": bool(with_fire), "timeout": limit,
        }  # fmt: skip
    if not isinstance(workflow, Workflow):
        raise UsageError(f"a schedule starts workflows, not {workflow!r}")
    found: Workflow[..., Any] = cast("Any", workflow)
    fire = takes_fire(found.spec) if with_fire is None else with_fire
    encoded = found.encode((_PLACEHOLDER, *args) if fire else args, kwargs)
    data = json.loads(encoded)
    data["args"] = data["args"][1:] if fire else data["args"]
    return {
        "workflow": found.name, "arguments": json.dumps(data) if data["args"] or data["kwargs"] else None,
        "takes_fire": fire, "timeout": found.spec.timeout if limit is None else limit,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule as the ledger has it.

    Attributes:
        workflow: the name of what it starts. settings: when, and its policies, where these are not the default.
        made_by: the person who made it; None: code defines it. note: why it is paused.
        changed_by, changed_at: who paused or resumed it last, and when.
        next_fire: the fire time that is next, in its zone; None where it is paused, or over.
        last_fire: the last one for which a workflow was started. running: ids of its workflows that have not ended; not
            those of `overlap="allow"`. waiting: how many fire times wait for them.
        skipped: fire times that started nothing, for another ran. missed: how often some were too late.
        served: whether a living process knows the workflow, and fires this schedule; else nothing does.

    """

    name: str
    workflow: str
    settings: dict[str, Any]
    made_by: str | None
    paused: bool
    note: str
    changed_by: str | None
    changed_at: datetime | None
    next_fire: datetime | None
    last_fire: datetime | None
    running: list[str]
    waiting: int
    skipped: int
    missed: int
    served: bool

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> "ScheduleRecord":
        """From the rows of `list_schedules.sql`."""
        name, workflow, defined, *others = row
        settings = json.loads(defined)
        with contextlib.suppress(UsageError):  # a zone that only others know: then as they are
            zone = zone_of(settings.get("timezone", "UTC"))
            others[5:7] = [moment and moment.astimezone(zone) for moment in others[5:7]]
        return cls(name, workflow, settings, *others)

    @property
    def rule(self) -> Rule:
        """When it fires."""
        return Rule.of(self.settings)

    def upcoming(self, count: int, after: datetime) -> list[datetime]:
        """The next fire times after a moment, in its zone, paused or not."""
        found: list[datetime] = []
        time = self.rule.after(after)
        while time is not None and len(found) < count:
            found.append(time.astimezone(zone_of(self.rule.timezone)))
            time = self.rule.after(time)
        return found
