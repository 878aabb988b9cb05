"""What of the schema registry needs none: its settings, what is refused at start, and whose message a Protobuf schema means."""

import base64
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from eventflow import Message
from eventflow.app import App
from eventflow.errors import CodecError, SettingsError, UnavailableError, UsageError
from eventflow.kafka import Headers, by_header, message_reader
from eventflow.registry import ConsumerSpec, Registry, make_spec
from eventflow.retry import Retry
from eventflow.schema_registry import Avro, JsonSchema, Protobuf, SchemaRegistry, _protobuf_name
from eventflow.settings import Settings, load_settings

URL = "postgresql://app@db/shop"


def app_of(deserializer: Any, **settings: Any) -> Any:
    """An application that has a handler with this deserializer."""

    async def bill(message: Message[int]) -> None: ...

    spec, declared = make_spec(bill, "bill", Retry(0), 0), Registry()
    spec.consumer = ConsumerSpec(
        ("orders",), "g", "none", "earliest", "topic_id", None, {}, spec, None, deserializer=deserializer
    )
    declared.add_consumer(spec.consumer)
    return App(Settings(database_url=URL, kafka_bootstrap_servers="k:9", **settings), True, False, declared)


@pytest.mark.parametrize("deserializer", [Avro(), JsonSchema(), by_header("type", {"a": int}, deserializer=Avro())])
def test_a_registry_that_is_not_set_is_named_with_its_handler(deserializer: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"EVENTFLOW_SCHEMA_REGISTRY_URL is not set; the handler 'bill' reads (Avro|JsonSchema)"
    ):
        app_of(deserializer)._check()
    app_of(deserializer, schema_registry_url="http://registry")._check()


def test_one_of_its_own_needs_no_setting() -> None:
    app_of(Avro(registry=SchemaRegistry("http://registry")))._check()


def test_what_the_client_refuses_is_named() -> None:
    with pytest.raises(
        SettingsError,
        match="the schema registry http://registry: Unrecognized properties: nonsense; the handler 'bill'",
    ):
        app_of(Avro(), schema_registry_url="http://registry", schema_registry={"nonsense": "x"})._check()
    with pytest.raises(SettingsError, match=r"the schema of Avro\(schema=...\)"):
        app_of(Avro(schema="{}"), schema_registry_url="http://registry")._check()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "confluent_kafka.schema_registry", None)
    with pytest.raises(SettingsError, match=r'pip install "eventflow\[schema-registry\]"'):
        app_of(Avro(), schema_registry_url="http://registry")._check()


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTFLOW_SCHEMA_REGISTRY_URL", "https://me:hush@registry, https://other")
    monkeypatch.setenv("EVENTFLOW_SCHEMA_REGISTRY", '{"ssl.ca.location": "/ca", "timeout": 2}')
    settings = load_settings(database_url=URL)
    assert settings.schema_registry == {"ssl.ca.location": "/ca", "timeout": 2}
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schema_registry_url", "registry:8081", "EVENTFLOW_SCHEMA_REGISTRY_URL: must be a URL that begins with http"),
        ("schema_registry_url", "http://a, ", "EVENTFLOW_SCHEMA_REGISTRY_URL: must be a URL"),
        ("schema_registry", "[", "EVENTFLOW_SCHEMA_REGISTRY: must be a JSON object"),
        ("schema_registry", {"url": "http://a"}, "EVENTFLOW_SCHEMA_REGISTRY: the property 'url' can not be set; use EVENTFLOW_SCHEMA_REGISTRY_URL"),
        ("schema_registry", {"a": []}, "the property 'a' must be a string"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(field: str, value: object, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(database_url=URL, **{field: value})
    assert said in str(caught.value)


def test_credentials_are_not_in_what_is_asked_for() -> None:
    """The HTTP client logs its URLs."""
    registry = SchemaRegistry("https://me:hu%40sh@one:81/x, https://two")
    assert (registry.url, repr(registry)) == (
        "https://one:81/x,https://two",
        "SchemaRegistry('https://one:81/x,https://two')",
    )
    client = registry.client._rest_client
    assert (client.base_urls, client.auth) == (["https://one:81/x", "https://two"], ("me", "hu@sh"))
    own = SchemaRegistry("https://one", {"basic.auth.user.info": "me:hush", "timeout": 9})
    assert (own.client._rest_client.auth, own.client._rest_client.timeout) == (("me", "hush"), 9)


def test_what_no_value_can_be_made_of_is_refused_at_start() -> None:
    for deserializer, annotation in (
        (Protobuf(), Message[int]),
        (Protobuf(), Message[struct_pb2.Value | int]),
        (Avro(), Message[type("X", (), {})]),
    ):  # type: ignore[misc]
        with pytest.raises(UsageError):
            message_reader(annotation, deserializer)
    message_reader(Message[struct_pb2.Value | struct_pb2.Struct | None], Protobuf())


def test_without_a_consumer_a_schema_is_not_there() -> None:
    avro = Avro(registry=SchemaRegistry("http://127.0.0.1:1", {"max.retries": 0}))
    with pytest.raises(UnavailableError, match="the schema 7 is not here yet"):
        avro(b"\0\0\0\0\7x", topic="t", headers=Headers(), type=int)
    with pytest.raises(UnavailableError, match="the schema registry http://127.0.0.1:1: .*refused"):
        avro.prepare(b"\0\0\0\0\7x", topic="t", headers=Headers())
    for data in (b"", b"\0\0", b"{}", b"\2\0\0\0\7x"):
        with pytest.raises(CodecError, match="magic byte"):
            avro(data, topic="t", headers=Headers(), type=int)


# ---- whose message a Protobuf schema means -----------------------------------------------------------

TEXT = """
syntax = "proto3"; // message A {
package my.shop;
option java_package = "message B {";
message Order {
  message Line { message Part {} oneof x { int32 a = 1; } }
  /* message C { */ enum Kind { NONE = 0; }
  message Note { string text = 1 [default = '}']; }
}
service Shop { rpc Get (Order) returns (Order) {} }
message Refund{}
"""


def described() -> str:
    file = FileDescriptorProto(name="x.proto", package="my.shop")
    order = file.message_type.add(name="Order")
    order.nested_type.add(name="Line").nested_type.add(name="Part")
    order.nested_type.add(name="Note")
    file.message_type.add(name="Refund")
    return base64.b64encode(file.SerializeToString()).decode()


@pytest.mark.parametrize("schema", [TEXT, described()], ids=["text", "descriptor"])
def test_the_message_that_indexes_lead_to(schema: str) -> None:
    found = {indexes: _protobuf_name(schema, indexes) for indexes in ((0,), (0, 0), (0, 0, 0), (0, 1), (1,))}
    names = ["Order", "Order.Line", "Order.Line.Part", "Order.Note", "Refund"]
    assert list(found.values()) == [f"my.shop.{name}" for name in names]
    for indexes in ((2,), (1, 0), (-1,)):
        with pytest.raises(CodecError, match="its schema has no message"):
            _protobuf_name(schema, indexes)


def test_a_file_without_a_package() -> None:
    assert _protobuf_name("message A {}", (0,)) == "A"
