"""What reaches librdkafka, what it refuses, and what is said of brokers that do not answer."""

import json
import logging
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from eventflow import brokers as module
from eventflow.brokers import Brokers, UnknownTopicError, answers, knows_brokers
from eventflow.errors import SettingsError, UnavailableError
from eventflow.telemetry import Seldom

DEPLOYMENT: dict[str, Any] = {
    "socket.timeout.ms": 7000, "socket.keepalive.enable": True, "broker.address.family": "v4",
    "enable.ssl.certificate.verification": False, "https.ca.location": "/etc/ca.pem", "debug": "broker",
    "security.protocol": "ssl", "client.rack": "a", "reconnect.backoff.max.ms": 2000,
}  # fmt: skip


def brokers(properties: dict[str, Any] | None = None, own: dict[str, Any] | None = None) -> Brokers:
    return Brokers("127.0.0.1:1", properties or {}, own or {}, "g", "c", lambda _: None)


def test_the_admin_client_is_told_what_the_consumer_is_told() -> None:
    made = brokers({**DEPLOYMENT, "session.timeout.ms": 9000}, {"fetch.min.bytes": 10})
    told = made.admin_config
    assert DEPLOYMENT.items() <= told.items()
    assert (told["bootstrap.servers"], told["client.id"], told["error_cb"]) == ("127.0.0.1:1", "c", made.on_error)
    assert not {"session.timeout.ms", "fetch.min.bytes", "group.id", "isolation.level"} & set(told)
    assert {"session.timeout.ms", "fetch.min.bytes"} <= set(made.config)


@pytest.mark.parametrize(
    ("own", "milliseconds"),
    [({}, 30_000), ({"session.timeout.ms": 45000}, 45_000), ({"session.timeout.ms": "45000"}, 45_000),
     ({"session.timeout.ms": 9000}, 30_000), ({"max.poll.interval.ms": 600_000}, 600_000)],
)  # fmt: skip
def test_a_rebalance_waits_no_longer_than_it_must(own: dict[str, Any], milliseconds: int) -> None:
    made = brokers({}, own)
    assert made.config["max.poll.interval.ms"] == milliseconds
    made.check("bill")


def test_brokers_that_are_away_stay_known() -> None:
    """Else a transaction waits for ever for the coordinator of its group (librdkafka's issue 5511)."""
    assert brokers().config["metadata.recovery.strategy"] == "none"
    assert brokers().admin_config["metadata.recovery.strategy"] == "none"
    assert brokers({"metadata.recovery.strategy": "rebootstrap"}).config["metadata.recovery.strategy"] == "rebootstrap"


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What the process's log gets of librdkafka, of which nothing has been said yet."""
    handler = Heard()
    monkeypatch.setattr(module.logger.filters[0], "_seldom", Seldom())
    module.logger.addHandler(handler)
    request.addfinalizer(lambda: module.logger.removeHandler(handler))
    return handler


def test_librdkafka_warns_of_nothing_that_the_admin_client_is_told() -> None:
    handler, loud = Heard(), logging.getLogger("tests.loud")
    loud.addHandler(handler)
    own = {"session.timeout.ms": 9000, "group.instance.id": "a", "fetch.max.bytes": 60_000_000, "max.poll.records": 9}
    AdminClient(brokers({"group.protocol": "classic"}, own).admin_config, logger=loud).poll(0.1)
    assert [text for text in handler.texts if "CONFWARN" in text] == []


@pytest.mark.parametrize("bad", [{"no.such.property": 1}, {"socket.timeout.ms": "soon"}, {"stats_cb": "x"}])
def test_a_property_that_librdkafka_refuses_is_blamed_on_who_set_it(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^EVENTFLOW_KAFKA: .*{next(iter(bad))}"):
        brokers(bad).check("bill")
    with pytest.raises(SettingsError, match=f"^kafka= of the handler 'bill': .*{next(iter(bad))}"):
        brokers({"client.rack": "a"}, bad).check("bill")
    brokers({"socket.timeout.ms": "soon"}, {"socket.timeout.ms": 1000}).check("bill")  # what counts is right


def test_an_eager_assignor_is_refused_by_name() -> None:
    """It was accepted, and its consumer never read: what is assigned at once cannot be assigned one by one."""
    said = r"partition\.assignment\.strategy cannot be 'range': leave it out, or use 'cooperative-sticky'"
    with pytest.raises(SettingsError, match=f"^EVENTFLOW_KAFKA: {said}$"):
        brokers({"partition.assignment.strategy": "range"}).check("bill")
    with pytest.raises(SettingsError, match=f"^kafka= of the handler 'bill': {said}$"):
        brokers({}, {"partition.assignment.strategy": "range"}).check("bill")
    brokers({"partition.assignment.strategy": "range"}, {"partition.assignment.strategy": "cooperative-sticky"}).check(
        "b"
    )
    brokers({"group.protocol": "consumer"}).check("bill")


class FakeAdmin:
    """Answers each question with an error, when it is asked or of the topic; it has no `describe_cluster`, which aborts."""

    def __init__(self, error: Exception | None = None, of_topic: Exception | None = None) -> None:
        self._error, self._of_topic, self.polls = error, of_topic, 0

    def describe_topics(self, *_: Any, **__: Any) -> Any:
        if self._error is not None:
            raise self._error
        asked: Future[Any] = Future()
        if self._of_topic is None:
            asked.set_result(SimpleNamespace(topic_id="i"))
        else:
            asked.set_exception(self._of_topic)
        return {"orders": asked}

    def list_offsets(self, places: Any, **_: Any) -> Any:
        asked: Future[Any] = Future()
        asked.set_exception(self._of_topic)
        return dict.fromkeys(places, asked)

    def list_topics(self, *_: Any, **__: Any) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(cluster_id="c", topics=["__consumer_offsets", "orders"])

    def poll(self, _: float) -> None:
        self.polls += 1


@pytest.mark.parametrize(
    "error",
    [
        KafkaException(KafkaError(KafkaError._TIMED_OUT)), KafkaException(KafkaError(KafkaError._TRANSPORT)),
        TimeoutError(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["error", "of_topic"])
def test_brokers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, where: str) -> None:
    made, admin, other = brokers(), FakeAdmin(**{where: error}), FakeAdmin(**{where: error})
    vars(made)["admin"] = admin
    monkeypatch.setattr(Brokers, "_new_admin", lambda _: other)
    with pytest.raises(UnavailableError, match=r"^Kafka at 127\.0\.0\.1:1 does not answer$"):
        made.identities(["orders"])
    assert (admin.polls, other.polls) == (1, 1), "its log and its errors are served, not kept"
    assert made.admin is admin, "which may know brokers that are not in bootstrap.servers"


@pytest.mark.parametrize("asked", ["identities", "topics"])
def test_where_a_client_has_no_answer_and_a_new_one_has_that_one_is_kept(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The old one may know no broker any more: librdkafka has let go of all."""
    deaf = FakeAdmin(KafkaException(KafkaError(KafkaError._TRANSPORT)))
    made, fresh = brokers(), FakeAdmin()
    vars(made)["admin"] = deaf
    monkeypatch.setattr(Brokers, "_new_admin", lambda _: fresh)
    if asked == "identities":
        assert made.identities(["orders"]) == {"orders": ("c", "i")}
    else:
        assert made.topics() == ["orders"]
    assert made.admin is fresh


@pytest.mark.parametrize("error", [KafkaException(KafkaError(KafkaError._TRANSPORT)), TimeoutError()])
def test_who_asks_for_leaders_that_do_not_answer_is_told_so_by_an_error_of_kafkas(error: Exception) -> None:
    """Which whoever claims a partition waits for; any other one would end the process."""
    made = brokers()
    vars(made)["admin"] = FakeAdmin(of_topic=error)
    told, silent = answers(made.ask([("orders", 0)]))
    assert told == {}
    assert str(made.unavailable(silent["orders", 0])) == "Kafka at 127.0.0.1:1 does not answer"


def test_a_topic_is_told_by_its_cluster_and_its_id() -> None:
    made = brokers()
    vars(made)["admin"] = FakeAdmin()
    assert made.identities(["orders"]) == {"orders": ("c", "i")}


def said_of(code: int) -> str:
    made = brokers()
    vars(made)["admin"] = FakeAdmin(of_topic=KafkaException(KafkaError(code)))
    what = made.identities(["orders"])["orders"]
    assert isinstance(what, UnknownTopicError if code == KafkaError.UNKNOWN_TOPIC_OR_PART else UnavailableError)
    return str(what)


def test_what_else_the_brokers_say_comes_with_their_address_and_the_topic() -> None:
    said = said_of(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    assert said.startswith("Kafka at 127.0.0.1:1, topic 'orders': Broker: Topic auth")


def test_a_topic_that_is_not_there_comes_with_what_to_do() -> None:
    said = said_of(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert said.endswith("'orders': there is no such topic; create it; it is read as soon as it exists")


# ---- what repeats ----


def test_a_text_is_said_once_a_minute_whatever_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seldom = 1000.0, Seldom()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert [seldom.may_say(f"attempt {n} at host:{n}") for n in range(3)] == [True, False, False]
    assert seldom.may_say("something else")
    now += 59
    assert not seldom.may_say("attempt 9 at host:9")
    now += 2
    assert [seldom.may_say("attempt 9 at host:9") for _ in range(2)] == [True, False]


def test_what_is_not_said_is_there_for_those_who_want_to_see_every_attempt(caplog: pytest.LogCaptureFixture) -> None:
    seldom, log = Seldom(), logging.getLogger("eventflow.test")
    with caplog.at_level(logging.DEBUG, "eventflow.test"):
        for n in range(3):
            seldom.say(log, f"100 % of {n} away")
    assert [r.levelname for r in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_librdkafkas_threads_are_heard_once(heard: Heard) -> None:
    for client in ("consumer", "producer"):
        for n in range(20):
            text = f"FAIL [test-{n}#{client}-{n}] [thrd:10.0.0.{n}:9092/bootstrap]: Connect to test {n} failed"
            module.logger.error("%s", text)
    module.logger.error("FAIL [x] [y]: SSL handshake of a test failed")
    assert len(heard.texts) == 2


def test_a_broker_that_is_away_makes_few_lines(heard: Heard) -> None:
    """Against a real librdkafka, which connects again and again: it was 400 lines in 20 s."""
    errors: list[KafkaError] = []
    made = Brokers("127.0.0.1:1", {}, {}, "g", "c", errors.append)
    consumer = made.consumer(lambda _: None, lambda _: None)
    consumer.subscribe(["x"])
    until = time.monotonic() + 4
    while time.monotonic() < until:
        consumer.poll(0.1)
    consumer.close()
    assert 1 <= len(heard.texts) <= 2
    assert [e.code() for e in errors].count(KafkaError._ALL_BROKERS_DOWN) == 1
    assert len(errors) < 12, "it connects without a pause"


# ---- where logs end ----


def asked(**of: Any) -> Brokers:
    """Brokers whose leaders of partitions p0, p1... say this, or fail so."""
    made = brokers()

    def list_offsets(spots: Any, **_: Any) -> Any:
        told: dict[Any, Future[Any]] = {spot: Future() for spot in spots}
        for spot, future in told.items():
            what = of[f"p{spot.partition}"]
            future.set_exception(what) if isinstance(what, Exception) else future.set_result(what)
        return told

    vars(made)["admin"] = SimpleNamespace(list_offsets=list_offsets)
    return made


TOLD, AWAY = SimpleNamespace(offset=7, leader_epoch=2), SimpleNamespace(offset=-1001, leader_epoch=None)
NO_LEADER = KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))


def test_each_partition_is_told_of_by_itself() -> None:
    """A leader that is away is no error to librdkafka: its partitions have an offset that there is not."""
    made = asked(p0=TOLD, p1=NO_LEADER, p2=AWAY, p3=TimeoutError())
    told, silent = answers(made.ask(("orders", n) for n in range(4)))
    assert told == {("orders", 0): TOLD}
    codes = {place: error.args[0].code() for place, error in silent.items()}
    assert codes == {
        ("orders", 1): KafkaError.LEADER_NOT_AVAILABLE,
        ("orders", 2): KafkaError._TIMED_OUT,
        ("orders", 3): KafkaError._TIMED_OUT,
    }
    assert answers(made.ask([])) == ({}, {})


def test_ends_are_those_of_the_logs_that_there_are() -> None:
    """How far groups are behind is told, whatever topic one of them has read that was deleted since."""
    made = asked(p0=TOLD, p1=NO_LEADER, p2=AWAY)
    assert made.ends([("orders", 0), ("orders", 1), ("orders", 2)]) == {("orders", 0): 7}
    with pytest.raises(UnavailableError, match="does not answer"):
        made.ends([("orders", 2)])
    with pytest.raises(UnavailableError, match="does not answer"):
        made.offsets("orders", [0, 2], "latest")


def test_a_client_that_knows_no_broker_is_told_by_its_statistics() -> None:
    """Of a real librdkafka, one whose broker is away; what it tells where all are let go of has the group's alone."""
    told: list[str] = []
    consumer = Brokers("127.0.0.1:1", {}, {}, "g", "c", lambda _: None).consumer(told.append, lambda _: None)
    until = time.monotonic() + 10
    while not told and time.monotonic() < until:
        consumer.poll(0.1)
    consumer.close()
    assert knows_brokers(told[0])
    brokers = json.loads(told[0])["brokers"]
    alone = {"brokers": {name: one for name, one in brokers.items() if one["source"] == "logical"}}
    assert alone["brokers"]
    assert not knows_brokers(json.dumps(alone, separators=(",", ":")))
