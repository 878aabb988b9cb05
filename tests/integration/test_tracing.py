"""Traces: one from a message over its steps and what it publishes to whoever consumes that, also where a process dies on the way."""

import json
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Worker, World

Span = dict[str, Any]


def start(world: World, **armed: str) -> Worker:
    if not world.workers:
        world.create_topic(1)
        world.create_topic(1, f"{world.topic}-out")
    return world.start("traced", ready=True, OUT=f"{world.topic}-out", SPANS=str(spans_file(world)), **armed)


def spans_file(world: World) -> Path:
    return world.folder / "spans.jsonl"


def spans(world: World) -> list[Span]:
    file = spans_file(world)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def named(found: list[Span], name: str) -> list[Span]:
    return [span for span in found if span["name"] == name]


def wait_for(world: World, name: str, count: int = 1) -> list[Span]:
    world.wait(lambda: len(named(spans(world), name)) >= count, f"{count} spans {name!r}")
    return spans(world)


def test_from_a_message_to_whoever_consumes_what_it_published_is_one_trace(world: World) -> None:
    start(world)
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    headers = [("traceparent", f"00-{trace}-{caller}-01".encode())]
    world.producer.produce(world.topic, json.dumps({"n": 3}).encode(), "hunter2", headers=headers)
    world.produced += 1
    world.flush()
    out = f"{world.topic}-out"
    found = wait_for(world, f"process {out}")
    found = wait_for(world, "workflow letter")
    ours = [span for span in found if span["trace"] == trace]
    by = {span["name"]: span for span in ours}
    process = by[f"process {world.topic}"]
    assert (process["parent"], process["kind"]) == (caller, "CONSUMER")
    attributes = process["attributes"]
    assert attributes["messaging.destination.name"] == world.topic
    assert attributes["messaging.consumer.group.name"] == "first"
    assert (attributes["messaging.operation.type"], attributes["messaging.kafka.offset"]) == ("process", 0)
    below = ["step price", "step announce", "transaction book", "start child", "enqueue letter"]
    assert {name: by[name]["parent"] for name in below if name != "step price"} == {
        name: process["id"] for name in below if name != "step price"
    }
    assert by[f"create {out}"]["parent"] == by["step announce"]["id"]
    assert by[f"process {out}"]["parent"] == by[f"create {out}"]["id"]
    assert by["workflow child"]["parent"] == by["start child"]["id"]
    assert by["workflow letter"]["parent"] == by["enqueue letter"]["id"]
    assert len(named(ours, "step price")) == 2
    sent = wait_for(world, f"send {out}")
    assert named(sent, f"send {out}")[0]["links"] == [by[f"create {out}"]["id"]]
    assert "hunter2" not in spans_file(world).read_text()


@pytest.mark.crash
@pytest.mark.parametrize("carried", [True, False], ids=["traced by its producer", "traced from here on"])
def test_a_trace_goes_on_where_another_process_does(world: World, carried: bool) -> None:
    """The first process is killed between the step's end and the workflow's; what it left is taken over by another."""
    dying = start(world, crash="executor.before_finish:1", EVENTFLOW_ACCEPT_AFTER="0")
    trace = secrets.token_hex(16)
    headers = [("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01".encode())] if carried else None
    world.producer.produce(world.topic, json.dumps({"n": 3}).encode(), headers=headers)
    world.produced += 1
    world.flush()
    world.wait_death(dying)
    left = spans(world)
    before = named(left, "step price")[0]
    assert before["trace"] == trace or not carried
    start(world)
    out = f"{world.topic}-out"
    found = wait_for(world, f"process {out}")
    wait_for(world, f"process {world.topic}")
    found = wait_for(world, "workflow letter")
    again = named(found, f"process {world.topic}")[-1]
    assert again["pid"] != dying.pid
    assert again["attributes"]["eventflow.recoveries"] == 1
    names = (
        f"process {world.topic}",
        "step price",
        "step announce",
        f"create {out}",
        f"process {out}",
        "workflow letter",
    )
    assert {name: {s["trace"] for s in named(found, name)} for name in names} == {
        name: {before["trace"]} for name in names
    }
    assert (
        len(named(found, "step announce")) == 1
    )  # recorded by the first process, replayed without a span by the second
    lost = before["parent"]  # the first run's span never ended: the second is linked with it, or below it
    assert again["links"] == [lost] if carried else again["parent"] == lost
    assert len(named(found, "takeover")) == 1


@pytest.mark.parametrize("state", [pytest.param("refuses", marks=pytest.mark.long), "hangs"])
def test_a_collector_that_is_down_does_not_slow_the_work(world: World, state: str) -> None:
    """One that hangs would take ten seconds for each export; nobody waits for it, also not who leaves."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as collector:
        port = collector.getsockname()[1]
        if state == "refuses":
            collector.close()
        worker = start(world, COLLECTOR=f"http://127.0.0.1:{port}/v1/traces", OTEL_BSP_SCHEDULE_DELAY="100")
        world.produce(500)
        world.wait_completed("first", 500, timeout=9)
        world.wait(lambda: world.completed("second", f"{world.topic}-out") == 500, "all that was published is consumed")
        assert worker.stop(timeout=40) == 0
