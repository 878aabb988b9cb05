"""What the operators' commands have in common: a client, their options, and how people are asked."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from eventflow.errors import UsageError

if TYPE_CHECKING:
    from eventflow.sync import Client

_SHOWN = 10  # lines, before one is asked about all of them

Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_client() -> "Client":
    """A client of the database that the environment names."""
    from eventflow.sync import Client  # not before a command needs it: half of what `eventflow --help` would take

    return Client()


def show_some(lines: Iterable[str]) -> int:
    """Show the first lines of what is about to be done, and how many there are."""
    count = 0
    for count, line in enumerate(lines, 1):
        if count <= _SHOWN:
            typer.echo(line, err=True)
    if count > _SHOWN:
        typer.echo(f"... and {count - _SHOWN} more", err=True)
    return count


def ask(what: str) -> None:
    """Ask whether to go on.

    Raises:
        UsageError: there is nobody to ask.
        typer.Exit: nothing shall be done; status 1.

    """
    if not sys.stdin.isatty():
        raise UsageError("nobody to ask whether to go on, as this is no terminal: say --yes")
    typer.echo(f"{what}? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        typer.echo("nothing was done", err=True)
        raise typer.Exit(1)
