"""The command line: `eventflow dev | migrate | run | demo`. A user's mistake is one line on stderr, never a stack trace.

Exit statuses: 0 done; 1 the world refused (a server, a lease, a proof that fails); 2 the command or a setting is wrong.
"""

import importlib
import logging
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from eventflow.errors import EventflowError, SettingsError, UsageError
from eventflow.local import LocalServiceError, services
from eventflow.migrations import migrate as apply_migrations
from eventflow.migrations import plan as plan_migrations
from eventflow.migrations import roles_sql
from eventflow.settings import Settings, load_settings, masked
from eventflow.workflows import registry

app = typer.Typer(
    help="Exactly-once event processing on Kafka and Postgres.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def main() -> None:
    """The entry point of the command `eventflow`."""
    try:
        app()
    except (SettingsError, UsageError) as error:
        _exit(error, 2)
    except (EventflowError, LocalServiceError) as error:
        _exit(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _exit(error: Exception, status: int) -> None:
    typer.echo(f"error: {error}", err=True)
    sys.exit(status)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"eventflow {version('eventflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exactly-once event processing on Kafka and Postgres."""


@app.command()
def dev(
    folder: Annotated[Path, typer.Option(help="Where the services keep their data.")] = Path(".eventflow"),
) -> None:
    """Start a real PostgreSQL and a real Apache Kafka, print their addresses, and stop them at Ctrl-C."""
    with fetching() as progress, services(folder, progress=progress) as local:
        for name, value in local.addresses.environment().items():
            typer.echo(f"export {name}={value}")
        typer.echo("# running; Ctrl-C stops both, their data stays", err=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            typer.echo("# stopping", err=True)


@contextmanager
def fetching() -> Generator[Callable[[str, int, int], None], None, None]:
    """A progress bar for the first-time download; nothing where nothing is fetched."""
    bar = Progress(console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if not tasks:
            bar.start()
            tasks[what] = bar.add_task(f"fetching {what} (once)", total=total)
        bar.update(tasks[what], completed=done)
        if done == total:
            bar.stop()

    try:
        yield progress
    finally:
        bar.stop()


@app.command()
def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be applied.")] = False,
    roles: Annotated[str | None, typer.Option(help="Print the GRANTs that this role needs to run.")] = None,
) -> None:
    """Bring the database of DATABASE_URL to this version's schema."""
    settings = load_settings()
    if roles is not None:
        typer.echo(roles_sql(settings.database_schema, roles))
        return
    where = f"{masked(settings.database_url)}, schema {settings.database_schema}"
    if plan:
        pending = plan_migrations(settings.database_url, schema=settings.database_schema)
        typer.echo("\n".join(pending) if pending else f"nothing to do: {where} is up to date")
        return
    applied = apply_migrations(
        settings.database_url, schema=settings.database_schema, progress=lambda title: typer.echo(f"applied {title}")
    )
    typer.echo(f"{len(applied)} migration(s) applied to {where}" if applied else f"{where} is up to date")


@app.command()
def run(
    module: Annotated[str, typer.Argument(help="The module that declares consumers and workflows: `app` or `app.py`.")],
    uvloop: Annotated[
        bool | None, typer.Option("--uvloop/--no-uvloop", help="Use uvloop; by default where it is installed.")
    ] = None,
) -> None:
    """Import a module and run what it registers until SIGTERM or Ctrl-C; then drain and leave cleanly."""
    from eventflow.app import run as run_app

    settings = load_settings()
    _log(settings)
    _import(module)
    if not registry.specs:
        raise UsageError(f"{module!r} declares no consumer and no workflow")
    sys.exit(run_app(settings, uvloop=uvloop))


def _log(settings: Settings) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format=_FORMAT, stream=sys.stderr)


def _import(name: str) -> ModuleType:
    """Import the user's module, by name or by its file.

    Raises:
        UsageError: there is none, or it cannot be imported.

    """
    path = Path(name)
    if name.endswith(".py"):
        if not path.is_file():
            raise UsageError(f"there is no file {name!r}")
        sys.path.insert(0, str(path.parent.absolute()))
        name = path.stem
    else:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"there is no module {name!r} in {Path.cwd()} or on the path") from None
        raise UsageError(f"importing {name!r}: there is no module {error.name!r}") from None
    except EventflowError:
        raise
    except Exception as error:
        raise UsageError(f"importing {name!r} failed: {type(error).__name__}: {error}") from error


@app.command()
def demo(
    orders: Annotated[int, typer.Option(min=100, help="How many orders are produced.")] = 20_000,
    folder: Annotated[Path, typer.Option(help="Where the services keep their data.")] = Path(".eventflow"),
) -> None:
    """Show the main job: orders through Kafka into Postgres while a worker is killed, and the count comes out exact."""
    from eventflow.demo import run_demo

    with fetching() as progress, services(folder / "demo", progress=progress) as local:
        status = run_demo(local.addresses, orders)
    sys.exit(status)
