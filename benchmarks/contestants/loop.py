"""The loop that a careful engineer writes by hand: effect and position in one transaction, per message or per 500.

Plain psycopg and confluent-kafka; the position stands in Postgres, so it is exactly once as long as nothing
else goes wrong: no takeover fence, no recreated topics, no poison isolation, no retries.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import psycopg
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.contestants import common
from benchmarks.contestants.ledger import Order
from benchmarks.orders import PARTITIONS

SCHEMA = """
create table entries (order_id bigint primary key, amount bigint not null);
create table positions (topic text, partition int, position bigint not null, primary key (topic, partition));
"""
ENTER = "insert into entries (order_id, amount) values (%s, %s)"
Row = tuple[int, int]
MOVE = "update positions set position = %s where topic = %s and partition = %s"


@dataclass(frozen=True, slots=True)
class Loop:
    """One consumer, one connection, a transaction per `batch` messages."""

    connection: psycopg.Connection
    consumer: Consumer
    batch: int
    read: Callable[[bytes], Row]

    def handle(self, messages: list[Message]) -> None:
        """Effects and positions of these messages, in one commit."""
        if self.batch == 1:
            self._one(messages[0])
        else:
            self._many(messages)

    def _one(self, message: Message) -> None:
        with self.connection.transaction():
            self.connection.execute(ENTER, self.read(message.value() or b""))
            self.connection.execute(MOVE, _position(message))

    def _many(self, messages: list[Message]) -> None:
        rows = [self.read(message.value() or b"") for message in messages]
        ends = {message.partition(): _position(message) for message in messages}
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(ENTER, rows)
            cursor.executemany(MOVE, list(ends.values()))

    def run(self, count: int) -> float:
        """Handle `count` messages; returns the seconds from the first one received to the last one durable."""
        handled, started = 0, 0.0
        while handled < count:
            messages = self.consumer.consume(max(self.batch, 500), 0.1)
            if not messages:
                continue
            started = started or time.perf_counter()
            for start in range(0, len(messages), self.batch):
                self.handle(messages[start : start + self.batch])
            handled += len(messages)
        return time.perf_counter() - started


def as_dict(value: bytes) -> Row:
    """What a message says, by the quickest decoder that there is."""
    order = orjson.loads(value)
    return order["order_id"], order["amount"]


def as_model(value: bytes) -> Row:
    """The same as eventflow's handlers are given it: checked."""
    order = Order.model_validate_json(value)
    return order.order_id, order.amount


def _position(message: Message) -> tuple[int, str | None, int | None]:
    return (message.offset() or 0) + 1, message.topic(), message.partition()


def _consumer(bootstrap: str, topic: str, group: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--model", action="store_true", help="decode values by a Pydantic model, as handlers do")
    arguments = parser.parse_args()
    with psycopg.connect(arguments.dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        for partition in range(PARTITIONS):
            connection.execute("insert into positions values (%s, %s, 0)", (arguments.topic, partition))
        consumer = _consumer(arguments.bootstrap, arguments.topic, arguments.group)
        loop = Loop(connection, consumer, arguments.batch, as_model if arguments.model else as_dict)
        seconds = loop.run(arguments.count)
        consumer.close()
    common.report(arguments.count, seconds)


if __name__ == "__main__":
    main()
