"""Values by a schema registry: Avro, JSON Schema and Protobuf, through Confluent's client. Needs the extra `schema-registry`.

A consumer fetches the schemas of what it has read before it hands it to its handler, in its own thread (`prepare`). So a
registry that is away holds its consumer up and fails no message, and decoding asks nobody: it runs on the event loop.
What a schema came to is kept: fetched, or not known to the registry, which is asked again after a while.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import TypeAdapter, ValidationError

from eventflow.errors import CodecError, SettingsError, UnavailableError, UsageError, first_line
from eventflow.kafka import Deserializer, Headers, by_header, union_member, union_members
from eventflow.settings import RegistryProperties, Settings

_UNKNOWN = frozenset({40401, 40402, 40403})  # no such subject, version, schema: the registry's own words
_ASK_AGAIN = 30.0  # seconds until a schema that the registry did not know is asked for again
_KEPT = 10_000  # schemas
_EXTRA = 'a schema registry needs an extra: pip install "eventflow[schema-registry]"'
_DEFAULTS: RegistryProperties = {"timeout": 3.0, "max.retries": 1, "retries.wait.ms": 100}
_TOPIC: dict[str, Any] = {"subject.name.strategy.type": "TOPIC"}  # the client's default asks the registry once more


class SchemaRegistry:
    """A registry, for a consumer that has one of its own; all others use `EVENTFLOW_SCHEMA_REGISTRY_URL`.

    `properties` are those of Confluent's `SchemaRegistryClient`, such as `basic.auth.user.info` or `ssl.ca.location`.
    """

    def __init__(self, url: str, properties: Mapping[str, str | int | float | bool] | None = None) -> None:
        """Make its client; nothing is asked yet.

        Raises:
            SettingsError: the client refuses a property, or the extra is missing.

        """
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError:
            raise SettingsError(_EXTRA) from None
        self.url, user = _without_user(url)
        asked = {**_DEFAULTS, **user, **(properties or {}), "url": self.url}
        try:
            self.client: Any = SchemaRegistryClient(asked)
        except (TypeError, ValueError, OSError) as error:
            raise SettingsError(f"the schema registry {self.url}: {first_line(error)}") from None

    def __repr__(self) -> str:
        return f"SchemaRegistry({self.url!r})"

    def fetch(self, written: "_Written", subject: str) -> str:
        """The text of a schema.

        Raises:
            CodecError: the registry does not know it.
            UnavailableError: it does not answer, or refuses to.

        """
        try:
            schema = (
                self.client.get_schema(written.schema, subject)
                if isinstance(written.schema, int) else self.client.get_schema_by_guid(written.schema)
            )  # fmt: skip
        except Exception as error:  # of the HTTP client, too, and of what it makes of an answer that is none
            if getattr(error, "error_code", None) in _UNKNOWN:
                raise CodecError(f"the schema registry {self.url} knows no schema {written.schema}") from None
            raise self.unavailable(error) from error
        return schema.schema_str or ""

    def count(self) -> int:
        """How many subjects it knows.

        Raises:
            UnavailableError: it does not answer, or refuses to.

        """
        try:
            return len(self.client.get_subjects())
        except Exception as error:
            raise self.unavailable(error) from error

    def unavailable(self, error: Exception) -> UnavailableError:
        """An error of asking it, in one line."""
        status = getattr(error, "http_status_code", None)
        said = f"answers with HTTP status {status}" if status else first_line(error)
        return UnavailableError(f"the schema registry {self.url}: {said}")


def _without_user(url: str) -> tuple[str, RegistryProperties]:
    """The URLs without credentials, which the HTTP client would log, and the first one's as a property."""
    parts = [urlsplit(one.strip()) for one in url.split(",")]
    bare = ",".join(urlunsplit(one._replace(netloc=one.netloc.rpartition("@")[2])) for one in parts)
    user = parts[0].netloc.rpartition("@")[0]
    return bare, {"basic.auth.user.info": unquote(user)} if user else {}


@dataclass(frozen=True, slots=True)
class _Written:
    """What a message's bytes say of how they were written: the schema's id or GUID, and which of its messages they are."""

    schema: int | str
    indexes: tuple[int, ...] | None


@dataclass(slots=True)
class _Known:
    """What a schema has come to: the name of what it describes, or why it cannot be used and when to ask again."""

    name: str | None = None
    problem: str | None = None
    until: float = 0.0


class _Registered:
    """What the deserializers here have in common; `key=True` makes one for keys."""

    _format: Literal["AVRO", "JSON", "PROTOBUF"]
    _named_by = "name"

    def __init__(self, *, registry: SchemaRegistry | None = None, key: bool = False) -> None:
        self._given = self._registry = registry
        self._part = "key" if key else "value"
        self._known: dict[tuple[str, _Written], _Known] = {}
        self._adapters: dict[tuple[int, str | None], tuple[Any, TypeAdapter[Any]]] = {}
        self._lock = threading.Lock()
        self._decoder: Any = None

    def connect(self, settings: Settings) -> None:
        """Use the registry of these settings, if none was given.

        Raises:
            SettingsError: there is none, or the client refuses it.

        """
        if self._given is None:
            if not settings.schema_registry_url:
                raise SettingsError("EVENTFLOW_SCHEMA_REGISTRY_URL is not set")
            self._registry = SchemaRegistry(settings.schema_registry_url, settings.schema_registry)
        self._known.clear()
        self._decoder = self._make_decoder(self._there().client)

    def check(self, type: Any) -> None:  # noqa: A002  # the protocol's name
        """Whether what is decoded can be made a value of this type.

        Raises:
            UsageError: it cannot.

        """
        self._adapter(type, None)

    def prepare(self, data: bytes, *, topic: str, headers: Headers) -> None:
        """Fetch the schema of these bytes, and those that it refers to.

        Raises:
            UnavailableError: the registry does not answer.
            CodecError: they name no schema.

        """
        written = self._written(data, topic, headers)
        known = self._known.get((topic, written))
        if known is not None and (known.problem is None or time.monotonic() < known.until):
            return
        with self._lock:
            if len(self._known) > _KEPT:
                self._known.clear()
            self._known[topic, written] = self._learn(written, data, topic, headers)

    def __call__(self, data: bytes, *, topic: str, headers: Headers, type: Any) -> object:  # noqa: A002
        """The value.

        Raises:
            CodecError: the bytes name no schema, or one that is not known, or do not fit it or the type.
            UnavailableError: the schema was not fetched yet.

        """
        written = self._written(data, topic, headers)
        known = self._known.get((topic, written))
        if known is None:
            raise UnavailableError(f"the schema {written.schema} is not here yet")
        if known.problem is not None:
            raise CodecError(known.problem)
        try:
            return self._fit(self._decode(data, topic, headers), type, known.name)
        except Exception as error:
            raise CodecError(f"schema {written.schema}{_of(known.name)}: {_why(error)}") from error

    def _learn(self, written: _Written, data: bytes, topic: str, headers: Headers) -> _Known:
        registry = self._there()
        try:
            name = self._name(registry.fetch(written, f"{topic}-{self._part}"), written.indexes)
        except CodecError as error:
            return _Known(problem=str(error), until=time.monotonic() + _ASK_AGAIN)
        try:
            self._decode(data, topic, headers)  # which fetches what the schema refers to
        except Exception as error:
            if _is_away(error):
                raise registry.unavailable(error) from error
        return _Known(name)

    def _there(self) -> SchemaRegistry:
        if self._registry is None:
            raise UsageError(f"{type(self).__name__} has no registry: give it one, or run it in a consumer")
        return self._registry

    def _context(self, topic: str, headers: Headers) -> Any:
        from confluent_kafka.serialization import MessageField, SerializationContext

        field = MessageField.KEY if self._part == "key" else MessageField.VALUE
        return SerializationContext(topic, field, [(name, headers[name]) for name in headers])

    def _written(self, data: bytes, topic: str, headers: Headers) -> _Written:
        from confluent_kafka import schema_registry
        from confluent_kafka.schema_registry.serde import SchemaId

        found: Any = SchemaId(self._format)
        try:
            cast("Any", schema_registry).dual_schema_id_deserializer(data, self._context(topic, headers), found)
        except Exception:  # of what it unpacks, whatever that is
            raise CodecError(
                f"the {self._part} does not begin with a magic byte and a schema's id: no serializer of a registry wrote it"
            ) from None
        indexes = None if found.message_indexes is None else tuple(found.message_indexes)
        return _Written(str(found.guid) if found.id is None else found.id, indexes)

    def _decode(self, data: bytes, topic: str, headers: Headers) -> Any:
        return self._decoder(data, self._context(topic, headers))

    def _fit(self, value: Any, kind: Any, name: str | None) -> Any:
        return self._adapter(kind, name).validate_python(value)

    def _adapter(self, kind: Any, name: str | None) -> TypeAdapter[Any]:
        """What makes a value of this type, or of that member of it which is called so."""
        found = self._adapters.get((id(kind), name))
        if found is None:
            member = kind if name is None else union_member(kind, name.rpartition(".")[2])
            try:
                found = (kind, TypeAdapter(member))
            except Exception as error:
                raise UsageError(f"a message cannot be decoded to {member!r}: {first_line(error)}") from None
            self._adapters[id(kind), name] = found
        return found[1]

    def _make_decoder(self, client: Any) -> Any:
        raise NotImplementedError

    def _name(self, schema: str, _indexes: tuple[int, ...] | None) -> str | None:
        """What the schema calls that which it describes."""
        try:
            name = json.loads(schema)[self._named_by]
        except (ValueError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) else None


class Avro(_Registered):
    """Avro by a schema registry; of a union, the member is chosen that is called as the record.

    `schema` is the reader's: what was written by another one is resolved to it, by Avro's rules.
    """

    _format = "AVRO"

    def __init__(self, *, schema: str | None = None, registry: SchemaRegistry | None = None, key: bool = False) -> None:
        super().__init__(registry=registry, key=key)
        self._schema = schema

    def _make_decoder(self, client: Any) -> Any:
        try:
            from confluent_kafka.schema_registry import avro

            make: Any = avro.AvroDeserializer
            return make(client, self._schema, conf=_TOPIC)
        except ImportError:
            raise SettingsError(_EXTRA) from None
        except Exception as error:  # fastavro's, of a schema that is none
            raise SettingsError(f"the schema of Avro(schema=...): {first_line(error)}") from None


class JsonSchema(_Registered):
    """JSON that is held against its schema of the registry; of a union, the member is chosen that is called as its title."""

    _format = "JSON"
    _named_by = "title"

    def _make_decoder(self, client: Any) -> Any:
        try:
            from confluent_kafka.schema_registry import json_schema
        except ImportError:
            raise SettingsError(_EXTRA) from None
        make: Any = json_schema.JSONDeserializer
        return make(None, schema_registry_client=client, conf=_TOPIC)


class Protobuf(_Registered):
    """Protobuf by a schema registry: values are generated classes, or a union of them, chosen by the message's full name."""

    _format = "PROTOBUF"

    def check(self, type: Any) -> None:  # noqa: A002
        """Whether this is a generated class, or a union of such.

        Raises:
            UsageError: it is not.

        """
        for member in union_members(type):
            if not hasattr(member, "DESCRIPTOR") or not hasattr(member, "FromString"):
                raise UsageError(f"Protobuf makes values of generated classes, not of {member!r}")

    def _make_decoder(self, client: Any) -> Any:  # noqa: ARG002  # a generated class needs no schema to be read by
        try:
            from confluent_kafka.schema_registry import protobuf
        except ImportError:
            raise SettingsError(_EXTRA) from None
        make: Any = protobuf.ProtobufDeserializer

        def decoder(member: Any) -> Any:
            return make(member, conf=_TOPIC)

        return lru_cache(decoder)

    def _decode(self, data: bytes, topic: str, headers: Headers) -> Any:
        return data, self._context(topic, headers)

    def _fit(self, value: Any, kind: Any, name: str | None) -> Any:
        members = union_members(kind)
        for member in members:
            if member.DESCRIPTOR.full_name == name:
                return self._decoder(member)(*value)
        raise CodecError(f"the handler takes {', '.join(member.DESCRIPTOR.full_name for member in members)}")

    def _name(self, schema: str, _indexes: tuple[int, ...] | None) -> str:
        return _protobuf_name(schema, _indexes or (0,))


def connect(deserializers: Sequence[Deserializer], settings: Settings, handler: str) -> None:
    """Give those of them that have no registry of their own the one of the settings.

    Raises:
        SettingsError: there is none; names the handler.

    """
    for one in deserializers:
        inner = getattr(one, "inner", one)  # of `by_header`
        if isinstance(inner, _Registered):
            try:
                inner.connect(settings)
            except SettingsError as error:
                raise SettingsError(f"{error}; the handler {handler!r} reads {type(inner).__name__}") from None


def without_registry(deserializer: Deserializer | None) -> Deserializer | None:
    """What reads the same values where there is no registry: JSON in place of Avro, Protobuf without a schema's id."""
    if isinstance(deserializer, by_header):
        return deserializer.with_inner(without_registry(deserializer.inner))
    if isinstance(deserializer, Protobuf):
        return _bare_protobuf
    return None if isinstance(deserializer, _Registered) else deserializer


def _bare_protobuf(data: bytes, *, topic: str, headers: Headers, type: Any) -> object:  # noqa: A002, ARG001
    if union_members(type) != (type,):
        raise CodecError("without a registry nothing tells which of several Protobuf messages it is")
    return type.FromString(data)


def _is_away(error: Exception) -> bool:
    """Whether this says of the registry that it does not answer, and nothing of what was to be decoded."""
    code = getattr(error, "error_code", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "TransportError" in kinds or ("SchemaRegistryError" in kinds and code not in _UNKNOWN)


def _of(name: str | None) -> str:
    return f" ({name})" if name else ""


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        parts = error.errors(include_input=False)[:3]
        return "; ".join(f"{'.'.join(map(str, part['loc'])) or 'value'}: {part['msg']}" for part in parts)
    return first_line(error)


_TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\bpackage\s+([\w.]+)\s*;|\bmessage\s+(\w+)\s*\{|\{|\}""",
    re.DOTALL,
)


def _protobuf_name(schema: str, indexes: Sequence[int]) -> str:
    """The full name of the message that the indexes lead to: in a file's text, or in its descriptor as base64.

    Raises:
        CodecError: there is none.

    """
    package, messages = _described(schema) or _declared(schema)
    path: list[str] = [package] if package else []
    for index in indexes:
        if not 0 <= index < len(messages):
            raise CodecError(f"its schema has no message {list(indexes)}")
        name, messages = messages[index]
        path.append(name)
    return ".".join(path)


_Messages = list[tuple[str, Any]]  # names, each with the messages nested in it


def _described(schema: str) -> tuple[str, _Messages] | None:
    """What a descriptor says, if the schema is one: some serializers register it so."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    def nested(messages: Any, inside: str) -> _Messages:
        return [(one.name, nested(getattr(one, inside), inside)) for one in messages]

    try:
        file = FileDescriptorProto.FromString(base64.b64decode(schema, validate=True))
    except Exception:  # of either library: it is text
        return None
    return file.package, nested(file.message_type, "nested_type")


def _declared(schema: str) -> tuple[str, _Messages]:
    """What the text of a `.proto` file declares."""
    package = ""
    top: _Messages = []
    open_blocks: list[_Messages | None] = [top]  # None: a block that is no message
    for token in _TOKENS.finditer(schema):
        if token[1]:
            package = token[1]
        elif token[2]:
            made: _Messages = []
            around = open_blocks[-1]
            if around is not None:
                around.append((token[2], made))
            open_blocks.append(made)
        elif token[0] == "{":
            open_blocks.append(None)
        elif token[0] == "}" and len(open_blocks) > 1:
            open_blocks.pop()
    return package, top
