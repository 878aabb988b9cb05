"""A figure counts only when the database agrees: every run's result is read back before it is printed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks import orders

Report = dict[str, Any]
Verify = Callable[[psycopg.Connection, int, Report], None]


class MismatchError(Exception):
    """A run's database does not hold what it must."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one query must answer."""

    what: str
    query: str
    answer: tuple[object, ...]


def check(connection: psycopg.Connection, *wanted: Wanted) -> None:
    """Ask these queries.

    Raises:
        MismatchError: an answer is another one.
    """
    wrong: list[str] = []
    for want in wanted:
        found = connection.execute(want.query.encode()).fetchone()
        if found != want.answer:
            wrong.append(f"{want.what}: wanted {want.answer}, found {found}")
    if wrong:
        raise MismatchError("; ".join(wrong))


def equal(what: str, found: object, wanted: object) -> None:
    """Raises `MismatchError` where they are not."""
    if found != wanted:
        raise MismatchError(f"{what}: wanted {wanted}, found {found}")


_ORDERS = "count(*), count(distinct {0}), coalesce(min({0}), 0), coalesce(max({0}), 0)"


def _all_of(count: int) -> tuple[int, int, int, int]:
    """Rows, distinct order ids, the first and the last: together, each order once."""
    return (count, count, 0, count - 1)


def entries(connection: psycopg.Connection, count: int, report: Report) -> None:
    """One effect per order, with its amount."""
    effects = f"select {_ORDERS.format('order_id')}, sum(amount)::bigint from entries"
    check(connection, Wanted("effects", effects, (*_all_of(count), orders.total(count))))


def loop(connection: psycopg.Connection, count: int, report: Report) -> None:
    """Effects, and positions that add up to all offsets."""
    entries(connection, count, report)
    positions = "select sum(position)::bigint from positions"
    check(connection, Wanted("positions", positions, (count,)))


def prototype(connection: psycopg.Connection, count: int, report: Report) -> None:
    """A finished row and a checkpoint per message, inputs all distinct, results the orders' amounts."""
    order_id = "(convert_from(input, 'UTF8')::json ->> 'order_id')::bigint"
    result = "convert_from(output, 'UTF8')::bigint"
    check(
        connection,
        Wanted(
            "workflows",
            f"select {_ORDERS.format(order_id)}, sum({result})::bigint,"
            " count(*) filter (where status <> 3) from prototype_workflow",
            (*_all_of(count), orders.total(count), 0),
        ),
        Wanted(
            "checkpoints",
            f"select count(*), count(distinct workflow_id), sum({result})::bigint from prototype_checkpoint",
            (count, count, orders.total(count)),
        ),
    )


def limit(connection: psycopg.Connection, count: int, report: Report) -> None:
    """The rows that the ceiling inserted."""
    check(connection, *_ledger_rows(count))


STEPS = """(
    select workflow_id, output, error from eventflow.checkpoints
    union all
    select id, s ->> 2, s ->> 3 from eventflow.workflows, jsonb_array_elements(steps::jsonb) as t (s)
) as steps"""


def _ledger_rows(count: int) -> tuple[Wanted, Wanted]:
    order_id = "(convert_from(value, 'UTF8')::json ->> 'order_id')::bigint"
    workflows = (
        f"select {_ORDERS.format(order_id)}, sum(output::bigint)::bigint,"
        " count(*) filter (where status <> 'succeeded'),"
        ' count(distinct (claim, "offset")) from eventflow.workflows'
    )
    checkpoints = (
        f"select count(*), count(distinct workflow_id), sum(output::bigint)::bigint, count(error) from {STEPS}"
    )
    total = orders.total(count)
    return (
        Wanted("workflows", workflows, (*_all_of(count), total, 0, count)),
        Wanted("checkpoints", checkpoints, (count, count, total, 0)),
    )


def _accepted(count: int) -> tuple[Wanted, Wanted, Wanted]:
    ranges = (
        "(select unnest(accepted) from eventflow.claims"
        " union all select unnest(ranges) from eventflow.deltas) as accepted (r)"
    )
    total = f"select sum(upper(r) - coalesce(lower(r), 0))::bigint from {ranges}"
    overlaps = (
        "with pieces as (select id as claim, unnest(accepted) as r from eventflow.claims"
        " union all select claim, unnest(ranges) from eventflow.deltas)"
        " select count(*) from (select r, lag(upper(r)) over (partition by claim order by lower(r)"
        " nulls first) as before from pieces) as p where lower(r) <> before"
    )
    return (
        Wanted("accepted offsets", total, (count,)),
        Wanted("gaps or overlaps between accepted ranges", overlaps, (0,)),
        Wanted("incidents", "select count(*) from eventflow.incidents", (0,)),
    )


def workflows(connection: psycopg.Connection, count: int, report: Report) -> None:
    """A succeeded workflow and a checkpoint per message, every offset accepted once, no handler run twice."""
    equal("handler calls", report.get("handled"), count)
    check(connection, *_ledger_rows(count), *_accepted(count))


def handled(connection: psycopg.Connection, count: int, report: Report) -> None:
    """Every message succeeded, every offset accepted once."""
    succeeded = "select count(*) from eventflow.workflows where status = 'succeeded'"
    check(connection, *_accepted(count), Wanted("workflows", succeeded, (count,)))


def others(connection: psycopg.Connection, count: int, report: Report) -> None:
    """Every message but those of the key that may be slow succeeded once; of that key, as many as there was time for."""
    succeeded = (
        "select count(*), count(distinct id) from eventflow.workflows where status = 'succeeded' and key <> 'k0'"
    )
    wanted = count - len(range(0, count, orders.KEYS["hot"]))
    check(connection, Wanted("workflows of other keys", succeeded, (wanted, wanted)))


def transactional(connection: psycopg.Connection, count: int, report: Report) -> None:
    """One effect per message, every offset accepted once; rows of finished messages are a matter of policy."""
    equal("handler calls", report.get("handled"), count)
    entries(connection, count, report)
    unfinished = "select count(*) from eventflow.workflows where status <> 'succeeded'"
    check(connection, *_accepted(count), Wanted("rows not succeeded", unfinished, (0,)))


def two_steps(connection: psycopg.Connection, count: int, report: Report) -> None:
    """The latency handler: every message once, two checkpoints each."""
    equal("distinct orders handled", len({order_id for order_id, _ in report["delays"]}), count)
    equal("handler calls", len(report["delays"]), count)
    equal("second steps", len(report["durable_delays"]), count)
    succeeded = "select count(*) from eventflow.workflows where status = 'succeeded'"
    checkpoints = f"select count(*), count(distinct workflow_id) from {STEPS}"
    check(
        connection,
        *_accepted(count),
        Wanted("workflows", succeeded, (count,)),
        Wanted("checkpoints", checkpoints, (2 * count, count)),
    )


def dbos(connection: psycopg.Connection, count: int, report: Report) -> None:
    """A succeeded workflow and one recorded step per message; no step run twice."""
    equal("steps run", report.get("steps"), count)
    check(
        connection,
        Wanted(
            "workflows",
            "select count(*), count(distinct workflow_uuid), count(*) filter (where"
            " status <> 'SUCCESS') from dbos.workflow_status",
            (count, count, 0),
        ),
        Wanted(
            "steps",
            "select count(*), count(distinct workflow_uuid), count(error) from dbos.operation_outputs",
            (count, count, 0),
        ),
    )
