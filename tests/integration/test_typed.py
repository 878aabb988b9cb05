"""Values by a schema registry, a real one: what is decoded, what fails and says why, and what waits for the registry."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.harness import World
from tests.integration.test_cli import eventflow
from tests.registry import Registry

KINDS = ("avro", "json", "protobuf")
PROTO = """
syntax = "proto3"; // message Nobody {
package shop;
message Paid { int32 n = 1; enum Kind { A = 0; } /* message Nobody { */ message Inner { int32 n = 1; } }
message Refunded { int32 n = 1; string note = 2 [json_name = "}"]; }
message Lost { int32 n = 1; }
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    server = Registry(tmp_path_factory.mktemp("registry"))
    server.start()
    yield server
    server.stop()


class Shop:
    """Topics whose values the registry knows, and who writes there."""

    def __init__(self, world: World, registry: Registry) -> None:
        self.world = world
        self.client: Any = SchemaRegistryClient({"url": registry.url, "timeout": 20})
        self.topics = {kind: world.create_topic(1, f"{world.topic}-{kind}") for kind in KINDS}
        world.create_topic(1)

    def avro(self, name: str, fields: dict[str, str], value: object, *, key: int | None = None) -> bytes:
        schema = {"type": "record", "name": name, "fields": [{"name": f, "type": t} for f, t in fields.items()]}
        conf = {"subject.name.strategy.type": "TOPIC_RECORD"}
        return AvroSerializer(self.client, json.dumps(schema), conf=conf)(value, self._at("avro"))  # type: ignore[arg-type]

    def key(self, key: int) -> bytes:
        conf = {"subject.name.strategy.type": "TOPIC"}
        at = SerializationContext(self.topics["avro"], MessageField.KEY, [])
        return AvroSerializer(self.client, '"int"', conf=conf)(key, at)  # type: ignore[arg-type]

    def json(self, value: object) -> bytes:
        schema = {"title": "Order", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        conf = {"subject.name.strategy.type": "TOPIC", "validate": False}
        return JSONSerializer(json.dumps(schema), self.client, conf=conf)(value, self._at("json"))  # type: ignore[arg-type]

    def protobuf(self, index: int, payload: bytes) -> bytes:
        """As the Java serializer registers: the text of the file."""
        known = self.client.register_schema(f"{self.topics['protobuf']}-value", Schema(PROTO, "PROTOBUF"))
        return b"\0" + known.to_bytes(4, "big") + (b"\0" if index == 0 else bytes([2, 2 * index])) + payload

    def _at(self, kind: str) -> Any:
        return SerializationContext(self.topics[kind], MessageField.VALUE, [])

    def send(self, kind: str, *values: bytes | None, key: bytes | None = None) -> None:
        for value in values:
            self.world.producer.produce(self.topics[kind], value, key)
        self.world.flush()

    def ends(self, group: str) -> list[tuple[str, str]]:
        """Per message, in order, its status and what it gave or why it failed."""
        rows = self.world.sql(
            """select w.status::text, coalesce(w.output, w.error::json->>'message') from eventflow.workflows w
               join eventflow.claims c on c.id = w.claim where c."group" = %s order by w."offset" """,
            group,
        )
        return [(status, said if status == "failed" else json.loads(said or "null")) for status, said in rows]


@pytest.fixture
def shop(world: World, registry: Registry) -> Shop:
    return Shop(world, registry)


def failures(shop: Shop, group: str) -> list[str]:
    return [said for status, said in shop.ends(group) if status == "failed"]


def test_each_kind_is_decoded_and_what_is_wrong_fails_by_itself(shop: Shop, registry: Registry) -> None:
    """In a handler that is async, sync, and a transaction; what fails says which message, which schema, and why."""
    created = shop.avro("Created", {"n": "int"}, {"n": 1})
    shipped = shop.avro("Shipped", {"n": "int", "by": "string"}, {"n": 2, "by": "Ada"})
    strange = shop.avro("Strange", {"m": "int"}, {"m": 3})
    unknown = b"\0\x7f\xff\xff\xff" + created[5:]
    shop.send("avro", created, shipped, None, strange, b"\1" + created[1:], unknown, created[:5], key=shop.key(7))
    shop.send("avro", created)
    shop.send("json", shop.json({"n": 1}), shop.json({"n": "x"}))
    shop.send("protobuf", *(shop.protobuf(n, b"\x08\x05") for n in (0, 1, 2)), shop.protobuf(0, b"\xff"))
    worker = shop.world.start("typed", EVENTFLOW_SCHEMA_REGISTRY_URL=registry.url.replace("://", "://me:hush@"))
    for group, count in {"avro": 8, "entered": 8, "json": 2, "protobuf": 4}.items():
        shop.world.wait(lambda g=group, c=count: len(shop.ends(g)) == c, f"{group} has ended")
    good = [said for status, said in shop.ends("avro") if status == "succeeded"]
    assert good == ["7 Created(n=1)", "7 Shipped(n=2, by='Ada')", "7 None"]
    place = f"{shop.topics['avro']}/0/"
    fits, magic, gone, short, keyless = failures(shop, "avro")
    assert fits.startswith(f"{place}3 cannot be decoded: schema ")
    assert "(Strange): " in fits
    assert "Field required" in fits
    assert (
        magic
        == f"{place}4 cannot be decoded: the value does not begin with a magic byte and a schema's id: no serializer of a registry wrote it"
    )
    assert gone == f"{place}5 cannot be decoded: the schema registry {registry.url} knows no schema 2147483647"
    assert short.startswith(f"{place}6 cannot be decoded: schema ")
    assert keyless == f"{place}7 cannot be decoded: it has no key, and the handler's annotation does not admit None"
    assert shop.world.sql("select note from effects order by id") == [("1",), ("2",), ("None",), ("1",)]
    assert shop.ends("json")[0] == ("succeeded", 1)
    [no_integer] = failures(shop, "json")
    assert "'x' is not of type 'integer'" in no_integer
    assert shop.ends("protobuf")[:2] == [("succeeded", "Paid 5"), ("succeeded", "Refunded 5")]
    other, broken = failures(shop, "protobuf")
    assert other.endswith("(shop.Lost): the handler takes shop.Paid, shop.Refunded")
    assert "(shop.Paid): " in broken
    assert worker.stop() == 0
    assert "hush" not in worker.text


def test_while_the_registry_is_away_its_consumers_wait_and_nothing_fails(shop: Shop, registry: Registry) -> None:
    """Others go on. What a peer left waits, too, where it is taken over by a process that has not seen its schema."""
    value = shop.avro("Created", {"n": "int"}, {"n": 1})
    shop.send("avro", value, key=shop.key(7))
    url = {"EVENTFLOW_SCHEMA_REGISTRY_URL": registry.url}
    first = shop.world.start("typed", SLOW="1", **url)
    shop.world.wait(
        lambda: shop.world.one("select count(*) from effects where note = 'begun'") == 1, "one is under way"
    )
    shop.world.wait(lambda: shop.ends("avro") == [("running", None)], "it is accepted")
    registry.freeze()
    first.kill()
    shop.send("avro", value, value, key=shop.key(7))
    second = shop.world.start("typed", EVENTFLOW_SCHEMA_REGISTRY='{"timeout": 0.5}', **url)
    shop.world.produce(20)
    shop.world.wait_completed("plain")
    shop.world.wait(lambda: second.text.count("schema registry") >= 2, "both that need it say so")
    assert [status for status, _ in shop.ends("avro")] == ["running"]
    registry.thaw()
    shop.world.wait(lambda: [s for s, _ in shop.ends("avro")] == ["succeeded"] * 3, "they are handled")
    assert failures(shop, "entered") == []
    assert second.stop() == 0


def test_doctor_asks_the_registry(registry: Registry, world: World) -> None:
    url = {"EVENTFLOW_SCHEMA_REGISTRY_URL": registry.url.replace("://", "://me:hush@")}
    fit = eventflow("doctor", DATABASE_URL=world.database_url, **url)
    assert fit.returncode == 0, fit.stdout
    assert f"{registry.url} answers, and knows " in fit.stdout and "hush" not in fit.stdout
    away = {"EVENTFLOW_SCHEMA_REGISTRY_URL": "http://127.0.0.1:1", "EVENTFLOW_SCHEMA_REGISTRY": '{"timeout": 0.5}'}
    gone = eventflow("doctor", DATABASE_URL=world.database_url, **away)
    assert gone.returncode == 1
    [line] = [line for line in gone.stdout.splitlines() if line.startswith("WRONG")]
    assert "the schema registry http://127.0.0.1:1: " in line and "or EVENTFLOW_SCHEMA_REGISTRY" in line
