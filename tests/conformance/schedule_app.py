"""Schedules in code, for workers that are killed, or whose clock is wrong: each run is a row, in its checkpoint's commit."""

import os
import time
from datetime import timedelta
from typing import Any, cast

import psycopg

import eventflow
from eventflow import Fire, durable
from eventflow.cron import Overlap

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

    @eventflow.scheduled(every=timedelta(seconds=float(os.environ["EVERY"])), overlap=OVERLAP)
    async def tick(fire: Fire) -> str:
        await durable.run_step(effect, f"{fire.time.timestamp():.6f}")
        if "TAKES" in os.environ:
            await durable.sleep(float(os.environ["TAKES"]))
        return fire.cause


@eventflow.workflow(name="noted")
def noted(fire: Fire, what: str) -> str:
    effect(f"{what} {fire.cause}")
    return what
