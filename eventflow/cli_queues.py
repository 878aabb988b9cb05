"""`eventflow queues list | show | pause | resume | change | reset`: what waits in line, and what lets it go.

What lets more begin, or less, does so at once, in all processes. Exit statuses are those of `cli`.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from eventflow.errors import UsageError
from eventflow.queues import QueueRecord
from eventflow.terminal import Json, length_of, open_client, say_json, table
from eventflow.words import counted, length_text, one_line, time_text

if TYPE_CHECKING:
    from eventflow.sync import Client

app = typer.Typer(no_args_is_help=True, help="Queues: list, show, pause, resume, change, reset.")

_Name = Annotated[str, typer.Argument(help="Its name, as `list` prints it.")]
_Count = "a number from 1, or `none`"
_Rate = "how many in which time, `100/1m`, or `none`"


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the queues: how many wait, since when the first does, how many have begun, and the limits."""
    with open_client() as client:
        found = client.queues()
    if as_json:
        for queue in found:
            say_json(queue)
    else:
        for line in table([_cells(queue) for queue in found]):
            typer.echo(line)
    if not found:
        typer.echo("no queues: no process of this application has run yet", err=True)


@app.command()
def show(name: _Name, as_json: Json = False) -> None:
    """Show one: its limits, what waits, who changed it."""
    with open_client() as client:
        queue = _find(client, name)
    if as_json:
        say_json(queue)
    else:
        typer.echo("\n".join(_lines(queue)))


@app.command()
def pause(name: _Name, as_json: Json = False) -> None:
    """Let nothing of a queue begin until it is resumed; what has begun goes on."""
    with open_client() as client:
        client.pause_queue(name)
        _done(client, name, "paused", as_json=as_json)


@app.command()
def resume(name: _Name, as_json: Json = False) -> None:
    """Let a paused queue go on."""
    with open_client() as client:
        client.resume_queue(name)
        _done(client, name, "resumed", as_json=as_json)


@app.command()
def change(
    name: _Name,
    concurrency: Annotated[str | None, typer.Option(help=f"How many may have begun, over all processes: {_Count}.")] = None,
    concurrency_per_process: Annotated[str | None, typer.Option(help=f"How many in one process: {_Count}.")] = None,
    concurrency_per_key: Annotated[str | None, typer.Option(help=f"How many of one key: {_Count}.")] = None,
    rate: Annotated[str | None, typer.Option(help=f"How many may begin: {_Rate}.")] = None,
    rate_per_key: Annotated[str | None, typer.Option(help=f"How many of one key may begin: {_Rate}.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Change limits at once, over what code says, until they are changed again; what is not named stays as it is."""
    counts = {
        "concurrency": concurrency, "concurrency_per_process": concurrency_per_process,
        "concurrency_per_key": concurrency_per_key,
    }  # fmt: skip
    limits = {limit: _count(text, limit) for limit, text in counts.items() if text is not None}
    limits |= {
        limit: _rate(text, limit)
        for limit, text in (("rate", rate), ("rate_per_key", rate_per_key))
        if text is not None
    }
    if not limits:
        raise UsageError("say what is to change, such as --concurrency 5")
    with open_client() as client:
        client.change_queue(name, **limits)
        _done(client, name, "changed", as_json=as_json)


@app.command()
def reset(name: _Name, as_json: Json = False) -> None:
    """Let a queue have the limits that code says."""
    with open_client() as client:
        client.reset_queue(name)
        _done(client, name, "reset", as_json=as_json)


# ---- what is meant -----------------------------------------------------------------------------


def _count(text: str, limit: str) -> int | None:
    if text == "none":
        return None
    if not re.fullmatch(r"\d{1,10}", text):
        raise UsageError(f"--{limit.replace('_', '-')} is {_Count}, not {text!r}")
    return int(text)


def _rate(text: str, limit: str) -> tuple[int, Any] | None:
    if text == "none":
        return None
    many, _, period = text.partition("/")
    length = length_of(period if period[:1].isdigit() else f"1{period}")
    if not re.fullmatch(r"\d{1,10}", many) or not length:
        raise UsageError(f"--{limit.replace('_', '-')} is {_Rate}, not {text!r}")
    return int(many), length


def _find(client: "Client", name: str) -> QueueRecord:
    for queue in client.queues():
        if queue.name == name:
            return queue
    raise UsageError(f"there is no queue {name!r}: no process that defines it has ever run")


# ---- what is said ------------------------------------------------------------------------------


def _done(client: "Client", name: str, what: str, *, as_json: bool) -> None:
    queue = _find(client, name)
    if as_json:
        say_json(queue)
    else:
        typer.echo(f"{what} {name}; {limits_text(queue)}")


def _cells(queue: QueueRecord) -> list[str]:
    age = "" if queue.oldest is None else f"for {length_text(datetime.now(UTC) - queue.oldest)}"
    return [
        queue.name, f"{queue.waiting} wait", age, f"{queue.running} running", f"{queue.delayed} delayed",
        ("PAUSED, " if queue.paused else "") + limits_text(queue),
    ]  # fmt: skip


def limits_text(queue: QueueRecord) -> str:
    """A queue's limits in words."""
    found: list[str] = []
    for limit, value in sorted(queue.settings.items()):
        if value is not None:
            many, seconds = cast("list[Any]", value) if isinstance(value, list) else (value, None)
            said = str(many) if seconds is None else f"{many} in {length_text(seconds)}"
            found.append(f"{limit.replace('_', ' ')} {said}")
    return ", ".join(found) or "no limits"


def _lines(queue: QueueRecord) -> Iterator[str]:
    yield f"{queue.name}: {'paused' if queue.paused else 'on'}"
    since = "" if queue.oldest is None else f", the first since {time_text(queue.oldest)}"
    yield f"in line    {counted(queue.waiting, 'workflow')}{since}"
    yield f"running    {queue.running}"
    yield f"delayed    {queue.delayed}"
    yield f"limits     {limits_text(queue)}"
    if queue.changed_by is not None:
        yield f"changed    {time_text(queue.changed_at)} by {one_line(queue.changed_by)}"
