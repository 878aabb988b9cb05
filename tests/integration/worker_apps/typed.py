"""Handlers whose values come by a schema registry: Avro, JSON Schema, Protobuf; in a transaction, slow, and one without it."""

import asyncio
import os
from typing import Any

import psycopg
from common import INSERT, TOPIC, Order, outside, row
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pydantic import BaseModel

import eventflow
from eventflow import Message
from eventflow.schema_registry import Avro, JsonSchema, Protobuf


def generated() -> tuple[Any, ...]:
    """As `protoc` would make them, whose compiler is not here."""
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    for name in ("Paid", "Refunded"):
        file.message_type.add(name=name).field.add(name="n", number=1, type=5, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{n}")) for n in ("Paid", "Refunded"))


Paid, Refunded = generated()


class Created(BaseModel):
    n: int


class Shipped(BaseModel):
    n: int
    by: str


@eventflow.kafka_consumer(f"{TOPIC}-avro", group="avro", deserializer=Avro(), key_deserializer=Avro(key=True))
async def avro(message: Message[Created | Shipped | None, int]) -> str:
    if os.environ.get("SLOW"):
        outside.act("avro", message, "begun")
        await asyncio.sleep(60)
    return f"{message.key} {message.value!r}"


@eventflow.kafka_consumer(f"{TOPIC}-avro", group="entered", deserializer=Avro())
@eventflow.transaction
def entered(connection: psycopg.Connection[Any], message: Message[Order | None]) -> None:
    connection.execute(INSERT, row("entered", message, str(message.value.n if message.value else None)))


@eventflow.kafka_consumer(f"{TOPIC}-json", group="json", deserializer=JsonSchema())
def json_schema(message: Message[Order]) -> int:
    return message.value.n


@eventflow.kafka_consumer(f"{TOPIC}-protobuf", group="protobuf", deserializer=Protobuf())
async def protobuf(message: Message[Paid | Refunded]) -> str:  # type: ignore[valid-type]
    return f"{type(message.value).__name__} {message.value.n}"  # type: ignore[attr-defined]


@eventflow.kafka_consumer(TOPIC, group="plain")
async def plain(message: Message[Order]) -> int:
    return message.value.n
