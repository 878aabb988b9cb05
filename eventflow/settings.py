"""What a deployment decides: read once, from the environment, and refused by name where it is wrong.

`DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` are the field's own names; everything else is `EVENTFLOW_…`.
Secrets never show: the database's URL prints with its password masked.
"""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit, urlunsplit

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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


def check_kafka_properties(properties: KafkaProperties, where: str) -> None:
    """Refuse the librdkafka properties that belong to eventflow.

    Raises:
        SettingsError: names the property and what to use instead.

    """
    for name, instead in REFUSED_KAFKA_PROPERTIES.items():
        if name in properties:
            raise SettingsError(f"{where}: the Kafka property {name!r} can not be set; {instead}")


def masked(url: str) -> str:
    """The URL with its password replaced by ***."""
    parts = urlsplit(url)
    if parts.password is None:
        return re.sub(r"(password=)[^&\s]+", r"\1***", url)
    place = parts.netloc.replace(f":{parts.password}@", ":***@")
    return re.sub(r"(password=)[^&\s]+", r"\1***", urlunsplit(parts._replace(netloc=place)))


def _keep(value: object) -> object:
    if value == "all":
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())
        if match:
            unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
            return timedelta(seconds=float(match[1]) * unit)
    return value


Keep = Annotated[timedelta | None, BeforeValidator(_keep)]


class Settings(BaseSettings):
    """The settings of one process. Arguments win over the environment; times are in seconds.

    Attributes:
        database_url: the ledger's PostgreSQL (`DATABASE_URL`).
        kafka_bootstrap_servers: the brokers (`KAFKA_BOOTSTRAP_SERVERS`); needed by consumers only.
        database_schema: the schema that holds the ledger.
        application: programs that share a ledger but not their code set different names.
        keep: `all`, or how long succeeded workflows stay (`30m`, `12h`, `7d`, seconds).
        threads: worker threads for sync workflows and steps.
        transaction_lanes: connections for transactional handlers and steps.
        max_in_flight: messages in flight, per consumer.
        lease: after how many seconds without a beat a process is presumed dead.
        beat: seconds between two beats.
        accept_after: after how many seconds a running message gets a row of its own.
        suspend_after: seconds that a waiting workflow stays in memory at least; one that is asleep for longer leaves it.
        drain: seconds that running work gets to end at shutdown.
        prepared_statements: off where the pooler does not keep them.
        kafka: librdkafka properties for every consumer, as JSON.

    """

    model_config = SettingsConfigDict(env_prefix="EVENTFLOW_", populate_by_name=True, extra="forbid", frozen=True)

    database_url: str = Field(validation_alias=AliasChoices("database_url", "DATABASE_URL"), repr=False)
    kafka_bootstrap_servers: str = Field(
        default="",
        validation_alias=AliasChoices("kafka_bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS"),
    )
    database_schema: str = Field(default="eventflow", min_length=1, max_length=63)
    application: str = Field(default="default", min_length=1, max_length=200)
    keep: Keep = None
    threads: int = Field(default=40, ge=1, le=1000)
    transaction_lanes: int = Field(default=2, ge=1, le=64)
    max_in_flight: int = Field(default=3000, ge=1, le=100_000)
    lease: float = Field(default=5.0, ge=0.5, le=600)
    beat: float = Field(default=1.0, ge=0.05, le=60)
    accept_after: float = Field(default=0.05, ge=0.0, le=10)
    suspend_after: float = Field(default=5.0, ge=0.0, le=3600)
    drain: float = Field(default=20.0, ge=0.0, le=3600)
    prepared_statements: bool = True
    kafka: KafkaProperties = Field(default_factory=dict[str, Any], repr=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("database_url")
    @classmethod
    def _a_postgres_url(cls, value: str) -> str:
        if not re.match(r"postgres(ql)?(\+psycopg)?://", value):
            raise ValueError("must be a URL that begins with postgresql://")
        return re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql://", value)

    @field_validator("kafka")
    @classmethod
    def _only_what_is_not_ours(cls, value: KafkaProperties) -> KafkaProperties:
        try:
            check_kafka_properties(value, "EVENTFLOW_KAFKA")
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def safe_database_url(self) -> str:
        """The database's URL, its password masked: for logs and messages."""
        return masked(self.database_url)


_VARIABLES = {"database_url": "DATABASE_URL", "kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS"}


def load_settings(**arguments: object) -> Settings:
    """Read the settings from the environment; arguments win.

    Raises:
        SettingsError: names every variable that is missing or wrong, and never shows its value.

    """
    try:
        return Settings(**cast("dict[str, Any]", arguments))
    except ValidationError as error:
        raise SettingsError("; ".join(_complaint(dict(e)) for e in error.errors())) from None


def _complaint(error: dict[str, Any]) -> str:
    field = str(error["loc"][0]) if error["loc"] else "settings"
    name = _VARIABLES.get(field.lower())
    if name is None:
        name = field if field.isupper() else f"EVENTFLOW_{field.upper()}"
    if error["type"] == "missing":
        return f"{name} is not set"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
