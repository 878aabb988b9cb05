"""What the decorators refuse, at the earliest moment."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

import eventflow
from eventflow import Message
from eventflow.errors import BlockingCallError, NotRunningError, SettingsError, UsageError
from eventflow.registry import Registry, registry


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(registry, "specs", {})
    monkeypatch.setattr(registry, "consumers", [])
    monkeypatch.setattr(registry, "lifespans", [])
    monkeypatch.setattr(registry, "transactions", {})
    return registry


async def handler(message: Message[int]) -> None: ...
async def not_a_handler(order: int) -> None: ...


@pytest.mark.parametrize("bad", [3, "f", Message, lambda: (yield)])
def test_what_is_no_function(bad: Any) -> None:
    for decorate in (eventflow.step, eventflow.workflow, eventflow.kafka_consumer("t", group="g")):
        with pytest.raises(UsageError):
            decorate(bad)


def test_two_handlers_of_one_topic_and_group() -> None:
    eventflow.kafka_consumer("t", group="g", name="one")(handler)
    with pytest.raises(UsageError, match="'t'.*'g'"):
        eventflow.kafka_consumer("t", group="g", name="two")(handler)


def test_two_workflows_of_one_name() -> None:
    def make(number: int) -> Callable[[], int]:
        def flow() -> int:
            return number

        def other() -> int:
            return number

        return flow if number else other

    eventflow.workflow(name="same")(make(0))
    with pytest.raises(UsageError, match="same"):
        eventflow.workflow(name="same")(make(1))


@pytest.mark.parametrize("others", ["orders-eu", ["payments", "orders-us"], re.compile("orders-.*|x")])
def test_a_pattern_and_what_it_may_match_are_not_of_one_group(others: Any) -> None:
    async def handler(message: Message[bytes]) -> None: ...

    async def other(message: Message[bytes]) -> None: ...

    eventflow.kafka_consumer(re.compile("orders-.*"), group="patterns", name="one")(handler)
    eventflow.kafka_consumer("payments", group="patterns", name="three")(handler)
    for group in ("other patterns", "patterns"):
        with pytest.raises(UsageError, match="two handlers read topic") if group == "patterns" else nullcontext():
            eventflow.kafka_consumer(others, group=group, name=f"two {others} {group}")(other)


def test_a_pattern_begins_at_the_beginning() -> None:
    with pytest.raises(UsageError, match="a topic that comes later would begin at its end"):
        eventflow.kafka_consumer(re.compile("a"), group="g", start="latest")
    with pytest.raises(UsageError, match="a pattern of text"):
        eventflow.kafka_consumer(re.compile(b"a"), group="g")  # type: ignore[call-overload]


def test_what_comes_of_an_incident_is_one_of_three() -> None:
    with pytest.raises(UsageError, match="on_incident is 'stop', 'earliest' or 'latest', not 'skip'"):
        eventflow.kafka_consumer("t", group="g", on_incident="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"group": ""}, {"group": "g", "ordering": "keys"}, {"group": "g", "identity": "name"}, {"group": "g", "start": "middle"}, {"group": "g", "max_in_flight": 0}, {"group": "g", "on_failure": "skip"}, {"group": "g", "dead_letter_topic": "no topic"}, {"group": "g", "dead_letter_topic": "dead", "on_failure": "stop"},
     {"group": "g", "retries": -1}, {"group": "g", "recoveries": -1}],
)  # fmt: skip
def test_options_that_cannot_be(options: Any) -> None:
    with pytest.raises(UsageError):
        eventflow.kafka_consumer("t", **options)(handler)


def test_kafka_properties_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"auto\.offset\.reset.*start="):
        eventflow.kafka_consumer("t", group="g", kafka={"auto.offset.reset": "latest"})


def test_a_handler_takes_a_message() -> None:
    with pytest.raises(UsageError, match="Message"):
        eventflow.kafka_consumer("t", group="g")(not_a_handler)  # type: ignore[type-var]


def test_a_transaction_takes_a_connection() -> None:
    with pytest.raises(UsageError, match="Session"):

        @eventflow.transaction
        def wrong(order: int) -> None: ...

    with pytest.raises(UsageError, match="async"):

        @eventflow.transaction
        async def mixed(session: Session) -> None: ...


def test_a_transaction_stacks_under_a_consumer() -> None:
    @eventflow.kafka_consumer("t", group="g")
    @eventflow.transaction
    def enter(connection: psycopg.Connection[Any], message: Message[int]) -> None: ...

    assert registry.consumers[0].transaction is not None


def test_where_statements_cannot_be_kept_back() -> None:
    def in_session(session: Session, message: Message[int]) -> None: ...
    def on_connection(connection: psycopg.Connection[Any], message: Message[int]) -> None: ...
    def on_many(connection: psycopg.Connection[Any], messages: list[Message[int]]) -> None: ...

    decorate: Any = eventflow.transaction
    with pytest.raises(UsageError, match=f"psycopg connections.*{in_session.__qualname__}"):
        decorate(pipeline=True)(in_session)
    with pytest.raises(UsageError, match="the ledger's database"):
        decorate(pipeline=True, database="shop")(on_connection)
    with pytest.raises(UsageError, match="single messages"):
        eventflow.kafka_consumer("t", group="g", batch=9)(eventflow.transaction(pipeline=True)(on_many))
    eventflow.kafka_consumer("t", group="g")(eventflow.transaction(pipeline=True)(on_connection))
    [consumer] = registry.consumers
    assert consumer.transaction is not None
    assert consumer.transaction.pipeline


def test_a_transaction_of_another_database_is_a_step_of_its_handler() -> None:
    def enter(connection: psycopg.Connection[Any], message: Message[int]) -> None: ...

    eventflow.kafka_consumer("t", group="g")(eventflow.transaction(database="shop")(enter))
    [consumer] = registry.consumers
    assert consumer.transaction is None
    [transaction] = registry.transactions.values()
    assert (transaction.database, transaction.name) == ("shop", enter.__qualname__)
    with pytest.raises(
        SettingsError, match=f"no database 'shop', for which the transaction {enter.__qualname__!r} is .*it names: crm"
    ):
        transaction.check({"crm": None})
    eventflow.transaction(enter)
    eventflow.transaction(database="crm")(enter)
    assert [t.database for t in registry.transactions.values()] == ["crm"], "a redefinition takes the place"


@pytest.mark.parametrize("bad", ["", 7, b"shop"])
def test_a_database_has_a_name(bad: Any) -> None:
    def enter(connection: psycopg.Connection[Any]) -> None: ...

    with pytest.raises(UsageError, match="database= is a name of EVENTFLOW_DATABASES"):
        eventflow.transaction(database=bad)(enter)


async def test_outside_running() -> None:
    @eventflow.workflow
    async def flow() -> None: ...

    @eventflow.workflow
    def blocking() -> None: ...

    with pytest.raises(NotRunningError, match="running"):
        await flow()
    with pytest.raises(NotRunningError):
        await eventflow.start(flow)
    with pytest.raises(BlockingCallError, match="start"):
        blocking()


async def test_outside_a_workflow_a_step_is_the_plain_function() -> None:
    @eventflow.step(retries=3)
    async def double(number: int) -> int:
        return number * 2

    assert await double(4) == 8
    assert await handler(Message(3)) is None
