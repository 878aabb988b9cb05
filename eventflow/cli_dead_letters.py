"""`eventflow dead-letters list | show | redeliver | drop | redeliveries | stop`: what operators do about messages that failed.

What changes something shows first what it is about, and asks; `--yes` does not. Exit statuses are those of `cli`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from eventflow.dead_letters import DeadStatus
from eventflow.errors import UsageError
from eventflow.records import DeadLetter, DeadLetterDetails, RawMessage, Redelivery
from eventflow.terminal import Json, Yes, ask, bytes_text, moment_of, open_client, plain, say_json, show_some
from eventflow.words import counted, one_line, time_text

if TYPE_CHECKING:
    from eventflow.sync import Client

app = typer.Typer(no_args_is_help=True, help="Messages that failed for good: list, show, redeliver, drop.")

_Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as `list` prints them.", show_default=False)]
_Consumer = Annotated[str | None, typer.Option(help="Only of this handler.")]
_Group = Annotated[str | None, typer.Option(help="Only of this consumer group.")]
_Topic = Annotated[str | None, typer.Option(help="Only of this topic.")]
_Partition = Annotated[int | None, typer.Option(help="Only of this partition.")]
_Key = Annotated[str | None, typer.Option(help="Only with this key, as text.")]
_Error = Annotated[str | None, typer.Option(help="Only where this exception class was the last error.")]
_Status = Annotated[str | None, typer.Option(help="Only `failed` or only `parked` ones.")]
_After = Annotated[str | None, typer.Option(help="Only what last failed since: `2h` ago, or 2026-01-31T12:00+00:00.")]
_Before = Annotated[str | None, typer.Option(help="Only what last failed before that.")]
_All = Annotated[bool, typer.Option("--all", help="All that there are, where no filter says less.")]


@app.command("list")
def list_(
    consumer: _Consumer = None, group: _Group = None, topic: _Topic = None, partition: _Partition = None, key: _Key = None,
    error: _Error = None, status: _Status = None, failed_after: _After = None, failed_before: _Before = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100, as_json: Json = False,
) -> None:  # fmt: skip
    """List dead letters, the oldest message first."""
    only = _filter(consumer, group, topic, partition, key, error, status, failed_after, failed_before)
    with open_client() as client:
        found = list(islice(client.dead_letters(**only), limit + 1))
    for letter in found[:limit]:
        _say(letter, as_json=as_json)
    if len(found) > limit:
        typer.echo(f"there are more than {limit}: see --limit", err=True)
    if not found:
        typer.echo("no dead letters" + (" are like that" if only else ""), err=True)


def show(workflow_id: str, read: Callable[[DeadLetterDetails], str] | None, *, value: bool, as_json: bool) -> None:
    """Show one; `read` says what its handler makes of it. The command is `cli`'s, which knows how to find handlers."""
    with open_client() as client:
        details = client.dead_letter(workflow_id)
    handled = None if read is None else read(details)
    if value:
        sys.stdout.buffer.write(details.message.value or b"")
    elif as_json:
        typer.echo(json.dumps(plain(details) | ({} if handled is None else {"handled": handled})))
    else:
        typer.echo("\n".join(_lines(details)))
        if handled is not None:
            typer.echo(f"handler    {one_line(handled)}")


@app.command()
def redeliver(
    workflow_ids: _Ids = None, everything: _All = False, consumer: _Consumer = None, group: _Group = None, topic: _Topic = None,
    partition: _Partition = None, key: _Key = None, error: _Error = None, status: _Status = None, failed_after: _After = None,
    failed_before: _Before = None,
    rate: Annotated[float | None, typer.Option(help="At most so many a second, of those that a filter or --all means.")] = None,
    value: Annotated[Path | None, typer.Option(help="One letter, with what this file holds as its value; `-`: stdin.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="One letter, with these headers: NAME=TEXT.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all have gone.")] = False,
    yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Run dead letters again: those that are named, or that a filter or --all means.

    What a message had recorded before it failed is not done again. At a rate they go one after another, let go by the
    processes that serve them, whatever becomes of this one.
    """
    only = _filter(consumer, group, topic, partition, key, error, status, failed_after, failed_before)
    changes = _changes(value, header)
    _check_choice(workflow_ids, only, everything=everything)
    if changes and (workflow_ids is None or len(workflow_ids) != 1):
        raise UsageError("--value and --header are for one dead letter, by its id")
    if workflow_ids and (rate is not None or wait):
        raise UsageError("--rate and --wait are for what a filter or --all means")
    with open_client() as client:
        if workflow_ids:
            _ask_about([client.dead_letter(one).letter for one in workflow_ids], "redeliver", yes=yes)
            if changes:
                client.redeliver_edited(workflow_ids[0], **changes)
            else:
                client.redeliver(workflow_ids)
            _done("redelivered", len(set(workflow_ids)), as_json=as_json)
            return
        if not _ask_about(client.dead_letters(**only), f"redeliver{f' at {rate:g} a second' if rate else ''}", yes=yes):
            return
        ordered = client.redeliver_all(rate=rate, **only)
        if wait:
            ordered = _follow(client, ordered)
        _say_redelivery(ordered, as_json=as_json)


@app.command()
def drop(
    reason: Annotated[str, typer.Option(help="Why it is never to be handled; it stays with the message.")],
    workflow_ids: _Ids = None, everything: _All = False, consumer: _Consumer = None, group: _Group = None, topic: _Topic = None,
    partition: _Partition = None, key: _Key = None, error: _Error = None, status: _Status = None, failed_after: _After = None,
    failed_before: _Before = None, yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Have dead letters never be handled: those that are named, or that a filter or --all means. They stay to be read."""
    only = _filter(consumer, group, topic, partition, key, error, status, failed_after, failed_before)
    _check_choice(workflow_ids, only, everything=everything)
    with open_client() as client:
        letters = [client.dead_letter(one).letter for one in workflow_ids or ()] or list(client.dead_letters(**only))
        if _ask_about(letters, "drop", yes=yes):
            _done("dropped", client.drop([letter.workflow_id for letter in letters], reason), as_json=as_json)


@app.command()
def redeliveries(as_json: Json = False) -> None:
    """List what was redelivered by filter or all: how far each is."""
    with open_client() as client:
        found = client.redeliveries()
    for one in found:
        _say_redelivery(one, as_json=as_json)
    if not found:
        typer.echo("no redeliveries", err=True)


@app.command()
def stop(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Its number, as `redeliveries` prints it.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Let no more of a redelivery go; the rest are dead letters still."""
    with open_client() as client:
        if not yes:
            typer.echo(_redelivery_line(client.redelivery(number)), err=True)
            ask(f"stop redelivery {number}")
        stopped = client.stop_redelivery(number)
        one = client.redelivery(number)
    _say_redelivery(one, as_json=as_json)
    if not stopped:
        typer.echo(f"redelivery {number} had ended", err=True)


# ---- what is meant -----------------------------------------------------------------------------


def _filter(
    consumer: str | None, group: str | None, topic: str | None, partition: int | None, key: str | None, error: str | None,
    status: str | None, after: str | None, before: str | None,
) -> dict[str, Any]:  # fmt: skip
    only = {
        "consumer": consumer, "group": group, "topic": topic, "partition": partition,
        "key": None if key is None else key.encode(), "error_type": error, "status": cast("DeadStatus | None", status),
        "failed_after": moment_of(after, "--failed-after"), "failed_before": moment_of(before, "--failed-before"),
    }  # fmt: skip
    return {name: value for name, value in only.items() if value is not None}


def _check_choice(workflow_ids: list[str] | None, only: dict[str, Any], *, everything: bool) -> None:
    if workflow_ids and (only or everything):
        raise UsageError("ids, or a filter: choose one")
    if not (workflow_ids or only or everything):
        raise UsageError("say which: ids, a filter such as --consumer, or --all")


def _changes(value: Path | None, headers: list[str] | None) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if value is not None:
        try:
            changes["value"] = sys.stdin.buffer.read() if str(value) == "-" else value.read_bytes()
        except OSError as error:
            raise UsageError(f"--value: {error}") from None
    if headers:
        pairs = [header.partition("=") for header in headers]
        if not all(name and equals for name, equals, _ in pairs):
            raise UsageError("--header: NAME=TEXT")
        changes["headers"] = [(name, text) for name, _, text in pairs]
    return changes


def _ask_about(letters: Iterable[DeadLetter], what: str, *, yes: bool) -> bool:
    """Show what it is about, and ask; whether there is anything.

    Raises:
        UsageError: there is nobody to ask.
        typer.Exit: nothing shall be done; status 1.

    """
    count = sum(1 for _ in letters) if yes else show_some(_line(letter) for letter in letters)
    if not count:
        typer.echo("no dead letters are like that: nothing to do", err=True)
    elif not yes:
        ask(f"{what} {counted(count, 'dead letter')}")
    return count > 0


def _follow(client: "Client", ordered: Redelivery) -> Redelivery:
    """Wait until it has ended; who does not, leaves it to go on."""
    seen, number = -1, ordered.id
    try:
        while ordered.ended_at is None:
            if ordered.redelivered != seen:
                seen = ordered.redelivered
                typer.echo(f"{seen} of {ordered.total} redelivered", err=True)
            time.sleep(0.2)
            ordered = client.redelivery(number)
    except KeyboardInterrupt:
        typer.echo(f"redelivery {number} goes on; `eventflow dead-letters stop {number}` ends it", err=True)
        raise typer.Exit(130) from None
    return ordered


# ---- what is said ------------------------------------------------------------------------------


def _done(what: str, count: int, *, as_json: bool) -> None:
    typer.echo(json.dumps({what: count}) if as_json else f"{what} {counted(count, 'dead letter')}")


def _say(letter: DeadLetter, *, as_json: bool) -> None:
    if as_json:
        say_json(letter)
    else:
        typer.echo(_line(letter))


def _line(letter: DeadLetter) -> str:
    when = letter.last_failed_at or letter.created_at
    times = "once" if letter.failures == 1 else f"{letter.failures} times"
    why = letter.error or letter.reason or ""
    return f"{letter.workflow_id}  {letter.status}  {times}, last {time_text(when)}  {one_line(why)}"


def _lines(details: DeadLetterDetails) -> Iterator[str]:
    letter, message = details.letter, details.message
    yield f"{letter.workflow_id}: {letter.status}"
    yield f"handler    {letter.consumer}, group {letter.group}"
    yield f"message    {letter.topic}/{letter.partition}/{letter.offset}, incarnation {letter.incarnation}"
    yield f"produced   {time_text(letter.timestamp)}, accepted {time_text(letter.created_at)}"
    if letter.reason:
        yield f"reason     {one_line(letter.reason)}"
    for failed in details.failed:
        yield f"attempt {failed.attempt:<3}{time_text(failed.at)}  {one_line(failed.error)}"
    if details.failed:
        yield from ("    " + one_line(line) for line in details.failed[-1].traceback.splitlines())
    for edit in details.edits:
        yield f"edited     {time_text(edit.at)} by {one_line(edit.who)}; it was"
        yield from ("    " + line for line in _message_lines(edit.before))
    yield from _message_lines(message)


def _message_lines(message: RawMessage) -> Iterator[str]:
    yield f"key        {bytes_text(message.key)}"
    for name, value in message.headers:
        yield f"header     {one_line(name)}: {bytes_text(value)}"
    decoded = message.decoded()
    if isinstance(decoded, dict | list):
        yield "value      as JSON"
        yield from ("    " + line for line in json.dumps(decoded, indent=2, ensure_ascii=False).splitlines())
    yield f"raw value  {bytes_text(message.value)}"


def _say_redelivery(one: Redelivery, *, as_json: bool) -> None:
    if as_json:
        say_json(one)
    else:
        typer.echo(_redelivery_line(one))


def _redelivery_line(one: Redelivery) -> str:
    rate = "" if one.rate is None else f" at {one.rate:g} a second"
    passed = f", {one.passed_over} passed over" if one.passed_over else ""
    by = f"stopped by {one.stopped_by}" if one.stopped_by else "done"
    state = "goes on" if one.ended_at is None else f"{by} {time_text(one.ended_at)}"
    ordered = f"ordered {time_text(one.at)} by {one.who}"
    return f"redelivery {one.id}: {one.redelivered} of {one.total}{rate}{passed}, {state}; {ordered}"
