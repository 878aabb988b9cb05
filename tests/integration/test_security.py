"""SASL, TLS and ACLs, by librdkafka's names, on a real broker: what is forbidden is named, no secret shows, nothing is lost."""

import json
from collections.abc import Iterator

import pytest

from eventflow import sync
from eventflow.brokers import Brokers
from tests.harness import World
from tests.secure import PASSWORD, SecureKafka


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    root = tmp_path_factory.mktemp("secure-kafka")
    secure = SecureKafka(root, tmp_path_factory.mktemp("certificates"))
    secure.broker.start()
    for user in ("ada", "bob", "eve"):
        secure.add_user(user)
    secure.allow_all("ada")
    yield secure
    secure.broker.stop()


@pytest.fixture
def secure(world: World, kafka: SecureKafka) -> World:
    world.bootstrap_servers = kafka.broker.bootstrap_servers  # where the test itself may do all
    return world


OAUTH = {
    "sasl.mechanism": "OAUTHBEARER", "sasl.username": None, "sasl.password": None,
    "enable.sasl.oauthbearer.unsecure.jwt": True, "sasl.oauthbearer.config": "principal=ada",
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, OAUTH], ids=["scram", "oauthbearer"])
def test_what_is_read_and_published_passes_tls_and_sasl(
    secure: World, kafka: SecureKafka, more: dict[str, object]
) -> None:
    secure.create_topic(2)
    out = secure.create_topic(1, f"{secure.topic}-out")
    secure.produce(40)
    settings = kafka.settings("ada", **more, debug="security,conf")
    worker = secure.start("publishing", OUT=out, EVENTFLOW_LOG_LEVEL="debug", **settings)
    for group in ("flow", "ledger"):
        secure.wait_completed(group, 40)
    secure.wait(lambda: secure.one("select count(*) from eventflow.outbox") == 0, "all are out")
    assert worker.stop() == 0
    assert PASSWORD not in worker.text
    secure.check_no_incidents()


@pytest.mark.parametrize(
    ("user", "more", "said"),
    [
        (
            "ada",
            {"sasl.password": f"{PASSWORD}-no"},
            "SASL authentication error: Authentication failed during authentication",
        ),
        ("nobody", {}, "SASL authentication error: Authentication failed during authentication"),
        ("ada", {"sasl.mechanism": "PLAIN"}, "SASL PLAIN mechanism handshake failed"),
    ],
    ids=["password", "user", "mechanism"],
)
def test_who_is_refused_ends_and_says_why(
    secure: World, kafka: SecureKafka, user: str, more: dict[str, object], said: str
) -> None:
    secure.create_topic(1)
    worker = secure.start("one_step", **kafka.settings(user, **more))
    assert secure.wait_death(worker) == 1
    [line] = [line for line in worker.text.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: Kafka at {kafka.secure_servers}: ")
    assert said in line
    assert PASSWORD not in worker.text


def test_a_certificate_that_nobody_vouches_for_is_named(secure: World, kafka: SecureKafka) -> None:
    """It may be mended while the process waits, so that it goes on; and it says what is wrong, and where."""
    secure.create_topic(1)
    worker = secure.start("one_step", **kafka.settings("ada", **{"ssl.ca.location": None}))
    secure.wait(lambda: "certificate verify failed" in worker.text, "it says what is wrong")
    [line] = [line for line in worker.text.splitlines() if "certificate verify failed" in line][:1]
    assert kafka.secure_servers in line
    assert worker.alive


def test_a_topic_that_is_forbidden_is_named_and_read_when_it_is_allowed(secure: World, kafka: SecureKafka) -> None:
    secure.create_topic(1)
    secure.produce(10)
    kafka.allow("bob", "GROUP", "*", "READ")
    worker = secure.start("one_step", **kafka.settings("bob"))
    secure.wait(lambda: f"topic '{secure.topic}': " in worker.text, "it says which")
    assert "Topic authorization failed" in worker.text
    assert worker.alive
    kafka.allow("bob", "TOPIC", secure.topic, "DESCRIBE")
    assert secure.wait_death(worker) == 1
    [line] = [line for line in worker.text.splitlines() if line.startswith("error: ")]
    assert f"may not read topic {secure.topic!r}" in line
    assert secure.one("select count(*) from eventflow.workflows") == 0
    kafka.allow("bob", "TOPIC", secure.topic, "READ")
    secure.start("one_step", **kafka.settings("bob"))
    secure.wait_completed("billing")
    secure.check("billing")


def test_a_group_that_is_forbidden_is_named(secure: World, kafka: SecureKafka) -> None:
    secure.create_topic(1)
    secure.produce(10)
    kafka.allow("eve", "TOPIC", secure.topic, "READ", "DESCRIBE")
    worker = secure.start("one_step", **kafka.settings("eve"))
    assert secure.wait_death(worker) == 1
    [line] = [line for line in worker.text.splitlines() if line.startswith("error: ")]
    assert "may not read in group 'billing'" in line
    kafka.allow("eve", "GROUP", "billing", "READ")
    secure.start("one_step", **kafka.settings("eve"))
    secure.wait_completed("billing")
    secure.check("billing")


def test_a_group_that_is_forbidden_to_what_is_run_again_is_tried_again(
    secure: World, kafka: SecureKafka, client: sync.Client
) -> None:
    secure.create_topic(1)
    secure.produce(10)
    kafka.add_user("dan")
    kafka.allow("dan", "TOPIC", secure.topic, "READ", "DESCRIBE")
    kafka.allow("dan", "GROUP", "billing", "READ")
    worker = secure.start("one_step", **kafka.settings("dan"))
    secure.wait_completed("billing")
    one = client.reprocess("billing", secure.topic)
    told = "select times, detail from eventflow.incidents where kind = 'reprocessing'"
    [(_, detail)] = secure.wait(lambda: [row for row in secure.sql(told) if row[0] > 1], "it was tried again")
    assert "may not read in group 'billing.g2'; allow it READ" in detail
    secure.produce(5)
    secure.wait_completed("billing", 15)
    kafka.allow("dan", "GROUP", "billing.g2", "READ")
    secure.wait(lambda: client.reprocessing(one.id or 0).ended_at, "it has ended")
    assert client.reprocessing(one.id or 0).done == 10
    assert worker.alive


def test_no_secret_shows_where_things_are_printed(kafka: SecureKafka) -> None:
    properties = json.loads(kafka.settings("ada")["EVENTFLOW_KAFKA"])
    brokers = Brokers(kafka.secure_servers, properties, {"sasl.password": PASSWORD}, "billing", "x", lambda _: None)
    assert PASSWORD not in repr(brokers)


def test_who_publishes_needs_what_the_documentation_says_and_no_more(secure: World, kafka: SecureKafka) -> None:
    secure.create_topic(2)
    out = secure.create_topic(1, f"{secure.topic}-out")
    secure.produce(40)
    kafka.add_user("fay")
    kafka.allow("fay", "TOPIC", secure.topic, "READ", "DESCRIBE")
    for group in ("flow", "ledger"):
        kafka.allow("fay", "GROUP", group, "READ")
    kafka.allow("fay", "TOPIC", out, "WRITE")
    kafka.allow("fay", "TOPIC", "eventflow-relay-*", "CREATE", "DESCRIBE", "READ", "WRITE")
    kafka.allow("fay", "TRANSACTIONAL_ID", "eventflow-relay-*", "DESCRIBE", "WRITE")
    for _ in range(2):  # the second one asks Kafka for the numbers of the first
        worker = secure.start("publishing", OUT=out, **kafka.settings("fay"))
        for group in ("flow", "ledger"):
            secure.wait_completed(group)
        secure.wait(lambda: secure.one("select count(*) from eventflow.outbox") == 0, "all are out")
        worker.kill()
        secure.produce(20)
    secure.check_no_incidents()
