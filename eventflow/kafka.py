"""What a handler sees of Kafka: messages, their headers, and how bytes become typed values. Values only, no I/O."""

import base64
import contextlib
import json
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, Protocol, Union, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from eventflow.errors import CodecError, UnavailableError, UsageError, first_line

V_co = TypeVar("V_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=bytes | None)
_NO_KEY = cast("bytes | None", None)
# What becomes of a message that fails for good: a dead letter, and those behind it go on; parked, and what is kept in order
# with it waits until a person decides; kept, and its consumer stops.
Failure = Literal["dead_letter", "park_key", "stop"]
RawHeaders = list[tuple[str, bytes | None]] | None
_NO_TOMBSTONE = "it is a tombstone, and the handler's annotation does not admit None"
_HEADERS = operator.methodcaller("headers")
_NAMELESS = "a header's name is not UTF-8"
UNNAMED: RawHeaders = [("\ufffd", _NAMELESS.encode())]  # in the place of all headers of a message that has such a one
_KEYLESS = "it has no key, and the handler's annotation does not admit None"

logger = logging.getLogger(__name__)


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
        generation: from 2 on: it is read again, as `Client.reprocess` wanted, or after its log was cut off.
        incarnation: counts the topics that have had this name, from 1; the message's workflow id holds it.
        timestamp: when it was produced, in UTC.

    """

    __slots__ = (
        "_generation", "_headers", "_incarnation", "_key", "_offset", "_partition", "_timestamp", "_topic", "_value",
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
    def generation(self) -> int:
        """How often its place was read anew: 1, and from 2 on under ids of its own."""
        return getattr(self, "_generation", 1)

    @property
    def timestamp(self) -> datetime | None:
        """When it was produced, in UTC; None where Kafka does not say."""
        if isinstance(self._timestamp, int):
            self._timestamp = moment(self._timestamp)
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


def of_generation(message: Message[Any, Any], generation: int) -> Message[Any, Any]:
    """The message as one of this generation."""
    message._generation = generation  # pyright: ignore[reportPrivateUsage]
    return message


class Deserializer(Protocol):
    """Makes a value of a message's bytes, in place of JSON: the `deserializer=` of a consumer, or its `key_deserializer=`.

    Called where the handler runs, on the event loop for an async one, so it must not block. A tombstone is not passed to it.
    It may have two more methods:

    - `check(type)`, called before anything starts, raises `UsageError` where it can make no such value.
    - `prepare(data, *, topic, headers)`, called in the consumer's thread before the message is handed over, may block, and
      fetches what is needed (a schema, a key). Where it raises `UnavailableError` the consumer waits and tries again, and
      so does a message for which the call itself raises that.
    """

    def __call__(self, data: bytes, *, topic: str, headers: Headers, type: Any) -> object:  # noqa: A002
        """The value; `type` is what the handler's annotation says, without None.

        Raises:
            Exception: it cannot be made. The message is kept as failed, with this as its reason, and not tried again.

        """
        ...


class Unprepared(Exception):  # noqa: N818  # no failure: the message is tried again once it is prepared
    """A message whose deserializer has to fetch something first, which no event loop may wait for."""


class Reader:
    """Turns raw messages into a handler's `Message[V, K]`; bound once per handler.

    Attributes:
        prepares: whether its messages are to pass `prepare` before they are read.

    """

    __slots__ = ("_key", "_value", "prepares")

    def __init__(self, annotation: Any) -> None:
        value, key = _kinds(annotation)
        self._value = _value_decoder(value)
        self._key = _key_decoder(key)
        self.prepares = False

    def prepare(self, value: bytes | None, key: bytes | None, headers: RawHeaders, topic: str) -> None:
        """Fetch what reading this message needs. Blocks.

        Raises:
            UnavailableError: it cannot be had now.

        """

    def read(
        self, value: bytes | None, key: bytes | None, headers: RawHeaders, topic: str, partition: int, offset: int,
        incarnation: int, timestamp: int | None,
    ) -> Message[Any, Any]:  # fmt: skip
        """The typed message.

        Raises:
            CodecError: value or key cannot be decoded; names the message and the reason.
            Unprepared: it has to pass `prepare` first.

        """
        try:
            if headers == UNNAMED:
                raise CodecError(_NAMELESS)
            decoded = self._value(value)
            decoded_key = key if self._key is None else self._key(key)
        except (ValidationError, ValueError, CodecError) as error:
            raise CodecError(f"{topic}/{partition}/{offset} cannot be decoded: {_brief(error)}") from None
        return _received(decoded, decoded_key, headers, topic, partition, offset, incarnation, timestamp)


class _ForeignReader(Reader):
    """A reader whose values, or keys, somebody else's code makes. Apart, for JSON is not to pay for it."""

    __slots__ = ("_make_key", "_make_value", "_prepare")

    def __init__(
        self, annotation: Any, deserializer: Deserializer | None, key_deserializer: Deserializer | None
    ) -> None:
        value, key = _kinds(annotation)
        self._make_value = (
            _ours(_value_decoder(value)) if deserializer is None else _foreign(deserializer, value, _NO_TOMBSTONE)
        )
        self._make_key = (
            _ours(_key_decoder(key)) if key_deserializer is None else _foreign(key_deserializer, key, _KEYLESS)
        )
        self._prepare = [getattr(one, "prepare", None) for one in (deserializer, key_deserializer)]
        self.prepares = any(self._prepare)

    def prepare(self, value: bytes | None, key: bytes | None, headers: RawHeaders, topic: str) -> None:
        for prepare, data in zip(self._prepare, (value, key), strict=True):
            if prepare is None or data is None or headers == UNNAMED:
                continue
            try:
                prepare(data, topic=topic, headers=Headers.received(headers))
            except UnavailableError:
                raise
            except Exception as error:  # somebody else's; what is wrong with this message, reading it tells
                logger.debug("preparing a message of %s: %r", topic, error)

    def read(
        self, value: bytes | None, key: bytes | None, headers: RawHeaders, topic: str, partition: int, offset: int,
        incarnation: int, timestamp: int | None,
    ) -> Message[Any, Any]:  # fmt: skip
        received = Headers.received(headers)
        try:
            if headers == UNNAMED:
                raise CodecError(_NAMELESS)
            made, made_key = self._make_value(value, topic, received), self._make_key(key, topic, received)
        except (ValidationError, ValueError, CodecError) as error:
            raise CodecError(f"{topic}/{partition}/{offset} cannot be decoded: {_brief(error)}") from error
        return _received(made, made_key, received, topic, partition, offset, incarnation, timestamp)


def message_reader(
    annotation: Any, deserializer: Deserializer | None = None, key_deserializer: Deserializer | None = None
) -> Reader:
    """The reader for a handler's annotation.

    Raises:
        UsageError: nothing can be decoded to it.

    """
    if deserializer is None and key_deserializer is None:
        return Reader(annotation)
    return _ForeignReader(annotation, deserializer, key_deserializer)


def headers_of(message: Any) -> RawHeaders:
    """The headers of a message as confluent-kafka has it; `UNNAMED` where it cannot tell one's name.

    It fails the first time only: asked again it answers with a null pointer in a tuple, and what takes that ends the process.
    And it fails by a result beside an exception, which the interpreter sees only where a call does not come from bytecode
    that it has specialised: elsewhere the result is taken, and the exception raised by whatever comes next.
    """
    try:
        return cast("RawHeaders", _HEADERS(message))
    except (SystemError, UnicodeDecodeError):
        message.set_headers(UNNAMED)
        return UNNAMED


def _kinds(annotation: Any) -> tuple[Any, Any]:
    """What an annotation says of value and key."""
    arguments = get_args(annotation)
    return (arguments[0] if arguments else Any), (arguments[1] if len(arguments) > 1 else bytes | None)


_Make = Callable[[bytes | None, str, Headers], Any]


def _ours(decode: Callable[[bytes | None], Any] | None) -> _Make:
    return lambda data, _topic, _headers: data if decode is None else decode(data)


def _foreign(deserializer: Deserializer, annotation: Any, nothing: str) -> _Make:
    """A deserializer at work for one annotation; `nothing` is said where there are no bytes, and None will not do."""
    kind, optional = _split_none(annotation)
    check: Callable[[Any], None] | None = getattr(deserializer, "check", None)
    if check is not None:
        check(kind)

    def make(data: bytes | None, topic: str, headers: Headers) -> Any:
        if data is None:
            if optional:
                return None
            raise CodecError(nothing)
        try:
            return deserializer(data, topic=topic, headers=headers, type=kind)
        except UnavailableError as error:
            raise Unprepared(str(error)) from error
        except (CodecError, ValidationError):
            raise
        except Exception as error:  # somebody else's
            raise CodecError(f"{_called(deserializer)}: {type(error).__name__}: {first_line(error)}") from error

    return make


class by_header:  # noqa: N801  # used as a function
    """A deserializer that goes by a header: `by_header("type", {"created": Created, "paid": Paid})`.

    The header's text chooses the type; the value is JSON, or what `deserializer` makes of it. The annotation is their union.
    """

    def __init__(self, name: str, types: Mapping[str, Any], *, deserializer: Deserializer | None = None) -> None:
        if not types:
            raise UsageError(f"by_header({name!r}, ...) needs a type at least")
        self._name, self._types, self.inner = name, dict(types), deserializer
        self._decode: dict[str, Callable[[bytes], Any]] = {}
        self.prepare = getattr(deserializer, "prepare", None)

    def with_inner(self, deserializer: Deserializer | None) -> "by_header":
        """The same, with another deserializer behind it."""
        return by_header(self._name, self._types, deserializer=deserializer)

    def check(self, type: Any) -> None:  # noqa: A002  # the protocol's name
        """Whether the handler's annotation has each of the types, and values of them can be made.

        Raises:
            UsageError: one is in the way.

        """
        wanted = union_members(type)
        check: Callable[[Any], None] | None = getattr(self.inner, "check", None)
        for text, kind in self._types.items():
            if Any not in wanted and not any(member in wanted for member in union_members(kind)):
                raise UsageError(
                    f"by_header({self._name!r}, ...) makes {_called(kind)} of {text!r}, which the handler does not take"
                )
            if check is not None:
                check(kind)
            elif self.inner is None:
                self._decode[text] = _value_decoder(kind)

    def __call__(self, data: bytes, *, topic: str, headers: Headers, type: Any) -> object:  # noqa: A002, ARG002
        """The value, by the type that the header names.

        Raises:
            CodecError: there is no such header, or no such type.

        """
        text = headers.text(self._name)
        if text is None or text not in self._types:
            said = "is not there" if text is None else f"is {text!r}"
            raise CodecError(f"the header {self._name!r} {said}; it must be one of: {', '.join(sorted(self._types))}")
        if self.inner is None:
            return self._decode[text](data)
        return self.inner(data, topic=topic, headers=headers, type=self._types[text])


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, and what is no union by itself."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return tuple(one for member in get_args(annotation) for one in union_members(member))
    return (annotation,)


def union_member(annotation: Any, name: str) -> Any:
    """The member of a union whose class is called so; the annotation itself where none is, or several are."""
    found = [member for member in union_members(annotation) if getattr(member, "__name__", None) == name]
    return found[0] if len(found) == 1 else annotation


def _called(thing: Any) -> str:
    return getattr(thing, "__name__", None) or type(thing).__name__


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
            raise CodecError(_NO_TOMBSTONE)
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


_STRUCTURED = frozenset({
    "dataclass", "definition-ref", "dict", "frozenset", "list", "model", "named-tuple", "set", "tuple", "typed-dict",
})  # fmt: skip


def _key_decoder(annotation: Any) -> Callable[[bytes | None], Any] | None:
    kind, optional = _split_none(annotation)
    if kind is bytes and optional:
        return None
    convert = _key_converter(kind)

    def read(data: bytes | None) -> Any:
        if data is None:
            if optional:
                return None
            raise CodecError(_KEYLESS)
        return convert(data)

    return read


def _key_converter(kind: Any) -> Callable[[bytes], Any]:
    """A key of a scalar type is text, as most producers write it; of any other, JSON."""
    if kind is bytes or kind is str:
        return _plain_decoder(kind)
    adapter = _adapter(kind)
    if _is_structured(adapter.core_schema):
        return adapter.validator.validate_json
    return lambda data: adapter.validate_strings(data.decode())


def _is_structured(schema: Any) -> bool:
    """Whether values of this core schema have parts."""
    if schema["type"] in {"union", "tagged-union"}:
        choices: Any = schema["choices"]  # by name where they are tagged; with a label, maybe, where they are not
        several = list(choices.values()) if schema["type"] == "tagged-union" else choices
        return any(_is_structured(one[0] if isinstance(one, tuple) else one) for one in several)
    if schema["type"] in _STRUCTURED:
        return True
    return "schema" in schema and _is_structured(schema["schema"])


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        parts = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors(include_input=False)[:3]
        ]
        return "; ".join(parts)
    return str(error)


def moment(milliseconds: int | None) -> datetime | None:
    """A message's timestamp; None where it has none, or one that no calendar has: a producer may set any."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds and milliseconds > 0 else None
    except (ValueError, OverflowError, OSError):
        return None


def headers_json(raw: RawHeaders) -> str | None:
    """Headers as the ledger keeps them: [[name, base64 or null], …]."""
    if not raw:
        return None
    return json.dumps([[n, None if v is None else base64.b64encode(v).decode()] for n, v in raw])


def headers_from_json(text: str | None) -> RawHeaders:
    """The inverse of `headers_json`.

    Raises:
        CodecError: it is nothing of the kind; who inserts into the outbox by plain SQL may write anything.

    """
    if not text:
        return None
    with contextlib.suppress(ValueError, TypeError):
        headers: list[Any] = [(n, None if v is None else base64.b64decode(v)) for n, v in json.loads(text)]
        if all(isinstance(n, str) for n, _ in headers):
            return headers
    raise CodecError(f"these headers are no JSON of [[name, base64 or null], ...]: {text[:100]!r}")
