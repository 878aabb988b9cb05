"""`eventflow consumers list | pause | resume`: how far consumer groups are behind, and who has paused what.

What changes something shows first what it is about, and asks; `--yes` does not. Exit statuses are those of `cli`.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from eventflow.terminal import Json, Yes, ask, ask_why, open_client, say_json, table
from eventflow.words import length_text, time_text

if TYPE_CHECKING:
    from eventflow.records import PartitionLag, Pause

app = typer.Typer(no_args_is_help=True, help="Consumer groups: how far they are behind; pause and resume them.")

_Group = Annotated[str, typer.Argument(help="The consumer group.")]
_Topic = Annotated[str | None, typer.Argument(help="Only this topic.", show_default=False)]
_Partition = Annotated[int | None, typer.Argument(help="Only this partition of it.", show_default=False)]


@app.command("list")
def list_(
    group: Annotated[str | None, typer.Argument(help="Only this group.", show_default=False)] = None,
    topic: _Topic = None,
    as_json: Json = False,
) -> None:
    """Show where groups are in each partition, how far that is behind, who reads it, and who has paused it."""
    with open_client() as client:
        found = client.lag(group, topic)
    if as_json:
        for lag in found:
            say_json(lag)
        return
    for line in table([_row(lag) for lag in found]):
        typer.echo(line)
    if not found:
        typer.echo("nobody has read anything" if group is None else f"group {group!r} has read nothing", err=True)


@app.command()
def pause(
    group: _Group,
    topic: _Topic = None,
    partition: _Partition = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Why: it is shown to whoever wonders. Without it, one is asked.", show_default=False),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Read nothing more of a group, one of its topics, or a partition of that, until it is resumed; what is in flight ends.

    Every process obeys within its beat, and those that are started later do, too.
    """
    place = _place(group, topic, partition)
    why = ask_why("--reason") if reason is None else reason
    if not yes:
        ask(f"pause {place}")
    with open_client() as client:
        client.pause_consumer(group, topic, partition, reason=why)
        for one in client.pauses(group) if as_json else ():
            if (one.topic, one.partition) == (topic, partition):
                say_json(one)
    if not as_json:
        typer.echo(f"{place} is paused")


@app.command()
def resume(
    group: _Group, topic: _Topic = None, partition: _Partition = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Let what is paused go on: a group with all its topics, a topic with its partitions, or one partition."""
    place = _place(group, topic, partition)
    with open_client() as client:
        if not yes:
            for held in client.pauses(group):
                typer.echo(_paused(held), err=True)
            ask(f"resume {place}")
        count = client.resume_consumer(group, topic, partition)
    if as_json:
        say_json({"resumed": count})
    else:
        typer.echo(f"{place} goes on" if count else f"{place} was not paused")


def _place(group: str, topic: str | None, partition: int | None) -> str:
    return group + ("" if topic is None else f" {topic}" + ("" if partition is None else f"/{partition}"))


def _paused(held: "Pause") -> str:
    return f"{_place(held.group, held.topic, held.partition)}: paused by {held.who}, {time_text(held.at)}: {held.why}"


def _row(lag: "PartitionLag") -> list[str]:
    age = "" if not lag.behind else "age unknown" if lag.seconds is None else f"{length_text(lag.seconds)} old"
    state = f"PAUSED by {lag.paused.who}: {lag.paused.why}" if lag.paused else lag.owner or "nobody reads it"
    place = _place(lag.group, lag.topic, lag.partition)
    end, behind = ("?", "?") if lag.end is None else (lag.end, lag.behind)
    return [place, f"at {lag.position} of {end}", f"{behind} behind", age, state]
