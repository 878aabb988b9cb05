"""A program that is deployed several times, each time with other code under the same name: `deployed.py CODE STATUS ID...`."""

import json
import sys
import time

import eventflow
from eventflow import durable, sync
from eventflow.settings import Settings
from tests.conformance.colours import Body, Colour, Do, both

CODE, STATUS, *IDS = sys.argv[1:]


def say(what: str) -> str:
    return what


@both(name="deployed")
def deployed(do: Do) -> Body[list[str]]:
    found: list[str] = []

    def act(name: str) -> Body[None]:
        found.append((yield do.run_step(say, name, name=name)))

    if CODE == "old":
        yield from act("a")
        yield do.sleep(0.6)
        yield from act("b")
    elif CODE == "other":
        yield from act("x")
    elif CODE == "patched":
        yield from act("a")
        yield do.sleep(0.6)
        yield from act("c" if durable.patch("use c") else "b")
    elif CODE == "patched before the sleep":
        yield from act("c" if durable.patch("use c") else "a")
        yield do.sleep(0.6)
        yield from act("b")
    elif CODE == "patched asleep":
        yield from act("c" if durable.patch("use c") else "a")
        yield do.sleep(0.6)
        yield from act("d")
    elif CODE == "deprecated asleep":
        durable.deprecate_patch("use c")
        yield from act("c")
        yield do.sleep(0.6)
        yield from act("d")
    return found


def colour_of(workflow_id: str) -> Colour:
    return "sync" if workflow_id.startswith("sync") else "async"


settings = Settings(suspend_after=0.02, lease=1, beat=0.2)  # type: ignore[call-arg]
with eventflow.running(settings, consumers=False):
    handles = [sync.start(deployed[colour_of(i)], workflow_id=i) for i in IDS]
    while {handle.get().status for handle in handles} != {STATUS}:
        time.sleep(0.02)
    if STATUS == "succeeded":
        print(json.dumps({handle.workflow_id: handle.result() for handle in handles}))
    else:
        print(json.dumps({handle.workflow_id: handle.get().reason for handle in handles}))
