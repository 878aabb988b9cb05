"""What a handler sees of Kafka: messages, their headers, and how bytes become typed values. Values only, no I/O."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, Generic, Union, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from eventflow.errors import CodecError, UsageError, first_line

V_co = TypeVar("V_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=bytes | None)
_NO_KEY = cast("bytes | None", None)
RawHeaders = list[tuple[str, bytes | None]] | None


class Headers(Mapping[str, bytes]):
    """A message's headers: the last value of each name; `all(name)` for repeated ones."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str | bytes] | None = None, /) -> None:
        pairs = (items or {}).items()
        self._items: list[tuple[str, bytes]] = [(n, v.encode() if isinstance(v, str) else v) for n, v in pairs]

    @classmethod
    def received(cls, raw: RawHeaders) -> "Headers":
        """Headers as the client hands them over; one without a value is empty."""
        headers = cls()
        headers._items = [(n, v if v is not None else b"") for n, v in raw or ()]
        return headers

    def __getitem__(self, name: str, /) -> bytes:
        for known, value in reversed(self._items):
            if known == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._items))

    def __len__(self) -> int:
        return len(dict(self._items))

    def all(self, name: str, /) -> list[bytes]:
        """Every value of this name, in order."""
        return [value for known, value in self._items if known == name]

    def text(self, name: str, /) -> str | None:
        """The last value of this name as text.

        Raises:
            CodecError: it is not UTF-8.

        """
        value = self.get(name)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            raise CodecError(f"the header {name!r} is not UTF-8") from None


class Message(Generic[V_co, K_co]):
    """A Kafka message with its value and key decoded by annotation; made by hand in tests of a handler.

    Attributes:
        value: the decoded value; None is a tombstone.
        key: the decoded key; the raw bytes, or None, where the annotation names no type for it.
        headers: the headers, by name.
        topic: where it was read, `partition` and `offset` with it.
        incarnation: counts the topics that have had this name, from 1; the message's workflow id holds it.
        timestamp: when it was produced, in UTC.

    """

    __slots__ = (
        "_headers", "_incarnation", "_key", "_offset", "_partition", "_timestamp", "_topic", "_value",
    )  # fmt: skip

    def __init__(
        self,
        value: V_co,
        key: K_co = _NO_KEY,  # pyright: ignore[reportArgumentType]  # K_co's default, which pyright infers from here
        *,
        headers: Mapping[str, str | bytes] | Headers | None = None,
        topic: str = "",
        partition: int = 0,
        offset: int = 0,
        timestamp: datetime | None = None,
    ) -> None:
        self._value = value
        self._key = key
        self._headers: Any = headers if isinstance(headers, Headers) else Headers(headers)
        self._timestamp: Any = timestamp
        self._topic = topic
        self._partition = partition
        self._offset = offset
        self._incarnation = 1

    @property
    def value(self) -> V_co:
        """The decoded value; None is a tombstone."""
        return self._value

    @property
    def key(self) -> K_co:
        """The decoded key."""
        return self._key

    @property
    def headers(self) -> Headers:
        """The headers, by name."""
        if not isinstance(self._headers, Headers):
            self._headers = Headers.received(self._headers)
        return self._headers

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._topic

    @property
    def partition(self) -> int:
        """The partition, from 0."""
        return self._partition

    @property
    def offset(self) -> int:
        """The offset in the partition."""
        return self._offset

    @property
    def incarnation(self) -> int:
        """Which of the topics that have had this name, from 1."""
        return self._incarnation

    @property
    def timestamp(self) -> datetime | None:
        """When it was produced, in UTC; None where Kafka does not say."""
        if isinstance(self._timestamp, int):
            self._timestamp = datetime.fromtimestamp(self._timestamp / 1000, UTC) if self._timestamp > 0 else None
        return self._timestamp

    def __repr__(self) -> str:
        return f"Message({self.topic}/{self.partition}/{self.offset})"


def _received(value: Any, key: Any, headers: Any, topic: str, partition: int, offset: int, incarnation: int,
              timestamp: int | None) -> Message[Any, Any]:  # fmt: skip
    message: Message[Any, Any] = Message.__new__(Message)  # pyright: ignore[reportUnknownVariableType]
    message._value = value  # pyright: ignore[reportPrivateUsage]
    message._key = key  # pyright: ignore[reportPrivateUsage]
    message._headers = headers  # pyright: ignore[reportPrivateUsage]
    message._timestamp = timestamp  # pyright: ignore[reportPrivateUsage]
    message._topic = topic  # pyright: ignore[reportPrivateUsage]
    message._partition = partition  # pyright: ignore[reportPrivateUsage]
    message._offset = offset  # pyright: ignore[reportPrivateUsage]
    message._incarnation = incarnation  # pyright: ignore[reportPrivateUsage]
    return message


class Reader:
    """Turns raw messages into a handler's `Message[V, K]`; bound once per handler."""

    __slots__ = ("_key", "_value")

    def __init__(self, annotation: Any) -> None:
        arguments = get_args(annotation)
        self._value = _value_decoder(arguments[0] if arguments else Any)
        self._key = _key_decoder(arguments[1] if len(arguments) > 1 else bytes | None)

    def read(
        self, value: bytes | None, key: bytes | None, headers: RawHeaders, topic: str, partition: int, offset: int,
        incarnation: int, timestamp: int | None,
    ) -> Message[Any, Any]:  # fmt: skip
        """The typed message.

        Raises:
            CodecError: value or key cannot be decoded; names the message and the reason.

        """
        try:
            decoded = self._value(value)
            decoded_key = key if self._key is None else self._key(key)
        except (ValidationError, ValueError, CodecError) as error:
            raise CodecError(f"{topic}/{partition}/{offset} cannot be decoded: {_brief(error)}") from None
        return _received(decoded, decoded_key, headers, topic, partition, offset, incarnation, timestamp)


def message_reader(annotation: Any) -> Reader:
    """The reader for a handler's annotation.

    Raises:
        UsageError: nothing can be decoded to it.

    """
    return Reader(annotation)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except Exception as error:
        raise UsageError(f"a message cannot be decoded to {annotation!r}: {first_line(error)}") from None


def _split_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without None, and whether it admitted None."""
    if annotation is Any:
        return annotation, False
    if annotation is None or annotation is NoneType:
        return NoneType, True
    if get_origin(annotation) in {Union, UnionType}:
        members = get_args(annotation)
        rest = tuple(m for m in members if m is not NoneType)
        if len(rest) < len(members):
            return (rest[0] if len(rest) == 1 else Union[rest]), True  # noqa: UP007
    return annotation, False


def _value_decoder(annotation: Any) -> Callable[[bytes | None], Any]:
    kind, optional = _split_none(annotation)
    decode = _plain_decoder(kind)
    empty = kind is bytes

    def read(data: bytes | None) -> Any:
        if data is None:
            if optional:
                return None
            raise CodecError("a tombstone, and the handler's annotation does not admit None")
        if not data and not empty:
            raise CodecError("the value is empty")
        return decode(data)

    return read


def _plain_decoder(kind: Any) -> Callable[[bytes], Any]:
    if kind is bytes:
        return lambda data: data
    if kind is str:
        return lambda data: data.decode()
    return _adapter(kind).validator.validate_json


def _key_decoder(annotation: Any) -> Callable[[bytes | None], Any] | None:
    kind, optional = _split_none(annotation)
    if kind is bytes and optional:
        return None
    convert: Callable[[str], Any] | None = (
        (lambda text: text) if kind is str else None if kind is bytes else _adapter(kind).validate_strings
    )

    def read(data: bytes | None) -> Any:
        if data is None:
            if optional:
                return None
            raise CodecError("the message has no key, and the handler's annotation does not admit None")
        return data if convert is None else convert(data.decode())

    return read


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        parts = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors(include_input=False)[:3]
        ]
        return "; ".join(parts)
    return str(error)


def headers_json(raw: RawHeaders) -> str | None:
    """Headers as the ledger keeps them: [[name, base64 or null], …]."""
    if not raw:
        return None
    return json.dumps([[n, None if v is None else base64.b64encode(v).decode()] for n, v in raw])


def headers_from_json(text: str | None) -> RawHeaders:
    """The inverse of `headers_json`."""
    if not text:
        return None
    return [(n, None if v is None else base64.b64decode(v)) for n, v in json.loads(text)]
