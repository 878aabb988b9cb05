"""What the demo reads from Postgres: the picture while it runs, and the proof when it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

_COUNTS = b"""
select (select count(*) from eventflow.workflows where name = 'bill' and status = 'succeeded'),
       (select count(*) from entries),
       (select count(*) from eventflow.claims c join eventflow.executors e on e.id = c.owner where e.alive)
"""
_HELD = b"""
select e.pid, bool_or(e.alive),
       coalesce(sum((select count(*) from eventflow.claims c where c.owner = e.id)), 0)::int,
       coalesce(sum((select count(*) from eventflow.workflows w
                      where w.executor = e.id and w.status in ('queued', 'running', 'waiting'))), 0)::int
  from eventflow.executors e group by e.pid
"""
_EFFECTS = b"select worker, count(*) from entries group by worker"
_PROOF = b"""
with billed as (
  select (convert_from(value, 'UTF8')::json ->> 'order_id')::int as order_id
    from eventflow.workflows where name = 'bill' and status = 'succeeded'
), wanted as (select generate_series(0, %(orders)s - 1) as order_id)
select (select count(*) from billed),
       (select count(*) from entries),
       (select count(*) - count(distinct order_id) from billed)
         + (select count(*) - count(distinct order_id) from entries),
       (select count(*) from wanted where order_id not in (select order_id from billed))
         + (select count(*) from wanted where order_id not in (select order_id from entries)),
       (select count(*) from eventflow.workflows where name = 'bill' and recoveries > 0)
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What one process has: by the ledger, and by the rows it wrote."""

    alive: bool = False
    partitions: int = 0
    in_flight: int = 0
    effects: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """The ledger at one moment."""

    workflows: int
    effects: int
    owned: int
    held: Mapping[int, Held]


@dataclass(frozen=True, slots=True)
class Proof:
    """What stands there at the end, counted message by message."""

    workflows: int
    effects: int
    duplicates: int
    lost: int
    taken_over: int


def look(connection: Connection) -> Picture:
    """The ledger now."""
    [(workflows, effects, owned)] = connection.execute(_COUNTS).fetchall()
    written: dict[int, int] = dict(connection.execute(_EFFECTS).fetchall())
    held = {
        pid: Held(alive, partitions, in_flight, written.get(pid, 0))
        for pid, alive, partitions, in_flight in connection.execute(_HELD).fetchall()
    }
    return Picture(workflows, effects, owned, held)


def prove(connection: Connection, orders: int) -> Proof:
    """Count completed workflows and effects, order by order."""
    [row] = connection.execute(_PROOF, {"orders": orders}).fetchall()
    return Proof(*row)
