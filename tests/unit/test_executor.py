"""What the executor hands to whom, and when."""

import asyncio
import random
from typing import Any

from eventflow.errors import DeterminismError
from eventflow.executor import Executor
from eventflow.registry import ConsumerSpec, TransactionSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Run, Scope


class Recorder:
    """A journal that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def submit(self, entry: Any) -> None:
        self.entries.append(entry)


def transactional(claim: Claim, offset: int) -> Run:
    def handler(connection: Any, message: Any) -> None: ...

    spec = make_spec(handler, f"transactional {offset}", Retry(0), 0)
    own = TransactionSpec("t", handler, False, "connection", 0, None, Retry(0))
    spec.consumer = ConsumerSpec(("t",), "g", "partition", "earliest", "topic_id", None, {}, spec, own)
    run = Run(spec, f"id:{offset}", "a")
    run.claim, run.offset, run.scope = claim, offset, claim.scope
    return run


def ordered_claim() -> Claim:
    claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
    claim.scope = Scope("1", [])
    return claim


class Lanes:
    """Transactions that begin at once, and never end."""

    active = 0

    def __init__(self) -> None:
        self.launched: list[Run] = []
        self.alone: list[Run] = []
        self.opened = True

    def put(self, runs: list[Run], *, alone: bool = False) -> None:
        (self.alone if alone else self.launched).extend(runs)

    def open(self, value: bool) -> None:
        self.opened = value


def test_a_transaction_waits_until_the_failure_before_it_in_its_scope_is_durable() -> None:
    """Committed earlier, its effect would stand before its predecessor's, which a crash lets run again (R12)."""

    async def main() -> None:
        executor = Executor(asyncio.get_running_loop(), accept_after=10, threads=1, draw=random.random)
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        claim, launched = ordered_claim(), lanes.launched
        first, second = transactional(claim, 0), transactional(claim, 1)
        executor.dispatch([first, second])
        assert launched == [first]
        executor.failed(first, ValueError("for good"))
        assert launched == [first], "the failure is not durable yet"
        executor.durable(journal.entries)
        assert launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_a_dropped_end_takes_no_more_room() -> None:
    async def main() -> None:
        executor = Executor(asyncio.get_running_loop(), accept_after=10, threads=1, draw=random.random)
        journal = Recorder()
        executor.journal, executor.transactions = journal, Lanes()  # type: ignore[assignment]
        claim = ordered_claim()
        run = transactional(claim, 0)
        executor.dispatch([run])
        executor.failed(run, ValueError("for good"))
        executor.dropped(journal.entries)
        executor.dropped(journal.entries)
        assert claim.finished == 1
        executor.abort()

    asyncio.run(main())


def test_a_parked_message_holds_its_scope_until_it_is_decided_on() -> None:
    """Parked is not final: what follows waits, in this process as after a restart (R11)."""

    async def main() -> None:
        executor = Executor(asyncio.get_running_loop(), accept_after=10, threads=1, draw=random.random)
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        claim = ordered_claim()
        first, second = transactional(claim, 0), transactional(claim, 1)
        executor.dispatch([first, second])
        executor.failed(first, DeterminismError("other code"))
        executor.durable(journal.entries)
        assert lanes.launched == [first]
        assert claim.scope is not None
        assert claim.scope.unfinished == ["id:0"]
        claim.scope.unfinished.clear()  # the consumer finds it final in the ledger
        executor.unblock(claim.scope)
        assert lanes.launched == [first, second]
        executor.abort()

    asyncio.run(main())


def test_while_a_suspect_runs_no_other_transaction_may_begin() -> None:
    """A message whose process died runs again with nothing beside it, so that the count finds the killer (R13)."""

    async def main() -> None:
        executor = Executor(asyncio.get_running_loop(), accept_after=10, threads=1, draw=random.random)
        journal, lanes = Recorder(), Lanes()
        executor.journal, executor.transactions = journal, lanes  # type: ignore[assignment]
        suspect = transactional(ordered_claim(), 0)
        suspect.claim = suspect.scope = None
        suspect.spec.recoveries, suspect.in_ledger = 5, True
        executor.adopt([suspect], recovered=True)
        while not journal.entries:
            await asyncio.sleep(0)
        assert (lanes.opened, lanes.alone) == (False, [])
        executor.durable(journal.entries)
        while not lanes.alone:
            await asyncio.sleep(0)
        assert (lanes.opened, lanes.alone) == (False, [suspect])
        suspect.ended = True
        while not lanes.opened:
            await asyncio.sleep(0.001)
        executor.abort()

    asyncio.run(main())
