"""`eventflow schedules list | show | upcoming | pause | resume | trigger | backfill | delete`: what operators do about them.

What starts much, or ends something, shows first what it is about, and asks; `--yes` does not. Exit statuses are those of `cli`.
"""

import dataclasses
import json
from collections.abc import Iterator
from datetime import datetime, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventflow.cron import Rule, zone_of
from eventflow.errors import UsageError
from eventflow.terminal import Json, Yes, ask, open_client, show_some

if TYPE_CHECKING:
    from eventflow.schedules import ScheduleRecord
    from eventflow.sync import Client

app = typer.Typer(
    no_args_is_help=True, help="Schedules: list, show, upcoming, pause, resume, trigger, backfill, delete."
)

_Name = Annotated[str, typer.Argument(help="Its name, as `list` prints it.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the schedules, those of code and those that people made."""
    with open_client() as client:
        found = client.schedules()
    for schedule in found:
        typer.echo(json.dumps(_plain(schedule)) if as_json else _line(schedule))
    if not found:
        typer.echo("no schedules: no process that defines one has run yet", err=True)


@app.command()
def show(name: _Name, as_json: Json = False) -> None:
    """Show one: when it fires, what runs, what waits, who changed it."""
    with open_client() as client:
        schedule = client.schedule(name)
    typer.echo(json.dumps(_plain(schedule)) if as_json else "\n".join(_lines(schedule)))


@app.command()
def upcoming(
    name: _Name, count: Annotated[int, typer.Option(min=1, max=1000, help="So many.")] = 10, as_json: Json = False
) -> None:
    """Print the next fire times, in the schedule's zone, paused or not."""
    with open_client() as client:
        times = client.upcoming(name, count=count)
    for moment in times:
        typer.echo(json.dumps({"time": moment.isoformat()}) if as_json else _time(moment))
    if not times:
        typer.echo(f"{name} fires no more", err=True)


@app.command()
def pause(
    name: _Name, note: Annotated[str, typer.Option(help="Why, for whoever sees it.")] = "", as_json: Json = False
) -> None:
    """Let a schedule start nothing until it is resumed; its fire times pass."""
    with open_client() as client:
        client.pause_schedule(name, note)
        _done(client, name, "paused", as_json=as_json)


@app.command()
def resume(name: _Name, as_json: Json = False) -> None:
    """Let a paused schedule fire again, from its next fire time on."""
    with open_client() as client:
        client.resume_schedule(name)
        _done(client, name, "resumed", as_json=as_json)


@app.command()
def trigger(name: _Name, as_json: Json = False) -> None:
    """Fire a schedule now, paused or not; prints the workflow's id."""
    with open_client() as client:
        handle = client.trigger_schedule(name)
    typer.echo(json.dumps({"workflow_id": handle.workflow_id}) if as_json else handle.workflow_id)


@app.command()
def backfill(
    name: _Name,
    first: Annotated[str, typer.Argument(help="From: 2026-03-01, or 2026-03-01T12:00, in the schedule's zone.")],
    last: Annotated[str, typer.Argument(help="To, included: a day is the whole day.")],
    at_once: Annotated[bool, typer.Option("--at-once", help="All together, and not one after another.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the fire times.")] = False,
    yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Fire the fire times of a range that have not started anything; done again, it is done once."""
    with open_client() as client:
        rule = client.schedule(name).rule
        between = _moment(first, rule, time.min), _moment(last, rule, time.max)
        times = client.backfill_schedule(name, *between, at_once=at_once, dry_run=True)
        if not times:
            typer.echo("every fire time of this range has started something already, or there is none", err=True)
        elif not dry_run:
            if not yes:
                show_some(_time(moment) for moment in times)
                ask(f"fire {name} for {_counted(len(times))}")
            times = client.backfill_schedule(name, *between, at_once=at_once)
    for moment in times:
        typer.echo(json.dumps({"time": moment.isoformat()}) if as_json else _time(moment))


@app.command()
def delete(name: _Name, yes: Yes = False, as_json: Json = False) -> None:
    """Forget a schedule and what waits in its line; what it has started goes on. Code that defines it brings it back."""
    with open_client() as client:
        schedule = client.schedule(name)
        if not yes:
            typer.echo(_line(schedule), err=True)
            ask(f"delete {name}")
        client.delete_schedule(name)
    typer.echo(json.dumps({"deleted": name}) if as_json else f"deleted {name}")


def _moment(text: str, rule: Rule, of_day: time) -> datetime:
    """A time, or a whole day, in the schedule's zone where it has none."""
    try:
        moment = datetime.fromisoformat(text)
        if len(text) == len("2026-03-01"):
            moment = datetime.combine(moment.date(), of_day)
    except ValueError:
        raise UsageError(f"a day such as 2026-03-01, or a time such as 2026-03-01T12:00+00:00, not {text!r}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone_of(rule.timezone))


# ---- what is said ------------------------------------------------------------------------------


def _counted(count: int) -> str:
    return "one fire time" if count == 1 else f"{count} fire times"


def _done(client: "Client", name: str, what: str, *, as_json: bool) -> None:
    schedule = client.schedule(name)
    typer.echo(json.dumps(_plain(schedule)) if as_json else f"{what} {name}; next: {_time(schedule.next_fire)}")


def _line(schedule: "ScheduleRecord") -> str:
    state = f"paused {schedule.note}".strip() if schedule.paused else f"next {_time(schedule.next_fire)}"
    more = (
        f"  {len(schedule.running)} running, {schedule.waiting} waiting" if schedule.running or schedule.waiting else ""
    )
    served = "" if schedule.served else "  no living process fires it"
    return f"{schedule.name}  {_rule(schedule)}  {state}{more}{served}"


def _lines(schedule: "ScheduleRecord") -> Iterator[str]:
    yield f"{schedule.name}: {'paused' if schedule.paused else 'on'}{f', {schedule.note}' if schedule.note else ''}"
    yield f"workflow   {schedule.workflow}{'' if schedule.served else ', which no living process fires'}"
    yield f"fires      {_rule(schedule)}"
    yield f"made by    {schedule.made_by or 'code'}"
    if schedule.changed_at is not None and schedule.changed_by is not None:
        yield f"changed    {_time(schedule.changed_at)} by {schedule.changed_by}"
    yield f"next       {_time(schedule.next_fire)}"
    yield f"last       {_time(schedule.last_fire)}"
    for workflow_id in schedule.running:
        yield f"running    {workflow_id}"
    yield f"waiting    {_counted(schedule.waiting) if schedule.waiting else 'none'}"
    yield f"skipped    {schedule.skipped}, because another ran"
    yield f"missed     {schedule.missed} times, because it was too late"


def _rule(schedule: "ScheduleRecord") -> str:
    try:
        return str(schedule.rule)
    except UsageError:  # a zone that this machine does not know
        return json.dumps(schedule.settings)


def _time(moment: datetime | None) -> str:
    return "none" if moment is None else moment.isoformat(" ", "seconds" if not moment.microsecond else "auto")


def _plain(schedule: "ScheduleRecord") -> dict[str, Any]:
    """What JSON has: times in ISO 8601."""
    found = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in found.items()}
