"""Workflows of registered instances: `@workflow` on a method, and `register`."""

import functools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.errors import UsageError
from eventflow.registry import registry
from eventflow.settings import Settings
from eventflow.workflows import register
from tests.harness import pick, seeds


@pytest.fixture
def settings(ledger_url: str) -> Settings:
    return Settings(database_url=ledger_url, suspend_after=0.05, lease=1, beat=0.2, drain=2, threads=8)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "specs", dict(registry.specs))
    monkeypatch.setattr(registry, "instances", list(registry.instances))


@pytest.fixture
def app(settings: Settings, billing: "Billing", other: "Billing") -> Iterator[None]:
    with eventflow.running(settings, consumers=False):
        yield


def audited(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return f"audited {await function(*args, **kwargs)}"

    return call


class Base:
    @eventflow.workflow
    def kind(self) -> str:
        return type(self).__name__


class Billing(Base):
    def __init__(self, currency: str) -> None:
        self.currency = currency

    @eventflow.step
    async def charge(self, order: int) -> str:
        return f"{order} {self.currency}"

    @eventflow.workflow
    async def refund(self, order: int, *, note: str = "") -> str:
        return await self.charge(order) + note

    @eventflow.workflow(name="methods.tick", timeout=60)
    def tick(self, order: int = 1) -> str:
        return f"{order} {self.currency} {durable.workflow_id()}"

    @eventflow.workflow
    async def family(self, order: int) -> list[str]:
        child = await eventflow.start(self.tick, order)
        return [await self.refund(order), (await child.result()).partition(" ")[0]]

    @eventflow.workflow
    def sync_family(self, order: int) -> list[str]:
        child = sync.start(self.refund, order)
        return [child.result(), self.tick(order).partition(" ")[0], self.kind()]

    @eventflow.workflow
    @audited
    async def waits(self, topic: str) -> str:
        await durable.recv(bool, topic=topic)
        return self.currency

    @eventflow.workflow
    def sync_waits(self, topic: str) -> str:
        sync.recv(bool, topic=topic)
        return self.currency

    @eventflow.workflow
    async def counts(self, n: int) -> str:
        if n:
            durable.continue_as_new(self.counts.bind(n - 1))
        return self.currency

    @staticmethod
    @eventflow.workflow(name="methods.still")
    def still(n: int) -> int:
        return n


@pytest.fixture
def billing() -> Billing:
    return register(Billing("EUR"), name="billing")


@pytest.fixture
def other() -> Billing:
    return register(Billing("USD"), name="other")


def names(settings: Settings) -> set[str]:
    with psycopg.connect(settings.database_url) as connection:
        return {name for (name,) in connection.execute("select distinct name from eventflow.workflows")}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_called_and_started_by_blocking_code(app: None, settings: Settings, billing: Billing, other: Billing) -> None:
    assert billing.tick(3).startswith("3 EUR ")
    assert other.tick().startswith("1 USD ")
    assert sync.start(billing.refund, 3).result(timeout=10) == "3 EUR"
    assert sync.start(other.refund.bind(4, note="!"), workflow_id="x").result(timeout=10) == "4 USD!"
    assert (billing.kind(), billing.still(3)) == ("Billing", 3)
    assert sync.start(billing.counts, 2).result(timeout=10) == "EUR"
    assert names(settings) == {
        "methods.tick:billing", "methods.tick:other", "Billing.refund:billing", "Billing.refund:other", "Base.kind:billing",
        "Billing.counts:billing", "methods.still",
    }  # fmt: skip
    assert billing.tick.name == "methods.tick:billing"
    assert billing.tick.spec.timeout == 60


async def test_called_and_started_by_async_code(settings: Settings, billing: Billing, other: Billing) -> None:
    async with eventflow.running(settings, consumers=False):
        assert await billing.refund(3, note="?") == "3 EUR?"
        assert await (await eventflow.start(other.refund, 3)).result() == "3 USD"
        assert (await (await eventflow.start(other.tick, 7)).result()).startswith("7 USD")


def test_children(app: None, settings: Settings, billing: Billing, other: Billing) -> None:
    assert sync.start(other.family, 5).result(timeout=10) == ["5 USD", "5"]
    assert billing.sync_family(6) == ["6 EUR", "6", "Billing"]


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_process_without_the_instance_leaves_it_alone(settings: Settings, colour: str) -> None:
    """And the next one that has it goes on, with what `self` is there."""
    first = register(Billing("EUR"), name="moved")
    workflow_id = f"m {uuid.uuid4()}"
    with eventflow.running(settings, consumers=False):
        handle = sync.start(first.waits if colour == "async" else first.sync_waits, "go", workflow_id=workflow_id)
        until(lambda: handle.get().status == "waiting")
    registry.specs = {name: spec for name, spec in registry.specs.items() if not name.endswith(":moved")}
    registry.instances = [(name, known) for name, known in registry.instances if name != "moved"]
    with eventflow.running(settings, consumers=False):
        handle.send(True, topic="go")
        time.sleep(1)
        assert handle.get().status in {"waiting", "queued"}
    register(Billing("CHF"), name="moved")
    with eventflow.running(settings, consumers=False):
        assert handle.result(timeout=10) == ("audited CHF" if colour == "async" else "CHF")


async def test_an_unregistered_instance_is_refused_at_the_call(settings: Settings, billing: Billing) -> None:
    stranger = Billing("EUR")
    unbound: Any = Billing.refund
    async with eventflow.running(settings, consumers=False):
        for call in (
            lambda: stranger.refund(3),
            lambda: stranger.refund.bind(3),
            lambda: unbound(billing, 3),
            lambda: eventflow.start(stranger.refund, 3),
            lambda: eventflow.start(unbound, billing, 3),
        ):
            with pytest.raises(UsageError, match=r"(?s)'Billing.refund' is a method, .*workflows\.register\(instance"):
                made: Any = call()
                await made
        with pytest.raises(UsageError, match="before `running"):
            register(stranger, name="late")


def test_a_sync_one_is_refused_too(app: None) -> None:
    with pytest.raises(UsageError, match=r"'methods.tick' is a method"):
        Billing("EUR").tick()
    with pytest.raises(UsageError, match=r"'methods.tick' is a method"):
        sync.start(Billing("EUR").tick, 1)


def test_names_of_instances(billing: Billing) -> None:
    assert register(billing, name="billing") is billing, "once more says nothing new"
    with pytest.raises(UsageError, match="is registered as 'billing' already"):
        register(billing, name="second")
    with pytest.raises(UsageError, match="two instances are named 'billing'"):
        register(Billing("USD"), name="billing")
    with pytest.raises(UsageError, match="two instances are named 'billing': a Billing and a Base"):
        register(Base(), name="billing")
    with pytest.raises(UsageError, match="object has no method decorated with @workflow"):
        register(object(), name="nothing")
    with pytest.raises(UsageError, match="not a name"):
        register(Billing("USD"), name="")
    assert not [name for name in registry.specs if name.startswith("Billing.") and ":" not in name]


def test_a_source_that_is_imported_twice(settings: Settings) -> None:
    """As by `python app.py` and another module's `import app`: both instances work, under the one name."""

    def load() -> Any:
        class Twice:
            @eventflow.workflow
            def run(self, n: int) -> int:
                return n

        Twice.__qualname__ = "Twice"
        return register(Twice(), name="twice")

    first, second = load(), load()
    with eventflow.running(settings, consumers=False):
        assert (first.run(1), second.run(2)) == (1, 2)


def test_arguments_that_do_not_fit(app: None, billing: Billing) -> None:
    wrong: Any = billing.tick
    with pytest.raises(UsageError, match="Billing.tick"):
        wrong(1, 2)


PROGRAM = """
import os, signal, sys
import eventflow
from eventflow import durable, sync
from eventflow.settings import Settings
from eventflow.workflows import register

class Shop:
    @eventflow.step
    async def work(self, n):
        await durable.write_stream("log", f"step {n}")
        if n == 2 and sys.argv[2] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

    @eventflow.workflow
    async def sells(self) -> str:
        for n in range(4):
            await durable.write_stream("log", f"before {n}")
            await self.work(n)
        await durable.close_stream("log")
        return "sold"

    @eventflow.workflow
    def sync_sells(self) -> str:
        for n in range(4):
            sync.write_stream("log", f"before {n}")
            sync.run_step(self.work, n)
        sync.close_stream("log")
        return "sold"

shop = register(Shop(), name="shop")
with eventflow.running(Settings(database_url=sys.argv[1], lease=1, beat=0.2), consumers=False):
    workflow = shop.sells if sys.argv[3] == "async" else shop.sync_sells
    handle = sync.start(workflow, workflow_id="sale")
    print(list(handle.stream("log", str)), handle.result(timeout=20))
"""


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_process_that_is_killed_in_a_step(settings: Settings, colour: str, seed: int, tmp_path: Path) -> None:
    """In the third, or at a commit by then; the next one goes on with its own instance; the stream has each item once."""
    program = tmp_path / "shop.py"
    program.write_text(PROGRAM)
    points = ["journal.before_flush", "journal.before_commit", "journal.after_commit"]
    crash = pick(seed, colour, choices=["", *(f"{point}:{count}" for point in points for count in (1, 2))])

    def run(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), settings.database_url, how, colour]
        environment = os.environ | ({"EVENTFLOW_CRASH": crash} if how == "dies" and crash else {})
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    killed = run("dies")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run("lives")
    items = [f"{what} {n}" for n in range(4) for what in ("before", "step")]
    assert again.stdout.strip() == f"{items} sold", again.stderr
