"""What PostgreSQL alone takes: the rows that one message leaves behind, multi-row inserts, no Kafka, no guard.

The same tables with the same indexes, the same values; arrays are made before the clock starts, so what is
measured is the server and the wire. It is a ceiling, not a rival: nothing here is safe.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from benchmarks import orders
from benchmarks.contestants import common

SCHEMA = Path(__file__).resolve().parents[2] / "sql" / "schema.sql"
WORKFLOWS = """
insert into eventflow.workflows
  (id, name, application, status, executor, claim, "offset", timestamp, value, output, steps, finished_at)
select id, 'bill', 'default', 'succeeded', 1, claim, "offset", 1764000000000, value, output, steps, now()
from unnest(%b::text[], %b::int8[], %b::int8[], %b::bytea[], %b::text[], %b::text[])
  as t (id, claim, "offset", value, output, steps)
"""
Batch = tuple[list[str], list[int], list[int], list[bytes], list[str], list[str]]


def batch(topic: str, group: str, order_ids: Sequence[int]) -> Batch:
    """The columns of one insert."""
    places = [divmod(order_id, orders.PARTITIONS) for order_id in order_ids]
    return (
        [f"kafka:{group}:{topic}:1:{partition}:{offset}" for offset, partition in places],
        [partition + 1 for _, partition in places],
        [offset for offset, _ in places],
        [orders.value(order_id) for order_id in order_ids],
        [str(orders.amount(order_id)) for order_id in order_ids],
        [f'[["1.1","charge","{orders.amount(order_id)}",null,1,0.000021]]' for order_id in order_ids],
    )


def insert(connection: psycopg.Connection, rows: Batch) -> None:
    """One batch, one transaction, one round trip."""
    with connection.pipeline(), connection.transaction():
        connection.execute(WORKFLOWS, rows, prepare=True)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=1000)
    arguments = parser.parse_args()
    count: int = arguments.count
    batches = [
        batch(arguments.topic, arguments.group, range(start, min(start + arguments.batch, count)))
        for start in range(0, count, arguments.batch)
    ]
    with psycopg.connect(arguments.dsn, autocommit=True) as connection:
        connection.execute("create schema eventflow")
        connection.execute(SCHEMA.read_bytes())
        started = time.perf_counter()
        for rows in batches:
            insert(connection, rows)
        seconds = time.perf_counter() - started
    common.report(count, seconds, batch=arguments.batch)


if __name__ == "__main__":
    main()
