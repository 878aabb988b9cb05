"""The command line `eventflow`: what runs a program, prepares a database, and has services; the operators' are in `cli_*`.

A mistake is one line on stderr, never a stack trace.

Exit statuses: 0 done; 1 the world refused (a server, a lease, a proof that fails); 2 the command or a setting is wrong.
"""

import importlib
import importlib.util
import json
import logging
import shlex
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from eventflow.cli_consumers import app as consumers
from eventflow.cli_dead_letters import app as dead_letters
from eventflow.cli_dead_letters import show
from eventflow.cli_incidents import app as incidents
from eventflow.cli_queues import app as queues
from eventflow.cli_reprocess import app as reprocess
from eventflow.cli_schedules import app as schedules
from eventflow.cli_workflows import app as workflows
from eventflow.errors import EventflowError, SchemaError, SettingsError, UnavailableError, UsageError
from eventflow.local import LocalServiceError, LocalServices, services
from eventflow.logs import Ids
from eventflow.registry import registry
from eventflow.settings import Settings, load_settings, masked
from eventflow.starter import make_project
from eventflow.terminal import Json, open_client, say_json
from eventflow.words import one_line

if TYPE_CHECKING:
    from eventflow.migrations import Layout
    from eventflow.records import DeadLetterDetails

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s%(where)s"
_PACKAGE = Path(__file__).parent
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def main() -> None:
    """The entry point of the command `eventflow`."""
    logging.getLogger("eventflow").addHandler(logging.NullHandler())  # a command says by itself what its user needs
    try:
        app(prog_name="eventflow")
    except SettingsError as error:
        hint = "; `eventflow dev` starts local services and prints their addresses"
        _exit(f"{error}{hint if str(error).endswith('is not set') else ''}", 2)
    except UsageError as error:
        _exit(str(error), 2)
    except (EventflowError, LocalServiceError) as error:
        _exit(str(error), 1)


def _exit(complaint: str, status: int) -> None:
    typer.echo(f"error: {complaint}", err=True)
    sys.exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eventflow {version('eventflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exactly-once event processing on Kafka and Postgres."""


app.add_typer(workflows, name="workflows")
app.add_typer(queues, name="queues")
app.add_typer(schedules, name="schedules")
app.add_typer(incidents, name="incidents")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(consumers, name="consumers")
app.add_typer(reprocess, name="reprocess")


@dead_letters.command("show")
def show_dead_letter(
    workflow_id: Annotated[str, typer.Argument(help="Its id, as `list` prints it.")],
    module: Annotated[
        str | None, typer.Option("--app", help="What declares its handler: say what that makes of it.")
    ] = None,
    value: Annotated[bool, typer.Option("--value", help="Only the message's value, its bytes as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, an object a line.")] = False,
) -> None:
    """Show one with its message, what each of its attempts failed with, and what people have changed."""
    show(workflow_id, None if module is None else _reader_of(module), value=value, as_json=as_json)


def _reader_of(module: str) -> Callable[["DeadLetterDetails"], str]:
    """What says what a dead letter's handler makes of it."""
    from eventflow.dead_letters import as_handled
    from eventflow.schema_registry import connect

    settings = load_settings()
    _import(module)

    def read(details: "DeadLetterDetails") -> str:
        spec = registry.specs.get(details.letter.consumer)
        if spec is None or spec.consumer is None:
            raise UsageError(f"{module} declares no handler {details.letter.consumer!r}")
        connect(spec.consumer.foreign, settings, spec.name)
        return as_handled(details, spec)

    return read


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks, with --watch.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show on one screen: processes, partitions and how far they are behind, queues, schedules, dead letters, incidents.

    KAFKA_BOOTSTRAP_SERVERS, where it is set, tells how far the logs go.
    """
    from eventflow.cli_status import show

    show(watch=every if watch else None, as_json=as_json)


@app.command()
def why(
    subject: Annotated[str, typer.Argument(metavar="ID | TOPIC/PARTITION[/OFFSET] | KEY", help="What does not run.")],
    group: Annotated[str | None, typer.Option(help="Of a partition: only of this consumer group.")] = None,
    as_json: Json = False,
) -> None:
    """Say why something does not run, in a sentence, whatever state it is in: a workflow, a partition, a message, a key.

    KAFKA_BOOTSTRAP_SERVERS, where it is set, tells how far the log goes.
    """
    with open_client() as client:
        reasons = client.why(subject, group=group)
    for reason in reasons:
        if as_json:
            say_json(reason)
        else:
            typer.echo(one_line(reason.text, 2000))


@app.command()
def doctor(
    module: Annotated[str | None, typer.Option("--app", help="A program, whose topics are looked at, too.")] = None,
    as_json: Json = False,
) -> None:
    """Look whether the database, its clock, rights and settings, and Kafka's topics are fit to run on; say what to change.

    Exit status 1 where something is wrong.
    """
    from eventflow.cli_doctor import examine

    topics: list[str] = []
    if module is not None:
        _import(module)
        topics = [name for one in registry.consumers if isinstance(one.topics, tuple) for name in one.topics]
    examine(topics, as_json=as_json)


# ---- a project of one's own ---------------------------------------------------------------------


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The project's name, and its folder's: small letters, digits, - and _.")],
    folder: Annotated[Path, typer.Option("--in", help="Where the folder is made.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a project that runs: a program, settings, tests, a compose file, a Dockerfile, a Makefile."""
    files = make_project(name, folder)
    if as_json:
        say_json({"folder": str(folder / name), "files": files})
        return
    typer.echo(f"{folder / name} has {', '.join(files)}")
    typer.echo(f"try it: cd {shlex.quote(str(folder / name))} && make demo")


# ---- local services ----------------------------------------------------------------------------

_Folder = Annotated[Path, typer.Option(help="Where the services keep their data.")]


@app.command()
def dev(folder: _Folder = Path(".eventflow"), as_json: Json = False) -> None:
    """Start a real PostgreSQL and a real Apache Kafka, print their addresses, and stop them at Ctrl-C.

    Their data stays in the folder. Where they run already, only print the addresses:
    `eval "$(eventflow dev)"` in a second terminal.
    """
    with _local(folder) as local:
        for name, value in local.addresses.environment().items():
            if as_json:
                say_json({"name": name, "value": value})
            else:
                typer.echo(f"export {name}={shlex.quote(value)}")
        if local.postgres.pid is None and local.kafka.pid is None:
            return
        typer.echo("# PostgreSQL and Kafka run; Ctrl-C stops them, their data stays", err=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            typer.echo("# stopping", err=True)


@contextmanager
def _local(folder: Path) -> Generator[LocalServices]:
    """The local services, for as long as the context lasts; SIGTERM and SIGHUP end it as Ctrl-C does.

    Raises:
        LocalServiceError: they do not start, or the folder cannot be used.

    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        with _starting() as progress:
            try:
                local = stack.enter_context(services(folder, progress=progress))
            except OSError as error:
                raise LocalServiceError(f"local services in {folder}: {error}") from error
        yield local


@contextmanager
def _starting() -> Generator[Callable[[str, int, int], None]]:
    """Something to look at while the services start; a bar for what is done the first time only."""
    console = Console(stderr=True)
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(f"{what}, once", total=total)
            if not console.is_terminal:
                console.print(f"{what}, once")
        bar.update(tasks[what], completed=done)

    try:
        if console.is_terminal:
            bar.start()
            bar.add_task("starting PostgreSQL and Kafka", total=None)
        yield progress
    finally:
        if console.is_terminal:
            bar.stop()


@app.command()
def demo(
    orders: Annotated[int, typer.Option(min=100, max=150_000, help="How many orders are produced.")] = 30_000,
    folder: _Folder = Path(".eventflow/demo"),
) -> None:
    """Watch orders flow through Kafka into Postgres while a worker is killed; the count comes out exact.

    On services of its own. Ends by itself in less than two minutes; the exit status is 0 only where everything agrees.
    """
    from eventflow.demo import run_demo
    from eventflow.demo.stage import alone

    try:
        with alone(folder), _local(folder) as local:
            status = run_demo(folder, local.addresses, orders)
    except KeyboardInterrupt:
        typer.echo("stopped, with everything that it had started", err=True)
        status = 130
    sys.exit(status)


# ---- the database ------------------------------------------------------------------------------


@app.command()
def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be applied.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Only print what would be applied, for psql.")] = False,
    roles: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print the GRANTs that a role needs to run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the database of DATABASE_URL to this version's schema, and those of EVENTFLOW_DATABASES to what they need."""
    from eventflow.migrations import LEDGER, RESULTS, RESULTS_SCHEMA

    if sum((plan, sql, roles is not None)) > 1:
        raise UsageError("--plan, --sql, --roles: choose one")
    settings = load_settings()
    how = "sql" if sql else "plan" if plan else ""
    _migrate(_Target(None, settings.database_url, settings.database_schema, LEDGER), how, roles, as_json=as_json)
    for name, url in settings.databases.items():
        try:
            _migrate(_Target(name, url, RESULTS_SCHEMA, RESULTS), how, roles, as_json=as_json)
        except (SchemaError, UnavailableError) as error:
            raise type(error)(f"database {name!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """A database with a schema of ours: the ledger's, which has no name here, or one of EVENTFLOW_DATABASES."""

    name: str | None
    url: str
    schema: str
    layout: "Layout"

    def __str__(self) -> str:
        return (
            f"database {self.name!r}, {masked(self.url)}" if self.name else f"{masked(self.url)}, schema {self.schema}"
        )


def _migrate(one: _Target, how: str, roles: str | None, *, as_json: bool) -> None:
    from eventflow import migrations

    came: str | list[str]
    if roles is not None:
        what, came = "grants", migrations.roles_sql(one.schema, roles, one.layout)
        text = f"-- {one}\n{came}"
    elif how == "sql":
        what, came = "sql", migrations.pending_sql(one.url, schema=one.schema, layout=one.layout)
        text = f"-- {one}\n{came or '-- nothing to do'}"
    elif how == "plan":
        what, came = "pending", migrations.plan(one.url, schema=one.schema, layout=one.layout)
        text = "\n".join(came) or f"nothing to do: {one} is up to date"
    else:
        what, came = "applied", migrations.migrate(
            one.url, schema=one.schema, layout=one.layout,
            progress=None if as_json else lambda title: typer.echo(f"applied {title}"),
        )  # fmt: skip
        text = f"{one} is {'ready' if came else 'up to date'}"
    if as_json:
        say_json({"database": one.name, "url": masked(one.url), "schema": one.schema, what: came})
    else:
        typer.echo(text)


# ---- a user's program --------------------------------------------------------------------------


@app.command()
def run(
    module: Annotated[
        str, typer.Argument(help="What declares consumers and workflows: `app`, `shop.app` or `app.py`.")
    ],
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Only these consumers, queues, schedules; `queue:NAME` where two are so named."),
    ] = None,
    no_consumers: Annotated[bool, typer.Option("--no-consumers", help="Serve no consumer.")] = False,
    no_queues: Annotated[bool, typer.Option("--no-queues", help="Serve no queue.")] = False,
    no_schedules: Annotated[bool, typer.Option("--no-schedules", help="Fire no schedule.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="So many processes: one that dies is started again; SIGHUP replaces each.")
    ] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="For development: start again when a file changes.")] = False,
    uvloop: Annotated[
        bool | None, typer.Option("--uvloop/--no-uvloop", help="Use uvloop; by default where it is installed.")
    ] = None,
    line: Annotated[int | None, typer.Option("--supervised", hidden=True)] = None,
) -> None:  # fmt: skip
    """Import a module and run what it registers, until SIGTERM or Ctrl-C; then drain and leave cleanly.

    Reads DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS and EVENTFLOW_... from the environment.
    """
    if uvloop and importlib.util.find_spec("uvloop") is None:
        raise UsageError('--uvloop: uvloop is not installed; pip install "eventflow[uvloop]"')
    settings = load_settings()
    if processes > 1 or reload:
        _log(settings)
        options = {"--no-consumers": no_consumers, "--no-queues": no_queues, "--no-schedules": no_schedules}
        options |= {"--uvloop": uvloop is True, "--no-uvloop": uvloop is False}
        given = [name for name, value in options.items() if value] + ([] if only is None else ["--only", only])
        sys.exit(_supervise(module, given, processes, settings.http_port, reload=reload))
    _run(module, settings, only, {"consumer": no_consumers, "queue": no_queues, "schedule": no_schedules}, uvloop, line)


def _supervise(module: str, options: list[str], processes: int, port: int | None, *, reload: bool) -> int:
    """Run it in processes of their own; where they cannot import it, that is said once."""
    from eventflow.supervisor import Supervisor, changes, command_of

    watch = (lambda: changes(Path.cwd())) if reload else None
    return Supervisor(command_of(module, options), processes, watch, port or None).run()


def _run(
    module: str, settings: Settings, only: str | None, none_of: dict[str, bool], uvloop: bool | None, line: int | None
) -> None:  # fmt: skip
    from eventflow.app import run as run_app

    ready = None
    if line is not None:
        from eventflow.supervisor import supervised

        ready = supervised(line)
    _import(module)
    _log(settings)
    if not registry.specs:
        raise UsageError(f"{module} registers nothing to run: no @kafka_consumer, no @workflow, no @scheduled")
    sys.exit(run_app(settings, **_served(only, none_of), uvloop=uvloop, ready=ready))


@schedules.command("plan")
def plan_schedules(
    module: Annotated[str, typer.Argument(help="What declares schedules: `app`, `shop.app` or `app.py`.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON, an object a line.")] = False,
) -> None:
    """Say what a start of this code would change about the schedules, and change nothing."""
    from eventflow.database import database_of
    from eventflow.ledger import Ledger, define_schedules
    from eventflow.migrations import check_schema

    settings = load_settings()
    _import(module)
    database = database_of(settings)
    with database.connect("plan") as connection:
        check_schema(connection, database.schema)
    changes = define_schedules(Ledger(database, settings.application), registry, dry=True)
    for change in changes:
        plain = {"name": change.name, "kind": change.kind, "text": change.text}
        typer.echo(json.dumps(plain) if as_json else f"{change.kind}: {change.name}: {change.text}")
    if not changes:
        typer.echo(f"nothing changes: {len(registry.schedules)} schedules are as {module} has them", err=True)


def _served(only: str | None, none_of: dict[str, bool]) -> dict[str, bool | list[str]]:
    """Of each kind all, none, or those named."""
    if only is None:
        return {f"{kind}s": not none for kind, none in none_of.items()}
    if any(none_of.values()):
        raise UsageError("--only, or --no-consumers and the like: choose one")
    known = {
        "consumer": [one.spec.name for one in registry.consumers], "queue": ["default", *registry.queues],
        "schedule": list(registry.schedules),
    }  # fmt: skip
    chosen: dict[str, list[str]] = {kind: [] for kind in known}
    for asked in filter(None, (part.strip() for part in only.split(","))):
        kind, name = _named(asked, known)
        chosen[kind].append(name)
    if not any(chosen.values()):
        raise UsageError("--only names nothing")
    return {f"{kind}s": names or False for kind, names in chosen.items()}


def _named(asked: str, known: dict[str, list[str]]) -> tuple[str, str]:
    """Which kind a name is of."""
    wanted, colon, rest = asked.partition(":")
    found = [kind for kind, names in known.items() if asked in names]
    if not found and colon and wanted in known and rest in known[wanted]:
        return wanted, rest
    if not found:
        there = "; ".join(f"{kind}s {', '.join(names)}" for kind, names in known.items() if names)
        raise UsageError(f"--only: nothing is named {asked!r}; there are {there}")
    if len(found) > 1:
        choices = " or ".join(f"{kind}:{asked}" for kind in found)
        raise UsageError(f"--only: {asked!r} is the name of a {' and a '.join(found)}: say {choices}")
    return found[0], asked


def _log(settings: Settings) -> None:
    """Log to stderr, where the program has not said otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(Ids())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


def _import(module: str) -> ModuleType:
    """Import the user's module, by its name or by its file.

    Raises:
        UsageError: there is none, or importing it fails; says where.

    """
    name, file = _locate(module)
    try:
        imported = importlib.import_module(name)
    except Exception as error:
        raise UsageError(_why_not(name, error)) from error
    if file is not None and Path(imported.__file__ or "").resolve() != file:
        raise UsageError(f"{module}: another module has the name {name!r}; rename the file")
    return imported


def _locate(module: str) -> tuple[str, Path | None]:
    """The name to import, and the file if that was given; makes it importable."""
    if not module.endswith(".py") and "/" not in module:
        if not all(part.isidentifier() for part in module.split(".")):
            raise UsageError(
                f"{module!r} is no module's name, such as `app` or `shop.app`, nor a file, such as `app.py`"
            )
        sys.path.insert(0, str(Path.cwd()))
        return module, None
    given = Path(module).resolve()
    file = given.with_suffix(".py") if given.name else given
    if not file.is_file():
        raise UsageError(f"there is no file {module!r}")
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path[:0] = [str(folder), str(Path.cwd())]
    return ".".join(parts), file


def _why_not(name: str, error: Exception) -> str:
    """Why the module cannot be imported, and at which line, in one line."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (name == missing or name.startswith(f"{missing}.")):
        return f"there is no module {name!r} in {Path.cwd()} or among the installed packages"
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, EventflowError):
        return f"{_place(error)}: {first}"
    if isinstance(error, SyntaxError):
        return f"{_near(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    return f"{_place(error)}: {type(error).__name__}: {first}"


def _place(error: Exception) -> str:
    """The innermost line that is the user's own, as far as one can tell: neither ours, nor Python's, nor a library's."""
    ours = (str(_PACKAGE), "<", str(Path(importlib.__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    mine = [f for f in frames if not f.filename.startswith(_LIBRARIES) and "site-packages" not in f.filename] or frames
    return f"{_near(mine[-1].filename)}, line {mine[-1].lineno}" if mine else "importing it"


def _near(file: str | None) -> str:
    """A file as one would say it here."""
    path = Path(file or "?")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
