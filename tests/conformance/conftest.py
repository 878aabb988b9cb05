"""The application of these tests, in this process, on a ledger of its own; without Kafka."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eventflow
from eventflow import sync
from eventflow.migrations import migrate
from eventflow.settings import Settings
from tests.conformance.colours import COLOURS, Colour, Pair, traced, until
from tests.harness import World
from tests.ledgers import empty_database, new_ledger

MODES = {"leaves": 0.02, "stays": 60.0}  # what waits leaves memory at once, or never in these tests
anyhow = pytest.mark.parametrize("app", MODES, indirect=True)  # a test's default is to leave


class App:
    """Eventflow, running in this process; it can be stopped and started again, as by a deploy."""

    def __init__(self, url: str, mode: str, databases: dict[str, str] | None = None, **settings: Any) -> None:
        self.leaves = mode == "leaves"
        self.usual = {
            "database_url": url, "suspend_after": MODES[mode], "lease": 1, "beat": 0.2, "drain": 2, "accept_after": 0.01,
            "threads": 8, "databases": databases or {},
        }  # fmt: skip
        self._stack = contextlib.ExitStack()
        self.up(**settings)

    def up(self, queues: bool | list[str] = True, **settings: Any) -> None:
        """Start it, with these settings beside the usual ones."""
        here = eventflow.running(Settings(**self.usual, **settings), consumers=False, queues=queues)
        self._stack.enter_context(here)

    def down(self) -> None:
        self._stack.close()

    def start(self, pair: Pair, colour: Colour, *args: Any, **options: Any) -> sync.Handle[Any]:
        options.setdefault("workflow_id", f"{colour} {uuid.uuid4()}")
        return sync.start(pair[colour], *args, **options)

    def run(self, pair: Pair, colour: Colour, *args: Any, **options: Any) -> Any:
        return self.start(pair, colour, *args, **options).result(timeout=15)

    def asleep(self, handle: sync.Handle[Any]) -> None:
        """Wait until it waits; where this application lets go of what waits, until it has."""
        if self.leaves:
            until(lambda: handle.get().status == "waiting")
        else:
            until(lambda: traced(handle.workflow_id))


def names(handle: sync.Handle[Any]) -> list[str]:
    """What the workflow has recorded, but for where it was told to end."""
    return [step.name for step in handle.steps() if step.name != "told to end"]


@contextlib.contextmanager
def new_database(postgres_url: str) -> Iterator[str]:
    """A ledger of its own."""
    with empty_database(postgres_url) as url:
        migrate(url)
        yield url


@pytest.fixture(scope="package")
def ledger(postgres_url: str) -> Iterator[str]:
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module", params=["leaves"])
def app(ledger: str, request: pytest.FixtureRequest) -> Iterator[App]:
    made = App(ledger, request.param)
    yield made
    made.down()


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> Colour:
    return request.param


@contextlib.contextmanager
def new_world(postgres_url: str, folder: Path) -> Iterator[World]:
    """For workers that are killed; the ledger is the world's own, and there is no Kafka."""
    with new_ledger(postgres_url) as url:
        made = World(url, "", folder)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def world(postgres_url: str, tmp_path: Path) -> Iterator[World]:
    with new_world(postgres_url, tmp_path) as made:
        yield made
