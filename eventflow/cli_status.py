"""`eventflow status`: on one screen processes, what is read, workflows, queues, schedules, dead letters, incidents."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from eventflow.records import GroupRecord, IncidentRecord, Overview, ProcessRecord
from eventflow.terminal import open_client, say_json, table
from eventflow.words import counted, length_text, one_line, time_text

if TYPE_CHECKING:
    from eventflow.queues import QueueRecord
    from eventflow.schedules import ScheduleRecord
    from eventflow.sync import Client

_CLEAR = "\x1b[H\x1b[2J"
_MOST = 10  # lines of a kind


@dataclass(frozen=True, slots=True)
class Screen:
    """All that is shown, at one moment."""

    at: datetime
    overview: Overview
    queues: "tuple[QueueRecord, ...]"
    schedules: "tuple[ScheduleRecord, ...]"
    incidents: tuple[IncidentRecord, ...]


def show(*, watch: float | None, as_json: bool) -> None:
    """Show it, once or again and again until Ctrl-C."""
    with open_client() as client:
        while True:
            screen = _look(client)
            if as_json:
                say_json(screen)
            else:
                above = _CLEAR if watch is not None and sys.stdout.isatty() else ""
                typer.echo(above + "\n".join(lines_of(screen)) + ("" if above or watch is None else "\n"))
            if watch is None:
                return
            try:
                time.sleep(watch)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None


def _look(client: "Client") -> Screen:
    return Screen(
        datetime.now(UTC), client.overview(), tuple(client.queues()), tuple(client.schedules()), tuple(client.incidents())
    )  # fmt: skip


def lines_of(screen: Screen) -> Iterator[str]:
    """The screen, line by line."""
    seen = screen.overview
    yield f"{time_text(screen.at)}  application {seen.application}"
    yield f"processes     {counted(len(seen.processes), 'process') if seen.processes else 'NONE runs'}"
    yield from _some([_process(one, screen.at) for one in seen.processes], "process")
    yield f"partitions    {'' if seen.groups else 'none was ever read'}".rstrip()
    yield from _some([_group(one) for one in seen.groups], "group")
    yield f"workflows     {', '.join(f'{n} {status}' for status, n in seen.workflows.items()) or 'none is unfinished'}"
    yield "queues"
    yield from _some([_queue(one, screen.at) for one in screen.queues], "queue")
    yield f"schedules     {'' if screen.schedules else 'none'}".rstrip()
    yield from _some([_schedule(one) for one in screen.schedules], "schedule")
    yield f"dead letters  {', '.join(f'{n} of {name}' for name, n in seen.dead_letters.items()) or 'none'}"
    yield f"incidents     {'' if screen.incidents else 'none'}".rstrip()
    yield from _some([_incident(one) for one in screen.incidents], "incident")


def _some(rows: list[list[str]], what: str) -> Iterator[str]:
    yield from ("  " + line for line in table(rows[:_MOST]))
    if len(rows) > _MOST:
        yield f"  ... and {counted(len(rows) - _MOST, what)} more"


def _process(one: ProcessRecord, now: datetime) -> list[str]:
    return [
        f"executor {one.executor}", f"process {one.pid} on {one.host}", f"for {length_text(now - one.born_at)}",
        f"beat {length_text(one.silent)} ago", counted(one.workflows, "workflow"), counted(one.partitions, "partition"),
        one.version or "",
    ]  # fmt: skip


def _group(one: GroupRecord) -> list[str]:
    held = [f"{one.stopped} STOPPED by incidents"] if one.stopped else []
    held += [f"{one.paused} PAUSED"] if one.paused else []
    behind = "" if one.behind is None else f"{one.behind} behind"
    read = f"{one.read} of {counted(one.partitions, 'partition')} read"
    return [one.topic, f"group {one.group}", read, behind, f"{one.unfinished} not ended", ", ".join(held)]


def _queue(one: "QueueRecord", now: datetime) -> list[str]:
    age = "" if one.oldest is None else f"the first for {length_text(now - one.oldest)}"
    paused = "PAUSED" if one.paused else ""
    return [one.name, f"{one.waiting} in line", f"{one.running} running", f"{one.delayed} delayed", age, paused]


def _schedule(one: "ScheduleRecord") -> list[str]:
    state = f"PAUSED {one.note}".strip() if one.paused else f"next {time_text(one.next_fire)}"
    served = "" if one.served else "no live process fires it"
    running = f"{len(one.running)} running, {one.waiting} waiting" if one.running or one.waiting else ""
    return [one.name, state, running, served]


def _incident(one: IncidentRecord) -> list[str]:
    return [str(one.id), "STOPS" if one.stops else "open", one.kind, one_line(one.subject), one_line(one.detail, 120)]
