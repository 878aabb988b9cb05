"""`eventflow incidents list | settle`: what a person should look at, and what comes of it.

What goes on is shown first, and asked about; `--yes` does not. Exit statuses are those of `cli`.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eventflow.errors import UsageError
from eventflow.terminal import Json, Yes, ask, open_client, say_json

if TYPE_CHECKING:
    from eventflow.records import IncidentRecord
    from eventflow.sync import Client

app = typer.Typer(no_args_is_help=True, help="Incidents: what stands still until it is settled, and why: list, settle.")


class Choice(StrEnum):
    """What settles an incident."""

    earliest = "earliest"
    latest = "latest"
    retry = "retry"


@app.command("list")
def list_(
    settled: Annotated[bool, typer.Option("--all", help="Also those that were settled.")] = False,
    as_json: Json = False,
) -> None:
    """Show what stands still until it is settled, and what else has happened, newest first."""
    with open_client() as client:
        found = client.incidents(settled=settled)
    for incident in found:
        _say(incident, as_json=as_json)
    if not found:
        typer.echo("no incidents", err=True)


@app.command()
def settle(
    incident_id: Annotated[int, typer.Argument(metavar="ID", help="Its number, as `list` prints it.")],
    choice: Annotated[Choice, typer.Argument(help="Where what it has stopped goes on.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Let what an incident has stopped go on, within seconds, without a restart.

    earliest: at the first message that was not read; latest: at the end, and what is skipped stands in the incident;
    retry: where it stood, if that can be now. What stops nothing is settled by retry: it was seen.
    """
    with open_client() as client:
        if not yes:
            typer.echo(_lines(_find(client, incident_id)), err=True)
            ask(f"settle it by {choice.value}")
        client.settle(incident_id, choice.value)
        settled = _find(client, incident_id)
    if as_json:
        say_json(settled)
    else:
        typer.echo(f"incident {incident_id} is settled: {choice.value}")


def _find(client: "Client", incident_id: int) -> "IncidentRecord":
    for incident in client.incidents(settled=True):
        if incident.id == incident_id:
            return incident
    raise UsageError(f"there is no incident {incident_id}; `eventflow incidents list` shows those that there are")


def _say(incident: "IncidentRecord", *, as_json: bool) -> None:
    if as_json:
        say_json(incident)
    else:
        typer.echo(_lines(incident))


def _lines(incident: "IncidentRecord") -> str:
    choice = incident.choice
    state = "settled" if choice is not None else "STOPS" if incident.stops else "open"
    seen = f"{incident.last_at:%Y-%m-%d %H:%M:%S%z}, seen {incident.times} times"
    lines = [f"{incident.id}  {state}  {incident.kind}  {incident.subject}  {seen}", f"    {incident.detail}"]
    if choice is not None:
        skipped = (
            "" if incident.skipped is None else f"; skipped offsets {incident.skipped[0]} to {incident.skipped[1] - 1}"
        )
        read = incident.first_offset is not None and incident.went_on_at is not None
        went_on = f", went on at offset {incident.went_on_at}" if read else ""
        lines.append(f"    {choice}, by {incident.settled_by}{went_on}{skipped}")
    return "\n".join(lines)
