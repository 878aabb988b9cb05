"""Messages and events: API.md 2.2, PROTOCOL.md R19."""

import asyncio
import itertools
import statistics
import time
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import eventflow
from eventflow import durable, sync
from eventflow.client import Client
from eventflow.errors import CodecError, UsageError, WorkflowTimeoutError
from tests.conformance import hops_app
from tests.conformance.colours import Body, Colour, Do, both, trace, traced, until
from tests.conformance.conftest import App, anyhow, names
from tests.harness import DEFAULTS, World


class Order(BaseModel):
    n: int
    what: str = ""


@both
def collects(do: Do, count: int, topic: str = "") -> Body[list[int]]:
    trace("begins")
    found: list[int] = []
    for _ in range(count):
        found.append((yield do.recv(int, topic=topic, timeout=10)))
    return found


@both
def posts(do: Do, to: str, values: list[int], topic: str = "", pause: float = 0) -> Body[int]:
    for value in values:
        yield do.send(to, value, topic=topic)
        if pause:
            yield do.sleep(pause)
    return len(values)


@anyhow
def test_messages_are_received_in_order_each_once(app: App, colour: Colour) -> None:
    handle = app.start(collects, colour, 30)
    app.run(posts, colour, handle.workflow_id, list(range(30)))
    assert handle.result(timeout=10) == list(range(30))


def test_each_is_received_once_however_often_sender_and_receiver_leave_memory(app: App, colour: Colour) -> None:
    handle = app.start(collects, colour, 5)
    sender = app.start(posts, colour, handle.workflow_id, list(range(5)), "", 0.2)
    assert handle.result(timeout=15) == [0, 1, 2, 3, 4]
    assert names(sender).count("send") == 5
    assert traced(handle.workflow_id).count("begins") > 2
    assert names(handle) == ["recv"] * 10  # the time until which it waits, and what came


@anyhow
def test_a_message_waits_for_its_receiver(app: App, colour: Colour) -> None:
    """It is sent before the receiver exists."""
    later = f"{colour} later {time.time()}"
    app.run(posts, colour, later, [7, 8])
    assert app.run(collects, colour, 2, workflow_id=later) == [7, 8]


@anyhow
def test_a_long_inbox_is_read_in_good_time(app: App, colour: Colour) -> None:
    later = f"{colour} many {time.time()}"
    app.run(posts, colour, later, list(range(500)))
    began = time.monotonic()
    assert app.run(collects, colour, 500, workflow_id=later) == list(range(500))
    assert time.monotonic() - began < 5


@both
def reads_two_topics(do: Do) -> Body[list[int]]:
    second = yield do.recv(int, topic="b", timeout=10)
    first = yield do.recv(int, topic="a", timeout=10)
    plain = yield do.recv(int, timeout=10)
    return [first, second, plain]


@anyhow
def test_each_topic_is_an_inbox_of_its_own(app: App, colour: Colour) -> None:
    handle = app.start(reads_two_topics, colour)
    for topic, value in (("a", 1), ("", 3), ("b", 2)):
        handle.send(value, topic=topic)
    assert handle.result(timeout=10) == [1, 2, 3]


@both
def waits_in_vain(do: Do, timeout: float) -> Body[list[Any]]:
    found: list[Any] = []
    for _ in range(2):
        before = durable.now()
        try:
            found.append((yield do.recv(int, timeout=timeout)))
        except WorkflowTimeoutError:
            found.append((durable.now() - before).total_seconds())
    yield do.run_step(trace, "after")
    yield do.sleep(0.3)
    return found


def test_a_timeout_is_recorded(app: App, colour: Colour) -> None:
    """A message that comes later changes nothing on the replay that the sleep makes."""
    handle = app.start(waits_in_vain, colour, 0.3)
    until(lambda: "after" in traced(handle.workflow_id))
    handle.send(1)
    first, second = handle.result(timeout=10)
    assert 0.25 <= first < 1.3
    assert 0.25 <= second < 1.3


@both
def glances(do: Do) -> Body[int | None]:
    yield do.run_step(trace, "begins")
    try:
        return (yield do.recv(int, timeout=0))
    except WorkflowTimeoutError:
        return None


@anyhow
def test_a_message_that_is_there_is_received_whatever_the_timeout(app: App, colour: Colour) -> None:
    later = f"{colour} glance {time.time()}"
    app.run(posts, colour, later, [7])
    assert app.run(glances, colour, workflow_id=later) == 7
    assert app.run(glances, colour) is None


@both
def waits_a_second(do: Do) -> Body[int]:
    trace("begins")
    return (yield do.recv(int, timeout=1))


def test_a_message_that_came_in_time_is_received_although_nobody_ran_then(app: App, colour: Colour) -> None:
    handle = app.start(waits_a_second, colour)
    app.asleep(handle)
    handle.send(5)
    app.down()
    time.sleep(1.1)
    app.up()
    assert handle.result(timeout=10) == 5


# ---- branches --------------------------------------------------------------------------------------


def _takes(do: Do, count: int) -> Body[list[int]]:
    found: list[int] = []
    for _ in range(count):
        found.append((yield do.recv(int, timeout=10)))
    return found


@both
def two_receivers(do: Do) -> Body[list[list[int]]]:
    trace("begins")
    return (yield do.gather(_takes(do, 3), _takes(do, 3)))


@anyhow
def test_two_receiving_branches_share_the_messages_each_once_in_order(app: App, colour: Colour) -> None:
    handle = app.start(two_receivers, colour)
    app.asleep(handle)
    app.start(posts, colour, handle.workflow_id, list(range(6)), "", 0.05)
    one, other = handle.result(timeout=15)
    assert sorted(one + other) == list(range(6))
    assert one == sorted(one)
    assert other == sorted(other)


# ---- sending ---------------------------------------------------------------------------------------


@both
def sends_and_replays(do: Do, to: str) -> Body[int]:
    yield do.send(to, durable.attempt())
    yield do.sleep(0.3)
    yield do.send(to, -1)
    return durable.attempt()


def test_a_replay_sends_nothing_again(app: App, colour: Colour) -> None:
    inbox = f"{colour} once {time.time()}"
    assert app.run(sends_and_replays, colour, inbox) > 1
    assert app.run(collects, colour, 2, workflow_id=inbox) == [1, -1]


def test_sent_again_under_the_same_key_it_is_the_same_message(app: App, colour: Colour) -> None:
    handle = app.start(collects, colour, 2)
    for value, key in ((1, "a"), (1, "a"), (2, "b")):
        handle.send(value, idempotency_key=key)
    assert handle.result(timeout=10) == [1, 2]


@both
def takes_an_order(do: Do) -> Body[Order]:
    return (yield do.recv(Order, timeout=10))


def test_a_message_has_the_type_that_is_asked_for(app: App, colour: Colour) -> None:
    handle = app.start(takes_an_order, colour)
    handle.send(Order(n=3, what="ü\0"))
    assert handle.result(timeout=10) == Order(n=3, what="ü\0")


@both
def expects_a_number(do: Do) -> Body[str]:
    try:
        yield do.recv(int, timeout=10)
    except CodecError:
        return (yield do.recv(str, timeout=10))
    return ""


@anyhow
def test_a_message_of_another_type_is_a_codec_error_and_received(app: App, colour: Colour) -> None:
    handle = app.start(expects_a_number, colour)
    handle.send({"no": "number"})
    handle.send("next")
    assert handle.result(timeout=10) == "next"


# ---- many at once ----------------------------------------------------------------------------------


@both
def spreads(do: Do, to: list[str], how: str) -> Body[int]:
    mail = [(inbox, n) for n in range(3) for inbox in to]
    if how == "workflow":
        yield do.send_many(mail)
    elif how == "transaction":
        yield do.run_step(spread_in_a_transaction, mail)
    else:
        yield do.run_step(
            spread_async if do.colour == "async" else spread, mail, retries=eventflow.Retry(2, delay=0.01)
        )
    yield do.sleep(0.3)  # a replay sends nothing again
    yield do.send_many((inbox, 9) for inbox in to)
    yield do.send_many([])
    return durable.attempt()


def spread(mail: list[tuple[str, int]]) -> None:
    trace("tried")
    sync.send_many([(inbox, n if traced(durable.workflow_id()).count("tried") == 2 else -1) for inbox, n in mail])
    if traced(durable.workflow_id()).count("tried") == 1:
        raise ValueError("what it sent goes with it")


async def spread_async(mail: list[tuple[str, int]]) -> None:
    trace("tried")
    second = traced(durable.workflow_id()).count("tried") == 2
    await durable.send_many([(inbox, n if second else -1) for inbox, n in mail])
    if not second:
        raise ValueError("what it sent goes with it")


@eventflow.transaction
def spread_in_a_transaction(connection: "psycopg.Connection[Any]", mail: list[tuple[str, int]]) -> None:
    sync.send_many(mail)


@pytest.mark.parametrize("how", ["workflow", "step", "transaction"])
def test_many_are_sent_at_once_each_once_and_in_order(app: App, colour: Colour, how: str) -> None:
    inboxes = [f"{colour} {how} {n} {time.time()}" for n in range(5)]
    early = app.start(collects, colour, 4, workflow_id=inboxes[0])
    app.asleep(early)
    sender = app.start(spreads, colour, inboxes, how)
    assert sender.result(timeout=10) > 1
    first = {"workflow": "send_many", "step": "spread_async" if colour == "async" else "spread"}
    assert names(sender) == [first.get(how, "spread_in_a_transaction"), "sleep", "send_many", "send_many"]
    for inbox in inboxes:
        assert app.run(collects, colour, 4, workflow_id=inbox) == [0, 1, 2, 9]


def test_a_client_sends_many_once_under_its_key(app: App, colour: Colour, ledger: str) -> None:
    inboxes = [f"{colour} client {n} {time.time()}" for n in range(3)]
    mail = [(inbox, n) for n in range(3) for inbox in inboxes]
    early = app.start(collects, colour, 4, "many", workflow_id=inboxes[0])
    app.asleep(early)

    async def send_all() -> None:
        async with Client(ledger) as client:
            for _ in range(2):
                await client.send_many(mail, topic="many", idempotency_key=inboxes[0])
            await client.send_many([])
            await client.send_many([(inbox, 9) for inbox in inboxes], topic="many")

    if colour == "async":
        asyncio.run(send_all())
    else:
        with sync.Client(ledger) as client:
            for _ in range(2):
                client.send_many(mail, topic="many", idempotency_key=inboxes[0])
            client.send_many([])
            client.send_many([(inbox, 9) for inbox in inboxes], topic="many")
    for inbox in inboxes:
        assert app.run(collects, colour, 4, "many", workflow_id=inbox) == [0, 1, 2, 9]


def test_as_many_as_may_be(app: App, colour: Colour, ledger: str) -> None:
    inbox = f"{colour} all {time.time()}"
    with sync.Client(ledger) as client:
        client.send_many([(inbox, n) for n in range(10_000)])
        with pytest.raises(UsageError, match="at most 10,000"):
            client.send_many([(inbox, n) for n in range(10_001)])
    with psycopg.connect(ledger) as connection:
        count = "select count(*), max(payload::int) from eventflow.messages where workflow_id = %s"
        assert connection.execute(count, [inbox]).fetchall() == [(10_000, 9_999)]


# ---- attempts --------------------------------------------------------------------------------------


@eventflow.step
def fails_first() -> None:
    trace("step")
    if traced(durable.workflow_id()).count("step") == 1:
        raise ValueError("the first attempt fails")


@both(retries=eventflow.Retry(2, delay=0.05))
def receives_after_a_failure(do: Do) -> Body[int]:
    try:
        yield do.run_step(fails_first)
    except ValueError:
        yield do.run_step(trace, (yield do.recv(int, timeout=10)))
        yield do.sleep(0.2)  # the receipt is durable
        raise
    return (yield do.recv(int, timeout=3))


@anyhow
def test_a_receipt_that_a_retry_drops_leaves_the_message_unread(app: App, colour: Colour) -> None:
    """What was recorded after the failure is dropped with it: API.md 2.3.7."""
    handle = app.start(receives_after_a_failure, colour)
    handle.send(1)
    assert handle.result(timeout=10) == 1
    seen = traced(handle.workflow_id)  # a replay passes the receipt once more
    assert [what for what, _ in itertools.groupby(seen)] == ["step", 1, "step"]


# ---- events ----------------------------------------------------------------------------------------


@both
def tells(do: Do, values: list[int]) -> Body[None]:
    for value in values:
        yield do.set_event("state", value)


@both
def listens(do: Do, to: str) -> Body[int]:
    trace("begins")
    return (yield do.event(to, "state", int, timeout=10))


def test_the_last_value_of_an_event_counts(app: App, colour: Colour) -> None:
    """Also where it is set several times in one flush."""
    handle = app.start(tells, colour, [1, 2, 3])
    handle.result(timeout=10)
    assert app.run(listens, colour, handle.workflow_id) == 3
    assert handle.event("state", int, timeout=5) == 3


@anyhow
def test_an_event_wakes_who_waits_for_it(app: App, colour: Colour) -> None:
    teller = f"{colour} teller {time.time()}"
    listeners = [app.start(listens, colour, teller) for _ in range(3)]
    for listener in listeners:
        app.asleep(listener)
    app.run(tells, colour, [5], workflow_id=teller)
    assert [listener.result(timeout=10) for listener in listeners] == [5, 5, 5]


@both
def listens_in_vain(do: Do) -> Body[str]:
    try:
        yield do.event("nobody", "state", int, timeout=0.3)
    except WorkflowTimeoutError as error:
        return str(error)
    return ""


def test_an_event_that_is_not_set_in_time(app: App, colour: Colour) -> None:
    assert "'state' of 'nobody'" in app.run(listens_in_vain, colour)


@both
def reads_an_event_twice(do: Do, to: str) -> Body[list[int]]:
    first = yield do.event(to, "state", int)
    yield do.run_step(trace, "read")
    yield do.recv(int, timeout=10)
    return [first, (yield do.event(to, "state", int))]


def test_what_an_event_was_when_it_was_read_is_recorded(app: App, colour: Colour) -> None:
    first = app.start(tells, colour, [1])
    reader = app.start(reads_an_event_twice, colour, first.workflow_id)
    until(lambda: "read" in traced(reader.workflow_id))
    changer = app.start(tells_and_tells, colour, reader.workflow_id)
    assert changer.result(timeout=10) is None
    assert reader.result(timeout=10) == [1, 1]


@both
def tells_and_tells(do: Do, wake: str) -> Body[None]:
    yield do.set_event("state", 9)
    yield do.send(wake, 0)


# ---- how quick it is ------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_in_one_process_it_takes_milliseconds(app: App, colour: Colour) -> None:
    listener = app.start(hops_app.answers, colour, 20)
    asker = app.start(hops_app.asks, colour, listener.workflow_id, 20)
    for handle, what in ((listener, "messages"), (asker, "events")):
        took = [seconds for _, seconds in handle.result(timeout=20)]
        print(f"{what}, {colour}: p50 {statistics.median(took) * 1000:.1f} ms, max {max(took) * 1000:.1f} ms")
        assert statistics.median(took) < 0.05


@pytest.mark.alone
def test_between_two_processes_it_takes_less_than_a_second(world: World, colour: Colour) -> None:
    """With the defaults of a deployment: a beat each second."""
    world.defaults = DEFAULTS
    for role in ("answers", "asks"):
        world.start(hops_app.__name__, ROLE=role)
    world.wait(lambda: world.one("select count(*) from eventflow.executors where alive") == 2, "both are there")
    with sync.Client(world.database_url) as client:
        listener = client.enqueue(f"hops answers {colour}", 10, result=list[hops_app.Hop])
        asker = client.enqueue(f"hops asks {colour}", listener.workflow_id, 10, result=list[hops_app.Hop])
        for handle, what in ((listener, "messages"), (asker, "events")):
            hops = handle.result(timeout=20)
            took = [seconds for _, seconds in hops]
            print(f"{what}, {colour}: p50 {statistics.median(took) * 1000:.1f} ms, max {max(took) * 1000:.1f} ms")
            assert all(other for other, _ in hops)
            assert max(took) < 1
