"""What a program's values pass on their way to the ledger and back: the payload codec, in one place.

In memory they are plain: JSON text, or a message's bytes. `database` sends the parameters of every named query through
`Payloads.write`, and its rows through `Payloads.read`. Names tell which are payloads: a parameter or a column that is
called `arguments`, `output`, `error`, `steps`, `payload`, `value` or `riders`; where there are `headers`, `key` and `value`
are a message's.
All else is stored as it is: ids, names, topics, keys of events and streams, attributes, positions, times, reasons.

What a codec has made of a text stands in its column as `~label:base64`, which no JSON begins with: so what was written
before there was a codec, or by SQL, is told from it, and read as it is. A message is one payload: its bytes stand in
`value`, `~label` in `headers`, nothing in `key`.

What cannot be decoded is no error where a batch of rows is read, or one value would stop them all: it stays as it is
stored, an `Unread`, and is an `UnreadableError` for whoever needs it.
"""

import hmac
import re
import struct
from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from eventflow.errors import CodecError, UnreadableError, first_line

TEXTS = frozenset({"arguments", "output", "error", "steps", "payload", "value", "riders"})
_MARK = "~"
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LENGTHS = struct.Struct("!ii")  # of a message's key and value; -1: it has none
_DIGEST = 16  # hexadecimal digits

Row = tuple[Any, ...]


class PayloadCodec(Protocol):
    """Makes of what is stored something else, and back: encrypts it, say. Called from any thread, thousands of times a second.

    What is written is encoded in the thread that writes for all workflows of this process: a codec that asks a server for
    each value holds all of them up. One that raises there has the workflow fail whose value it was.
    """

    def encode(self, payload: bytes, /) -> tuple[str, bytes]:
        """A label, and what is stored. The label stands beside it, plain, for `decode` to know what was done: a key's id.

        It is 1 to 64 letters, digits, `.`, `_` and `-`.
        """
        ...

    def decode(self, label: str, stored: bytes, /) -> bytes:
        """The inverse, also of what was encoded years ago.

        Raises:
            UnreadableError: it cannot be, and why; another exception is told by its type.

        """
        ...

    @property
    def secrets(self) -> Sequence[bytes]:
        """What digests of values are keyed with, the first for new ones; none where a codec hides nothing."""
        ...


class Unread(str):
    """A value that could not be decoded, as it is stored; `why` says what is in the way."""

    __slots__ = ("why",)

    def __new__(cls, stored: str, why: str) -> "Unread":
        unread = super().__new__(cls, stored)
        unread.why = why
        return unread

    why: str


class Plain(str):
    """A text that holds nothing of the program's: stored as it is, whatever the codec."""

    __slots__ = ()


def unread(values: Iterable[Any]) -> UnreadableError | None:
    """Why the first of these that could not be decoded was not; None where all were."""
    return next((UnreadableError(value.why) for value in values if type(value) is Unread), None)


class _Plan(NamedTuple):
    """Where payloads stand in the rows of a query: the columns of texts, and of a message's key, value and headers."""

    texts: tuple[int, ...]
    message: tuple[int, int, int] | None


class Payloads:
    """The payload codec of one ledger, applied to what goes there and to what comes from there."""

    def __init__(self, codec: PayloadCodec | None = None) -> None:
        self._codec = codec
        self._plans: dict[str, _Plan] = {}

    @property
    def encodes(self) -> bool:
        """Whether there is a codec."""
        return self._codec is not None

    # ---- out ----

    def write(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """A named query's parameters, the payloads among them encoded.

        Raises:
            CodecError: the codec refuses one; never shows it.

        """
        if self._codec is None:
            return params
        names = params.keys() & TEXTS
        if not names and "headers" not in params:
            return params
        encoded = dict(params)
        if "headers" in params:
            names = names - {"value"}
            encoded |= self._messages(params)
        elif "source" in params:
            encoded["source"] = _each(params["source"], self._keyed)
        for name in names:
            encoded[name] = _each(params[name], self.encode)
        return encoded

    def encode(self, text: str) -> str:
        """One text as it is stored.

        Raises:
            CodecError: the codec refuses it, or it cannot be UTF-8.

        """
        if type(text) is Plain:
            return text
        try:
            payload = text.encode()
        except UnicodeEncodeError as error:
            raise CodecError(f"it is no text: {error.reason}") from None
        label, stored = self._encode(payload)
        return f"{_MARK}{label}:{b2a_base64(stored, newline=False).decode()}"

    def _encode(self, payload: bytes) -> tuple[str, bytes]:
        codec = cast("PayloadCodec", self._codec)
        try:
            label, stored = codec.encode(payload)
        except Exception as error:  # it is somebody else's, and may quote what it was given
            raise CodecError(f"the payload codec refused a value ({type(error).__name__})") from None
        if not _LABEL.fullmatch(label):
            raise CodecError(f"the payload codec gave a label that cannot be: {label!r}")
        return label, stored

    def _messages(self, params: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The columns of messages, each as one payload; a row without a message has none."""
        count = len(_values(params["id"] if "id" in params else params["topic"]))
        columns = [_values(params[name]) or [None] * count for name in ("key", "value", "headers")]
        rows = [self._message(*row) for row in zip(*columns, strict=True)]
        return {"key": [None] * count, "value": [v for v, _ in rows], "headers": [h for _, h in rows]}

    def _message(self, key: bytes | None, value: bytes | None, headers: str | None) -> tuple[bytes | None, str | None]:
        if key is None and value is None and headers is None:
            return None, None
        lengths = _LENGTHS.pack(-1 if key is None else len(key), -1 if value is None else len(value))
        label, stored = self._encode(b"".join((lengths, key or b"", value or b"", (headers or "").encode())))
        return stored, f"{_MARK}{label}"

    def _keyed(self, source: str) -> str:
        """A stream item's source, which ends in a digest of the item, with that digest keyed: anyone could try values else.

        Under each key, and as it was before there was one: what was written under a former one is the same item.
        """
        secrets = cast("PayloadCodec", self._codec).secrets
        place, _, digest = source.rpartition(" ")
        keyed = [hmac.digest(secret, digest.encode(), "sha256").hex()[:_DIGEST] for secret in secrets]
        return ",".join([*(f"{place} {one}" for one in keyed), source])

    # ---- in ----

    def read(self, query: str, names: Sequence[str], rows: list[Row]) -> list[Row]:
        """The rows of a named query, its columns being called so, with their payloads decoded, or `Unread`."""
        plan = self._plans.get(query)
        if plan is None:
            plan = self._plans[query] = _plan(names)
        if not plan.texts and plan.message is None:
            return rows
        return [self._row(row, plan) for row in rows]

    def _row(self, row: Row, plan: _Plan) -> Row:
        encoded = [i for i in plan.texts if row[i] is not None and row[i][:1] == _MARK]
        message = plan.message
        if message is not None and (row[message[2]] or "")[:1] != _MARK:
            message = None
        if not encoded and message is None:
            return row
        decoded = list(row)
        for i in encoded:
            decoded[i] = self.decode(row[i])
        if message is not None:
            key, value, headers = message
            decoded[key], decoded[value], decoded[headers] = self.decode_message(row[value], row[headers])
        return tuple(decoded)

    def decode(self, text: str) -> str:
        """What was stored as this text, or `Unread`."""
        label, _, stored = text[1:].partition(":")
        try:
            return self._decode(label, a2b_base64(stored, strict_mode=True)).decode()
        except (UnreadableError, Error, ValueError) as error:
            return Unread(text, _why(label, error))

    def decode_message(self, stored: bytes, headers: str) -> tuple[bytes | None, bytes | None, str | None]:
        """A message's key, value and headers; what cannot be decoded stays, and its headers are `Unread`."""
        label = headers[1:]
        try:
            payload = self._decode(label, stored)
            of_key, of_value = _LENGTHS.unpack_from(payload)
            key_ends = _LENGTHS.size + max(0, of_key)
            ends = key_ends + max(0, of_value)
            text = payload[ends:].decode()
        except (UnreadableError, struct.error, ValueError) as error:
            return None, stored, Unread(headers, _why(label, error))
        key = None if of_key < 0 else payload[_LENGTHS.size : key_ends]
        return key, None if of_value < 0 else payload[key_ends:ends], text or None

    def _decode(self, label: str, stored: bytes) -> bytes:
        if self._codec is None:
            raise UnreadableError(
                f"it is stored under the key {label!r}, and this process has none: set EVENTFLOW_ENCRYPTION_KEYS"
            )
        try:
            return self._codec.decode(label, stored)
        except UnreadableError:
            raise
        except Exception as error:  # it is somebody else's
            raise UnreadableError(
                f"it is stored under the key {label!r}, and cannot be decoded: {type(error).__name__}"
            ) from None


def _why(label: str, error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return first_line(error)
    return f"it is stored under the key {label!r}, and is damaged"


def _plan(names: Sequence[str]) -> _Plan:
    at = {name: i for i, name in enumerate(names)}
    message = (at["key"], at["value"], at["headers"]) if "headers" in at else None
    return _Plan(tuple(i for n, i in at.items() if n in TEXTS and (n != "value" or message is None)), message)


def _values(column: Any) -> Sequence[Any]:
    """A column's values: it is a list, or one of `arrays`, or None where all of it is empty."""
    return getattr(column, "values", column) or ()


def _each(column: Any, make: Callable[[str], str]) -> Any:
    """The same with every text in it made anew."""
    if column is None or isinstance(column, str):
        return None if column is None else make(column)
    return type(column)([None if value is None else make(value) for value in _values(column)])
