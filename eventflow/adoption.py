"""What this executor has taken in the ledger becomes its runs: with what they have recorded, and what people ask of them."""

from collections.abc import Callable, Mapping
from typing import Any

from eventflow.database import Connection, Database
from eventflow.kafka import headers_from_json
from eventflow.payloads import unread
from eventflow.records import Checkpoint
from eventflow.registry import Spec
from eventflow.replay import History
from eventflow.runs import How, Life, Request, Run
from eventflow.tracing import Trace, active

Row = tuple[Any, ...]


class Adoption:
    """From rows to runs, for those who take rows: recovery, and the dispatcher of queues. From any thread."""

    def __init__(
        self,
        database: Database,
        executor: int,
        application: str,
        specs: Mapping[str, Spec],
        *,
        adopt: Callable[[list[Run], How], None],
        request: Callable[[list[Request]], None],
    ) -> None:
        self._database, self._executor, self._application, self._specs = database, executor, application, specs
        self._adopt, self._request = adopt, request

    def adopt(self, connection: Connection, rows: list[Row], *, begun: How = "recovered") -> None:
        """Run these rows, which the ledger says this executor holds; `begun`: how those have come that are `running` there."""
        ids = [row[0] for row in rows]
        found = self._database.run(connection, "read_checkpoints", {"ids": ids}, afresh=True)
        # In the ledger they are this executor's by now: whoever asks something of them leaves it to us.
        asked = self._database.run(connection, "requests_of", {"ids": ids}, afresh=True)
        recorded: dict[str, dict[str, Checkpoint]] = {}
        for workflow_id, *fields in found:
            checkpoint = Checkpoint(*fields)
            recorded.setdefault(workflow_id, {})[checkpoint.position] = checkpoint
        by_how: dict[How, list[Run]] = {}
        traces = self._traces(connection, ids)
        for row in rows:
            how: How = begun if row[2] == "running" else "queued"
            run = self.run_of(row, recorded.get(row[0]))
            run.trace = traces.get(row[0])
            by_how.setdefault(how, []).append(run)
        for kind, runs in by_how.items():
            self._adopt(runs, kind)
        self._see_to(asked)

    def _traces(self, connection: Connection, ids: list[str]) -> dict[str, Trace]:
        """Of which traces they are, where this program traces."""
        if active() is None:
            return {}
        found = self._database.run(connection, "read_traces", {"ids": ids}, afresh=True)
        return {workflow_id: Trace(cause, span) for workflow_id, cause, span in found}

    def read_requests(self, connection: Connection) -> None:
        """See to what people ask of this executor's workflows."""
        self._see_to(self._database.run(connection, "own_requests", {"executor": self._executor}))

    def _see_to(self, requests: list[Request]) -> None:
        if requests:
            self._request(requests)

    def run_of(self, row: Row, recorded: dict[str, Checkpoint] | None = None) -> Run:
        """The run of a row that this executor holds, and of what it has recorded."""
        run = Run(self._specs[row[1]], row[0], self._application)
        run.attempt, run.retries, run.recoveries = row[3], row[4], row[5]
        run.offset, run.timestamp, run.arguments = row[7], row[8], row[9]
        run.in_ledger = True
        run.unreadable = unread((*row, *(text for c in (recorded or {}).values() for text in (c.output, c.error))))
        if run.unreadable is None:
            run.key, run.value, run.headers = row[10], row[11], headers_from_json(row[12])
            run.history = History(recorded)
        parent, deadline, generation, queue = row[13:17]
        if generation or any(one is not None for one in (parent, deadline, queue)):
            run.life = Life(parent, deadline, queue)
            run.life.generation = generation
        if run.history.told():
            run.life = run.life or Life()
            run.life.recall(run.history)
        return run
