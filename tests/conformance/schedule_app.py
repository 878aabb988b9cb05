"""Schedules in code, for workers that are killed, or whose clock is wrong: each run is a row, in its checkpoint's commit."""

import os
import time
from datetime import timedelta
from typing import Any, cast

import psycopg

import eventflow
from eventflow import Fire, durable
from eventflow.cron import Overlap
from tests.conformance.colours import Body, Do, both

WRONG = float(os.environ.get("CLOCK_WRONG_BY", "0"))
if WRONG:
    right = time.time
    time.time = lambda: right() + WRONG


@eventflow.transaction
def effect(connection: "psycopg.Connection[Any]", note: str) -> None:
    connection.execute(
        'insert into public.effects ("group", note, pid) values (%s, %s, %s)',
        [durable.workflow_id(), note, os.getpid()],
    )


if "EVERY" in os.environ:
    OVERLAP = cast("Overlap", os.environ.get("OVERLAP", "allow"))

    @both(name="tick")
    def tick(do: Do, fire: Fire) -> Body[str]:
        yield do.run_step(effect, f"{fire.time.timestamp():.6f}")
        if "TAKES" in os.environ:
            yield do.sleep(float(os.environ["TAKES"]))
        return fire.cause

    EVERY = timedelta(seconds=float(os.environ["EVERY"]))
    eventflow.scheduled(name="tick", every=EVERY, overlap=OVERLAP)(tick[os.environ.get("COLOUR", "async")])


@eventflow.workflow(name="noted")
def noted(fire: Fire, what: str) -> str:
    effect(f"{what} {fire.cause}")
    return what
