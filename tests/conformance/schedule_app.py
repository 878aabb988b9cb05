"""Schedules in code, for workers that are killed, or whose clock is wrong: each run is a row, in its checkpoint's commit."""

import os
import time
from datetime import timedelta
from typing import Any

import psycopg

import eventflow
from eventflow import Fire, durable

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

    @eventflow.scheduled(every=timedelta(seconds=float(os.environ["EVERY"])), overlap="allow")  # fmt: skip
    async def tick(fire: Fire) -> str:
        await durable.run_step(effect, f"{fire.time.timestamp():.6f}")
        return fire.cause


@eventflow.workflow(name="noted")
def noted(fire: Fire, what: str) -> str:
    effect(f"{what} {fire.cause}")
    return what
