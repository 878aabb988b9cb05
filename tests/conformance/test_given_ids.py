"""What is started under a given id and refused where that exists, in workflows that die between the start and its record."""

import json
import re
import signal
import uuid
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import sync
from eventflow.errors import UsageError, WorkflowExistsError
from tests.conformance.colours import COLOURS, Body, Colour, Do, both
from tests.conformance.conftest import App
from tests.conformance.test_killed import APP, SOON, insert
from tests.harness import World, pick, seeds


@both
def gives(do: Do, n: int) -> Body[int]:
    yield do.sleep(0)
    return n


def begin(do: Do, how: str, workflow_id: str) -> Any:
    verb: Any = getattr(eventflow if do.colour == "async" else sync, how)
    return lambda: verb(gives[do.colour], 1, workflow_id=workflow_id, if_exists="reject")


@both
def claims_an_id(do: Do, how: str, workflow_id: str, times: int) -> Body[str]:
    try:
        for _ in range(times):
            handle = yield begin(do, how, workflow_id)
        return str((yield handle.result))
    except WorkflowExistsError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("how", ["start", "enqueue"])
def test_an_id_is_claimed_once(app: App, colour: Colour, how: str) -> None:
    mine = f"{colour} {how} mine"
    assert app.run(claims_an_id, colour, how, mine, 1) == "1"
    assert app.run(claims_an_id, colour, how, mine, 1).startswith("refused"), "it is another one's child"
    again = app.run(claims_an_id, colour, how, f"{colour} {how} twice", 2)
    assert again.startswith("refused"), "it has recorded that it has started this one"


@both
def waits(do: Do, n: int) -> Body[int]:
    return n + (yield do.recv(int))


acted = list[str]()


@both
def acts(do: Do, what: str) -> Body[str]:
    yield do.run_step(acted.append, what)
    return what


def test_a_start_of_what_is_being_taken_reads_what_it_has_recorded(app: App, ledger: str, colour: Colour) -> None:
    """The row is this process's, and does not run here yet: it was taken just now, or without an answer."""
    first, second = f"{colour} {uuid.uuid4()}", f"{colour} {uuid.uuid4()}"
    app.start(acts, colour, first, workflow_id=first).result(timeout=10)
    with psycopg.connect(ledger) as connection:
        connection.execute(
            """insert into eventflow.workflows (id, name, application, status, executor, arguments, attempt)
               select %s, name, application, 'running', (select max(id) from eventflow.executors where alive), arguments, 1
                 from eventflow.workflows where id = %s""",
            (second, first),
        )
        connection.execute(
            """insert into eventflow.checkpoints (workflow_id, position, seq, name, output, seconds, attempts)
               select %s, position, seq, name, output, seconds, attempts from eventflow.checkpoints where workflow_id = %s""",
            (second, first),
        )
    assert app.start(acts, colour, first, workflow_id=second).result(timeout=10) == first
    assert acted.count(first) == 1


def test_an_id_is_attached_to_or_refused(app: App, colour: Colour) -> None:
    """From outside: whoever is refused is shown what has the id."""
    mine, name = f"{colour} {uuid.uuid4()}", re.escape(repr(waits[colour].name))
    handle = app.start(waits, colour, 1, workflow_id=mine)
    app.asleep(handle)
    assert app.start(waits, colour, 1, workflow_id=mine).workflow_id == mine
    existing = rf"'{mine}' exists: {name} is waiting, started at 20\d\d-\d\d-\d\d \d\d:"
    with pytest.raises(WorkflowExistsError, match=existing):
        app.start(waits, colour, 1, workflow_id=mine, if_exists="reject")
    other = rf"'{mine}' belongs to {name} \(waiting\), started at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d with other arguments"
    for if_exists in ("attach", "reject"):
        with pytest.raises(WorkflowExistsError, match=other):
            app.start(waits, colour, 2, workflow_id=mine, if_exists=if_exists)
        with pytest.raises(WorkflowExistsError, match=rf"'{mine}' belongs to {name} .* another name"):
            app.start(gives, colour, 1, workflow_id=mine, if_exists=if_exists)
    handle.send(6)
    assert app.start(waits, colour, 1, workflow_id=mine).result(timeout=10) == 7
    with pytest.raises(WorkflowExistsError, match="is succeeded"):
        app.start(waits, colour, 1, workflow_id=mine, if_exists="reject")
    with pytest.raises(UsageError, match="if_exists is 'attach' or 'reject', not 'perhaps'"):
        app.start(waits, colour, 1, workflow_id=mine, if_exists="perhaps")
    assert app.start(waits, colour, 1, if_exists="reject").get().status in {"running", "waiting"}


@pytest.mark.parametrize("how", ["start", "enqueue"])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.crash
def test_killed_between_the_start_and_its_record(world: World, colour: str, how: str) -> None:
    """The child is there and its parent's record is not: the next attempt takes it for its own."""
    insert(world, f"claims_an_id {colour}", "parent", [how])
    victim = world.start(APP, crash="executor.after_step:1", **SOON)
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    assert world.sql("select parent from eventflow.workflows where id = 'the child'") == [("parent",)]
    assert world.one("select count(*) from eventflow.checkpoints") == 0
    world.start(APP, **SOON)
    world.wait(lambda: world.unfinished() == 0, "both have ended")
    assert json.loads(world.one("select output from eventflow.workflows where id = 'parent'")) == 7
    assert world.one("select count(*) from eventflow.workflows") == 2


# How the child is started -> where its parent is killed, wherever the child's own commits are.
POINTS = {
    "start": ["journal.before_flush", "journal.before_commit", "journal.after_commit", "executor.after_step"],
    "enqueue": ["ledger.before_commit", "ledger.after_commit", "journal.before_commit", "journal.after_commit"],
}


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.crash
def test_killed_around_the_start(world: World, colour: str, how: str, seed: int) -> None:
    """Whatever was durable by then, there is one child, and it is its parent's."""
    point = pick(seed, colour, how, choices=POINTS[how])
    count = 1 if point.startswith("ledger") else pick(seed, colour, how, "count", choices=range(1, 3))
    insert(world, f"claims_an_id {colour}", "parent", [how])
    victim = world.start(APP, crash=f"{point}:{count}", **SOON)
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    world.start(APP, **SOON)
    world.wait(lambda: world.unfinished() == 0, "both have ended")
    assert json.loads(world.one("select output from eventflow.workflows where id = 'parent'")) == 7
    assert world.sql("select id from eventflow.workflows where parent = 'parent'") == [("the child",)]
    assert world.sql("select note from effects") == [("napped 7",)]


@pytest.mark.parametrize("how", ["start", "enqueue"])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.crash
def test_killed_before_a_start_that_another_one_has_made(world: World, colour: str, how: str) -> None:
    insert(world, f"claims_an_id {colour}", "parent", [how])
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        connection.execute(
            """insert into eventflow.workflows (id, name, application, status, arguments, output, finished_at)
               values ('the child', %s, 'default', 'succeeded', %s, '7', now())""",
            [f"crash_app.naps {colour}", json.dumps({"args": [7, 0.0], "kwargs": {}})],
        )
    world.start(APP, **SOON)
    world.wait(lambda: world.unfinished() == 0, "it has ended")
    assert world.sql("select status::text from eventflow.workflows where id = 'parent'") == [("failed",)]
