"""What people do to many workflows, from wherever they are, and what it leaves behind: nothing."""

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from eventflow import sync
from eventflow.client import Client
from eventflow.errors import (
    NotRunningError,
    UsageError,
    WorkflowNotFoundError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from eventflow.queues import Queue
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App

LINE = Queue("management line", concurrency=1)
broken = set[str]()


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


def act(what: str) -> str:
    trace(what)
    if what in broken:
        raise ValueError(what)
    return what


@both
def two_steps(do: Do, first: str, second: str) -> Body[list[str]]:
    return [(yield do.run_step(act, first)), (yield do.run_step(act, second))]


@both
def waits(do: Do) -> Body[str]:
    return (yield do.recv(str))


@both
def parent(do: Do, child: str) -> Body[list[str]]:
    """Waits for a child that nobody answers; what it is told."""
    handle = yield do.start(waits, workflow_id=child)
    try:
        yield handle.result
    except WorkflowNotFoundError as error:
        return [type(error).__name__, str(error)]
    return []


@both
def first_of_two(do: Do, child: str) -> Body[str]:
    handles = [(yield do.start(waits)), (yield do.start(waits, workflow_id=child))]
    return (yield do.first(*handles)).workflow_id


@both
def writes(do: Do, last: str) -> Body[None]:
    for item in ("a", "b", last):
        yield do.write_stream("items", f"{item}!" if "streams" in broken else item)
    yield do.close_stream("items")


@both
def in_line(do: Do, what: str) -> Body[str]:
    return (yield do.run_step(act, what))


def rows(ledger: str, text: str, *args: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(ledger, autocommit=True) as connection:
        return connection.execute(text.encode(), args).fetchall()


def failing(handle: sync.Handle[Any]) -> None:
    with pytest.raises(ValueError):
        handle.result(timeout=10)


# ---- from wherever one is ----------------------------------------------------------------------------

Kind = Callable[[str], sync.Client]
CLIENTS = {"here": lambda _: sync.Client.here(), "another process's": lambda url: sync.Client(url)}


@pytest.fixture(params=CLIENTS)
def client(app: App, ledger: str, request: pytest.FixtureRequest) -> Iterator[sync.Client]:
    made = CLIENTS[request.param](ledger)
    if request.param == "here":
        yield made
    else:
        with made:
            yield made


def test_each_operation_on_many(app: App, client: sync.Client, colour: Colour) -> None:
    prefix = f"{colour} {uuid.uuid4()} "
    broken.add("two")
    handles = [app.start(two_steps, colour, "one", "two", workflow_id=f"{prefix}{n}") for n in range(3)]
    for handle in handles:
        failing(handle)
    ids = [record.workflow_id for record in client.workflows(prefix=prefix, status="failed")]
    assert sorted(ids) == sorted(handle.workflow_id for handle in handles)
    broken.clear()
    assert client.retry(ids) == 3
    for handle in handles:
        assert handle.result(timeout=10) == ["one", "two"]
    second = handles[0].steps()[1].position
    forks = client.fork(ids, step=second)
    assert len(set(forks)) == 3
    for fork in forks:
        assert client.handle(fork, list[str]).result(timeout=10) == ["one", "two"]
        assert traced(fork) == ["two"], "what stands before the step was copied"
    assert client.restart(ids) == 3
    for handle in handles:
        until(lambda h=handle: h.get().status == "succeeded")
        assert traced(handle.workflow_id) == ["one", "two", "two", "one", "two"]
    sleepers = [app.start(waits, colour).workflow_id for _ in range(3)]
    assert client.cancel(sleepers) == 3
    until(lambda: all(client.handle(one, str).get().status == "cancelled" for one in sleepers))
    assert client.resume(sleepers) == 3
    until(lambda: all(client.handle(one, str).get().status == "waiting" for one in sleepers))
    assert client.terminate(sleepers) == 3
    later = [sync.enqueue(in_line[colour], "late", delay=60) for _ in range(3)]
    assert client.delay([one.workflow_id for one in later], 0) == 3
    assert [one.result(timeout=10) for one in later] == ["late"] * 3
    assert client.delete([*ids, *forks, *sleepers]) == 9
    assert list(client.workflows(prefix=prefix)) == []


def test_forks_of_many_are_all_or_none(app: App, client: sync.Client, colour: Colour) -> None:
    handle = app.start(two_steps, colour, "one", "two")
    assert handle.result(timeout=10)
    before = len(list(client.workflows(name=two_steps[colour].name)))
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        client.fork([handle.workflow_id, "nobody"])
    with pytest.raises(UsageError, match="nothing at position '9.9'"):
        client.fork([handle.workflow_id], step="9.9")
    with pytest.raises(UsageError, match="list of workflow ids"):
        client.fork(handle.workflow_id)
    assert len(list(client.workflows(name=two_steps[colour].name))) == before


def test_the_running_applications_client(app: App, colour: Colour) -> None:
    client = sync.Client.here()
    assert client.enqueue(in_line[colour].name, "by name", result=str).result(timeout=10) == "by name"
    assert LINE.name in {queue.name for queue in client.queues()}
    client.pause_queue(LINE.name)
    client.resume_queue(LINE.name)
    with pytest.raises(UsageError, match="not entered"), client:
        pass
    app.down()
    try:
        with pytest.raises(NotRunningError):
            client.cancel(["x"])
        with pytest.raises(NotRunningError):
            Client.here().handle("x", str)
    finally:
        app.up()


def test_a_client_of_another_application(app: App, ledger: str, colour: Colour) -> None:
    with sync.Client(ledger, application="elsewhere") as client:
        handle = client.enqueue(in_line[colour], "there")
        assert client.queues() == []
    assert rows(ledger, "select application from eventflow.workflows where id = %s", handle.workflow_id) == [
        ("elsewhere",)
    ]


def test_the_version_is_for_people(app: App, ledger: str, colour: Colour) -> None:
    """Each workflow shows that of the process which ran it, and whoever has its name runs it, whatever its version."""
    app.down()
    app.up(application_version="v1")
    ended = app.start(two_steps, colour, "one", "two")
    ended.result(timeout=10)
    asleep = app.start(waits, colour)
    app.asleep(asleep)
    app.down()
    app.up(application_version="v2")
    asleep.send("awake")
    assert asleep.result(timeout=10) == "awake"
    assert (ended.get().version, asleep.get().version) == ("v1", "v2")
    listed = {one.workflow_id: one.version for one in sync.Client.here().workflows(name=two_steps[colour].name)}
    assert listed[ended.workflow_id] == "v1"
    app.down()
    app.up()


def test_who_did_what_and_when_is_recorded(app: App, client: sync.Client, ledger: str, colour: Colour) -> None:
    ended = app.start(two_steps, colour, "one", "two")
    ended.result(timeout=10)
    told, ends = (app.start(waits, colour) for _ in range(2))
    line = sync.enqueue(in_line[colour], "late", delay=60)
    began = rows(ledger, "select clock_timestamp()")[0][0]
    client.cancel([told.workflow_id])
    client.terminate([ends.workflow_id])
    client.delay([line.workflow_id], 0)
    client.fork([ended.workflow_id])
    over = rows(ledger, "select clock_timestamp()")[0][0]
    me = rf".+@{re.escape(socket.gethostname())}, process {os.getpid()}"
    for handle, kind in ((told, "cancel"), (ends, "terminate"), (line, "delay"), (ended, "fork")):
        done = "select kind, who, at from eventflow.requests where workflow_id = %s"
        [(what, who, at)] = rows(ledger, done, handle.workflow_id)
        assert what == kind
        assert re.fullmatch(me, who), who
        assert began <= at <= over
        [shown] = client.workflow(handle.workflow_id).requests
        assert (shown.kind, shown.who, shown.at) == (kind, who, at)
    for handle in (told, ends):
        until(lambda h=handle: h.get().status == "cancelled")
        assert re.fullmatch(rf"(cancelled|terminated) by {me}", handle.get().reason or "")


# ---- what is left behind -----------------------------------------------------------------------------


def test_who_waits_for_a_workflow_that_is_deleted_is_told(app: App, ledger: str, colour: Colour) -> None:
    child = f"{colour} {uuid.uuid4()} child"
    handle = app.start(parent, colour, child)
    app.asleep(handle)
    until(lambda: rows(ledger, "select 1 from eventflow.watches where target = %s", child))
    with psycopg.connect(ledger) as one:  # in one transaction: its parent does not see that it was cancelled before
        one.execute("select eventflow.request(%s, 'terminate', 'me', false)", [[child]])
        one.execute("select eventflow.forget(%s, 'me')", [[child]])
    kind, text = handle.result(timeout=10)
    assert (kind, child in text) == ("WorkflowNotFoundError", True)


def test_who_begins_to_wait_for_a_workflow_that_is_gone_is_told(app: App, colour: Colour) -> None:
    gone = app.start(two_steps, colour, "one", "two")
    gone.result(timeout=10)
    gone.delete()
    kept[colour] = gone
    assert app.run(awaits_the_kept_one, colour) == "WorkflowNotFoundError"


kept: dict[Any, sync.Handle[Any]] = {}


@both
def awaits_the_kept_one(do: Do) -> Body[str]:
    handle: Any = kept[do.colour]
    try:
        yield (handle._handle if do.colour == "async" else handle).result
    except WorkflowNotFoundError as error:
        return type(error).__name__
    return ""


def test_a_terminated_sleeper_watches_nothing_any_more(app: App, ledger: str, colour: Colour) -> None:
    child = f"{colour} {uuid.uuid4()} child"
    handle = app.start(parent, colour, child)
    app.asleep(handle)
    watching = "select target from eventflow.watches where workflow_id = %s"
    assert rows(ledger, watching, handle.workflow_id) == [(child,)]
    handle.terminate()
    until(lambda: handle.get().status == "cancelled")
    assert rows(ledger, watching, handle.workflow_id) == []


@pytest.mark.parametrize("operation", ["restart", "delete"])
def test_a_stream_goes_with_its_workflow(app: App, colour: Colour, operation: str) -> None:
    """What is written under the same id afterwards is read from its beginning, and not behind the old end."""
    handle = app.start(writes, colour, "c")
    handle.result(timeout=10)
    assert list(handle.stream("items", str)) == ["a", "b", "c"]
    broken.add("streams")
    getattr(handle, operation)()
    if operation == "delete":
        handle = app.start(writes, colour, "c", workflow_id=handle.workflow_id)
    until(lambda: handle.get().status == "succeeded")
    assert list(handle.stream("items", str)) == ["a!", "b!", "c!"]


def test_the_time_of_one_that_is_retried_begins_when_it_does(app: App, ledger: str, colour: Colour) -> None:
    """It failed, and stands in line again for longer than what was left of its time."""
    broken.add("in line")
    handle = sync.enqueue(in_line[colour], "in line", queue=LINE.name, timeout=1)
    failing(handle)
    broken.clear()
    client = sync.Client.here()
    client.pause_queue(LINE.name)
    handle.retry()
    fork = handle.fork()
    time.sleep(1.1)
    client.resume_queue(LINE.name)
    assert (handle.result(timeout=10), fork.result(timeout=10)) == ("in line", "in line")


@both
def enqueues_with_little_time(do: Do, queue: str) -> Body[str]:
    import eventflow

    verb: Any = eventflow.enqueue if do.colour == "async" else sync.enqueue
    handle = yield lambda: verb(in_line[do.colour], "in line", queue=queue)
    trace(handle.workflow_id)
    try:
        yield handle.result
    except ValueError:
        trace("failed")
    yield do.sleep(60)
    return ""


def test_a_parents_time_runs_on_for_one_that_is_retried(app: App, colour: Colour) -> None:
    broken.add("in line")
    handle = app.start(enqueues_with_little_time, colour, LINE.name, timeout=1.5)
    until(lambda: "failed" in traced(handle.workflow_id))
    child = sync.Client.here().handle(traced(handle.workflow_id)[0], str)
    broken.clear()
    client = sync.Client.here()
    client.pause_queue(LINE.name)
    child.retry()
    with pytest.raises(WorkflowTimeoutError):
        handle.result(timeout=10)
    client.resume_queue(LINE.name)
    with pytest.raises(WorkflowTimeoutError):
        child.result(timeout=10)


def test_what_an_executor_holds_is_safe(app: App, colour: Colour) -> None:
    """Whatever a person wants to do to it meanwhile, but to end it."""
    handle = app.start(slow, colour)
    until(lambda: handle.get().status == "running")
    client = sync.Client.here()
    for operation in ("resume", "retry", "restart", "delete", "fork"):
        with pytest.raises(WorkflowStateError):
            getattr(client, operation)([handle.workflow_id])
    assert handle.result(timeout=10) == "slow"


@both
def slow(do: Do) -> Body[str]:
    yield do.run_step(time.sleep, 0.5)
    return "slow"


def test_the_first_may_be_one_that_is_gone(app: App, ledger: str, colour: Colour) -> None:
    child = f"{colour} {uuid.uuid4()} child"
    handle = app.start(first_of_two, colour, child)
    app.asleep(handle)
    with sync.Client(ledger) as client:
        client.terminate([child])
    assert handle.result(timeout=10) == child
