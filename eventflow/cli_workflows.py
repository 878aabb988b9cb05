"""`eventflow workflows list | show | cancel | terminate | resume | retry | restart | fork | delay | delete`.

Each that does something does it to the ids that are given, all of them or none, or to what a filter means: then in pages, and
those that another state has overtaken are passed over and counted. What ends or deletes something, and what a filter means, is
shown first and asked about; `--yes` does not, `--dry-run` only shows. Exit statuses are those of `cli`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from eventflow.errors import UsageError, WorkflowStateError
from eventflow.idempotency import parse_message_workflow_id
from eventflow.records import FINAL, UNFINISHED, Status, StepRecord, WorkflowDetails, WorkflowRecord
from eventflow.terminal import Json, Yes, ask, length_of, moment_of, open_client, say_json, show_some, table
from eventflow.words import counted, length_text, one_line, time_text

if TYPE_CHECKING:
    from eventflow.sync import Client

app = typer.Typer(
    no_args_is_help=True,
    help="Workflows: list, show, cancel, terminate, resume, retry, restart, fork, delay, delete.",
)

_PAGE = 500  # workflows that are done in one transaction, where a filter means them
_ALL: frozenset[Status] = frozenset(get_args(Status))
_QUEUED: frozenset[Status] = frozenset({"queued"})
_HELD_UP: frozenset[Status] = frozenset({"parked", "cancelled"})
_OVER: frozenset[Status] = frozenset({*FINAL, "parked"})
_FAILED: frozenset[Status] = frozenset({"failed"})
_POSITION = re.compile(r"(?P<path>[\d/]+)\.(?P<number>\d+)(?P<rest>.*)")

_Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as `list` prints them.", show_default=False)]
_Name = Annotated[str | None, typer.Option(help="Only of this workflow.")]
_Status = Annotated[str | None, typer.Option(help=f"Only in this status: {', '.join(get_args(Status))}.")]
_Queue = Annotated[str | None, typer.Option(help="Only of this queue.")]
_Prefix = Annotated[str | None, typer.Option(help="Only with ids that begin so.")]
_Attribute = Annotated[
    list[str] | None, typer.Option(help="Only with this attribute: NAME=VALUE, as JSON, else as text; may be repeated.")
]
_Parent = Annotated[str | None, typer.Option(help="Only what this workflow has started.")]
_After = Annotated[str | None, typer.Option(help="Only created since: `2h` ago, or 2026-01-31T12:00+00:00.")]
_Before = Annotated[str | None, typer.Option(help="Only created before that.")]
_All = Annotated[bool, typer.Option("--all", help="All that there are, where no filter says less.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only show which these are.")]
_Children = Annotated[bool, typer.Option("--children/--no-children", help="And all that descends from them.")]


# ---- looking -----------------------------------------------------------------------------------


@app.command("list")
def list_(
    name: _Name = None, status: _Status = None, queue: _Queue = None, prefix: _Prefix = None, attribute: _Attribute = None,
    parent: _Parent = None, created_after: _After = None, created_before: _Before = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first, not the newest.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100, as_json: Json = False,
) -> None:  # fmt: skip
    """List workflows, the newest first."""
    only = _filter(name, status, queue, prefix, attribute, parent, created_after, created_before)
    with open_client() as client:
        found = list(islice(client.workflows(newest_first=not oldest, **only), limit + 1))
    if as_json:
        for record in found[:limit]:
            say_json(record)
    else:
        for line in table([_cells(record) for record in found[:limit]]):
            typer.echo(line)
    if len(found) > limit:
        typer.echo(f"there are more than {limit}: see --limit", err=True)
    if not found:
        typer.echo("no workflows" + (" are like that" if only else ""), err=True)


@app.command()
def show(
    workflow_id: Annotated[str, typer.Argument(help="Its id, as `list` prints it.")],
    as_json: Json = False,
) -> None:
    """Show one: what it was given and came to, its steps with their times, its children, what people have done to it."""
    with open_client() as client:
        details = client.workflow(workflow_id)
    if as_json:
        say_json(details)
    else:
        typer.echo("\n".join(_lines(details)))


# ---- doing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Deed:
    """What is done to workflows: as one says it before and after, in which states it can be, and how it is done to a list."""

    verb: str
    done: str
    states: frozenset[Status]
    act: Callable[["Client", list[str]], Any]
    asks: bool = True  # about those that are named, too


def _command(deed: _Deed, says: str) -> None:
    """A command that does this to those that are named, or that a filter means."""

    @app.command(deed.verb, help=says)
    def _(
        workflow_ids: _Ids = None, everything: _All = False, name: _Name = None, status: _Status = None, queue: _Queue = None,
        prefix: _Prefix = None, attribute: _Attribute = None, parent: _Parent = None, created_after: _After = None,
        created_before: _Before = None, dry_run: _Dry = False, yes: Yes = False, as_json: Json = False,
    ) -> None:  # fmt: skip
        only = _filter(name, status, queue, prefix, attribute, parent, created_after, created_before)
        _do(deed, workflow_ids, only, everything=everything, dry_run=dry_run, yes=yes, as_json=as_json)


def _ending(verb: str, done: str, act: Callable[["Client", list[str], bool], Any], says: str) -> None:
    """The same of one that ends workflows, and all that descends from them, or not."""

    @app.command(verb, help=says)
    def _(
        workflow_ids: _Ids = None, everything: _All = False, name: _Name = None, status: _Status = None, queue: _Queue = None,
        prefix: _Prefix = None, attribute: _Attribute = None, parent: _Parent = None, created_after: _After = None,
        created_before: _Before = None, children: _Children = True, dry_run: _Dry = False, yes: Yes = False,
        as_json: Json = False,
    ) -> None:  # fmt: skip
        only = _filter(name, status, queue, prefix, attribute, parent, created_after, created_before)
        deed = _Deed(verb, done, UNFINISHED, lambda client, ids: act(client, ids, children))
        _do(deed, workflow_ids, only, everything=everything, dry_run=dry_run, yes=yes, as_json=as_json)


_ending(
    "cancel", "asked to end", lambda client, ids, children: client.cancel(ids, children=children),
    "Ask for workflows to end: each is told at its next operation, and may clean up.",
)  # fmt: skip
_ending(
    "terminate", "terminated", lambda client, ids, children: client.terminate(ids, children=children),
    "End workflows here and now: what their code still does is not recorded.",
)  # fmt: skip
_command(
    _Deed("resume", "resumed", _HELD_UP, lambda client, ids: client.resume(ids), asks=False),
    "Let parked and cancelled workflows go on from what they have recorded.",
)
_command(
    _Deed("retry", "retried", _FAILED, lambda client, ids: client.retry(ids), asks=False),
    "Run failed workflows again, from the step whose exception ended them.",
)
_command(
    _Deed("restart", "restarted", FINAL, lambda client, ids: client.restart(ids)),
    "Run workflows that have ended again from the beginning: what they had recorded is gone, and their steps run again.",
)


@app.command()
def fork(
    workflow_ids: _Ids = None, everything: _All = False, name: _Name = None, status: _Status = None, queue: _Queue = None,
    prefix: _Prefix = None, attribute: _Attribute = None, parent: _Parent = None, created_after: _After = None,
    created_before: _Before = None,
    step: Annotated[str | None, typer.Option(help="Before the step at this position, as `show` prints it; else anew.")] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="The new one's id, where one is forked.")] = None,
    dry_run: _Dry = False, yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Start a new workflow from each of these, with what it had recorded before a step; prints the new ids."""
    only = _filter(name, status, queue, prefix, attribute, parent, created_after, created_before)
    if new_id is not None and (workflow_ids is None or len(workflow_ids) != 1):
        raise UsageError("--id is for one workflow that is forked, by its id")

    def act(client: "Client", ids: list[str]) -> list[str]:
        if new_id is not None:
            return [client.handle(ids[0], object).fork(step, workflow_id=new_id).workflow_id]
        return client.fork(ids, step)

    deed = _Deed("fork", "forked", _ALL, act, asks=False)
    _do(deed, workflow_ids, only, everything=everything, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command()
def delay(
    until: Annotated[str, typer.Argument(help="For so long from now (`30m`), until 2026-01-31T12:00+00:00, or `0s`.")],
    workflow_ids: _Ids = None, everything: _All = False, name: _Name = None, queue: _Queue = None, prefix: _Prefix = None,
    attribute: _Attribute = None, parent: _Parent = None, created_after: _After = None, created_before: _Before = None,
    dry_run: _Dry = False, yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Let workflows that wait in line in their queues wait until another time."""
    only = _filter(name, None, queue, prefix, attribute, parent, created_after, created_before)
    moment = _until(until)
    deed = _Deed("delay", "delayed", _QUEUED, lambda client, ids: client.delay(ids, moment), asks=False)
    _do(deed, workflow_ids, only, everything=everything, dry_run=dry_run, yes=yes, as_json=as_json)


_command(
    _Deed("delete", "deleted", _OVER, lambda client, ids: client.delete(ids)),
    "Delete workflows that have ended or are parked, with all that they recorded.",
)


def _do(
    deed: _Deed, ids: list[str] | None, only: dict[str, Any], *, everything: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Show whom it is about, ask, and do it."""
    _check_choice(deed, ids, only, everything=everything)
    with open_client() as client:
        if ids:
            records: Iterable[WorkflowRecord] = [client.handle(one, object).get() for one in dict.fromkeys(ids)]
        else:
            records = (one for one in client.workflows(**only) if one.status in deed.states)
        if dry_run:
            _show_all(records, as_json=as_json)
            return
        chosen = _asked(deed, records, asks=not yes and (deed.asks or not ids))
        if not chosen:
            typer.echo(f"no workflows are like that: nothing to {deed.verb}", err=True)
        elif ids:
            _say_done(deed, [deed.act(client, chosen)], 0, as_json=as_json)
        else:
            _say_done(deed, *_in_pages(deed, client, chosen), as_json=as_json)


def _check_choice(deed: _Deed, ids: list[str] | None, only: dict[str, Any], *, everything: bool) -> None:
    if ids and (only or everything):
        raise UsageError("ids, or a filter: choose one")
    if not (ids or only or everything):
        raise UsageError("say which: ids, a filter such as --name, or --all")
    status = only.get("status")
    if status is not None and status in _ALL and status not in deed.states:
        raise UsageError(f"{deed.verb} is for workflows that are {' or '.join(sorted(deed.states))}, not {status}")


def _show_all(records: Iterable[WorkflowRecord], *, as_json: bool) -> None:
    """What a dry run shows: all of them, on standard output."""
    count = 0
    for record in records:
        count += 1
        if as_json:
            say_json(record)
        else:
            typer.echo(_line(record))
    typer.echo(f"{counted(count, 'workflow')}; nothing was done" if count else "no workflows are like that", err=True)


def _asked(deed: _Deed, records: Iterable[WorkflowRecord], *, asks: bool) -> list[str]:
    """Their ids, once somebody has agreed."""
    ids: list[str] = []

    def lines() -> Iterator[str]:
        for record in records:
            ids.append(record.workflow_id)
            yield _line(record)

    if not asks:
        return [record.workflow_id for record in records]
    show_some(lines())
    if ids:
        ask(f"{deed.verb} {counted(len(ids), 'workflow')}")
    return ids


def _in_pages(deed: _Deed, client: "Client", ids: Sequence[str]) -> tuple[list[Any], int]:
    """What it came to, page by page, and how many were passed over, as their state does not allow it any more."""
    came: list[Any] = []
    refused = 0
    for first in range(0, len(ids), _PAGE):
        page = list(ids[first : first + _PAGE])
        try:
            came.append(deed.act(client, page))
        except WorkflowStateError:
            for one in page:
                try:
                    came.append(deed.act(client, [one]))
                except WorkflowStateError:
                    refused += 1
    return came, refused


def _say_done(deed: _Deed, came: list[Any], refused: int, *, as_json: bool) -> None:
    new_ids = [one for ids in came if isinstance(ids, list) for one in cast("list[str]", ids)]
    if new_ids:
        for one in new_ids:
            typer.echo(json.dumps({"workflow_id": one}) if as_json else one)
    elif as_json:
        typer.echo(json.dumps({deed.done.replace(" ", "_"): sum(came), "passed_over": refused}))
    else:
        typer.echo(f"{deed.done}: {counted(sum(came), 'workflow')}")
    if refused and not as_json:
        typer.echo(f"passed over, as their state does not allow it: {counted(refused, 'workflow')}", err=True)


# ---- what is meant -----------------------------------------------------------------------------


def _filter(
    name: str | None, status: str | None, queue: str | None, prefix: str | None, attributes: list[str] | None,
    parent: str | None, after: str | None, before: str | None,
) -> dict[str, Any]:  # fmt: skip
    only = {
        "name": name, "status": cast("Status | None", status), "queue": queue, "prefix": prefix,
        "attributes": _attributes(attributes), "parent": parent,
        "created_after": moment_of(after, "--created-after"), "created_before": moment_of(before, "--created-before"),
    }  # fmt: skip
    return {name: value for name, value in only.items() if value is not None}


def _attributes(given: list[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--attribute: NAME=VALUE, not {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _until(text: str) -> timedelta | datetime:
    wait = length_of(text)
    if wait is not None:
        return wait
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"`30m` from now, or a time such as 2026-01-31T12:00+00:00, not {text!r}") from None
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} has no zone: write {text}Z if that is UTC")
    return moment


# ---- what is said ------------------------------------------------------------------------------


def _cells(record: WorkflowRecord) -> list[str]:
    about = [] if record.queue is None else [f"queue {record.queue}"]
    if record.attempt > 1:
        about.append(f"attempt {record.attempt}")
    if record.reason:
        about.append(one_line(record.reason))
    took = "" if record.finished_at is None else length_text(record.finished_at - record.created_at)
    return [record.workflow_id, record.name, record.status, time_text(record.created_at), took, ", ".join(about)]


def _line(record: WorkflowRecord) -> str:
    return "  ".join(cell for cell in _cells(record) if cell)


def _lines(details: WorkflowDetails) -> Iterator[str]:
    record = details.workflow
    yield f"{record.workflow_id}: {record.status}"
    yield f"workflow   {record.name}{f', version {record.version}' if record.version else ''}"
    yield from _origin(record)
    yield from _times(record)
    if record.reason:
        yield f"reason     {one_line(record.reason)}"
    if record.attributes:
        yield f"attributes {_json(record.attributes)}"
    if details.arguments is not None:
        given = [_json(value) for value in details.arguments["args"]]
        keyed = [f"{name}={_json(value)}" for name, value in details.arguments["kwargs"].items()]
        yield f"arguments  {', '.join(given + keyed) or 'none'}"
    if record.status == "succeeded":
        yield f"result     {_json(details.result)}"
    if details.error is not None:
        yield f"error      {one_line(details.error)}"
        yield from ("    " + one_line(line) for line in details.traceback.splitlines())
    if details.steps or details.children:
        yield "steps"
        yield from ("  " + line for line in steps_tree(record.workflow_id, details.steps, details.children))
    for request in details.requests:
        yield f"{request.kind:<10} {time_text(request.at)} by {one_line(request.who)}"


def _origin(record: WorkflowRecord) -> Iterator[str]:
    message = parse_message_workflow_id(record.workflow_id)
    if message is not None:
        yield f"message    {message.topic}/{message.partition}/{message.offset}, group {message.group}"
    if record.parent is not None:
        yield f"child of   {record.parent}"
    if record.queue is not None:
        yield f"queue      {record.queue}"


def _times(record: WorkflowRecord) -> Iterator[str]:
    took = (record.finished_at or datetime.now(UTC)) - record.created_at
    attempt = f", attempt {record.attempt}" if record.attempt > 1 else ""
    yield f"created    {time_text(record.created_at)}{attempt}"
    if record.finished_at is None:
        yield f"unfinished for {length_text(took)}"
    else:
        yield f"finished   {time_text(record.finished_at)}, after {length_text(took)}"


def _json(value: object) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 1000)


def steps_tree(workflow_id: str, steps: Sequence[StepRecord], children: Sequence[WorkflowRecord]) -> Iterator[str]:
    """What a workflow has recorded: a branch below the step after which it began, a child below what started it.

    Failed attempts stand below their step; what says until when something waits is left out where it has ended.
    """
    places = {one.workflow_id.removeprefix(f"{workflow_id}>").rpartition(":")[2]: one for one in children}
    ended = {step.position for step in steps}
    keys = _keys(steps)
    rows: list[tuple[tuple[int, ...], list[str]]] = []
    for step in steps:
        path, number, rest = _position(step)
        if rest == "w" and step.position.removesuffix("w") in ended:
            continue
        indent = "  " * (len(_numbers(path)) + (rest != ""))
        place = (*keys[path], number, 0)
        rows.append(((*place, 0, len(rows)) if rest else place, [f"{indent}{step.position}", *_step(step, rest)]))
        child = places.pop(step.position, None)
        if child is not None:
            rows.append(((*place, 1), [f"{indent}  child", *_child(child)]))
    rows.sort(key=lambda row: row[0])
    yield from table([cells for _, cells in rows] + [["child", *_child(child)] for child in places.values()])


def _keys(steps: Sequence[StepRecord]) -> dict[str, tuple[int, ...]]:
    """By which each branch is sorted: below the last step of the branch that started it which had ended when it began."""
    keys: dict[str, tuple[int, ...]] = {"1": ()}
    began: dict[str, datetime] = {}
    for step in steps:
        path = _position(step)[0]
        began[path] = min(began.get(path, step.started_at), step.started_at)
    for path in sorted(began, key=_numbers):
        if path == "1":
            continue
        above, _, number = path.rpartition("/")
        before = [
            n for p, n, _ in map(_position, (s for s in steps if (s.finished_at or s.started_at) <= began[path]))
            if p == (above or "1")
        ]  # fmt: skip
        keys[path] = (*keys.get(above or "1", ()), max(before, default=0), 1, int(number))
    return keys


def _position(step: StepRecord) -> tuple[str, int, str]:
    """Its branch, its number there, and what follows: of an attempt, say."""
    match = cast("re.Match[str]", _POSITION.fullmatch(step.position))
    return match["path"], int(match["number"]), match["rest"]


def _numbers(path: str) -> tuple[int, ...]:
    """The root first, then each branch before those below it."""
    return () if path == "1" else tuple(int(part) for part in path.split("/"))


def _step(step: StepRecord, rest: str) -> list[str]:
    about = f"{step.attempts} attempts" if step.attempts > 1 and not rest else ""
    error = "" if step.error is None else one_line(step.error)
    took = "" if step.finished_at is None else length_text(step.finished_at - step.started_at)
    return [
        one_line(step.name, 60),
        time_text(step.started_at),
        took,
        "  ".join(part for part in (about, error) if part),
    ]


def _child(child: WorkflowRecord) -> list[str]:
    took = "" if child.finished_at is None else length_text(child.finished_at - child.created_at)
    return [one_line(child.name, 60), time_text(child.created_at), took, f"{child.status}  {child.workflow_id}"]
