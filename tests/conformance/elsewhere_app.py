"""Workflows with transactions on another database, in workers that are killed. Each effect is a row there, in its own commit."""

import os
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import durable, sync
from tests.conformance.colours import Body, Do, both

INSERT = 'insert into effects ("group", note, pid) values (%s, %s, %s)'
BY_NAME = text('insert into effects ("group", note, pid) values (:workflow, :note, :pid)')


def _row(note: str) -> dict[str, Any]:
    return {"workflow": durable.workflow_id(), "note": note, "pid": os.getpid()}


@eventflow.transaction(database="other")
def by_session(session: Session, note: str) -> str:
    session.execute(BY_NAME, _row(note))
    sync.send(durable.workflow_id(), note, topic="told")
    return note


@eventflow.transaction(database="other")
def by_connection(connection: "psycopg.Connection[Any]", note: str) -> str:
    connection.execute(INSERT, tuple(_row(note).values()))
    sync.send(durable.workflow_id(), note, topic="told")
    return note


@eventflow.transaction(database="other")
async def by_async_session(session: AsyncSession, note: str) -> str:
    await session.execute(BY_NAME, _row(note))
    await durable.send(durable.workflow_id(), note, topic="told")
    return note


@eventflow.transaction(database="other")
async def by_async_connection(connection: "psycopg.AsyncConnection[Any]", note: str) -> str:
    await connection.execute(INSERT, tuple(_row(note).values()))
    await durable.send(durable.workflow_id(), note, topic="told")
    return note


OF: dict[str, list[Any]] = {"async": [by_async_session, by_async_connection], "sync": [by_session, by_connection]}


@both
def shops(do: Do) -> Body[list[str]]:
    """Each kind of connection, a sync one in a thread, and two branches; what each sends comes once."""
    done: list[str] = []
    for n, transaction in enumerate(OF[do.colour]):
        done.append((yield lambda t=transaction, n=n: t(f"own {n}")))
    done.append((yield do.run_step(by_connection, "threaded")))
    done += yield do.gather(*(branch(do, n) for n in range(2)))
    told = []
    for _ in done:
        told.append((yield do.recv(str, topic="told", timeout=60)))
    return [*done, str(sorted(told) == sorted(done))]


def branch(do: Do, n: int) -> Body[str]:
    yield do.sleep(0.05)
    return (yield lambda: OF[do.colour][n](f"branch {n}"))


@both
def one(do: Do, n: int) -> Body[str]:
    """A single one, by the kind of connection that is asked for."""
    result = yield lambda: OF[do.colour][n]("one")
    return (yield do.recv(str, topic="told", timeout=60)) + result
