"""SQLAlchemy's side of a transaction: the Session of one message, and what those of a group have only added.

Loaded with the first transaction that wants a Session: importing SQLAlchemy takes as long as all else together.
"""

import functools
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from sqlalchemy import create_engine, event, inspect
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeDecorator, UserDefinedType

_DIALECT = "postgresql+psycopg://"
_JOIN: dict[str, Any] = {"alone": "rollback_only", "grouped": "rollback_only", "savepoint": "create_savepoint"}


class MessageSession(Session):
    """A Session of one message; it knows whether it ever spoke to the database."""

    additions: "Additions"
    began = False


@event.listens_for(MessageSession, "after_begin")
def _add_first(session: MessageSession, *_: Any) -> None:
    session.began = True
    session.additions.flush()


_PLAIN = {type(None), bool, int, float, str, bytes, UUID, Decimal, date, datetime}
_EVENTS = "before_insert", "after_insert", "before_update", "after_update"


def _is_known(default: Any) -> bool:
    """Whether a default does not depend on whose call it is: no function of the user's."""
    function = getattr(default, "__wrapped__", default)
    return getattr(function, "__self__", None) is datetime or function.__module__ in {"builtins", "uuid"}


@functools.cache
def _has_user_code(kind: type) -> bool:
    """Whether sending a new one calls the user's functions: they look at their own call's variables and workflow."""
    mapper = cast("Any", inspect(kind))
    columns: list[Any] = [column for table in mapper.tables for column in table.columns]
    defaults = [column.default for column in columns if column.default is not None]
    return (
        any(getattr(mapper.dispatch, name) for name in _EVENTS)
        or any(isinstance(column.type, TypeDecorator | UserDefinedType) for column in columns)
        or any(default.is_callable and not _is_known(default.arg) for default in defaults)
        or mapper.version_id_col is not None
    )


class Additions:
    """What the messages of a group have only added: new objects of one class, whose handlers read and changed nothing.

    They go to the database together: at the end, or before another message's Session speaks to it. So a handler finds
    what the messages before it added, as if each had been flushed by itself, and a group costs one flush.
    """

    def __init__(self, bind: Any) -> None:
        self._session = Session(bind=bind, join_transaction_mode="rollback_only")
        self._kind: type | None = None

    def take(self, session: MessageSession, result: object) -> bool:
        """Take over what this Session has added, if that is all that it did, and it is the same when it is sent later."""
        if session.began or session.deleted or session.identity_map or type(result) not in _PLAIN:
            return False  # the result may be, or hold, an object that gets its key when it is sent
        if session.dispatch.before_flush or session.dispatch.after_flush:
            return False
        added: list[object] = list(session.new)
        if any(_has_user_code(type(one)) for one in added):
            return False
        kinds = {type(one) for one in added}
        if len(kinds) > 1 or (self._kind is not None and kinds - {self._kind}):
            return False  # classes may depend on each other in ways that only the order of the messages tells
        session.expunge_all()
        self._session.add_all(added)
        self._kind = kinds.pop() if kinds else self._kind
        return True

    def flush(self) -> None:
        """Send what was taken."""
        if self._kind is not None:
            self._kind = None
            self._session.flush()
            self._session.expunge_all()


class Sessions:
    """The Sessions of one sync port."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._engine = create_engine(_DIALECT, creator=connect, poolclass=NullPool)
        self._additions: Additions

    def connect(self) -> Any:
        return self._engine.connect()

    def begin(self, bind: Any) -> None:
        """A transaction has begun on this connection."""
        self._additions = Additions(bind)

    def open(self, bind: Any, mode: str) -> MessageSession:
        session = MessageSession(bind=bind, join_transaction_mode=_JOIN[mode])
        session.additions = self._additions
        return session

    def take(self, session: MessageSession, result: object) -> bool:
        """Whether what the Session has only added is taken over, to be sent later."""
        return self._additions.take(session, result)

    def flush(self) -> None:
        """Send what was taken over."""
        self._additions.flush()


class AsyncSessions:
    """Those of an async one."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._engine = create_async_engine(_DIALECT, async_creator=connect, poolclass=NullPool)
        self._additions: Additions

    async def connect(self) -> Any:
        return await self._engine.connect()

    def begin(self, bind: Any) -> None:
        """The same."""
        self._additions = Additions(bind.sync_connection)

    def open(self, bind: Any, mode: str) -> AsyncSession:
        session = AsyncSession(bind=bind, sync_session_class=MessageSession, join_transaction_mode=_JOIN[mode])
        cast("MessageSession", session.sync_session).additions = self._additions
        return session

    def take(self, session: AsyncSession, result: object) -> bool:
        """The same."""
        return self._additions.take(cast("MessageSession", session.sync_session), result)

    async def flush(self, bind: Any) -> None:
        """The same."""
        await bind.run_sync(self._flush)

    def _flush(self, _: object) -> None:
        self._additions.flush()
