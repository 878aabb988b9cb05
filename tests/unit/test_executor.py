"""What the executor hands to whom, and when."""

import asyncio
import random
from typing import Any

from eventflow.executor import Executor
from eventflow.retry import Retry
from eventflow.runs import Claim, Run
from eventflow.workflows import ConsumerSpec, TransactionSpec, make_spec


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
    run.claim, run.offset, run.scope = claim, offset, "1"
    return run


def test_a_transaction_waits_until_the_failure_before_it_in_its_scope_is_durable() -> None:
    """Committed earlier, its effect would stand before its predecessor's, which a crash lets run again (R12)."""

    async def main() -> None:
        executor = Executor(asyncio.get_running_loop(), accept_after=10, threads=1, draw=random.random)
        journal, launched = Recorder(), list[Run]()
        executor.journal = journal  # type: ignore[assignment]
        executor.transact = launched.extend
        claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
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
        executor.journal, executor.transact = journal, lambda _: None  # type: ignore[assignment]
        claim = Claim(1, 1, "g", "t", 0, 1, 1, "id:", 0)
        run = transactional(claim, 0)
        executor.dispatch([run])
        executor.failed(run, ValueError("for good"))
        executor.dropped(journal.entries)
        executor.dropped(journal.entries)
        assert claim.finished == 1
        executor.abort()

    asyncio.run(main())
