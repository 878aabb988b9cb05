"""What the database of a standalone run must hold, and what its callers must have got."""

from collections.abc import Callable

import psycopg

from benchmarks.verify import STEPS, MismatchError, Report, Wanted, check, equal
from benchmarks.workflows.catalogue import Contestant

FACTORS = {"direct": 2, "latency": 2, "three": 8, "queued": 0, "session": 1, "psycopg": 1}  # of a number: its result
STEPS_OF = {"three": 3}


def verified_by(contestant: Contestant) -> Callable[[psycopg.Connection, int, Report], None]:
    """The check of this contestant's runs."""

    def verify(connection: psycopg.Connection, count: int, report: Report) -> None:
        work, warm = contestant.work, report["warm"]
        if work == "fan-out":
            results, parents = count * (count - 1) + warm * (warm - 1), 2
        else:
            results, parents = FACTORS[work] * _sum(count + warm), 0
        equal("results", report["total"], results)
        total = count + warm
        equal("step bodies run", report["ran"], STEPS_OF.get(work, 1) * total)
        if work in {"session", "psycopg"}:
            entries = "select count(*), min(order_id), max(order_id), sum(amount)::bigint from entries"
            check(connection, Wanted("effects", entries, (total, 0, total - 1, _sum(total))))
        (_ledger if contestant.ours else _dbos)(connection, work, total, parents)

    return verify


def _sum(total: int) -> int:
    """Of the numbers that were given out."""
    return total * (total - 1) // 2


def _ledger(connection: psycopg.Connection, work: str, total: int, parents: int) -> None:
    """eventflow's: every workflow succeeded with its result, with as many recorded steps as it has."""
    workflows = (
        "select count(*) filter (where name not like 'fan_out%'), count(*) filter (where name like 'fan_out%'),"
        " count(*) filter (where status <> 'succeeded'), count(*) filter (where output is null) from eventflow.workflows"
    )
    steps = (
        "select count(*), count(distinct workflow_id), count(error) from"
        f" {STEPS} where workflow_id in (select id from eventflow.workflows where name not like 'fan_out%')"
    )
    check(
        connection,
        Wanted("workflows", workflows, (total, parents, 0, 0)),
        Wanted("steps", steps, (STEPS_OF.get(work, 1) * total, total, 0)),
        Wanted("incidents", "select count(*) from eventflow.incidents", (0,)),
    )
    if work in {"direct", "latency", "three", "queued"}:
        factor = FACTORS[work] or FACTORS["direct"]
        outputs = "select count(distinct output), sum(output::bigint)::bigint from eventflow.workflows"
        check(connection, Wanted("outputs", outputs, (total, factor * _sum(total))))


def _dbos(connection: psycopg.Connection, work: str, total: int, parents: int) -> None:
    """DBOS's: the same; its outputs are pickled, so only their number is looked at."""
    workflows = (
        "select count(*) filter (where name not like 'fan_out%'), count(*) filter (where name like 'fan_out%'),"
        " count(*) filter (where status <> 'SUCCESS') from dbos.workflow_status"
    )
    steps = (
        "select count(*), count(distinct o.workflow_uuid), count(o.error) from dbos.operation_outputs o"
        " join dbos.workflow_status w using (workflow_uuid) where w.name not like 'fan_out%'"
    )
    check(
        connection,
        Wanted("workflows", workflows, (total, parents, 0)),
        Wanted("steps", steps, (STEPS_OF.get(work, 1) * total, total, 0)),
    )


def sleepers(connection: psycopg.Connection, count: int, report: Report) -> None:
    """DBOS's sleepers: each woke once."""
    if len(report["delays"]) != count:
        raise MismatchError(f"{len(report['delays'])} of {count} woke")
    equal("bodies run", report["ran"], count)
    check(
        connection,
        Wanted(
            "workflows",
            "select count(*), count(*) filter (where status <> 'SUCCESS') from dbos.workflow_status",
            (count, 0),
        ),
    )
