"""What the operators' commands have in common: a client, their options, how people are asked, and how things are said.

What is printed is the same on a terminal and into a pipe: plain lines, without colour, of whatever length they have.
"""

import base64
import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from eventflow.errors import UsageError
from eventflow.records import RawMessage
from eventflow.words import one_line

if TYPE_CHECKING:
    from eventflow.sync import Client

_SHOWN = 10  # lines, before one is asked about all of them
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WIDEST = 60  # characters of a column, beyond which it pushes only its own line

Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_client() -> "Client":
    """A client of the database that the environment names."""
    from eventflow.sync import Client  # not before a command needs it: half of what `eventflow --help` would take

    return Client()


# ---- asking ------------------------------------------------------------------------------------


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


def ask_why(option: str) -> str:
    """Ask for a reason that was not given.

    Raises:
        UsageError: there is nobody to ask.

    """
    if not sys.stdin.isatty():
        raise UsageError(f"say why: {option} TEXT")
    typer.echo("why? ", nl=False, err=True)
    return sys.stdin.readline().strip()


# ---- what is meant -----------------------------------------------------------------------------


def length_of(text: str) -> timedelta | None:
    """`90s`, `30m`, `2h` or `7d` as a length of time; None: it is none."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    return None if match is None else timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def moment_of(text: str | None, option: str) -> datetime | None:
    """A time with a zone, or so long ago.

    Raises:
        UsageError: it is neither.

    """
    if text is None:
        return None
    try:
        ago = length_of(text)
        moment = datetime.now(UTC) - ago if ago is not None else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: `2h` (ago), or a time such as 2026-01-31T12:00+00:00, not {text!r}") from None
    if moment.tzinfo is None:
        raise UsageError(f"{option}: {text!r} has no zone: write {text}Z if that is UTC")
    return moment


# ---- what is said ------------------------------------------------------------------------------


def bytes_text(data: bytes | None) -> str:
    """As text where it is text, else as Python writes bytes."""
    if data is None:
        return "none"
    try:
        return one_line(data.decode(), 100_000)
    except UnicodeDecodeError:
        return repr(data)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines, their columns below each other; nothing is cut off."""
    columns = max(map(len, rows), default=0)
    widths = [
        max((len(row[n]) for row in rows if n < len(row) and len(row[n]) <= _WIDEST), default=0) for n in range(columns)
    ]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def plain(value: Any) -> Any:
    """What JSON has: times in ISO 8601, lengths in seconds, bytes as base64, a message's value decoded beside it."""
    if dataclasses.is_dataclass(value):
        found = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, RawMessage):
            found["decoded"] = value.decoded()
        return found
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple | list):
        return [plain(one) for one in cast("Sequence[Any]", value)]
    return value


def say_json(value: Any) -> None:
    """A line of JSON."""
    typer.echo(json.dumps(plain(value)))
