"""Code that changes while workflows sleep, and workflows that go on for ever: API.md 2.5.11, issue 4 §8."""

import json
import os
import time
from pathlib import Path
from typing import Any

import eventflow
from eventflow import durable
from eventflow.errors import UsageError
from tests.conformance.colours import COLOURS, Body, Colour, Do, Pair, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names
from tests.forkserver import run
from tests.harness import ROOT

# ---- continue_as_new -------------------------------------------------------------------------------


def again(pair: Pair, do: Do, *args: Any) -> None:
    durable.continue_as_new(pair[do.colour].bind(*args))


@both
def adds_up(do: Do, total: int, to: str) -> Body[int]:
    """Receives one number for each run, tells the sum so far, and begins anew."""
    trace((durable.workflow_id(), total))
    number = yield do.recv(int, timeout=10)
    if number == 0:
        return total
    yield do.run_step(trace, durable.idempotency_key())
    yield do.send(to, total + number)
    return again(adds_up, do, total + number, to)


@both
def receives(do: Do, count: int) -> Body[list[int]]:
    found: list[int] = []
    for _ in range(count):
        found.append((yield do.recv(int, timeout=5)))
    return found


@anyhow
def test_the_next_run_has_an_empty_history_and_the_unread_messages(app: App, colour: Colour) -> None:
    """What each run sent just before it ended has been sent, once."""
    inbox = f"{colour} sums {time.time()}"
    handle = app.start(adds_up, colour, 0, inbox)
    for number in (1, 2, 3, 0):
        handle.send(number)
    assert handle.result(timeout=15) == 6
    assert names(handle) == ["recv", "recv"]  # of the last run: until when it waits, and what came
    assert app.run(receives, colour, 3, workflow_id=inbox) == [1, 3, 6]


def test_nothing_is_received_twice_over_a_restart_between_two_runs(app: App, colour: Colour) -> None:
    inbox = f"{colour} again {time.time()}"
    handle = app.start(adds_up, colour, 0, inbox)
    handle.send(1)
    until(lambda: (handle.workflow_id, 1) in traced(handle.workflow_id))
    app.asleep(handle)
    app.down()
    app.up()
    handle.send(2)
    handle.send(0)
    assert handle.result(timeout=15) == 3
    assert app.run(receives, colour, 2, workflow_id=inbox) == [1, 3]


@eventflow.step
def key_of_a_step() -> str:
    return durable.idempotency_key()


@both
def gives_back(do: Do, n: int) -> Body[int]:
    yield do.run_step(trace, n)
    return n


@both
def generations(do: Do, n: int, seen: list[str]) -> Body[list[str]]:
    """In each run a child and a step, at the same positions."""
    handle = yield do.start(gives_back, n)
    got = yield handle.result
    seen = [*seen, f"{got} {handle.workflow_id}", (yield do.run_step(key_of_a_step))]
    if n == 3:
        return seen
    return again(generations, do, n + 1, seen)


@anyhow
def test_each_run_has_children_and_keys_of_its_own(app: App, colour: Colour) -> None:
    seen = app.run(generations, colour, 1, [])
    assert [each.split()[0] for each in seen[::2]] == ["1", "2", "3"]
    assert len(set(seen)) == 6, seen


@both
def goes_on_as_another(do: Do) -> Body[str]:
    try:
        again(receives, do, 1)
    except UsageError as error:
        return str(error)
    yield do.sleep(0)
    return ""


def test_a_workflow_goes_on_as_itself_only(app: App, colour: Colour) -> None:
    assert "not with" in app.run(goes_on_as_another, colour)


# ---- patches ---------------------------------------------------------------------------------------


def deploy(ledger: str, code: str, folder: Path, *ids: str, until: str) -> dict[str, Any]:
    """Run a program with this code that starts these, until they are all so; what each came to."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVENTFLOW_")}
    environment |= {"DATABASE_URL": ledger, "PYTHONPATH": str(ROOT), "EVENTFLOW_APPLICATION": "deploys"}
    done = run([str(Path(__file__).with_name("deployed.py")), code, until, *ids], folder, environment, timeout=30)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_patches_over_deploys(ledger: str, tmp_path: Path) -> None:
    """One that had passed the place goes the old way, who comes there later the new one; then the marker goes, too."""
    first = [f"{colour} first" for colour in COLOURS]
    deploy(ledger, "old", tmp_path, *first, until="waiting")
    second = [f"{colour} second" for colour in COLOURS]
    found = deploy(ledger, "patched", tmp_path, *first, *second, until="succeeded")
    assert found == {i: ["a", "c"] for i in (*first, *second)}, "they came to it with the new code"

    third = [f"{colour} third" for colour in COLOURS]
    deploy(ledger, "old", tmp_path, *third, until="waiting")
    assert deploy(ledger, "patched before the sleep", tmp_path, *third, until="succeeded") == {
        i: ["a", "b"] for i in third
    }, "they had gone the old way already"

    fourth, fifth = [f"{c} fourth" for c in COLOURS], [f"{c} fifth" for c in COLOURS]
    deploy(ledger, "patched asleep", tmp_path, *fourth, until="waiting")
    found = deploy(ledger, "deprecated asleep", tmp_path, *fourth, *fifth, until="succeeded")
    assert found == {i: ["c", "d"] for i in (*fourth, *fifth)}


def test_a_change_without_a_patch_is_parked_with_both_names(ledger: str, tmp_path: Path) -> None:
    ids = [f"{colour} unpatched" for colour in COLOURS]
    deploy(ledger, "old", tmp_path, *ids, until="waiting")
    found = deploy(ledger, "other", tmp_path, *ids, until="parked")
    assert found == dict.fromkeys(ids, "position 1.1: 'a' was recorded, the code now calls 'x'")
