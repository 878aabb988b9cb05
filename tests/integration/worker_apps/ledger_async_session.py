"""A transactional handler on a SQLAlchemy AsyncSession, with an isolation level of its own, which it notes."""

from common import TOPIC, Order
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import eventflow
from eventflow import Message

ENTER = text(
    'insert into effects ("group", topic, partition, "offset", note, pid) '
    "values ('ledger', :topic, :partition, :offset, current_setting('transaction_isolation'), pg_backend_pid())"
)


@eventflow.kafka_consumer(TOPIC, group="ledger")
@eventflow.transaction(isolation="repeatable read")
async def enter(session: AsyncSession, message: Message[Order]) -> None:
    place = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    await session.execute(ENTER, place)
