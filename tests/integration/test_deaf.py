"""Clients of Kafka that would never read again, although all is well: a consumer that is left with such a one takes a new one.

An only broker that is fenced says that there are no brokers, and librdkafka lets go of them; or it fetches a partition no more.
"""

from collections.abc import Iterator

import pytest

from tests.harness import World, read_all
from tests.kafka_proxy import KafkaProxy


@pytest.fixture
def proxy(kafka_bootstrap: str) -> Iterator[KafkaProxy]:
    made = KafkaProxy(kafka_bootstrap)
    yield made
    made.close()


def fence(world: World, proxy: KafkaProxy) -> None:
    """For as long as it takes its clients to hear of it."""
    before = proxy.hidden
    proxy.fenced = True
    world.wait(lambda: proxy.hidden > before + 1, "its clients are told so")
    proxy.fenced = False


@pytest.mark.parametrize("strategy", ["none", "rebootstrap"])
def test_metadata_without_brokers_ends_nothing_for_good(world: World, proxy: KafkaProxy, strategy: str) -> None:
    world.defaults["EVENTFLOW_KAFKA"] = (
        f'{{"session.timeout.ms": 2000, "metadata.recovery.strategy": "{strategy}",'
        ' "topic.metadata.refresh.interval.ms": 300}'
    )
    world.create_topic(4)
    worker = world.start("two_steps", ready=True, KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap)
    [[group]] = world.sql('select distinct "group" from eventflow.claims')
    world.produce(20)
    world.wait_completed(group)
    fence(world, proxy)
    world.produce(20)
    world.wait_completed(group, timeout=20)
    assert worker.alive


def test_who_publishes_goes_on_too(world: World, proxy: KafkaProxy) -> None:
    world.defaults["EVENTFLOW_KAFKA"] = '{"session.timeout.ms": 2000, "topic.metadata.refresh.interval.ms": 300}'
    world.create_topic(4)
    world.create_topic(4, f"{world.topic}-out")
    worker = world.start("publishing", OUT=f"{world.topic}-out", KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap)
    for _ in range(3):
        world.produce(30)
        for group in ("flow", "ledger"):
            world.wait_completed(group, timeout=30)
        fence(world, proxy)
    world.produce(30)
    for group in ("flow", "ledger"):
        world.wait_completed(group, timeout=30)
    world.wait(lambda: world.one("select count(*) from eventflow.outbox") == 0, "all is out", 40)
    ids = [event.headers["eventflow-id"] for event in read_all(world, f"{world.topic}-out")]
    assert (len(ids), len(set(ids))) == (3 * world.produced,) * 2
    assert worker.alive


def test_what_librdkafka_fetches_no_more_is_fetched_by_a_new_consumer(world: World, proxy: KafkaProxy) -> None:
    world.create_topic(4)
    worker = world.start("looking", ready=True, KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap)
    world.produce(20)
    world.wait_completed("billing")
    proxy.keep_fetches()
    world.produce(20)
    world.wait_completed("billing", timeout=40)
    assert "begins anew: nothing comes of billing" in worker.text
    world.check("billing")
    assert worker.alive
