"""The input of every contestant: JSON orders of 200 bytes each, spread evenly over a topic's partitions."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

PARTITIONS = 8
KEYS = {
    "keyed": 10_000,
    "hot": 96,
}  # of topics whose messages have one; multiples of the partitions, so each has its own
SIZE = 200


def amount(order_id: int) -> int:
    """The amount of an order: known, so that a sum proves that every order went through once."""
    return order_id % 1000 + 1


def total(count: int) -> int:
    """What the amounts of the first `count` orders add up to."""
    return sum(amount(order_id) for order_id in range(count))


def value(order_id: int) -> bytes:
    """One order, padded to its size."""
    return _padded(f'{{"order_id":{order_id},"amount":{amount(order_id)}')


def stamped(order_id: int, sent_at: float) -> bytes:
    """One order that carries the wall time at which it was sent."""
    return _padded(f'{{"order_id":{order_id},"amount":{amount(order_id)},"sent_at":{sent_at:.6f}')


def _padded(head: str) -> bytes:
    frame = len(head) + len(',"pad":""}')
    return f'{head},"pad":"{"x" * (SIZE - frame)}"}}'.encode()


@contextmanager
def topic(bootstrap: str, partitions: int = PARTITIONS) -> Iterator[str]:
    """A new topic for the length of the block; its name is short, because ids are made of it."""
    name = f"orders-{uuid4().hex[:4]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(name, num_partitions=partitions, replication_factor=1)
    for created in admin.create_topics([new]).values():
        created.result(timeout=30)
    try:
        yield name
    finally:
        for deleted in admin.delete_topics([name]).values():
            deleted.result(timeout=30)


def fill(bootstrap: str, name: str, count: int, *, partitions: int = PARTITIONS, keys: int = 0) -> None:
    """Produce `count` orders, with so many keys; returns when the broker has them all.

    Raises:
        RuntimeError: some did not arrive.
    """
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "log_level": 3,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for order_id in range(count):
        _produce(producer, name, order_id, order_id % partitions, key(order_id, keys) if keys else None)
        if order_id % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} of {count} orders did not reach the broker")


def key(order_id: int, keys: int) -> bytes:
    """An order's key, of so many."""
    return b"k%d" % (order_id % keys)


def _produce(producer: Producer, name: str, order_id: int, partition: int, key: bytes | None) -> None:
    while True:
        try:
            producer.produce(name, value(order_id), key, partition)
            return
        except BufferError:
            producer.poll(0.1)
