"""Cursors whose `executemany` sends many rows at once: psycopg's own polls the connection, and may send, for every row.

What it does is the same, to the count of rows and the error; it takes a third of the time of the processor, and lets go of the
interpreter once for some hundred rows, where other threads want it, too. Up to so many rows at a time are made ready, all of
them before the first is sent, so that a value that cannot be converted leaves nothing half sent.
"""

# pyright: reportPrivateUsage=false
# Rows are sent and answered as by psycopg's own pipeline, whose state a cursor of ours has to keep as it is.

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import psycopg
from psycopg._cursor_base import BaseCursor
from psycopg._pipeline_base import BasePipeline
from psycopg._queries import PostgresQuery
from psycopg.generators import fetch_many, send

_AT_ONCE = 500  # rows
_DONE = psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK
_SYNC = psycopg.pq.ExecStatus.PIPELINE_SYNC
Waits = Generator[Any, Any, None]


class _Row(NamedTuple):
    """A row's parameters as the server takes them."""

    params: Any
    types: Any
    formats: Any


class _Many(BaseCursor[Any, Any]):
    """What both cursors have in common."""

    def _is_plain(self) -> bool:
        """Whether rows can be sent at once: not in a pipeline of the user's, nor where nothing is prepared."""
        connection: Any = self._conn
        return connection._pipeline is None and connection.prepare_threshold is not None

    def _send_many(self, query: Any, rows: Iterable[Any]) -> Waits:
        """Send all, some hundred at a time."""
        yield from self._start_query(query)
        self._rowcount, self._execmany_returning = 0, False
        made: PostgresQuery | None = None
        left = iter(rows)
        for first in left:
            if made is None:
                made = self._query = self._convert_query(query, first)
            else:
                made.dump(first)
            yield from self._send_some(made, [_row(made), *_rows(made, islice(left, _AT_ONCE - 1))])
        self._last_query = query
        yield from self._conn._prepared.maintain_gen(self._conn)

    def _send_some(self, made: PostgresQuery, rows: list[_Row]) -> Waits:
        types, name = None, b""
        with piped(self._conn) as pipeline:
            for params, of_types, formats in rows:
                if of_types == types:
                    pipeline.pgconn.send_query_prepared(name, params, formats, self.format)
                    pipeline.result_queue.append((self, None))
                    continue
                made.params, made.types, made.formats = params, of_types, formats
                yield from self._maybe_prepare_gen(made, prepare=True)
                hand_over(pipeline)
                types, name = of_types, self._get_prepared(made, prepare=True)[1]
            pipeline.pgconn.pipeline_sync()
            yield from send(pipeline.pgconn)
            yield from self._count(pipeline)

    def _count(self, pipeline: BasePipeline) -> Waits:
        """Take the answers, of which those that are not about a row of their own are psycopg's; raise the first error."""
        error: psycopg.Error | None = None
        count, last = 0, None
        while (results := (yield from fetch_many(pipeline.pgconn)))[0].status != _SYNC:
            queued = pipeline.result_queue.popleft()
            if queued is not None and queued[1] is None and results[0].status in _DONE:
                last = results[0]
                count += last.command_tuples or 0
                continue
            try:
                pipeline._process_results(queued, results)
            except psycopg.Error as found:
                error = error or found
        if error is not None:
            raise error
        self._rowcount += count
        if last is not None:
            self._statusmessage = last.command_status


class Cursor(_Many, psycopg.Cursor[Any]):
    """A sync connection's."""

    def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        connection = self._conn
        if returning or not self._is_plain():
            super().executemany(query, params_seq, returning=returning)
            return
        with connection.lock:
            connection.wait(self._send_many(query, params_seq))


class AsyncCursor(_Many, psycopg.AsyncCursor[Any]):
    """An async one's."""

    async def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        connection = self._conn
        if returning or not self._is_plain():
            await super().executemany(query, params_seq, returning=returning)
            return
        async with connection.lock:
            await connection.wait(self._send_many(query, params_seq))


def _row(made: PostgresQuery) -> _Row:
    return _Row(made.params, made.types, made.formats)


def _rows(made: PostgresQuery, rows: Iterable[Any]) -> Iterator[_Row]:
    for row in rows:
        made.dump(row)
        yield _row(made)


@contextmanager
def piped(connection: Any) -> Generator[BasePipeline, None, None]:
    """A connection in pipeline mode, of which its cursors know; one that cannot leave it again is closed."""
    pipeline, before = BasePipeline(connection), connection._pipeline
    connection.pgconn.enter_pipeline_mode()
    connection._pipeline = pipeline
    try:
        yield pipeline
    finally:
        connection._pipeline = before
        try:
            connection.pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:  # answers are left of which nobody knows any more whose they are
            connection.pgconn.finish()


def hand_over(pipeline: BasePipeline) -> None:
    """Give libpq the commands that a cursor has made ready."""
    while pipeline.command_queue:
        pipeline.command_queue.popleft()()
