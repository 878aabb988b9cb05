"""What people read and ask of the ledger, and write into it without holding a workflow: what stands behind handles.

The running application asks through it, and so does a `Client`, whose process runs no workflows. Each operation on
workflows is one SQL function, so one transaction; it only touches what no executor holds (PROTOCOL.md R14).
"""

import asyncio
import contextlib
import getpass
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Literal

import psycopg
from typing_extensions import TypeVar

import eventflow.talk as talk
from eventflow.codec import Codec
from eventflow.database import Connection, Database, in_transaction, unavailable
from eventflow.errors import (
    EventflowError,
    UnavailableError,
    UsageError,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from eventflow.journal import rider_statements
from eventflow.records import Rider

R = TypeVar("R")
Operation = Literal["resume", "retry", "restart", "forget"]

_ERRORS: dict[str, type[EventflowError]] = {
    "EF009": WorkflowStateError,
    "EF010": WorkflowNotFoundError,
    "EF011": WorkflowExistsError,
    "EF012": UsageError,
}
_CONFLICTS = {"40001", "40P01"}  # nothing was done; once more


def who() -> str:
    """Who asks, as the ledger keeps it: user, machine and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


class Ledger:
    """The ledger, for those who hold no workflow. From any thread or loop."""

    def __init__(self, database: Database, *, keep: int = 0, check: Callable[[], None] = lambda: None) -> None:
        """Of the connections, so many are kept open; `check` raises where waiting has become pointless."""
        self._database, self._keep, self._check = database, keep, check
        self._idle = deque[Connection]()
        self._who = who()

    def close(self) -> None:
        """Close what is kept open."""
        self._keep = 0
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    @contextlib.contextmanager
    def _lent(self) -> Generator[Connection, None, None]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._database.connect("read")
        try:
            yield connection
        except psycopg.Error as error:
            if connection.closed:
                raise unavailable(error, self._database.url) from error
            raise
        finally:
            if connection.closed or len(self._idle) >= self._keep:
                connection.close()
            else:
                self._idle.append(connection)

    def query(self, query: str, params: dict[str, Any], *, writes: bool = False) -> list[tuple[Any, ...]]:
        """The named query's rows. Blocks.

        Raises:
            WorkflowStateError, WorkflowNotFoundError, WorkflowExistsError, UsageError: it was refused.
            UnavailableError: the server is away; where the query writes, it may have done so.

        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._lent() as connection:
                    return self._database.run(connection, query, params)
            except psycopg.Error as error:
                ours = _ERRORS.get(error.sqlstate or "")
                if ours is not None:
                    raise ours(error.diag.message_primary) from None
                if error.sqlstate not in _CONFLICTS or attempt == 5:
                    raise
            except UnavailableError:
                if writes or not self._keep or attempt > 1:
                    raise  # else it was a connection that broke while it was idle

    # ---- reading ----

    def row(self, workflow_id: str) -> tuple[Any, ...]:
        """The workflow's row. Blocks.

        Raises:
            WorkflowNotFoundError: there is none.

        """
        return self.read("read_workflow", workflow_id, f"no workflow has the id {workflow_id!r}")[0]

    def read(self, query: str, workflow_id: str, missing: str | None = None) -> list[tuple[Any, ...]]:
        rows = self.query(query, {"id": workflow_id})
        if not rows and missing:
            raise WorkflowNotFoundError(missing)
        return rows

    async def result(self, workflow_id: str, codec: Codec, timeout: float | None) -> Any:
        """The workflow's result, once it has one."""
        until, pause = None if timeout is None else time.monotonic() + timeout, 0.02
        while True:
            row = await asyncio.to_thread(self.row, workflow_id)
            if row[2] in {"succeeded", "failed", "cancelled", "parked"}:
                return talk.result_of(workflow_id, row[2], row[8], row[9], row[5], codec)
            self._check()
            if until is not None and time.monotonic() > until:
                raise WorkflowTimeoutError(f"{workflow_id!r} has no result after {timeout} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def event(self, workflow_id: str, key: str, timeout: float | None) -> str | None:
        """The value of a workflow's event, once it is set; None where it was not in time."""
        until, pause = None if timeout is None else time.monotonic() + timeout, 0.01
        asked = {"workflow_id": [workflow_id], "key": [key]}
        while True:
            rows = await asyncio.to_thread(self.query, "read_events", asked)
            if rows:
                return rows[0][1]
            self._check()
            if until is not None and time.monotonic() > until:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def stream(self, workflow_id: str, key: str, after: int, skip: int) -> list[tuple[Any, ...]]:
        """The next rows of `read_streams.sql` for one stream."""
        asked = {"workflow_id": [workflow_id], "key": [key], "after": [str(after)], "skip": [str(skip)]}
        return [row[1:] for row in await asyncio.to_thread(self.query, "read_streams", asked)]

    # ---- asking ----

    async def request(self, ids: list[str], kind: str, *, children: bool) -> int:
        """Ask for workflows to end; of how many that is true."""
        asked = {"ids": _checked(ids), "kind": kind, "who": self._who, "children": children}
        [(count,)] = await asyncio.to_thread(self.query, "request", asked, writes=True)
        return count

    async def manage(self, operation: Operation, ids: Sequence[str]) -> int:
        """Do this to workflows, all of them or none; how many these are."""
        asked = {"ids": _checked(ids), "who": self._who}
        [(count,)] = await asyncio.to_thread(self.query, operation, asked, writes=True)
        return count

    async def fork(self, workflow_id: str, position: str | None, fork_id: str) -> None:
        """A new workflow of this id, from what the other one recorded before the position."""
        asked = {"id": workflow_id, "position": position, "fork_id": fork_id, "who": self._who}
        await asyncio.to_thread(self.query, "fork", asked, writes=True)

    async def write(self, riders: list[Rider]) -> None:
        """Commit rows that no workflow writes."""
        await asyncio.to_thread(self._write, riders)

    def _write(self, riders: list[Rider]) -> None:
        def work(connection: Connection) -> None:
            for query, params in rider_statements(riders):
                self._database.run(connection, query, params)

        with self._lent() as connection:
            in_transaction(connection, work, "set local synchronous_commit = on")

    def on_loop(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine from blocking code."""
        return asyncio.run(coroutine)


def _checked(ids: Sequence[str]) -> list[str]:
    """Refuse what can be no list of ids."""
    if isinstance(ids, str):
        raise UsageError(f"a list of workflow ids, not {ids!r}")
    for workflow_id in ids:
        talk.check_address(workflow_id)
    return list(ids)
