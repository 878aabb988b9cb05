"""What a deployment decides: read once, from the environment, and refused by name where it is wrong.

`DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` are the field's own names; everything else is `EVENTFLOW_…`.
Secrets never show: a database's URL prints with its password masked, an encryption key as its id.
"""

import base64
import difflib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit, urlunsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from eventflow.errors import SettingsError

# What a consumer must not be told through librdkafka, and what to say instead.
REFUSED_KAFKA_PROPERTIES = {
    "auto.offset.reset": "use start='earliest' or start='latest' of @kafka_consumer",
    "group.id": "use group= of @kafka_consumer",
    "enable.auto.commit": "positions live in Postgres; Kafka's offsets are only kept up for lag tools",
    "enable.auto.offset.store": "positions live in Postgres",
    "bootstrap.servers": "use KAFKA_BOOTSTRAP_SERVERS",
    "enable.partition.eof": "eventflow needs it to be on",
    "isolation.level": "eventflow reads committed messages only",
}

KafkaProperties = dict[str, str | int | float | bool]
RegistryProperties = dict[str, str | int | float | bool]


def check_kafka_properties(properties: KafkaProperties, where: str) -> None:
    """Refuse the librdkafka properties that belong to eventflow.

    Raises:
        SettingsError: names the property and what to use instead.

    """
    refusal = _refusal(properties)
    if refusal is not None:
        raise SettingsError(f"{where}: {refusal}")


def _refusal(properties: Iterable[str]) -> str | None:
    for name in properties:
        if name in REFUSED_KAFKA_PROPERTIES:
            return f"the Kafka property {name!r} can not be set; {REFUSED_KAFKA_PROPERTIES[name]}"
    return None


def masked(url: str) -> str:
    """The URL with its password replaced by ***; nothing of one that cannot be taken apart."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    if parts.password is None:
        return re.sub(r"(password=)[^&\s]+", r"\1***", url)
    place = parts.netloc.replace(f":{parts.password}@", ":***@")
    return re.sub(r"(password=)[^&\s]+", r"\1***", urlunsplit(parts._replace(netloc=place)))


def _keep(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.strip() == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())
    if match:
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        with suppress(OverflowError):
            return timedelta(seconds=float(match[1]) * unit)
    raise ValueError("must be `all`, or how long: `30m`, `12h`, `7d`, or seconds")


Keep = Annotated[timedelta | None, BeforeValidator(_keep)]


def _object(value: object, example: str) -> dict[Any, Any]:
    """An object, or what its JSON says; what is wrong with it, without showing any of it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            where = f": {error.msg}, at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(f"must be a JSON object{where}") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, such as {example}")
    return cast("dict[Any, Any]", value)


def _properties(value: object) -> object:
    """Librdkafka's properties; what is wrong with them, without showing their values."""
    properties = _object(value, '{"client.rack": "a"}')
    for name, set_to in properties.items():
        if not isinstance(set_to, str | int | float):
            raise ValueError(f"the Kafka property {name!r} must be a string, a number or a boolean")
    refusal = _refusal(properties)
    if refusal is not None:
        raise ValueError(refusal)
    return properties


def _registry_properties(value: object) -> object:
    """Those of Confluent's registry client; what is wrong with them, without showing their values."""
    properties = _object(value, '{"basic.auth.user.info": "user:secret"}')
    for name, set_to in properties.items():
        if not isinstance(set_to, str | int | float):
            raise ValueError(f"the property {name!r} must be a string, a number or a boolean")
    if "url" in properties:
        raise ValueError("the property 'url' can not be set; use EVENTFLOW_SCHEMA_REGISTRY_URL")
    return properties


def _postgres_url(value: str) -> str:
    """The URL as libpq takes it; what is wrong with it, without showing any of it."""
    if not re.match(r"postgres(ql)?(\+psycopg)?://", value):
        raise ValueError("must be a URL that begins with postgresql://")
    head, _, rest = value.partition("://")[2].partition("/")
    if set("@?#") & set(head.rpartition("@")[0]) or "@" in rest.partition("?")[0]:
        # Taken for a host or a database's name, the rest of the password would be shown by every message.
        raise ValueError("in its user and password, characters such as / @ : ? # must be percent-encoded")
    return re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql://", value)


def _databases(value: object) -> object:
    """Databases' URLs by name."""
    databases = _object(value, '{"shop": "postgresql://..."}')
    for name, url in databases.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"not a name for a database: {name!r}; it is letters, digits and _, such as shop_2")
        if not isinstance(url, str):
            raise ValueError(f"the database {name!r} must be a URL that begins with postgresql://")
        try:
            databases = databases | {name: _postgres_url(url)}
        except ValueError as error:
            raise ValueError(f"the database {name!r}: {error}") from None
    return databases


_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = 32  # bytes: AES-256
_HOW = "must be `id:key,...`, or a JSON list of such"


def _encryption_keys(value: object) -> object:
    """Keys by their ids, of an object or of a list of `id:key`; what is wrong with them, without showing one."""
    if isinstance(value, str):
        value = _listed(value)
    if isinstance(value, list | tuple):
        pairs = [_pair(n, item) for n, item in enumerate(cast("list[Any]", value), 1)]
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("two keys have the same id")
    if not isinstance(value, dict):
        raise ValueError(_HOW)
    for name, key in cast("dict[Any, Any]", value).items():
        if not isinstance(name, str) or not _KEY_ID.fullmatch(name):
            raise ValueError("the id of a key is 1 to 64 letters, digits, `.`, `_` and `-`")
        if not _is_key(key.get_secret_value() if isinstance(key, SecretStr) else key):
            raise ValueError(f"the key {name!r} is not {_KEY} bytes in base64; `openssl rand -base64 32` makes one")
    return cast("object", value)


def _listed(text: str) -> object:
    if not text.strip():
        raise ValueError("is empty: unset it where nothing shall be encrypted")
    if not text.lstrip().startswith(("[", "{")):
        return [item for item in text.split(",") if item.strip()]
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(_HOW) from None


def _pair(number: int, item: object) -> tuple[str, str]:
    name, colon, key = item.partition(":") if isinstance(item, str) else ("", "", "")
    if not colon:
        raise ValueError(f"{_HOW}; number {number} has no colon")
    return name.strip(), key.strip()


def _is_key(key: object) -> bool:
    try:
        return isinstance(key, str) and len(key_bytes(key)) == _KEY
    except ValueError:
        return False


def key_bytes(text: str) -> bytes:
    """An encryption key from its base64, of either alphabet."""
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


CODEC_MEMBERS = ("encode", "decode", "secrets")  # of a `payloads.PayloadCodec`


def _codec(value: object) -> object:
    """A payload codec, or where it is: `module:name`."""
    if isinstance(value, str) and not re.fullmatch(r"\w+(\.\w+)*:\w+", value):
        raise ValueError("must name a payload codec as `module:name`")
    if value is None or isinstance(value, str):
        return value
    if not all(hasattr(value, member) for member in CODEC_MEMBERS):
        raise ValueError(
            "must be a payload codec, with `encode`, `decode` and `secrets`, or where one is: `module:name`"
        )
    return value


class Settings(BaseSettings):
    """The settings of one process. Arguments win over the environment; times are in seconds.

    Attributes:
        database_url: the ledger's PostgreSQL (`DATABASE_URL`).
        kafka_bootstrap_servers: the brokers (`KAFKA_BOOTSTRAP_SERVERS`); needed by consumers only.
        database_schema: the schema that holds the ledger.
        application: programs that share a ledger but not their code set different names.
        application_version: what this process runs, for people, who see it on its workflows; nobody decides anything by it.
        databases: other PostgreSQL databases in which transactions are made, by the name that `@transaction` gives, as JSON.
        keep: `all`, or how long succeeded workflows stay (`30m`, `12h`, `7d`, seconds).
        keep_messages: `all`, or `slow`: a message that succeeds at once, at its first attempt, leaves no row. Those do that
            fail, are tried again, or run for longer than `accept_after`; that it was handled is known without its row.
        keep_dead_letters: as `keep`, for messages that failed for good or were dropped; `all`, unless it is set.
        threads: worker threads for sync workflows and steps.
        transaction_lanes: connections for transactional handlers and steps, of each kind and for each database.
        max_in_flight: messages in flight, per consumer. max_in_flight_bytes: and bytes of those above 4 KiB.
        lease: after how many seconds without a beat a process is presumed dead.
        beat: seconds between two beats.
        accept_after: after how many seconds a running message gets a row of its own.
        suspend_after: a workflow that waits leaves memory if it would sleep for more seconds than that.
        max_checkpoints: operations that one run of a workflow may record, before it is parked.
        max_payload: bytes that one argument, result, message, event or item may take as JSON; a call's arguments together.
        encryption_keys: what is stored is encrypted under the first, and decrypted under any: base64 of 32 bytes, by id.
        payload_codec: what is stored passes it, in place of encryption: a `payloads.PayloadCodec`, or `module:name` of one.
        drain: seconds that running work gets to end at shutdown.
        prepared_statements: off where the pooler does not keep them.
        relay_topic: what the name of the relay's internal topic begins with, in which it keeps the numbers of what it has
            published, and its transactional ids; the ledger's id comes behind it. It makes the topic.
        kafka: librdkafka properties for every consumer, as JSON.
        schema_registry_url: where the schemas are of consumers that read by a registry; several, by commas, of one registry.
        schema_registry: properties of Confluent's registry client, as JSON: credentials, certificates.
        http_port: where health and metrics are told over HTTP; None: nowhere; 0: a free one, which is logged. http_host: where.
        live_within: seconds that the loop may stand still, or the lease be lost, before the process is not live.
        ready_within: seconds that a partition may be behind, in a process that is ready.
        log_level: what `eventflow run` logs, where the program has not set logging up by itself.

    """

    model_config = SettingsConfigDict(
        env_prefix="EVENTFLOW_", populate_by_name=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    database_url: str = Field(validation_alias=AliasChoices("database_url", "DATABASE_URL"), repr=False)
    kafka_bootstrap_servers: str = Field(
        default="",
        validation_alias=AliasChoices("kafka_bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS"),
    )
    database_schema: str = Field(default="eventflow", min_length=1, max_length=63)
    application: str = Field(default="default", min_length=1, max_length=200)
    application_version: str | None = Field(default=None, max_length=200)
    databases: Annotated[dict[str, str], NoDecode, BeforeValidator(_databases)] = Field(
        default_factory=dict[str, str], repr=False
    )
    keep: Keep = None
    keep_messages: Literal["all", "slow"] = "all"
    keep_dead_letters: Keep = None
    threads: int = Field(default=40, ge=1, le=1000)
    transaction_lanes: int = Field(default=2, ge=1, le=64)
    max_in_flight: int = Field(default=3000, ge=1, le=100_000)
    max_in_flight_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    lease: float = Field(default=5.0, ge=0.5, le=600)
    beat: float = Field(default=1.0, ge=0.05, le=60)
    accept_after: float = Field(default=0.05, ge=0.0, le=10)
    suspend_after: float = Field(default=5.0, ge=0.0, le=3600)
    max_checkpoints: int = Field(default=50_000, ge=100)
    max_payload: int = Field(default=8 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    encryption_keys: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_encryption_keys)] = Field(
        default_factory=dict[str, SecretStr]
    )
    payload_codec: Annotated[Any, NoDecode, BeforeValidator(_codec)] = Field(default=None, repr=False)
    drain: float = Field(default=20.0, ge=0.0, le=3600)
    prepared_statements: bool = True
    relay_topic: str = Field(default="eventflow-relay", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    kafka: Annotated[KafkaProperties, NoDecode, BeforeValidator(_properties)] = Field(
        default_factory=dict[str, Any], repr=False
    )
    schema_registry_url: str = Field(default="", repr=False)
    schema_registry: Annotated[RegistryProperties, NoDecode, BeforeValidator(_registry_properties)] = Field(
        default_factory=dict[str, Any], repr=False
    )
    http_port: int | None = Field(default=None, ge=0, le=65535)
    http_host: str = Field(default="127.0.0.1", min_length=1)
    live_within: float = Field(default=30.0, ge=0.0, le=86400)
    ready_within: float = Field(default=60.0, ge=0.0, le=86400 * 366)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("database_url")
    @classmethod
    def _a_postgres_url(cls, value: str) -> str:
        return _postgres_url(value)

    @field_validator("schema_registry_url")
    @classmethod
    def _http_urls(cls, value: str) -> str:
        if value and not all(re.match(r"https?://[^\s]", one.strip()) for one in value.split(",")):
            raise ValueError("must be a URL that begins with http:// or https://, or several with commas between them")
        return value

    @model_validator(mode="after")
    def _beats_fit_into_a_lease(self) -> Self:
        if self.beat > self.lease / 3:
            raise ValueError(
                f"EVENTFLOW_BEAT is {self.beat:g} and EVENTFLOW_LEASE is {self.lease:g}: a lease must be three beats or "
                "longer, or a process is presumed dead that lives"
            )
        return self

    @model_validator(mode="after")
    def _one_codec(self) -> Self:
        if self.encryption_keys and self.payload_codec is not None:
            raise ValueError("EVENTFLOW_ENCRYPTION_KEYS and EVENTFLOW_PAYLOAD_CODEC are both set: choose one")
        return self

    @property
    def safe_database_url(self) -> str:
        """The database's URL, its password masked: for logs and messages."""
        return masked(self.database_url)


_VARIABLES = {"database_url": "DATABASE_URL", "kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS"}
_KNOWN = {_VARIABLES.get(field, f"EVENTFLOW_{field.upper()}") for field in Settings.model_fields}
_OTHERS = re.compile(r"EVENTFLOW_(CACHE|CRASH|STOP|CRASH_SEEDS|TEST_\w+)")  # of the local services, and of tests
# Kubernetes tells every pod of a namespace where its services are: of one whose name begins with `eventflow`, in our words.
_SERVICE_LINKS = re.compile(r"EVENTFLOW_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


def load_settings(**arguments: object) -> Settings:
    """Read the settings from the environment; arguments win.

    Raises:
        SettingsError: names every variable that is missing, wrong or unknown, and never shows its value.

    """
    unknown = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name.upper())]
    if unknown:
        raise SettingsError("; ".join(unknown))
    try:
        return Settings(**cast("dict[str, Any]", arguments))
    except ValidationError as error:
        raise SettingsError("; ".join(_complaint(dict(e)) for e in error.errors())) from None


def _is_unknown(name: str) -> bool:
    others = (_OTHERS, _SERVICE_LINKS)
    return name.startswith("EVENTFLOW_") and name not in _KNOWN and not any(o.fullmatch(name) for o in others)


def _unknown(name: str) -> str:
    """A variable that would be ignored: most likely a setting that its author believes to be made."""
    known = {variable.removeprefix("EVENTFLOW_"): variable for variable in _KNOWN}
    near = difflib.get_close_matches(name.upper().removeprefix("EVENTFLOW_"), known, 1)
    return f"{name} is no setting of eventflow{f'; did you mean {known[near[0]]}?' if near else ''}"


def _complaint(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message  # of several variables: it names them
    field = str(error["loc"][0])
    name = _VARIABLES.get(field.lower())
    if name is None:
        name = field if field.isupper() else f"EVENTFLOW_{field.upper()}"
    if error["type"] == "missing":
        return f"{name} is not set"
    return f"{name}: {message}"
