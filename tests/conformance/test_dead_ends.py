"""Workflows that kill, that never end and that nobody knows: each is its own trouble; issue 4 §8 and §12."""

import resource
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from eventflow import durable, sync
from eventflow.errors import WorkflowParkedError
from tests.conformance.colours import COLOURS, Body, Colour, Do, both, until
from tests.conformance.conftest import App
from tests.conformance.test_killed import APP, SOON, died_there, insert
from tests.harness import World, pick, seeds


@pytest.mark.crash
@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("colour", COLOURS)
def test_one_that_kills_its_process_is_parked_and_its_neighbour_goes_on(world: World, colour: str, seed: int) -> None:
    """After `recoveries` more deaths, with the reason; nobody else is charged for as many.

    One of its processes is killed besides: before it began, or beside it, which counts as its doing; or while it is parked.
    """
    points = [f"journal.{at}" for at in ("before_flush", "before_commit", "after_commit")]
    point = pick(seed, colour, "point", choices=[*points, "recovery.before_claim_rows", "recovery.after_claim_rows"])
    crash = f"{point}:{pick(seed, colour, 'count', choices=range(1, 3))}"
    which = pick(seed, colour, "which", choices=range(3))
    insert(world, f"kills {colour}", "killer", [])
    insert(world, f"sleeps {colour}", "neighbour", [])
    status = "select status::text from eventflow.workflows where id = 'killer'"

    def is_parked() -> bool:
        if not any(worker.alive for worker in world.workers):
            world.start(APP, crash=crash if len(world.workers) == which else "", **SOON)
        return world.one(status) == "parked"

    world.wait(is_parked, "it is parked")
    assert {worker.process.returncode for worker in world.workers} <= {-signal.SIGKILL, None}
    besides = [died_there(worker, point) for worker in world.workers[:-1]]
    assert besides.count(False) in (2, 2 - besides.count(True))
    [(recoveries, reason)] = world.sql("select recoveries, reason from eventflow.workflows where id = 'killer'")
    assert (recoveries, reason) == (1, "its process died while it ran, 2 times")
    world.start(APP, **SOON)
    ended = "select count(*) from eventflow.workflows where id = 'neighbour' and status = 'succeeded'"
    world.wait(lambda: world.one(ended) == 1, "its neighbour has ended")
    assert [note for (note,) in world.sql("select note from effects order by note")] == [f"slept {n}" for n in range(3)]
    world.check_no_incidents()


# ---- long histories ----------------------------------------------------------------------------------


@both
def counts(do: Do, to: int, each: int) -> Body[int]:
    """Records so many values; from `each` on it goes on as new."""
    for n in range(min(to, each)):
        durable.random()
        if n % 25 == 24:
            yield do.sleep(0)
    if to > each:
        durable.continue_as_new(counts[do.colour].bind(to - each, each))
    return to


@pytest.fixture
def short(app: App) -> Iterator[App]:
    app.down()
    app.up(max_checkpoints=100)
    yield app
    app.down()
    app.up()


def test_a_history_has_a_warning_and_a_limit(short: App, colour: Colour, caplog: pytest.LogCaptureFixture) -> None:
    warned = "has recorded 50 operations; each wake reads them all: see continue_as_new"
    assert short.run(counts, colour, 40, 1000) == 40
    assert warned not in caplog.text
    assert short.run(counts, colour, 90, 1000) == 90
    assert warned in caplog.text
    handle = short.start(counts, colour, 200, 1000)
    with pytest.raises(WorkflowParkedError, match="it has recorded 100 operations, the limit: use continue_as_new"):
        handle.result(timeout=10)
    assert "100 operations" in str(handle.get().reason)


def test_each_run_has_its_own_count(short: App, colour: Colour) -> None:
    assert short.run(counts, colour, 300, 80) == 60


# ---- names that nobody knows -------------------------------------------------------------------------


def test_a_name_that_nobody_knows_any_more_waits_and_is_told(
    app: App, ledger: str, colour: Colour, caplog: pytest.LogCaptureFixture
) -> None:
    """Started by code that has gone since; whether it was running, or slept until a moment that has come."""
    name = f"gone since {colour}"
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute(
            """insert into eventflow.workflows (id, name, application, status, arguments, wake_at)
               values (%(n)s || ' 1', %(n)s, 'default', 'running', '{"args": [], "kwargs": {}}', null),
                      (%(n)s || ' 2', %(n)s, 'default', 'waiting', '{"args": [], "kwargs": {}}', now()),
                      (%(n)s || ' 3', %(n)s, 'default', 'waiting', '{"args": [], "kwargs": {}}', now() + interval '1 h')""",
            {"n": name},
        )
    app.down()
    app.up()
    until(lambda: f"2 workflows named {name!r} wait for a process that knows this name" in caplog.text)
    with sync.Client(ledger) as client:
        waiting = list(client.workflows(name=name))
        assert [one.status for one in waiting] == ["running", "waiting", "waiting"]
        client.terminate([one.workflow_id for one in waiting])


# ---- wide fan-outs -----------------------------------------------------------------------------------


@both
def leaf(do: Do, n: int) -> Body[int]:
    yield do.sleep(0)
    return n


@both
def fans_out(do: Do, count: int) -> Body[int]:
    handles = []
    for n in range(count):
        handles.append((yield do.start(leaf, n)))
    total = 0
    for handle in handles:
        total += yield handle.result
    return total


def test_a_wide_fan_out_is_joined(app: App, colour: Colour) -> None:
    """More children than are kept in memory: the others are left to whoever has room."""
    assert app.run(fans_out, colour, 1500) == 1500 * 1499 // 2


@pytest.mark.long
def test_ten_thousand_children_are_joined_in_bounded_memory(app: App, colour: Colour) -> None:
    """Neither the parent nor its children hold more than a few KB each while it waits."""
    assert app.run(fans_out, colour, 100) == 4950  # what is imported and made once
    before, most, over = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, resident())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert app.start(fans_out, colour, 10_000).result(timeout=120) == 10_000 * 9_999 // 2
    finally:
        over.set()
        watching.join()
    print(f"{(most - before) / 2**20:.0f} MB")
    assert most - before < 100 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---- many signals ------------------------------------------------------------------------------------


@both
def answers(do: Do) -> Body[int]:
    return (yield do.recv(int))


@pytest.mark.parametrize("whose", ["one that does not sleep", "one that has ended"])
def test_many_signals_to_others_hide_nobodys(app: App, ledger: str, colour: Colour, whose: str) -> None:
    """As ten thousand messages to one workflow, or as many children, leave them."""
    other = "nobody" if whose == "one that does not sleep" else app.start(leaf, colour, 1).workflow_id
    handle = app.start(answers, colour)
    app.asleep(handle)
    with psycopg.connect(ledger, autocommit=True) as connection:
        many = "insert into eventflow.signals (workflow_id) select %s from generate_series(1, 10000)"
        connection.execute(many, [other])
        handle.send(7)
        assert handle.result(timeout=2) == 7
        left = connection.execute("delete from eventflow.signals where workflow_id = %s returning 1", [other]).rowcount
    assert left == (10_000 if other == "nobody" else 0)


def test_signals_to_many_others_hide_nobodys(app: App, ledger: str, colour: Colour) -> None:
    """As there are where so many workflows that do not sleep are sent something; of all that, one has the last id."""
    handle = app.start(answers, colour, workflow_id=f"~ {uuid.uuid4()}")
    app.asleep(handle)
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute(
            "insert into eventflow.signals (workflow_id) select 'n' || n from generate_series(1, 25000) n"
        )
        handle.send(7)
        assert handle.result(timeout=3) == 7
        connection.execute("delete from eventflow.signals where workflow_id like 'n%'")
