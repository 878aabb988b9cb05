"""For a process that runs no workflows: handles and lists, straight from the ledger. `sync.Client` is the blocking twin."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, get_args

from typing_extensions import TypeVar

import eventflow.talk as talk
from eventflow.codec import codec_for
from eventflow.database import Database
from eventflow.errors import UsageError
from eventflow.handles import Handle
from eventflow.ledger import Ledger, Operation
from eventflow.migrations import check_schema
from eventflow.records import Status, WorkflowRecord
from eventflow.settings import load_settings

R = TypeVar("R")
_KEPT = 4  # connections
_PAGE = 500


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which workflows a list has: those of which all is true that is given.

    Raises:
        UsageError: a status that there is not, or a time without a zone.
        CodecError: attributes that are no plain values.

    """

    status: Status | None = None
    name: str | None = None
    prefix: str | None = None
    attributes: Mapping[str, object] | None = None
    parent: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in get_args(Status):
            raise UsageError(f"no status: {self.status!r}; there are {', '.join(get_args(Status))}")
        for moment in (self.created_after, self.created_before):
            if moment is not None and moment.tzinfo is None:
                raise UsageError(f"a time with a zone, not {moment!r}")
        for text in (self.name, self.prefix, self.parent):
            if text is not None and (not isinstance(text, str) or "\0" in text):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"a text to look for, not {text!r}")

    def params(self) -> dict[str, Any]:
        """As the query has them."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.attributes is not None:
            found["attributes"] = codec_for(dict[str, Any]).encode(dict(self.attributes))
        return found


class Pages:
    """The workflows that a filter lets through, oldest first, in pages. What is started meanwhile moves none of them."""

    def __init__(self, ledger: Ledger, wanted: Filter) -> None:
        self._ledger = ledger
        self._params = wanted.params()
        self._last: WorkflowRecord | None = None
        self.more = True

    def next(self) -> list[WorkflowRecord]:
        """The next page. Blocks."""
        last = self._last
        after = {"after_time": last and last.created_at, "after_id": last and last.workflow_id}
        page = [WorkflowRecord(*row) for row in self._ledger.query("list_workflows", {**self._params, **after})]
        self.more = len(page) == _PAGE
        self._last = page[-1] if page else last
        return page


class Client:
    """The ledger from a process without the workflows' code: their handles, their list, and what people do to many.

    What is done to many workflows is done to all or, where one of them is not in a state that allows it, to none.
    """

    def __init__(self, database_url: str | None = None, *, schema: str = "eventflow") -> None:
        """Of the ledger at this URL; else at `DATABASE_URL`.

        Raises:
            SettingsError: there is none, or it cannot be.

        """
        given = {} if database_url is None else {"database_url": database_url}
        settings = load_settings(database_schema=schema, **given)
        self._database = Database(
            settings.database_url, settings.database_schema, prepared=settings.prepared_statements
        )
        self._opened: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """What it asks through.

        Raises:
            UsageError: it is not entered.

        """
        if self._opened is None:
            raise UsageError(
                "enter the client first: `async with Client() as client:`, or `with sync.Client() as client:`"
            )
        return self._opened

    def open(self) -> None:
        """Look whether the ledger fits. Blocks.

        Raises:
            UnavailableError, SchemaError: what is wrong with it.
            UsageError: it is open already.

        """
        if self._opened is not None:
            raise UsageError("this client has been entered already")
        with self._database.connect("client") as connection:
            check_schema(connection, self._database.schema)
        self._opened = Ledger(self._database, keep=_KEPT)

    def close(self) -> None:
        """Close its connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def handle(self, workflow_id: str, result: type[R], /) -> Handle[R]:
        """The handle of a workflow whose result is of this type; whether there is one, the first question to it tells.

        Raises:
            UsageError: what can be no workflow's id; the client is not entered.

        """
        talk.check_address(workflow_id)
        return Handle(workflow_id, codec_for(result), self.ledger)

    def workflows(
        self, *, status: Status | None = None, name: str | None = None, prefix: str | None = None,
        attributes: Mapping[str, object] | None = None, parent: str | None = None,
        created_after: datetime | None = None, created_before: datetime | None = None,
    ) -> AsyncIterator[WorkflowRecord]:  # fmt: skip
        """Workflows, oldest first: with this status, this name, ids that begin so, these attributes among theirs.

        Raises:
            UsageError, CodecError: as of `Filter`.

        """
        wanted = Filter(status, name, prefix, attributes, parent, created_after, created_before)
        return _each(Pages(self.ledger, wanted))

    async def cancel(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """Ask for workflows to end; returns of how many that is true. See `Handle.cancel`."""
        return await self.ledger.request(list(workflow_ids), "cancel", children=children)

    async def terminate(self, workflow_ids: Sequence[str], /, *, children: bool = True) -> int:
        """End workflows here and now; returns of how many that is true. See `Handle.terminate`."""
        return await self.ledger.request(list(workflow_ids), "terminate", children=children)

    async def resume(self, workflow_ids: Sequence[str], /) -> int:
        """Let parked and cancelled workflows go on. See `Handle.resume`."""
        return await self._manage("resume", workflow_ids)

    async def retry(self, workflow_ids: Sequence[str], /) -> int:
        """Run failed workflows again from the step that ended them. See `Handle.retry`."""
        return await self._manage("retry", workflow_ids)

    async def restart(self, workflow_ids: Sequence[str], /) -> int:
        """Run workflows that have ended again from the beginning. See `Handle.restart`."""
        return await self._manage("restart", workflow_ids)

    async def delete(self, workflow_ids: Sequence[str], /) -> int:
        """Delete workflows that have ended or are parked. See `Handle.delete`."""
        return await self._manage("forget", workflow_ids)

    async def _manage(self, operation: Operation, workflow_ids: Sequence[str]) -> int:
        return await self.ledger.manage(operation, workflow_ids)


async def _each(pages: Pages) -> AsyncIterator[WorkflowRecord]:
    while pages.more:
        for record in await asyncio.to_thread(pages.next):
            yield record


def each(pages: Pages) -> Iterator[WorkflowRecord]:
    """The workflows of all pages, for blocking code."""
    while pages.more:
        yield from pages.next()
