"""Handlers of each kind in each order, as the seed draws them: sync or async, on a connection or a session, batches plain or not.

Effects are noted as `key|what`; each message that succeeds has published `end`, and of a workflow also `mid` and, in a step,
`two`. Who is refused `late` has acted before: what a transaction did is undone, what a workflow has recorded stays.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import eventflow
from eventflow import Message, Retry, durable, sync
from tests.draws import Group, groups

OUT = os.environ["OUT"]
SLOW = 0.2
ASLEEP = 0.5
BORNE = Retry(100, delay=0.1, max_delay=0.5)  # Postgres is away for as long as it likes
NAMES = ("g", "t", "p", "o", "n", "pid")
INSERT_BY_NAME = text(
    'insert into effects ("group", topic, partition, "offset", note, pid) values (:g, :t, :p, :o, :n, :pid)'
)
M = Message[Order]


class RefusedError(Exception):
    """What messages are made to fail with."""


POLICY = Retry(2, delay=0.1)


def note(message: M, what: str) -> str:
    return f"{(message.key or b'').decode()}|{what}"


def event(group: Group, message: M, what: str) -> tuple[dict[str, Any], str | None]:
    """Its value and its key, which is its scope."""
    scope = group.scope(message.partition, message.key and message.key.decode())
    value = {"group": group.name, "partition": message.partition, "offset": message.offset, "what": what}
    return value, None if scope is None else f"{group.name}/{scope}"


def refuse(message: M, *whats: str) -> None:
    do = message.value.do
    if do in whats and (do != "once" or durable.attempt() == 1):
        raise RefusedError(f"order {message.value.n} is refused")


@eventflow.step(retries=BORNE)
async def aact(group: str, message: M, what: str) -> None:
    outside.act(group, message, note(message, what))


@eventflow.step(retries=BORNE)
async def aact_and_tell(group: Group, message: M, what: str) -> None:
    value, key = event(group, message, what)
    await eventflow.publish(OUT, value, key=key)
    outside.act(group.name, message, note(message, what))


@eventflow.step(retries=BORNE)
def act(group: str, message: M, what: str) -> None:
    outside.act(group, message, note(message, what))


@eventflow.step(retries=BORNE)
def act_and_tell(group: Group, message: M, what: str) -> None:
    value, key = event(group, message, what)
    sync.publish(OUT, value, key=key)
    outside.act(group.name, message, note(message, what))


def workflow(group: Group) -> Callable[..., Any]:
    async def afollow(message: M) -> None:
        refuse(message, "fail")
        await aact(group.name, message, "one")
        value, key = event(group, message, "mid")
        await eventflow.publish(OUT, value, key=key)
        if message.value.do == "slow":
            await asyncio.sleep(SLOW)
        elif message.value.do == "asleep":
            await durable.sleep(ASLEEP)
        refuse(message, "late", "once")
        await aact_and_tell(group, message, "two")
        value, key = event(group, message, "end")
        await eventflow.publish(OUT, value, key=key)

    def follow(message: M) -> None:
        refuse(message, "fail")
        act(group.name, message, "one")
        value, key = event(group, message, "mid")
        sync.publish(OUT, value, key=key)
        if message.value.do == "slow":
            time.sleep(SLOW)
        elif message.value.do == "asleep":
            sync.sleep(ASLEEP)
        refuse(message, "late", "once")
        act_and_tell(group, message, "two")
        value, key = event(group, message, "end")
        sync.publish(OUT, value, key=key)

    return follow if group.colour == "sync" else afollow


def transaction(group: Group) -> Callable[..., Any]:
    def begin(message: M) -> tuple[Any, ...]:
        refuse(message, "fail")
        if message.value.do == "slow":
            time.sleep(SLOW)
        return row(group.name, message, note(message, "entered"))

    def on_connection(connection: psycopg.Connection[Any], message: M) -> None:
        connection.execute(INSERT, begin(message))
        value, key = event(group, message, "end")
        sync.publish(OUT, value, key=key)
        refuse(message, "late", "once")

    def in_session(session: Session, message: M) -> None:
        session.execute(INSERT_BY_NAME, dict(zip(NAMES, begin(message), strict=True)))
        value, key = event(group, message, "end")
        sync.publish(OUT, value, key=key)
        refuse(message, "late", "once")

    async def on_async_connection(connection: psycopg.AsyncConnection[Any], message: M) -> None:
        await connection.execute(INSERT, begin(message))
        value, key = event(group, message, "end")
        await eventflow.publish(OUT, value, key=key)
        refuse(message, "late", "once")

    async def in_async_session(session: AsyncSession, message: M) -> None:
        await session.execute(INSERT_BY_NAME, dict(zip(NAMES, begin(message), strict=True)))
        value, key = event(group, message, "end")
        await eventflow.publish(OUT, value, key=key)
        refuse(message, "late", "once")

    if group.session:
        return eventflow.transaction(in_session if group.colour == "sync" else in_async_session)
    on_it = on_connection if group.colour == "sync" else on_async_connection
    return eventflow.transaction(pipeline=group.pipeline)(on_it)


def batch(group: Group) -> Callable[..., Any]:
    def begin(messages: list[M]) -> list[tuple[Any, ...]]:
        refused = [m.value.n for m in messages if m.value.do == "fail"]
        if refused:
            raise RefusedError(f"orders {refused} are refused")
        if any(m.value.do == "slow" for m in messages):
            time.sleep(SLOW)
        return [row(group.name, m, note(m, "entered")) for m in messages]

    def end(messages: list[M]) -> None:
        refused = [m.value.n for m in messages if m.value.do == "late"]
        if refused:
            raise RefusedError(f"orders {refused} are refused late")

    def on_connection(connection: psycopg.Connection[Any], messages: list[M]) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(INSERT, begin(messages))
        for message in messages:
            value, key = event(group, message, "end")
            sync.publish(OUT, value, key=key)
        end(messages)

    async def in_async_session(session: AsyncSession, messages: list[M]) -> None:
        await session.execute(INSERT_BY_NAME, [dict(zip(NAMES, r, strict=True)) for r in begin(messages)])
        for message in messages:
            value, key = event(group, message, "end")
            await eventflow.publish(OUT, value, key=key)
        end(messages)

    def plain(messages: list[M]) -> None:
        rows = begin(messages)
        end(messages)
        until = time.monotonic() + 60
        while True:
            try:
                return outside.act_all(rows)
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    async def aplain(messages: list[M]) -> None:
        await asyncio.to_thread(plain, messages)

    if group.plain:
        return plain if group.colour == "sync" else aplain
    return eventflow.transaction(on_connection if group.colour == "sync" else in_async_session)


KINDS = {"workflow": workflow, "transaction": transaction, "batch": batch}
for each in groups(int(os.environ["SEED"])):
    options: dict[str, Any] = {"batch": 20} if each.kind == "batch" else {}
    eventflow.kafka_consumer(
        TOPIC, group=each.name, name=each.name, ordering=each.ordering, retries=POLICY, recoveries=1000, **options
    )(KINDS[each.kind](each))
