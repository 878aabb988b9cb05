"""Who competes, in which order they take turns, how their databases are verified, and what is compared to what."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import verify

HERE = Path(__file__).resolve().parent
Size = Literal[
    "fast",
    "transactional",
    "slow",
    "dbos",
    "keyed",
    "hot",
    "one partition",
    "one partition, steps",
    "one partition, dbos",
]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One program, its arguments, and what its database must hold afterwards."""

    name: str
    title: str
    command: tuple[str, ...]
    size: Size
    verify: verify.Verify
    loop: str = "none"


@dataclass(frozen=True, slots=True)
class Ratio:
    """One contestant's rate by the best of others', in the same round; `bar` is what is asked."""

    title: str
    of: str
    to: tuple[str, ...]
    bar: float | None = None


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.contestants.{name}", *arguments)


def _workflow(kind: str, title: str, loop: str) -> Contestant:
    fast = ("--uvloop",) if loop == "uvloop" else ()
    command = _module("eventflow_workflow", "--kind", kind, *fast)
    name = f"eventflow-{kind}" + ("-uvloop" if fast else "")
    return Contestant(name, title, command, "fast", verify.workflows, loop)


def _prototype(loop: str) -> Contestant:
    fast = ("--uvloop",) if loop == "uvloop" else ()
    command = (sys.executable, str(HERE / "journal_prototype.py"), *fast)
    name = "prototype" + ("-uvloop" if fast else "")
    return Contestant(name, "journal prototype", command, "fast", verify.prototype, loop)


def _transaction(kind: str, title: str) -> Contestant:
    command = _module("eventflow_transaction", "--kind", kind)
    name = f"eventflow-transaction-{kind}"
    return Contestant(name, title, command, "transactional", verify.transactional, "asyncio")


def _ordered(name: str, title: str, size: Size, verify: verify.Verify, module: str, *arguments: str) -> Contestant:
    return Contestant(f"order-{name}", title, _module(module, *arguments), size, verify, "asyncio")


def _loop(batch: int, size: Size) -> Contestant:
    title = f"hand-made loop, a transaction per {batch} message{'s' if batch > 1 else ''}"
    return Contestant(f"loop-{batch}", title, _module("loop", "--batch", str(batch)), size, verify.loop)


def _dbos(name: str, title: str, *arguments: str) -> Contestant:
    return Contestant(name, title, _module("dbos_workflow", *arguments), "dbos", verify.dbos)


LOOPS = ("asyncio", "uvloop")
CONTESTANTS: tuple[Contestant, ...] = (
    *(_prototype(loop) for loop in LOOPS),
    *(_workflow("async", "eventflow, one step, async", loop) for loop in LOOPS),
    *(_workflow("suspending", "eventflow, a step that suspends", loop) for loop in LOOPS),
    *(_workflow("sync", "eventflow, one step, sync", loop) for loop in LOOPS),
    _transaction("psycopg", "eventflow, transactional, psycopg"),
    _transaction("psycopg-async", "eventflow, transactional, psycopg async"),
    _transaction("session", "eventflow, transactional, Session"),
    _loop(1, "slow"),
    _loop(500, "fast"),
    _dbos("dbos-sync", "DBOS 3.4, one step, sync"),
    _dbos("dbos-sync-16", "DBOS 3.4, sync, 16 threads", "--threads", "16"),
    _dbos("dbos-async", "DBOS 3.4, one step, async", "--kind", "async"),
    _dbos("dbos-async-16", "DBOS 3.4, async, 16 threads", "--kind", "async", "--threads", "16"),
    Contestant(
        "postgres", "PostgreSQL alone, the same rows", _module("postgres_limit"), "fast",
        verify.limit,
    ),
)  # fmt: skip
_ONE: Size = "one partition"
_PIPELINE = ("--kind", "pipeline")
_BATCH, _UNKEPT = ("--kind", "psycopg-batch"), ("--keep", "slow")
_BY_KEY, _BY_PARTITION = ("--ordering", "key"), ("--ordering", "partition")
_STEP, _PLAIN, _TRANSACTION = "eventflow_workflow", "eventflow_order", "eventflow_transaction"
CONTESTANTS += (
    _ordered("none", "one step, no order", "keyed", verify.workflows, _STEP),
    _ordered("key", "one step, by key (10,000 keys)", "keyed", verify.workflows, _STEP, *_BY_KEY),
    _ordered("quick-key", "no steps, by key (96 keys)", "hot", verify.others, _PLAIN, *_BY_KEY),
    _ordered("slow-key", "the same, one of them 1 s a message: the others", "hot", verify.others, _PLAIN, "--kind", "slow",
             *_BY_KEY),
    _ordered("transaction-key", "transactional psycopg, by key", "keyed", verify.transactional, _TRANSACTION, *_BY_KEY),
    _ordered("pipeline-key", "transactional psycopg, pipelined, by key", "keyed", verify.transactional, _TRANSACTION,
             *_PIPELINE, *_BY_KEY),
    _ordered("partition", "no steps, one partition in order", _ONE, verify.handled, _PLAIN, *_BY_PARTITION),
    _ordered("partition-steps", "one step, one partition in order", "one partition, steps", verify.workflows, _STEP,
             *_BY_PARTITION),
    _ordered("partition-transaction", "transactional psycopg, one partition in order", _ONE, verify.transactional,
             _TRANSACTION, *_BY_PARTITION),
    _ordered("partition-pipeline", "transactional psycopg, pipelined, one partition in order", _ONE, verify.transactional,
             _TRANSACTION, *_PIPELINE, *_BY_PARTITION),
    _ordered("partition-pipeline-async", "the same, async", _ONE, verify.transactional, _TRANSACTION, "--kind",
             "pipeline-async", *_BY_PARTITION),
    _ordered("partition-batch", "batches of 500, psycopg, one partition in order", _ONE, verify.transactional,
             _TRANSACTION, *_BATCH, *_BY_PARTITION),
    _ordered("partition-transaction-unkept", "transactional psycopg, one partition in order, no row kept", _ONE,
             verify.transactional, _TRANSACTION, *_BY_PARTITION, *_UNKEPT),
    _ordered("batch", "batches of 500, psycopg", "fast", verify.transactional, _TRANSACTION, *_BATCH),
    _ordered("batch-unkept", "the same, no row kept", "fast", verify.transactional, _TRANSACTION, *_BATCH, *_UNKEPT),
    _ordered("psycopg-unkept", "transactional psycopg, no row kept", "transactional", verify.transactional, _TRANSACTION,
             *_UNKEPT),
    _ordered("session-unkept", "transactional Session, no row kept", "transactional", verify.transactional, _TRANSACTION,
             "--kind", "session", *_UNKEPT),
)  # fmt: skip
CONTESTANTS += (
    Contestant("order-partition-dbos", "DBOS 3.4, one step, one partition in order",
               _module("dbos_workflow", "--ordering", "partition"), "one partition, dbos", verify.dbos),
    Contestant("loop-500-model", "hand-made loop per 500, values checked by a model",
               _module("loop", "--batch", "500", "--model"), "fast", verify.loop),
)  # fmt: skip
DBOS = tuple(one.name for one in CONTESTANTS if one.size == "dbos")

RATIOS: tuple[Ratio, ...] = (
    Ratio("async one step / prototype, asyncio", "eventflow-async", ("prototype",), 1.2),
    Ratio("async one step / prototype, uvloop", "eventflow-async-uvloop", ("prototype-uvloop",), 1.2),
    Ratio("async one step / DBOS's best", "eventflow-async", DBOS, 120),
    Ratio("sync one step / DBOS's best", "eventflow-sync", DBOS),
    Ratio("prototype / DBOS's best", "prototype", DBOS),
    Ratio("suspending step / prototype, asyncio", "eventflow-suspending", ("prototype",), 0.8),
    Ratio(
        "suspending step / prototype, uvloop",
        "eventflow-suspending-uvloop",
        ("prototype-uvloop",),
        0.8,
    ),
    Ratio("sync / async, asyncio", "eventflow-sync", ("eventflow-async",), 0.6),
    Ratio("sync / async, uvloop", "eventflow-sync-uvloop", ("eventflow-async-uvloop",), 0.6),
    Ratio(
        "transactional psycopg / loop per message",
        "eventflow-transaction-psycopg",
        ("loop-1",),
        3,
    ),
    Ratio(
        "transactional async psycopg / loop per message",
        "eventflow-transaction-psycopg-async",
        ("loop-1",),
        3,
    ),
    Ratio(
        "transactional Session / loop per message",
        "eventflow-transaction-session",
        ("loop-1",),
        2,
    ),
    Ratio("async one step / loop per 500", "eventflow-async", ("loop-500",)),
    Ratio("transactional psycopg / loop per 500", "eventflow-transaction-psycopg", ("loop-500",)),
    Ratio("async one step / PostgreSQL alone", "eventflow-async", ("postgres",)),
    Ratio("by key / no order", "order-key", ("order-none",), 0.8),
    Ratio("others of a slow key / without one", "order-slow-key", ("order-quick-key",), 0.95),
    Ratio("batch handler, a row kept / loop per 500", "order-batch", ("loop-500",)),
    Ratio("batch handler / loop per 500, like for like", "order-batch-unkept", ("loop-500-model",), 1.1),
    Ratio("batch handler / loop per 500 that checks nothing", "order-batch-unkept", ("loop-500",)),
    Ratio("transactional psycopg / loop per message, like for like", "order-psycopg-unkept", ("loop-1",), 5),
    Ratio("transactional Session / loop per message, like for like", "order-session-unkept", ("loop-1",), 3),
    Ratio("one step, one partition in order / DBOS's", "order-partition-steps", ("order-partition-dbos",), 400),
)


def contestants(only: Sequence[str]) -> list[Contestant]:
    """Those asked for, by name or by the beginning of their names; all when none is."""
    if not only:
        return list(CONTESTANTS)
    return [one for one in CONTESTANTS if any(_asked(one.name, name) for name in only)]


def _asked(name: str, asked: str) -> bool:
    return name == asked or (asked.endswith("*") and name.startswith(asked[:-1]))
