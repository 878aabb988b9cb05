"""How large a value may be: each kind is refused where it is given, by name, and fails its own workflow only."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import sync
from eventflow.codec import limit
from eventflow.errors import CodecError, WorkflowError
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App

LIMIT = 2000
LARGE = "x" * LIMIT
SAID = r"it takes 2,\d\d\d bytes as JSON and may take 2,000 \(EVENTFLOW_MAX_PAYLOAD\): keep what is large elsewhere"


@pytest.fixture(scope="module")
def small(ledger: str) -> Iterator[App]:
    before = limit.size
    made = App(ledger, "stays", max_payload=LIMIT)
    yield made
    made.down()
    limit.size = before


def swells() -> str:
    trace("swells")
    return LARGE


@eventflow.transaction
def swells_in_a_transaction(connection: "psycopg.Connection[Any]") -> str:
    return LARGE


@both
def takes(do: Do, text: str) -> Body[str]:
    yield do.run_step(swells)
    return text


ACTS: dict[str, tuple[Any, str]] = {
    "an argument of a child": (lambda do: do.start(takes, LARGE), r"both.*, argument 'text'"),
    "a step's result": (lambda do: do.run_step(swells), "the result of 'swells'"),
    "a transaction's result": (
        lambda do: do.run_step(swells_in_a_transaction),
        "the result of 'swells_in_a_transaction'",
    ),
    "a message": (lambda do: do.send("someone", LARGE), "the message to 'someone'"),
    "an event": (lambda do: do.set_event("said", LARGE), "the event 'said'"),
    "an item": (lambda do: do.write_stream("pages", LARGE), "the item of the stream 'pages'"),
}


@both
def acts(do: Do, what: str) -> Body[list[str]]:
    """The refusal is an exception where the value was given, and the workflow may go on."""
    found: list[str] = []
    for _ in range(2):
        try:
            yield ACTS[what][0](do)
        except CodecError as error:
            found.append(str(error))
        yield do.sleep(0)
    return found


@both
def returns(do: Do) -> Body[str]:
    yield do.sleep(0)
    trace("returns")
    return LARGE


@pytest.mark.parametrize("what", ACTS)
def test_what_is_too_large_is_refused_where_it_is_given(small: App, colour: Colour, what: str) -> None:
    handle = small.start(acts, colour, what)
    for said in handle.result(timeout=15):
        assert re.match(f"{ACTS[what][1]}: {SAID}", said), said
    assert len(handle.result()) == 2


def test_a_workflows_own_arguments_and_result(small: App, ledger: str, colour: Colour) -> None:
    with pytest.raises(CodecError, match=f"argument 'text': {SAID}"):
        small.start(takes, colour, LARGE)
    with pytest.raises(CodecError, match=f"argument 'text': {SAID}"):
        sync.enqueue(takes[colour], LARGE)
    with sync.Client(ledger) as client:
        with pytest.raises(CodecError, match=f"argument 2: {SAID}"):
            client.enqueue("whatever", 1, LARGE)
        with pytest.raises(CodecError, match=f"the arguments: {SAID}"):
            client.enqueue("whatever", "x" * 1100, kwargs={"a": "x" * 900})
    handle = small.start(returns, colour)
    with pytest.raises(CodecError, match=f"the result of '.*': {SAID}"):
        handle.result(timeout=15)
    assert handle.get().status == "failed"
    assert traced(handle.workflow_id) == ["returns"], "it is not tried again"
    with pytest.raises(CodecError, match=f"the message to '{handle.workflow_id}': {SAID}"):
        handle.send(LARGE)


@both
def swells_and_waits(do: Do) -> Body[str]:
    try:
        yield do.run_step(swells, retries=3)
    except CodecError as error:
        yield do.recv(bool)
        return str(error)
    return ""


def test_a_steps_result_that_is_too_large_is_its_recorded_failure(small: App, colour: Colour) -> None:
    """It has acted: it is not tried again, and a replay raises what was recorded."""
    handle = small.start(swells_and_waits, colour)
    until(lambda: [step.name for step in handle.steps()] == ["swells"])
    small.down()
    small.up()  # where it would not be too large
    try:
        handle.send(True)
        assert "the result of 'swells': it takes 2,002 bytes" in handle.result(timeout=15)
        assert traced(handle.workflow_id) == ["swells"]
        [step, _] = handle.steps()
        assert step.attempts == 1
        assert (step.error or "").startswith("eventflow.errors.CodecError: the result of 'swells'")
    finally:
        small.down()
        small.up(max_payload=LIMIT)


@both
def raises(do: Do) -> Body[None]:
    yield do.sleep(0)
    raise ValueError(LARGE * 3)


def test_an_exception_that_is_too_large_is_cut(small: App, colour: Colour) -> None:
    handle = small.start(raises, colour)
    with pytest.raises(Exception, match="xxx"):
        handle.result(timeout=15)
    small.down()
    small.up(max_payload=LIMIT)
    with pytest.raises(WorkflowError, match=r"builtins.ValueError: x+\.\.\. \(cut: the record took [\d,]+ bytes"):
        handle.result(timeout=15)


def test_a_client_of_a_process_that_runs_nothing_heeds_the_setting(
    small: App, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sync.Client(ledger) as client, pytest.raises(CodecError, match=SAID):
        client.handle("someone", str).send(LARGE)  # the application's limit holds, whatever the client's settings say
    small.down()
    try:
        with sync.Client(ledger) as client:
            client.handle("someone", str).send(LARGE)
        monkeypatch.setenv("EVENTFLOW_MAX_PAYLOAD", "2000")
        with sync.Client(ledger) as client, pytest.raises(CodecError, match=SAID):
            client.handle("someone", str).send(LARGE)
    finally:
        small.up(max_payload=LIMIT)
