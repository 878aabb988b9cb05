"""Bad input: each mistake has an error of its own, at the earliest moment, and none stops the application."""

import asyncio
import contextvars
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import eventflow
from eventflow import durable, sync
from eventflow.errors import BlockingCallError, CodecError, UsageError
from tests.conformance.colours import Body, Colour, Do, both, trace, traced
from tests.conformance.conftest import App, names

stays = pytest.mark.parametrize("app", ["stays"], indirect=True)
ODD = "\ud800"  # half a surrogate pair, which is no text for Postgres


class Opaque:
    pass


MISTAKES: dict[str, tuple[Callable[[Do], Any], type[Exception], str]] = {
    "a negative sleep": (lambda do: do.sleep(-1), UsageError, "a sleep must be .* -1"),
    "a negative timedelta": (lambda do: do.sleep(timedelta(seconds=-1)), UsageError, "a sleep"),
    "a sleep of nan": (lambda do: do.sleep(float("nan")), UsageError, "a sleep"),
    "an endless sleep": (lambda do: do.sleep(float("inf")), UsageError, "a sleep"),
    "an absurd sleep": (lambda do: do.sleep(1e300), UsageError, "a sleep"),
    "an absurd timedelta": (lambda do: do.sleep(timedelta.max), UsageError, "a sleep"),
    "a sleep of no number": (lambda do: do.sleep("soon"), UsageError, "a sleep must be .*'soon'"),
    "a sleep of nothing": (lambda do: do.sleep(None), UsageError, "a sleep must be .*None"),
    "a naive time": (lambda do: do.sleep_until(datetime(2030, 1, 1)), UsageError, "zone"),
    "no time": (lambda do: do.sleep_until("tomorrow"), UsageError, "sleep_until takes .*'tomorrow'"),
    "a negative timeout": (lambda do: do.recv(int, timeout=-1), UsageError, "timeout"),
    "an absurd timeout": (lambda do: do.recv(int, timeout=1e300), UsageError, "timeout"),
    "a type that is none": (lambda do: do.recv(Opaque), UsageError, "Opaque"),
    "a topic that is no text": (lambda do: do.recv(int, topic=7), UsageError, "not a topic: 7"),
    "a topic with a zero byte": (lambda do: do.recv(int, topic="a\0"), UsageError, "not a topic"),
    "a topic of half a character": (lambda do: do.recv(int, topic=ODD), UsageError, "not a topic"),
    "a topic that is too long": (lambda do: do.send("x", 1, topic="t" * 501), UsageError, "not a topic"),
    "a sent topic of half a character": (lambda do: do.send("x", 1, topic=ODD), UsageError, "not a topic"),
    "an empty id": (lambda do: do.send("", 1), UsageError, "id cannot be empty"),
    "an id that is no text": (lambda do: do.send(5, 1), UsageError, "id is a text"),
    "an id that is too long": (lambda do: do.send("i" * 513, 1), UsageError, "at most"),
    "an id with a zero byte": (lambda do: do.send("a\0", 1), UsageError, "printable"),
    "a child's id with a zero byte": (lambda do: do.send("a>1.1\0", 1), UsageError, "printable"),
    "a child's id of half a character": (lambda do: do.send(f"a>{ODD}", 1), UsageError, "printable"),
    "a message's id of half a character": (lambda do: do.send(f"kafka:{ODD}", 1), UsageError, "printable"),
    "a message that is no value": (lambda do: do.send("x", Opaque()), UsageError, "Opaque"),
    "a message of half a character": (lambda do: do.send("x", ODD), CodecError, ""),
    "too many messages": (lambda do: do.send_many([("x", 1)] * 10_001), UsageError, "at most 10,000 messages"),
    "too much at once": (lambda do: do.send_many([("x", "m" * (2**22 - 2))] * 5), UsageError, "16,777,216 .*number 4 .*20,971,520"),
    "many of what is no pair": (lambda do: do.send_many([("x", 1), "xy"]), UsageError, "number 1 is 'xy'"),
    "one of many to an empty id": (lambda do: do.send_many([("x", 1), ("", 1)]), UsageError, "id cannot be empty"),
    "one of many that is no value": (lambda do: do.send_many([("x", Opaque())]), UsageError, "Opaque"),
    "many under no topic": (lambda do: do.send_many([], topic=7), UsageError, "not a topic: 7"),
    "a key that is no text": (lambda do: do.set_event(3, 1), UsageError, "not a key: 3"),
    "a key of half a character": (lambda do: do.set_event(ODD, 1), UsageError, "not a key"),
    "an event's value that is none": (lambda do: do.set_event("k", Opaque()), UsageError, "Opaque"),
    "an asked key with a zero byte": (lambda do: do.event("x", "\0", int), UsageError, "not a key"),
    "an event of an empty id": (lambda do: do.event("", "k", int), UsageError, "id cannot be empty"),
    "first without handles": (lambda do: do.first(), UsageError, "at least one handle"),
    "first of what is no handle": (lambda do: do.first("x"), UsageError, "handle"),
    "a start of no workflow": (lambda do: do.start({do.colour: len}), UsageError, "@workflow"),
    "a child of an odd id": (lambda do: do.start(does, "a negative sleep", workflow_id="a>b"), UsageError, "'>'"),
    "a child's negative timeout": (lambda do: do.start(does, "x", timeout=-1), UsageError, "timeout"),
    "a child's absurd timeout": (lambda do: do.start(does, "x", timeout=1e300), UsageError, "timeout"),
    "a child's missing argument": (lambda do: do.start(does), UsageError, "missing"),
    "a child's argument of another type": (lambda do: do.start(does, 5), CodecError, "'mistake'"),
    "a step's negative timeout": (lambda do: do.run_step(len, "", timeout=-1), UsageError, "timeout"),
    "a step's negative retries": (lambda do: do.run_step(len, "", retries=-1), UsageError, "retries"),
}  # fmt: skip


@both
def does(do: Do, mistake: str) -> Body[list[str]]:
    """Make the mistake, and say what came of it."""
    operation, *_ = MISTAKES[mistake]
    try:
        yield operation(do)
    except Exception as error:
        kind = "UsageError" if isinstance(error, UsageError) else type(error).__name__
        return [kind, str(error)]
    return ["nothing", ""]


@stays
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_workflow(app: App, colour: Colour, mistake: str) -> None:
    _, kind, words = MISTAKES[mistake]
    found, text = app.run(does, colour, mistake)
    assert found == kind.__name__, text
    assert re.search(words, text), text


# ---- where a call is made --------------------------------------------------------------------------

IN_A_STEP: dict[str, Callable[[Any], Any]] = {
    "sleep": lambda verbs: verbs.sleep(0),
    "sleep_until": lambda verbs: verbs.sleep_until(datetime.now(UTC)),
    "recv": lambda verbs: verbs.recv(int, timeout=0),
    "event": lambda verbs: verbs.event("x", "k", int, timeout=0),
    "first": lambda verbs: verbs.first(sync.Handle(eventflow.Handle("x", None))),  # type: ignore[arg-type]
    "now": lambda _: durable.now(),
    "uuid4": lambda _: durable.uuid4(),
    "random": lambda _: durable.random(),
    "patch": lambda _: durable.patch("p"),
    "continue_as_new": lambda _: durable.continue_as_new(does["sync"].bind("x")),
}


@both
def does_in_a_step(do: Do, what: str) -> Body[str]:
    async def act_async() -> None:
        made = IN_A_STEP[what](durable)
        if made is not None:
            await made

    def act() -> None:
        IN_A_STEP[what](sync)

    try:
        yield do.run_step(act_async if do.colour == "async" else act, name="acts")
    except UsageError as error:
        return str(error)
    return "nothing"


@stays
@pytest.mark.parametrize("what", IN_A_STEP)
def test_what_waits_or_is_recorded_does_not_belong_into_a_step(app: App, colour: Colour, what: str) -> None:
    assert "step" in app.run(does_in_a_step, colour, what)


@stays
@pytest.mark.parametrize("what", IN_A_STEP)
def test_what_waits_or_is_recorded_does_not_belong_outside_a_workflow(app: App, what: str) -> None:
    with pytest.raises(UsageError, match="belongs into a workflow"):
        IN_A_STEP[what](sync)


@stays
def test_a_sync_verb_in_an_async_workflow_says_what_to_await(app: App) -> None:
    for what in ("sleep", "recv", "event"):
        found, text = app.run(crosses, "async", what)
        assert (found, "await eventflow.durable." in text) == ("BlockingCallError", True), text


@stays
def test_an_async_verb_in_a_sync_workflow_is_refused(app: App) -> None:
    found, text = app.run(crosses, "sync", "sleep")
    assert (found, "eventflow.sync" in text) == ("UsageError", True), text


@both
def crosses(do: Do, what: str) -> Body[list[str]]:
    verbs: Any = sync if do.colour == "async" else durable
    made = None
    try:
        made = IN_A_STEP[what](verbs)
        if made is not None:
            made.send(None)
    except (UsageError, BlockingCallError) as error:
        return [type(error).__name__, str(error)]
    finally:
        if made is not None:
            made.close()
    yield do.sleep(0)
    return ["nothing", ""]


@stays
def test_start_from_outside_refuses_absurd_times(app: App, colour: Colour) -> None:
    for timeout in (-1, 1e300, timedelta.max, "soon"):
        with pytest.raises(UsageError, match="timeout"):
            sync.start(does[colour], "a negative sleep", timeout=timeout)  # type: ignore[arg-type]


@stays
def test_handles_refuse_what_cannot_be(app: App, colour: Colour) -> None:
    handle = app.start(does, colour, "a negative sleep")
    for topic in (ODD, "a\0", 7):
        with pytest.raises(UsageError, match="not a topic"):
            handle.send(1, topic=topic)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a key"):
        handle.event(ODD, int, timeout=0)
    with pytest.raises(UsageError, match="idempotency key"):
        handle.send(1, idempotency_key=ODD)
    assert handle.result(timeout=10)[0] == "UsageError"


# ---- a step or transaction in another one ----------------------------------------------------------------


@eventflow.transaction
def commits_sync(connection: "psycopg.Connection[Any]", what: str) -> None:
    if what:
        NESTED[what](sync)
    trace("committed")


@eventflow.transaction
async def commits_async(connection: "psycopg.AsyncConnection[Any]", what: str) -> None:
    if what:
        await NESTED[what](durable)
    trace("committed")


@eventflow.step
def acts_sync(what: str) -> None:
    NESTED[what](sync)


@eventflow.step
async def acts_async(what: str) -> None:
    await NESTED[what](durable)


NESTED: dict[str, Callable[[Any], Any]] = {
    "a transaction": lambda verbs: (commits_sync if verbs is sync else commits_async)(""),
    "a step by run_step": lambda verbs: verbs.run_step(trace, "acted"),
    "a transaction by run_step": lambda verbs: verbs.run_step(commits_sync if verbs is sync else commits_async, ""),
}


@both
def nests(do: Do, outer: str, what: str) -> Body[str]:
    sides = (acts_sync, acts_async) if outer == "a step" else (commits_sync, commits_async)
    try:
        yield do.run_step(sides[do.colour == "async"], what, retries=3)
    except UsageError as error:
        yield do.sleep(0.05)
        return str(error)
    return "nothing"


@pytest.mark.parametrize("what", NESTED)
@pytest.mark.parametrize("outer", ["a step", "a transaction"])
def test_a_step_or_transaction_in_another_one_is_refused_and_not_tried_again(
    app: App, colour: Colour, outer: str, what: str
) -> None:
    handle = app.start(nests, colour, outer, what)
    said = handle.result(timeout=10)
    assert ("run_step belongs into a workflow" if "run_step" in what else "cannot be called in a step or") in said
    assert traced(handle.workflow_id) == []
    assert handle.steps()[0].attempts == 1


# ---- in another thread, on another loop --------------------------------------------------------------------


async def _acts_there() -> None:
    await durable.run_step(trace, "acted")


async def _sleeps_there() -> None:
    await durable.sleep(0)


async def _asks_there() -> None:
    durable.now()


ELSEWHERE: dict[str, Callable[[], Any]] = {
    "a value": durable.now,
    "a step": lambda: eventflow.step(trace)("acted"),
    "a value on another loop": lambda: asyncio.run(_asks_there()),
    "a step on another loop": lambda: asyncio.run(_acts_there()),
    "a wait on another loop": lambda: asyncio.run(_sleeps_there()),
}


def in_a_thread(call: Callable[[], Any]) -> Any:
    """In one that has the workflow's context, as libraries make them."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    thread.join(10)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


@both
def strays(do: Do, what: str, how: str) -> Body[str]:
    try:
        if how == "to_thread":
            yield lambda: asyncio.to_thread(ELSEWHERE[what])
        else:
            in_a_thread(ELSEWHERE[what])
    except UsageError as error:
        yield do.sleep(0.05)
        return str(error)
    return "nothing"


@pytest.mark.parametrize("how", ["to_thread", "a thread"])
@pytest.mark.parametrize("what", ELSEWHERE)
def test_an_operation_in_another_thread_is_refused_and_records_nothing(
    app: App, colour: Colour, what: str, how: str
) -> None:
    if how == "to_thread" and colour == "sync":
        pytest.skip("asyncio's")
    handle = app.start(strays, colour, what, how)
    said = handle.result(timeout=10)
    assert "in another thread" in said or (colour == "sync" and "durable.run_step is async" in said)
    assert traced(handle.workflow_id) == []
    assert [(step.name, step.position) for step in handle.steps()] == [("sleep", "1.1")]


# ---- values that are none -----------------------------------------------------------------------------------


def opaque() -> Any:
    trace("acts")
    return Opaque()


def mistyped() -> int:
    trace("acts")
    return "x"  # type: ignore[return-value]


@eventflow.transaction
def opaque_sync(connection: "psycopg.Connection[Any]") -> Any:
    return opaque()


@eventflow.transaction
async def opaque_async(connection: "psycopg.AsyncConnection[Any]") -> Any:
    return opaque()


@eventflow.transaction
def mistyped_sync(connection: "psycopg.Connection[Any]") -> int:
    return mistyped()


@eventflow.transaction
async def mistyped_async(connection: "psycopg.AsyncConnection[Any]") -> int:
    return mistyped()


RESULTS: dict[str, tuple[Callable[[Do], Any], str]] = {
    "a step's": (lambda do: do.run_step(opaque, retries=3), "the result of 'opaque': .*Opaque"),
    "a step's of another type": (
        lambda do: do.run_step(mistyped, retries=3),
        "the result of 'mistyped': str does not fit",
    ),
    "a transaction's": (
        lambda do: do.run_step(opaque_async if do.colour == "async" else opaque_sync, name="opaque", retries=3),
        "the result of 'opaque.*': .*Opaque",
    ),
    "a transaction's of another type": (
        lambda do: do.run_step(mistyped_async if do.colour == "async" else mistyped_sync, name="mistyped", retries=3),
        "the result of 'mistyped.*': str does not fit",
    ),
}


@both
def has_results(do: Do, which: str) -> Body[str]:
    try:
        yield RESULTS[which][0](do)
    except CodecError as error:
        yield do.sleep(0.05)
        return str(error)
    return "nothing"


@pytest.mark.parametrize("which", RESULTS)
def test_a_result_that_is_no_value_is_named_and_not_tried_again(app: App, colour: Colour, which: str) -> None:
    handle = app.start(has_results, colour, which)
    assert re.search(RESULTS[which][1], handle.result(timeout=10))
    assert traced(handle.workflow_id) == ["acts"]
    assert len(names(handle)) == 2


@both(retries=3)
def gives_opaque(do: Do) -> Body[Any]:
    trace("runs")
    yield do.sleep(0)
    return Opaque()


@both(retries=3)
def gives_another_type(do: Do) -> Body[int]:
    trace("runs")
    yield do.sleep(0)
    return "x"  # type: ignore[return-value]


@stays
def test_a_workflows_result_that_is_no_value_fails_it_alone(app: App, colour: Colour) -> None:
    for pair, words in ((gives_opaque, "Opaque"), (gives_another_type, "str does not fit")):
        handle = app.start(pair, colour)
        with pytest.raises(CodecError, match=f"the result of '.*run_{colour}': .*{words}"):
            handle.result(timeout=10)
        assert handle.get().status == "failed"
        assert traced(handle.workflow_id) == ["runs"]
    assert app.run(does, colour, "a negative sleep")[0] == "UsageError", "the application goes on"


@stays
@pytest.mark.parametrize("verb", [sync.start, sync.enqueue], ids=["start", "enqueue"])
@pytest.mark.parametrize("value", [Opaque(), 5, b"x", ODD], ids=["opaque", "int", "bytes", "odd"])
def test_an_argument_that_is_no_value_is_named(app: App, colour: Colour, verb: Any, value: Any) -> None:
    with pytest.raises(CodecError, match=f"run_{colour}, argument 'mistake'"):
        verb(does[colour], value)


# ---- ids ---------------------------------------------------------------------------------------------------

IDS: dict[str, tuple[Any, str]] = {
    "empty": ("", "cannot be empty"),
    "too long": ("i" * 513, "at most 512 characters, this one has 513"),
    "a zero byte": ("a\0b", "printable characters only: 'a.x00b'"),
    "half a character": (ODD, "printable"),
    "a line's end": ("a\n", "printable"),
    "a child's": ("a>1.1", "'>' are those of children"),
    "a message's": ("kafka:x", "'kafka:' are those of messages"),
    "a fire's": ("schedule:x", "'schedule:' are those of schedules"),
    "no text": (5, "a workflow id is a text, not 5"),
}


@stays
@pytest.mark.parametrize("which", IDS)
def test_odd_ids_are_refused_wherever_they_are_given(app: App, ledger: str, colour: Colour, which: str) -> None:
    odd, words = IDS[which]
    with sync.Client(ledger) as client:
        for verb in (sync.start, sync.enqueue, client.enqueue):
            with pytest.raises(UsageError, match=words):
                verb(does[colour], "a negative sleep", workflow_id=odd)
        with pytest.raises(UsageError, match=words):
            client.enqueue(does[colour].name, "a negative sleep", workflow_id=odd)
    longest = f"{colour} {which}".ljust(512, "ü")
    assert app.run(does, colour, "a negative sleep", workflow_id=longest)[0] == "UsageError"
