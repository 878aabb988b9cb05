"""`eventflow reprocess start | list | stop`: a topic run again, as another generation of the group that has read it.

What begins or ends something shows first what that is, and asks; `--yes` does not. Exit statuses are those of `cli`.
"""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from eventflow.errors import UsageError
from eventflow.terminal import Json, Yes, ask, moment_of, open_client, say_json, table
from eventflow.words import length_text, time_text

if TYPE_CHECKING:
    from eventflow.records import Reprocessing
    from eventflow.sync import Client

app = typer.Typer(
    no_args_is_help=True, help="A topic run again, as another generation of its consumer: start, list, stop."
)

_Number = Annotated[int, typer.Argument(metavar="NUMBER", help="Its number, as `list` prints it.")]


@app.command()
def start(
    group: Annotated[str, typer.Argument(help="The consumer group that has read it.")],
    topic: Annotated[str, typer.Argument(help="The topic.")],
    since: Annotated[
        str | None,
        typer.Option(help="From the messages of `2h` ago on, or of 2026-01-31T12:00+00:00; else from the beginning."),
    ] = None,
    offset: Annotated[
        list[str] | None, typer.Option(help="PARTITION:OFFSET, again for each partition: only these, from there on.")
    ] = None,
    instead: Annotated[
        bool, typer.Option("--instead", help="In the live consumer's place, and not beside it.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="At most so many messages a second, all processes together.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many messages that would be.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended, and say how far it is.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run what a group has read of a topic again, under new ids; the results that there are stay.

    Beside the live consumer it ends where that is now. With --instead it takes that one's place, and goes on.
    The processes that serve the consumer do it, whatever becomes of this one.
    """
    moment, offsets = moment_of(since, "--since"), _offsets(offset)
    with open_client() as client:
        planned = client.reprocess(
            group, topic, since=moment, offsets=offsets, instead=instead, rate=rate, dry_run=True
        )
        if dry_run:
            _say(planned, as_json=as_json)
            return
        if not yes:
            typer.echo("\n".join(_lines(planned)), err=True)
            ask("run this again" + (", in the live consumer's place" if instead else ""))
        begun = client.reprocess(group, topic, since=moment, offsets=offsets, instead=instead, rate=rate)
        if wait:
            begun = _wait(client, begun)
    _say(begun, as_json=as_json)


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is run again, and how far that is."""
    with open_client() as client:
        found = [one for one in client.reprocessings() if everything or one.ended_at is None]
    for one in found:
        _say(one, as_json=as_json)
    if not found:
        typer.echo("nothing is run again" if not everything else "nothing was run again", err=True)


@app.command()
def stop(number: _Number, yes: Yes = False, as_json: Json = False) -> None:
    """Begin nothing more of it; what was accepted goes on, and what it has done stays."""
    with open_client() as client:
        if not yes:
            typer.echo("\n".join(_lines(client.reprocessing(number))), err=True)
            ask(f"stop reprocessing {number}")
        stopped = client.stop_reprocessing(number)
        one = client.reprocessing(number)
    _say(one, as_json=as_json)
    if not stopped:
        typer.echo(f"reprocessing {number} had ended", err=True)


def _say(one: "Reprocessing", *, as_json: bool) -> None:
    if as_json:
        say_json(one)
    else:
        typer.echo("\n".join(_lines(one)))


def _wait(client: "Client", begun: "Reprocessing") -> "Reprocessing":
    """Say how far it is, each second, until it has ended."""
    shown, number = sys.stderr.isatty(), begun.id
    while number is not None and begun.ended_at is None:
        if shown:
            typer.echo(f"\r{_progress(begun)}  ", nl=False, err=True)
        time.sleep(1.0)
        begun = client.reprocessing(number)
    if shown:
        typer.echo("", err=True)
    return begun


def _offsets(given: list[str] | None) -> dict[int, int] | None:
    offsets: dict[int, int] = {}
    for text in given or ():
        partition, colon, offset = text.partition(":")
        if not (colon and partition.isdecimal() and offset.isdecimal()):
            raise UsageError(f"--offset: PARTITION:OFFSET, such as 0:1200, not {text!r}")
        offsets[int(partition)] = int(offset)
    return offsets or None


def _progress(one: "Reprocessing") -> str:
    share = 100 * one.done // one.total if one.total else 100
    return f"{one.done} of at most {one.total} messages, {share} %"


def _lines(one: "Reprocessing") -> list[str]:
    where = "in the live consumer's place" if one.instead else "beside the live consumer"
    rate = "" if one.rate is None else f", {one.rate:g} a second"
    head = f"{one.group} {one.topic}, generation {one.generation}, {where}{rate}"
    if one.id is None:
        state = f"at most {one.total} messages" + ("" if one.rate is None else f", {length_text(one.total / one.rate)}")
        return [head, f"    {state}", *_parts(one)]
    state = f"{_progress(one)}; since {time_text(one.at)}, by {one.who}"
    if one.ended_at is not None:
        how = f"stopped by {one.stopped_by}" if one.stopped_by else "ended"
        state += f"; {how} {time_text(one.ended_at)}"
    return [f"{one.id}  {head}", f"    {state}", *_parts(one)]


def _parts(one: "Reprocessing") -> list[str]:
    rows = [(f"    {one.topic}/{p.partition}", f"{p.first} to {p.past - 1}", f"{p.done} done") for p in one.partitions]
    return list(table([row if one.id is not None else row[:2] for row in rows]))
