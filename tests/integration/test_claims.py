"""Claims as the consumer takes them and lets go of them, on a real ledger: who is refused, and who must be wary."""

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from eventflow.brokers import Asked
from eventflow.consumer import Intake
from eventflow.database import Connection, Database
from eventflow.encryption import AesGcm
from eventflow.errors import UnavailableError
from eventflow.migrations import migrate
from eventflow.payloads import Payloads
from eventflow.registry import ConsumerSpec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Fingerprint, fingerprint
from eventflow.sources import Source

PLACE = ("t", 0)
EPOCH: dict[str, list[int]] = {"leader_epochs": [-1], "epochs_to": [0]}


class Log:
    """A Kafka consumer whose partitions hold offsets 0 to 99."""

    def get_watermark_offsets(self, place: Any, timeout: float = 1, *, cached: bool = False) -> tuple[int, int]:
        return 0, 100


def leaders(places: Iterable[tuple[str, int]]) -> Asked:
    """Each says where its partition's log ends, in its third epoch."""
    answers = Asked({place: Future[Any]() for place in places})
    for answer in answers.values():
        answer.set_result(SimpleNamespace(offset=100, leader_epoch=3))
    return answers


def is_away(*_: Any, **__: Any) -> Any:
    """Kafka does not answer."""
    raise KafkaException(KafkaError(KafkaError._TRANSPORT))


class Ledger:
    """A migrated database that knows one partition of a topic, and consumers on it."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.database = Database(url)
        self.connection: Connection = self.database.connect("test")
        self.source = self.register("i")
        self.run("insert_claims", group="g", source=self.source.id, partition=[0], position=[0], began=["earliest"])
        self.consumers: list[Holder] = []

    def run(self, name: str, /, **params: object) -> list[tuple[Any, ...]]:
        return self.database.run(self.connection, name, params)

    def register(self, topic_id: str) -> Source:
        [(source, incarnation, *_)] = self.run(
            "register_source", topic="t", cluster_id="c", topic_id=topic_id, policy=None
        )
        return Source(source, "t", incarnation, topic_id, "c")

    def recreate(self, topic_id: str) -> None:
        """The topic is another one; the ledger knows its partition, and nobody has claimed it yet."""
        self.source = self.register(topic_id)
        self.run("insert_claims", group="g", source=self.source.id, partition=[0], position=[0], began=["added"])

    def consumer(self, bound: int = 10) -> "Holder":
        [(executor, _)] = self.run(
            "birth", application="x", names="{}", host="h", pid=1, lanes=1, version=None, queues=None, schedules=None
        )
        self.consumers.append(Holder(self, executor, bound))
        return self.consumers[-1]

    def claim(self) -> tuple[Any, ...]:
        """That of what the topic is now."""
        query = b"select owner, epoch, released from eventflow.claims where source = %s"
        [row] = self.connection.execute(query, [self.source.id]).fetchall()
        return row


class Holder:
    """A consumer of one executor, without Kafka."""

    def __init__(self, ledger: Ledger, executor: int, bound: int) -> None:
        async def handler(message: Any) -> None: ...

        spec = make_spec(handler, "holder", Retry(0), 0)
        consumer = ConsumerSpec(("t",), "g", "none", "earliest", "topic_id", None, {}, spec, None)
        self.ledger, self.executor, self.lease = ledger, executor, True
        self.accepted: list[tuple[bool, bool]] = []
        self.intake: Any = Intake(
            consumer, ledger.database, None,  # type: ignore[arg-type]
            executor=executor, application="x", bootstrap_servers="", properties={}, max_in_flight=bound, max_bytes=1_000_000, dispatch=lambda _: None, accept=self._accept, has_lease=lambda: self.lease,
            desk=SimpleNamespace(), run_of=lambda row: row, on_fatal=lambda _: None,
        )  # fmt: skip
        self.intake._consumer = Log()
        self.intake._sources._brokers = SimpleNamespace(ask=leaders, cut_off=lambda *_: ({}, {}))
        self.knows(ledger.source)

    def knows(self, source: Source) -> None:
        """What it takes the topic for."""
        self.intake._sources._known = {"t": source}

    def _accept(self, claims: set[Claim], timeout: float) -> None:
        self.accepted += [(claim.revoked, self.ledger.claim()[2]) for claim in claims]

    def take(self) -> Claim:
        [claim] = self.intake.claims.take(Log(), [PLACE])
        return claim

    def fail_to_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kafka does not answer any more, once it was claimed."""
        with monkeypatch.context() as away:
            away.setattr(Log, "get_watermark_offsets", is_away)
            assert self.intake.claims.take(Log(), [PLACE]) == []
        assert self.intake.claims.away == {PLACE}

    def let_go(self) -> None:
        self.intake._give_up([PLACE])

    def handle(self, claim: Claim, *values: bytes) -> None:
        """These messages come, and are committed; each was sent in the millisecond that is its offset."""
        ledger, first = self.ledger, claim.next_offset
        claim.next_offset += len(values)
        deltas = {
            "claims": [claim.id],
            "epochs": [claim.epoch],
            "ranges": [f"{{[{first},{claim.next_offset})}}"],
        } | EPOCH
        offsets = list(range(first, claim.next_offset))
        ledger.run("insert_deltas", **deltas)
        ledger.run(
            "insert_succeeded",
            id=[f"{claim.id_prefix}{offset}" for offset in offsets], name="holder", application="x",
            executor=self.executor, claim=[claim.id] * len(values), offset=offsets, timestamp=offsets, scope=None,
            key=None, value=list(values), headers=None, output=["null"] * len(values), steps=None,
        )  # fmt: skip


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
    yield made
    for holder in made.consumers:
        holder.intake._ledger.close()
    made.connection.close()


# ---- release (R8, R13) -----------------------------------------------------------------------------


def test_who_follows_an_owner_that_let_go_is_not_wary(ledger: Ledger) -> None:
    first, second = ledger.consumer(), ledger.consumer()
    claim = first.take()
    first.let_go()
    assert ledger.claim() == (first.executor, claim.epoch, True)
    assert second.take().wary == 0
    assert ledger.claim() == (second.executor, claim.epoch + 1, False)


def test_who_follows_an_owner_that_did_not_let_go_is_wary_of_all_that_it_may_have_begun(ledger: Ledger) -> None:
    first, second = ledger.consumer(bound=7), ledger.consumer(bound=20)
    first.take()
    assert second.take().wary == 7


@pytest.mark.parametrize("released", [True, False])
def test_who_follows_a_claim_that_kafka_held_up_is_as_wary_as_that_one(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """Nothing is begun of a claim that cannot be compared with the log; the next one may be the same owner's."""
    first, second, third = (ledger.consumer(bound=7) for _ in range(3))
    claim = first.take()
    first.handle(claim, b"a")
    claim.leader_epoch = 3  # the log is compared by it
    first.let_go()
    if not released:
        first.take()
    for _ in range(2):
        second.fail_to_take(monkeypatch)
        assert second.intake.claims.held == {}
        assert ledger.claim()[::2] == (second.executor, released)
    claim = (second if released else third).take()
    assert (claim.wary, claim.next_offset, claim.leader_epoch) == (0 if released else 7, 1, 3)


@pytest.mark.parametrize("why", ["no lease", "abandoned"])
def test_who_has_no_right_to_it_any_more_does_not_let_go(ledger: Ledger, why: str) -> None:
    """It may have begun what it could not accept: the next owner is wary."""
    first, second = ledger.consumer(), ledger.consumer()
    claim = first.take()
    if why == "no lease":
        first.lease = False
    else:
        first.intake._abandoned = True
    first.let_go()
    assert claim.revoked
    assert first.accepted == []
    assert second.take().wary == 10


def test_what_has_begun_is_accepted_before_the_claim_is_let_go_of(ledger: Ledger) -> None:
    """And after nothing more may begin: what begins later is the next owner's."""
    first = ledger.consumer()
    first.take()
    first.let_go()
    assert first.accepted == [(True, False)], "(revoked, released) when what had begun was accepted"
    assert ledger.claim()[2]


def test_a_dead_executor_lets_go_of_nothing(ledger: Ledger) -> None:
    first, second = ledger.consumer(), ledger.consumer()
    first.take()
    ledger.run("mark_dead", dead=first.executor, executor=second.executor)
    first.let_go()
    assert second.take().wary == 10


# ---- sources (R16) ---------------------------------------------------------------------------------


def test_a_topic_that_was_recreated_is_not_claimed_under_its_old_id(ledger: Ledger) -> None:
    """Its metadata may be old: it asks for the id again, and holds reading back until it knows."""
    holder, before = ledger.consumer(), ledger.claim()
    ledger.register("j")
    with pytest.raises(UnavailableError, match="superseded"):
        holder.take()
    assert ledger.claim() == before
    assert holder.intake._sources.suspect.is_set()


def test_what_was_read_of_a_topic_that_was_recreated_is_an_incident(ledger: Ledger) -> None:
    """From where the id was last known to be the old one's, up to where it was read."""
    holder = ledger.consumer()
    claim = holder.take()
    claim.verified, claim.next_offset = 30, 42
    holder.intake.claims.note_changed({"t": "recreated"}, Log())
    [(kind, subject, detail)] = ledger.connection.execute(
        "select kind, subject, detail from eventflow.incidents"
    ).fetchall()
    assert (kind, subject) == ("recreated", "g t/0")
    assert "offsets 30 to 42" in detail


def test_what_was_handled_of_a_topic_since_it_was_seen_to_be_the_same_is_known_to_the_next_one(ledger: Ledger) -> None:
    """It may be the new topic's; to every owner of the new partition, not to the first one alone."""
    old, *new = (ledger.consumer() for _ in range(3))
    claim = old.take()
    old.handle(claim, b"a", b"b", b"c")
    claim.verified = 1
    old.let_go()
    ledger.recreate("j")
    for holder in new:
        holder.knows(ledger.source)
        assert holder.take().early == {1: (sent(1, b"b"),), 2: (sent(2, b"c"),)}


def test_a_topic_that_nobody_read_hides_nothing_of_the_one_before_it(ledger: Ledger) -> None:
    """Recreated twice before one of two workers noticed: what that one handled is known, although a topic lies between."""
    slow, quick = ledger.consumer(), ledger.consumer()
    claim = slow.take()
    ledger.recreate("j")
    slow.handle(claim, b"a")
    ledger.recreate("k")
    quick.knows(ledger.source)
    assert quick.take().early == {0: (sent(0, b"a"),)}


def test_what_was_read_of_a_topic_hides_what_was_handled_before_it(ledger: Ledger) -> None:
    """By then nothing was accepted any more of the one before; what it left unverified needs no look at every claim since."""
    first, second, third = (ledger.consumer() for _ in range(3))
    first.handle(first.take(), b"a", b"b")
    ledger.recreate("j")
    second.knows(ledger.source)
    claim = second.take()
    second.handle(claim, b"c", b"d")
    claim.verified = 1
    second.let_go()
    ledger.recreate("k")
    third.knows(ledger.source)
    assert third.take().early == {1: (sent(1, b"d"),)}


def test_two_messages_at_one_offset_are_both_known(ledger: Ledger) -> None:
    """One of either former topic, and neither was verified: each may be the new one's."""
    first, second, third = (ledger.consumer() for _ in range(3))
    first.handle(first.take(), b"a")
    ledger.recreate("j")
    second.knows(ledger.source)
    second.handle(second.take(), b"b")
    ledger.recreate("k")
    third.knows(ledger.source)
    assert third.take().early == {0: (sent(0, b"b"), sent(0, b"a"))}


def sent(offset: int, value: bytes) -> Fingerprint:
    return fingerprint(offset, None, value)


@pytest.mark.parametrize("stored", ["plain", "encrypted", "its key is gone"])
def test_what_was_read_early_is_told_by_what_it_is(ledger: Ledger, stored: str) -> None:
    """Whoever claims the new topic knows which messages at its first offsets were handled under the old one's id."""
    if stored != "plain":
        ledger.database = dataclasses.replace(ledger.database, payloads=Payloads(AesGcm({"a": bytes(32)})))
    first = ledger.consumer().take()
    rows = {0: (b"k", b"v", '[["h", null]]'), 1: (None, None, '[["h", "eA=="]]'), 2: (b"", b"", None)}
    ledger.run(
        "insert_succeeded", application="x", executor=1, name="holder", id=[f"{first.id_prefix}{n}" for n in rows],
        claim=[first.id] * 3, offset=list(rows), timestamp=[7, 8, 9], scope=None, key=[k for k, _, _ in rows.values()],
        value=[v for _, v, _ in rows.values()], headers=[h for _, _, h in rows.values()], output=["null"] * 3, steps=None,
    )  # fmt: skip
    ledger.connection.execute("update eventflow.claims set accepted = '{(,3)}'")
    ledger.source = ledger.register("j")
    ledger.run("insert_claims", group="g", source=ledger.source.id, partition=[0], position=[0], began=["earliest"])
    if stored == "its key is gone":
        ledger.database = dataclasses.replace(ledger.database, payloads=Payloads(AesGcm({"b": bytes(32)})))
    early = ledger.consumer().take().early
    if stored == "its key is gone":
        assert early == {0: ((7,),), 1: ((8,),), 2: ((9,),)}
    else:
        assert early == {n: (fingerprint(7 + n, key, value),) for n, (key, value, _) in rows.items()}
