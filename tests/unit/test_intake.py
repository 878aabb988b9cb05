"""What the consumer takes from Kafka, and what it must not pass over."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from psycopg.types.range import Range

from eventflow import claims, consumer
from eventflow.breaker import Breaker, Circuit
from eventflow.brokers import Asked, UnknownTopicError
from eventflow.claims import _Former, _Read, _Stop, _Taken
from eventflow.consumer import Intake
from eventflow.database import Database
from eventflow.errors import UnavailableError
from eventflow.fetched import Fetched
from eventflow.registry import ConsumerSpec, Spec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim, Run, fingerprint
from eventflow.scopes import Scope
from eventflow.sources import Source
from eventflow.telemetry import Seldom


class FakeMessage:
    """As the client hands it over."""

    def __init__(
        self, partition: int, offset: int, error: int | None = None, *, epoch: int | None = None, reason: str = ""
    ) -> None:
        self._partition, self._offset, self._epoch = partition, offset, epoch
        self._error = None if error is None else KafkaError(error, reason)

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def leader_epoch(self) -> int | None:
        return self._epoch

    def value(self) -> bytes:
        return b"{}"

    def key(self) -> None:
        return None

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 1)


class FakeJournal:
    def __init__(self) -> None:
        self.covered: list[tuple[int, int]] = []

    def cover(self, gap: tuple[Claim, int, int]) -> None:
        self.covered.append(gap[1:])


class FakeConsumer:
    def __init__(self) -> None:
        self.sought: list[int] = []
        self.paused: set[int] = set()
        self.assigned: set[int] = set()
        self.unassigned: list[list[int]] = []  # by each call
        self.refused: int | None = None  # to seek there fails

    def assignment(self) -> list[Any]:
        return [TopicPartition("orders", partition) for partition in self.assigned]

    def incremental_assign(self, places: list[Any]) -> None:
        self.assigned |= {place.partition for place in places}

    def incremental_unassign(self, places: list[Any]) -> None:
        self.unassigned.append([place.partition for place in places])
        self.assigned -= {place.partition for place in places}

    def seek(self, place: Any) -> None:
        if place.partition == self.refused:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.sought.append(place.offset)

    def get_watermark_offsets(self, place: Any, **_: Any) -> tuple[int, int]:
        return 0, 200

    def pause(self, places: list[Any]) -> None:
        self.paused |= {place.partition for place in places}

    def resume(self, places: list[Any]) -> None:
        self.paused -= {place.partition for place in places}


class FakeLedger:
    def __init__(self) -> None:
        self.incidents: list[tuple[str, int]] = []

    def run(self, name: str, params: Any) -> list[Any]:
        if name == "insert_stop":
            self.incidents.append((params["kind"], params["first"]))
        return [(1, 1, "truncation", 0, None, "")] if name == "read_stops" else []

    def transact(self, work: Any) -> list[Any]:
        return []


class Desk:
    """An intake with one claim on partition 1, at offset 100; `ordered`, one on partition 2 as well."""

    def __init__(self, *, ordered: bool = False) -> None:
        async def handler(message: Any) -> None: ...

        spec: Spec = make_spec(handler, "intake handler", Retry(0), 0)
        declared = ConsumerSpec(("orders",), "g", "none", "earliest", "topic_id", None, {}, spec, None)
        self.journal, self.runs = FakeJournal(), list[Run]()
        self.intake: Any = Intake(
            declared, Database("postgresql://"), self.journal,  # type: ignore[arg-type]
            executor=1, application="a", bootstrap_servers="kafka:9092", properties={}, max_in_flight=10, max_bytes=1_000_000,
            dispatch=self.runs.extend, accept=lambda *_: None, has_lease=lambda: True,
            desk=SimpleNamespace(), run_of=lambda row: row, on_fatal=lambda _: None,
        )  # fmt: skip
        self.intake._consumer = self.consumer = FakeConsumer()
        self.intake.claims._ledger = self.ledger = FakeLedger()
        self.claim, self.other = (Claim(n, 1, "g", "orders", n, 1, 1, "id:", 100) for n in (1, 2))
        self.intake.claims.held["orders", 1] = self.claim
        if ordered:
            self.intake.claims.held["orders", 2] = self.other
            self.claim.scope, self.other.scope = Scope("1", []), Scope("2", [])

    def settle(self) -> None:
        """The topic's id was asked, and is the same: what has stopped is recorded."""
        self.intake._sources.suspect.clear()
        self.intake._claim_again()

    def take(self, *messages: FakeMessage) -> list[int | None]:
        self.runs.clear()
        self.intake._take(list(messages))
        return [run.offset for run in self.runs]

    def stack(self, *messages: FakeMessage) -> list[tuple[int, int, int]]:
        """Where what is taken as it was fetched begins, ends, and of how many messages it is."""
        stacks: list[Fetched] = []
        self.intake._gather = stacks.extend
        assert self.take(*messages) == []
        return [(one.first, one.end, len(one)) for one in stacks]


def test_a_gap_is_covered_by_what_comes_after_it() -> None:
    desk = Desk()
    assert desk.take(FakeMessage(1, 100), FakeMessage(1, 105)) == [100, 105]
    assert [run.first for run in desk.runs] == [100, 101]


def test_what_goes_to_a_batch_as_it_was_fetched_covers_gaps_and_nothing_twice() -> None:
    desk = Desk()
    desk.claim.accepted_above = [(105, 108), (109, 110)]
    taken = desk.stack(*(FakeMessage(1, n) for n in (100, 103, 105, 106, 107, 108, 109, 112)))
    assert taken == [(100, 104, 2), (108, 109, 1), (110, 113, 1)]
    assert desk.journal.covered == [(104, 105)]
    assert (desk.claim.next_offset, desk.claim.in_flight(), desk.claim.seen) == (113, 4, 1)
    assert desk.stack(FakeMessage(1, 113), FakeMessage(1, 115, KafkaError._PARTITION_EOF), FakeMessage(1, 116)) == [
        (113, 114, 1), (115, 117, 1),
    ]  # fmt: skip
    assert desk.journal.covered == [(104, 105), (114, 115)]


def test_what_may_have_killed_the_former_owner_is_no_part_of_what_was_fetched() -> None:
    """It gets a row before it runs (R13)."""
    desk, stacks = Desk(), list[Fetched]()
    desk.claim.wary, desk.intake._gather = 2, stacks.extend
    assert desk.take(FakeMessage(1, 100), FakeMessage(1, 101), FakeMessage(1, 102)) == [100, 101, 102]
    assert [run.wary for run in desk.runs] == [True, True, False]
    assert stacks == []
    assert desk.stack(FakeMessage(1, 103)) == [(103, 104, 1)]


def test_an_end_covers_the_rest() -> None:
    desk = Desk()
    assert desk.take(FakeMessage(1, 100), FakeMessage(1, 103, KafkaError._PARTITION_EOF)) == [100]
    assert desk.journal.covered == [(101, 103)]


def test_after_an_error_nothing_is_taken_or_covered_until_it_was_sought_anew() -> None:
    """What is thrown away must not be passed over: neither by the end of the partition nor by a later message."""
    desk = Desk()
    error = FakeMessage(0, 0, KafkaError.UNKNOWN_TOPIC_OR_PART)
    end = FakeMessage(1, 102, KafkaError._PARTITION_EOF)
    assert desk.take(error, FakeMessage(1, 100), FakeMessage(1, 101), end) == []
    assert desk.journal.covered == []
    desk.intake._sources.suspect.clear()  # the watch asked meanwhile: all is as it was
    assert desk.take(FakeMessage(1, 102), FakeMessage(1, 103, KafkaError._PARTITION_EOF)) == []
    assert (desk.journal.covered, desk.claim.next_offset) == ([], 100)
    desk.intake._fetch_again()
    assert desk.consumer.sought == [100]
    assert desk.take(FakeMessage(1, 100), FakeMessage(1, 101)) == [100, 101]


def test_what_cannot_be_read_yet_is_passed_over_by_nothing() -> None:
    """Its schema cannot be had now: neither the rest of the batch nor the partition's end is taken before it."""
    desk, asked = Desk(ordered=True), list[object]()

    def away(*message: object) -> None:
        asked.append(message)
        raise UnavailableError("the registry does not answer")

    desk.intake._prepare = away
    end = FakeMessage(1, 102, KafkaError._PARTITION_EOF)
    assert desk.take(FakeMessage(1, 100), FakeMessage(1, 101), end, FakeMessage(2, 100)) == []
    assert (len(asked), desk.journal.covered, desk.claim.next_offset) == (1, [], 100)
    served = list[str]()
    desk.intake._serve = lambda: served.append("served")
    desk.intake._receive = lambda limit: served.append("received")
    desk.intake._tend = lambda: None
    desk.intake._turn()
    assert (served, desk.consumer.sought) == (["served"], [])
    desk.intake._prepare, desk.intake._waits_until = (lambda *_: None), 0.0
    desk.intake._turn()
    assert (served, desk.consumer.sought) == (["served", "received"], [100, 100])
    assert desk.take(FakeMessage(1, 100), FakeMessage(2, 100)) == [100, 100]


def test_what_is_away_for_long_ends_no_consumer() -> None:
    desk = Desk()

    def away(*_: object) -> None:
        raise UnavailableError("the registry does not answer")

    desk.intake._prepare, desk.intake._refused = away, 5000
    assert desk.take(FakeMessage(1, 100)) == []


def test_while_its_breaker_is_open_nothing_is_received_but_one_to_be_tried() -> None:
    desk, clock, done = Desk(), [0.0], list[Any]()
    circuit = Circuit(Breaker(1, errors=(ConnectionError,), pause=10), lambda: clock[0])
    desk.intake.spec.spec.circuit, desk.intake._tend = circuit, lambda: None
    desk.intake._serve = lambda: done.append("served")
    desk.intake._receive = done.append
    desk.intake._turn()
    circuit.failed("a message", ConnectionError())
    desk.intake._turn()
    clock[0] = 10.0
    desk.intake._turn()
    assert circuit.wait("the one that is tried") == 0
    desk.intake._turn()
    circuit.succeeded("the one that is tried")
    desk.intake._turn()
    assert done == [10, "served", 1, "served", 10]


def test_what_a_lost_claim_had_in_flight_takes_no_room() -> None:
    desk = Desk()
    desk.take(FakeMessage(1, 100))
    assert desk.intake.claims.in_flight() == 1
    desk.claim.lost = True
    assert desk.intake.claims.in_flight() == 0


def test_the_first_messages_of_a_claim_that_was_not_let_go_of_are_wary() -> None:
    desk = Desk()
    desk.claim.wary = 2
    desk.take(FakeMessage(1, 100), FakeMessage(1, 5000), FakeMessage(1, 5001))
    assert [run.wary for run in desk.runs] == [True, True, False]


def test_what_waits_in_one_partition_leaves_room_for_the_others() -> None:
    """In order, half the bound each: what goes beyond is thrown away, the partition paused, and sought when there is room."""
    desk = Desk(ordered=True)
    assert desk.take(*(FakeMessage(1, 100 + n) for n in range(8)), FakeMessage(2, 100)) == [
        100,
        101,
        102,
        103,
        104,
        100,
    ]
    assert desk.take(FakeMessage(1, 108), FakeMessage(1, 109, KafkaError._PARTITION_EOF)) == []
    assert (desk.journal.covered, desk.claim.next_offset) == ([], 105)
    desk.intake._pause(desk.intake._crowded())
    assert desk.consumer.paused == {1}
    desk.claim.finished = 2
    desk.intake._fetch_again()
    desk.intake._pause(desk.intake._crowded())
    assert (desk.consumer.paused, desk.consumer.sought) == ({1}, []), "not before half of its share is free"
    desk.claim.finished = 3
    desk.intake._fetch_again()
    desk.intake._pause(desk.intake._crowded())
    assert (desk.consumer.paused, desk.consumer.sought) == (set(), [105])
    assert desk.take(FakeMessage(1, 105)) == [105]


def test_a_leader_epoch_that_falls_is_a_doubt_and_then_a_stop() -> None:
    """Another log, so perhaps another topic (R16): the id is asked; where it is the same, the partition has lost messages."""
    desk = Desk()
    assert desk.take(FakeMessage(1, 100, epoch=3), FakeMessage(1, 101, epoch=4)) == [100, 101]
    assert desk.take(FakeMessage(1, 102, epoch=2), FakeMessage(1, 103, epoch=4)) == []
    assert desk.intake._sources.suspect.is_set()
    desk.intake._sources.suspect.clear()
    desk.intake._fetch_again()
    assert desk.consumer.sought == [102]
    assert desk.take(FakeMessage(1, 102, epoch=2), FakeMessage(1, 103, epoch=4)) == []
    desk.settle()
    assert (desk.ledger.incidents, desk.claim.lost) == ([("truncation", 102)], True)


def test_what_the_last_owner_had_read_beyond_the_position_may_be_of_a_later_leader() -> None:
    desk = Desk()
    desk.claim.leader_epoch, desk.claim.jumped, desk.claim.vacant = 4, (594, 100), True
    assert desk.take(FakeMessage(1, 100, epoch=2), FakeMessage(1, 101, epoch=2)) == [100, 101]
    assert (desk.claim.leader_epoch, desk.claim.epoch_to(), desk.claim.read_through()) == (2, 102, True)
    assert desk.take(FakeMessage(1, 102, epoch=1)) == [], "of what this one has read they fall"


def test_a_log_that_was_truncated_stops_its_partition() -> None:
    desk = Desk()
    cut = "Partition log truncation detected at offset 100 (leader epoch 0): broker end offset is 60 (offset leader epoch 0)."
    assert desk.take(FakeMessage(1, 0, KafkaError._AUTO_OFFSET_RESET, reason=cut), FakeMessage(1, 100)) == []
    assert (desk.ledger.incidents, desk.claim.revoked) == ([], True), "its topic may be another one"
    desk.settle()
    assert (desk.ledger.incidents, desk.claim.lost) == ([("truncation", 60)], True)


@pytest.mark.parametrize("code", [KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG, KafkaError._NOT_IMPLEMENTED])
def test_a_batch_that_cannot_be_read_stops_its_partition_alone(code: int) -> None:
    """It comes again whenever it is fetched: nothing else is to be in doubt each time."""
    desk = Desk(ordered=True)
    desk.intake._granted = {("orders", 1), ("orders", 2)}
    claimed = list[Any]()
    desk.intake._claim = lambda keys: claimed.extend(keys) or []
    bad = FakeMessage(1, 103, code, reason="Decompression failed")
    assert desk.take(FakeMessage(1, 100), FakeMessage(2, 100), bad, FakeMessage(2, 101)) == [100, 100]
    desk.settle()
    assert (desk.ledger.incidents, claimed) == ([("corrupt", 101)], [("orders", 1)]), "it is claimed, and stops"
    desk.intake._fetch_again()
    assert desk.take(FakeMessage(2, 101), FakeMessage(2, 102)) == [101, 102]


def test_what_is_corrupt_is_not_fetched_for_ever_by_a_policy() -> None:
    desk = Desk()
    for kind, policy, chosen in (
        ("corrupt", "earliest", None), ("corrupt", "latest", "latest"), ("retention", "earliest", "earliest"),
        ("corrupt", None, None),
    ):  # fmt: skip
        desk.intake.claims._spec = SimpleNamespace(policy=policy)
        assert desk.intake.claims._policy(_Stop(1, kind, 0, None, "")) == chosen


def test_a_message_where_there_was_none_is_another_log() -> None:
    """The position lay behind a transaction's marker, which was lost: what is there now is no message that was read."""
    desk = Desk()
    desk.claim.jumped, desk.claim.vacant = (98, 100), True
    assert desk.take(FakeMessage(1, 97), FakeMessage(1, 98), FakeMessage(1, 100)) == []
    desk.settle()
    assert desk.ledger.incidents == [("truncation", 98)]


def test_what_was_read_before_the_owner_died_is_no_other_log() -> None:
    desk = Desk()
    desk.claim.jumped = (98, 100)
    assert desk.take(FakeMessage(1, 98), FakeMessage(1, 99), FakeMessage(1, 100)) == [100]


def test_what_was_accepted_before_is_passed_over_and_is_not_empty() -> None:
    """Behind what one owner left there is what another had accepted: messages, whoever reads them next."""
    desk = Desk()
    desk.claim.jumped, desk.claim.vacant, desk.claim.accepted_above = (100, 100), True, [(101, 103)]
    assert desk.take(FakeMessage(1, 100)) == [100]
    assert not desk.claim.read_through(), "the next owner fetches from 101 on"
    assert desk.take(FakeMessage(1, 101), FakeMessage(1, 102)) == []
    assert (desk.claim.next_offset, desk.claim.epoch_to(), desk.claim.read_through()) == (103, 101, False)
    assert desk.take(FakeMessage(1, 103)) == [103]
    assert desk.claim.read_through()
    desk.take(FakeMessage(1, 106, KafkaError._PARTITION_EOF))
    assert (desk.claim.epoch_to(), desk.claim.read_through()) == (104, True)
    desk.settle()
    assert desk.ledger.incidents == []


def test_a_leader_epoch_is_that_of_the_last_message() -> None:
    """What lies behind it, up to the partition's end, may be another leader's."""
    desk = Desk()
    desk.take(FakeMessage(1, 100, epoch=3))
    assert desk.claim.epoch_to() == 101
    desk.take(FakeMessage(1, 103, KafkaError._PARTITION_EOF))
    desk.take(FakeMessage(1, 105, KafkaError._PARTITION_EOF))
    assert (desk.claim.next_offset, desk.claim.epoch_to()) == (105, 101)
    desk.take(FakeMessage(1, 105, epoch=4))
    assert desk.claim.epoch_to() == 106


def test_a_message_that_was_handled_before_its_topic_was_noticed_to_be_new_is_covered() -> None:
    """The same message, by time and digests; another one at the same offset is the old topic's, and this one is handled (R16)."""
    desk = Desk()
    same, other, later = fingerprint(1, None, b"{}"), fingerprint(1, None, b"{old}"), fingerprint(2, None, b"{}")
    desk.claim.early = {100: (same,), 101: (other,), 102: (later,), 104: (other, same)}
    assert desk.take(*(FakeMessage(1, 100 + n) for n in range(5))) == [101, 102, 103]
    assert (desk.journal.covered, desk.runs[0].first) == ([(100, 101), (104, 105)], 101)


def test_one_that_cannot_be_read_is_told_by_its_time() -> None:
    desk = Desk()
    desk.claim.early = {100: ((1,),), 101: ((2,),)}
    assert desk.take(*(FakeMessage(1, 100 + n) for n in range(3))) == [101, 102]
    assert desk.journal.covered == [(100, 101)]


# ---- what the topic is (R16) -----------------------------------------------------------------------


def watched(desk: Desk, *answers: Callable[[], Any]) -> dict[str, str]:
    """The topics that have changed, after so many questions; the first is asked at once, for want of certainty."""
    waiting, over = list(answers), threading.Event()

    def ask(topics: Iterable[str]) -> dict[str, Any]:
        if not list(topics):
            return {}
        answer = waiting.pop(0)
        if not waiting:
            over.set()
        said = answer()
        return {"orders": said if isinstance(said, Exception) else ("cluster", said)}

    sources = desk.intake._sources
    sources._known = {"orders": Source(1, "orders", 1, "id-1", "cluster")}
    sources._brokers = Brokers(ask)
    sources.doubt()
    sources.watch(over, lambda: list(desk.intake.claims.held.values()), list)
    return sources.changed


class Brokers:
    """Whose leaders answer as `leaders` has it: an error, or nothing yet where there is none."""

    def __init__(self, identities: Callable[[Iterable[str]], dict[str, Any]] = dict) -> None:
        self.identities = identities
        self.leaders: dict[int, Exception | Any] = {}
        self.asked: list[set[int]] = []

    def ask(self, places: Iterable[tuple[str, int]]) -> Asked:
        asked = Asked({place: Future() for place in places})
        self.asked.append({partition for _, partition in asked})
        for (_, partition), future in asked.items():
            what = self.leaders.get(partition)
            if isinstance(what, Exception):
                future.set_exception(what)
            elif what is not None:
                future.set_result(what)
        return asked


def fails(error: Exception) -> Callable[[], str]:
    def answer() -> str:
        raise error

    return answer


def meanwhile(desk: Desk, read: int) -> Callable[[], str]:
    """All is as it was; while the question was under way, more was read, and another doubt came up."""

    def answer() -> str:
        desk.claim.next_offset = read
        desk.intake._sources.doubt()
        return "id-1"

    return answer


def test_a_topic_of_another_id_has_changed() -> None:
    assert watched(Desk(), lambda: "id-2") == {"orders": "recreated"}


def test_a_topic_that_is_gone_has_changed() -> None:
    assert watched(Desk(), lambda: UnknownTopicError("gone")) == {"orders": "deleted"}


def test_a_doubt_is_settled_by_the_answer_that_the_topic_is_what_it_was() -> None:
    desk = Desk()
    assert watched(desk, lambda: "id-1") == {}
    assert not desk.intake._sources.suspect.is_set()


@pytest.mark.parametrize(("seconds", "verified"), [(1.9, 100), (2.0, 101)])
def test_what_was_read_is_verified_by_an_answer_that_cannot_be_older(
    monkeypatch: pytest.MonkeyPatch, seconds: float, verified: int
) -> None:
    """A broker may not have heard yet of a recreation when another one serves the new log."""
    desk, clock = Desk(), iter([5.0, 5.0 + seconds])
    desk.take(FakeMessage(1, 100))
    monkeypatch.setattr("eventflow.sources.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert watched(desk, meanwhile(desk, 102), lambda: "id-1") == {}
    assert desk.claim.verified == verified


def test_a_doubt_stays_while_the_brokers_do_not_answer() -> None:
    desk = Desk()
    desk.take(FakeMessage(1, 100))
    assert watched(desk, fails(UnavailableError("away"))) == {}
    assert desk.intake._sources.suspect.is_set()
    assert desk.claim.verified == 100


def test_an_answer_settles_no_doubt_that_is_younger_than_the_question() -> None:
    desk = Desk()
    assert watched(desk, meanwhile(desk, 102)) == {}
    assert desk.intake._sources.suspect.is_set()


def test_an_answer_that_comes_after_its_session_says_nothing_of_the_next_one() -> None:
    """Which has asked for itself, and knows the new topic."""
    desk = Desk()

    def late() -> str:
        desk.intake._sources._known, desk.intake._sources.changed = (
            {"orders": Source(2, "orders", 2, "id-2", "cluster")},
            {},
        )
        return "id-2"

    assert watched(desk, late) == {}


def test_a_paused_partition_without_a_leader_keeps_no_doubt_open() -> None:
    """Where its log ends is asked beside that, and not waited for."""
    desk, paused = Desk(), [("orders", 1)]
    brokers = Brokers(lambda topics: {topic: UnknownTopicError("gone") for topic in topics})
    sources = desk.intake._sources
    sources._known, sources._brokers = {"orders": Source(1, "orders", 1, "id-1", "cluster")}, brokers
    sources.doubt()
    sources.watch(threading.Event(), list, lambda: paused)
    assert (sources.changed, sources.suspect.is_set(), sources.ends) == ({"orders": "deleted"}, False, {})
    sources._ask_ends(0.0, paused, [])
    assert brokers.asked == [{1}], "it has not answered yet"
    sources._asked["orders", 1].set_result(TOLD)
    sources._ask_ends(0.0, paused, [])
    assert sources.ends == {("orders", 1): 200}


def test_where_all_logs_end_is_asked_now_and_then_and_stays_known() -> None:
    sources, held, paused = Desk().intake._sources, [("orders", 1), ("orders", 2)], [("orders", 2)]
    sources._brokers = brokers = Brokers(lambda topics: {topic: UnknownTopicError("gone") for topic in topics})
    sources._asked_all_at, tell = 0.0, lambda: [future.set_result(TOLD) for future in sources._asked.values()]
    known = list[tuple[dict[Any, int], dict[Any, int]]]()
    for now in (29.0, 30.0, 59.0, 60.0):
        sources._ask_ends(now, paused, held)
        known.append((sources.ends, sources.all_ends))
        tell()
    assert brokers.asked == [{2}, {1, 2}, {2}, {1, 2}]
    ours, all_of_them = {paused[0]: 200}, dict.fromkeys(held, 200)
    assert known == [({}, {}), (ours, {}), (all_of_them, all_of_them), (all_of_them, all_of_them)]
    assert known[2][1] is known[3][1], "a new one for each look at all"


def test_a_partition_that_stands_still_beside_one_that_is_busy_makes_the_consumer_begin_anew() -> None:
    """And not one that a person has paused."""
    desk = Desk(ordered=True)
    intake, clock = desk.intake, [0.0]

    def coming() -> list[FakeMessage]:
        return [FakeMessage(2, desk.other.next_offset + n) for n in range(5)]

    desk.consumer.poll, desk.consumer.consume = (lambda _: coming()[0]), (lambda count, _: coming()[1 : count + 1])
    stalls = intake._stalls
    intake._stalls = SimpleNamespace(
        drained=lambda _: stalls.drained(clock[0]), held_back=lambda _: stalls.held_back(clock[0]), look=stalls.look
    )
    intake._stalls.held_back(0)

    def anew(limit: int) -> str:
        for _ in range(4):
            clock[0] += 30
            intake._receive(limit)
            desk.other.finished = desk.other.handed
            intake._sources.all_ends = {("orders", 1): 200, ("orders", 2): 200}
            intake._note_ends()
        return intake._begin_anew

    assert anew(5) == "", "more may be waiting here"
    intake.claims.paused = {("orders", 1): None}
    assert anew(100) == ""
    intake.claims.paused = {}
    intake._stalls.held_back(0)
    assert anew(100) == "nothing comes of g orders/1, of which there is more"


def test_while_all_is_paused_nothing_is_to_come() -> None:
    desk, told = Desk(), list[float]()
    desk.consumer.poll = lambda _: None
    desk.intake._stalls = SimpleNamespace(held_back=told.append)
    desk.intake._serve()
    assert len(told) == 1


def test_while_in_doubt_nothing_is_received() -> None:
    desk = Desk()
    served = list[str]()
    desk.intake._serve = lambda: served.append("served")
    desk.intake._receive = lambda limit: served.append("received")
    desk.intake._sources.doubt()
    desk.intake._turn()
    assert served == ["served"]


# ---- what is said of a broker that is away ----


def test_all_consumers_say_once_that_kafka_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "seldom", Seldom())
    for desk in (Desk(), Desk()):
        for _ in range(3):
            desk.intake._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert [r.getMessage() for r in caplog.records] == ["Kafka at kafka:9092 does not answer; trying again"]


# ---- partitions of which Kafka tells nothing ----

TOLD = SimpleNamespace(offset=200, leader_epoch=0)


def done(result: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def without_leader() -> KafkaException:
    return KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))


class Assigned(Desk):
    """An intake that is given partitions of its topic: they stand at 120, and nobody let go of those in `wary`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **leaders: Any) -> None:
        super().__init__()
        self.intake.claims.held.clear()
        self.brokers, self.taken, self.released = Brokers(), list[list[int]](), list[int]()
        self.brokers.leaders = {int(name[1:]): what for name, what in leaders.items()}
        self.wary = set[int]()
        self.intake._sources._brokers = self.brokers
        self.intake._sources._known["orders"] = Source(1, "orders", 1, "id", "cluster")
        self.intake.claims._first_positions = lambda *_: {}
        self.intake.claims._take_rows = self._rows
        self.intake.claims.release = lambda claims: self.released.extend(claim.partition for claim in claims)
        self.ledger.transact = lambda work: work(None)  # type: ignore[method-assign]
        self.ledger.database = None  # type: ignore[attr-defined]
        monkeypatch.setattr("eventflow.claims.evicting", lambda *_, **__: nullcontext())
        monkeypatch.setattr(self.intake._stop, "wait", self._never)

    def _rows(self, connection: None, source: Source, partitions: list[int]) -> list[_Taken]:
        self.taken.append(partitions)
        return [
            _Taken(p, p, 5, _Former(p not in self.wary, 10, 0, 1, 0, 0), _Read([Range(None, 120)]), [], {}, None)
            for p in partitions
        ]

    def _never(self, _: float) -> bool:
        raise AssertionError("a rebalance waits for this")

    def assign(self, *partitions: int) -> None:
        self.intake._on_assign(self.consumer, [TopicPartition("orders", p) for p in partitions])

    def held(self) -> set[int]:
        return {partition for _, partition in self.intake.claims.held}

    def look(self, at: float) -> list[int]:
        return [partition for _, partition in self.intake.claims.back(at)]


def test_a_partition_without_a_leader_holds_no_other_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not claimed, and not waited for; it is asked for beside the turns, and claimed when it answers."""
    monkeypatch.setattr(claims, "seldom", Seldom())
    desk = Assigned(monkeypatch, p3=TOLD, p4=without_leader(), p5=SimpleNamespace(offset=-1001, leader_epoch=None))
    desk.intake.claims.stopped["orders", 4] = 1  # by an incident that is settled
    desk.assign(3, 4, 5)
    assert (desk.taken, desk.held(), desk.consumer.assigned) == ([[3]], {3}, {3})
    assert desk.intake.claims.stopped == {}, "it is not asked for in each turn"
    assert [r.getMessage() for r in caplog.records] == [
        "intake handler waits for orders/4: Broker: Leader not available; trying again",
        "intake handler waits for orders/5: Local: Timed out; trying again",
    ]
    assert desk.look(1) == [], "now it asks"
    desk.brokers.leaders[4] = None
    assert (desk.look(2), desk.look(3)) == ([], []), "nobody answers, and then not yet"
    assert desk.brokers.asked == [{3, 4, 5}, {3}, {4, 5}, {4, 5}]
    [late] = [one for one in [desk.intake.claims._asked["orders", 4]] if not one.done()]
    late.set_result(TOLD)
    desk.brokers.leaders[4] = TOLD
    desk.intake._look()
    assert (desk.taken, desk.held(), desk.consumer.assigned) == ([[3], [4]], {3, 4}, {3, 4})
    assert desk.intake.claims.away == {("orders", 5)}


def test_what_waits_for_its_leader_goes_with_its_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Assigned(monkeypatch, p4=without_leader())
    desk.assign(4)
    assert (desk.look(1), desk.intake.claims.away) == ([], {("orders", 4)})
    desk.intake._on_revoke(desk.consumer, [TopicPartition("orders", 4)])
    desk.brokers.leaders[4] = TOLD
    assert (desk.look(2), desk.look(3), desk.taken) == ([], [], [])


def test_a_leader_that_goes_while_it_is_claimed_holds_no_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim is let go of, but for one whose next owner has to be as wary; what it is tried for again has its pauses."""
    desk = Assigned(monkeypatch, p3=TOLD, p4=TOLD, p5=TOLD)
    desk.wary, gone = {5}, {4, 5}

    def watermarks(place: Any, **_: Any) -> tuple[int, int]:
        if place.partition in gone:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return 0, 200

    desk.consumer.get_watermark_offsets = watermarks  # type: ignore[method-assign]
    desk.assign(3, 4, 5)
    assert (desk.held(), desk.released, desk.intake.claims.away) == ({3}, [4], {("orders", 4), ("orders", 5)})
    assert [desk.look(at) for at in (1, 1, 2, 2.9, 3, 3)] == [[], [4, 5], [], [], [], [4, 5]], "asked, and in time"


def test_the_first_partitions_of_a_topic_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that began later would be taken for one that was added: read from its beginning, whatever its group has committed."""
    desk, written = Assigned(monkeypatch, p3=TOLD, p4=without_leader()), list[Any]()
    del desk.intake.claims._first_positions
    known: list[tuple[int, int]] = []
    desk.ledger.run = lambda name, _: known if name == "known_partitions" else []  # type: ignore[method-assign]
    desk.ledger.database = SimpleNamespace(run=lambda _, name, params: written.append(params) or [])  # type: ignore[attr-defined]
    desk.intake._sources.partitions = lambda _: [3, 4, 7]
    desk.consumer.committed = lambda places, **__: places  # type: ignore[attr-defined]
    desk.brokers.leaders[7] = TOLD
    desk.assign(3)
    assert (written, desk.taken, desk.intake.claims.away) == ([], [[]], {("orders", 3)})
    known.append((1, 7))
    desk.assign(3, 4)
    assert ([w["partition"] for w in written], desk.held(), desk.intake.claims.away) == ([[3]], {3}, {("orders", 4)})


# ---- what librdkafka is told in a rebalance, and what it refuses ----


def test_a_revoke_of_what_is_not_read_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the binding answers with what an incident stops, librdkafka refuses that, and the poll raises."""
    desk = Assigned(monkeypatch, p3=TOLD)
    desk.intake._on_revoke(desk.consumer, [TopicPartition("orders", 4)])
    desk.intake._on_lost(desk.consumer, [TopicPartition("orders", 4)])
    assert desk.consumer.unassigned == [[], []]
    desk.assign(3)
    assert desk.consumer.unassigned == [[], []], "an assignment is not answered by that"
    desk.intake._on_revoke(desk.consumer, [TopicPartition("orders", 3), TopicPartition("orders", 4)])
    assert desk.consumer.unassigned[2:] == [[3]]


def test_a_group_that_cannot_be_left_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka's close may wait for a broker that it does not know any more; what it calls back late is not the next one's."""
    monkeypatch.setattr(consumer, "_LEAVE", 0.05)
    desk, hangs = Assigned(monkeypatch, p3=TOLD), threading.Event()
    desk.assign(3)
    left, called_back = FakeConsumer(), threading.Event()

    def close() -> None:
        hangs.wait(10)
        for late in (desk.intake._on_revoke, desk.intake._on_lost, desk.intake._on_assign):
            late(left, [TopicPartition("orders", 3)])
        called_back.set()

    left.close = close
    desk.intake._leave(left)
    held = desk.intake.claims.held["orders", 3]
    hangs.set()
    assert called_back.wait(10)
    assert desk.intake.claims.held["orders", 3] is held
    assert not held.revoked


def test_a_question_of_which_nothing_comes_is_over_in_time() -> None:
    """librdkafka forgets what a client was asked that is let go of: who waits for that would wait for ever."""
    assert not Asked({("orders", 1): Future()}).over()
    assert Asked({("orders", 1): Future()}, limit=-2).over()
    assert Asked().over()


def test_what_is_claimed_again_is_not_paused_any_more() -> None:
    """librdkafka has resumed it: what counts it as paused would never pause it."""
    desk = Desk(ordered=True)
    desk.intake._pause({("orders", 1), ("orders", 2)})
    desk.intake._read([desk.claim])
    assert desk.consumer.paused == {2}
    desk.intake._pause({("orders", 1), ("orders", 2)})
    assert desk.consumer.paused == {1, 2}


def test_a_seek_that_fails_is_not_passed_over() -> None:
    desk = Desk(ordered=True)
    desk.intake._unsure, desk.consumer.refused = True, 1
    desk.intake._fetch_again()
    assert (desk.consumer.sought, list(desk.intake._lost)) == ([100], [desk.claim])
    assert desk.take(FakeMessage(1, 103), FakeMessage(2, 100)) == [100]
    assert (desk.journal.covered, desk.claim.next_offset) == ([], 100)


def test_a_rebalance_asks_for_the_partitions_past_its_own_consumer() -> None:
    """`list_topics` of a consumer within its callback makes the binding abort at the next line of librdkafka's log."""
    desk, written = Desk(), list[Any]()
    metadata = SimpleNamespace(topics={"orders": SimpleNamespace(partitions={0: None, 3: None})})
    asked = lambda spots, **_: {spot: done(TOLD) for spot in spots}  # noqa: E731
    vars(desk.intake._brokers)["admin"] = SimpleNamespace(list_topics=lambda *_, **__: metadata, list_offsets=asked)
    desk.consumer.get_watermark_offsets = lambda *_, **__: (5, 9)  # type: ignore[attr-defined]
    desk.consumer.committed = lambda places, **__: places  # type: ignore[attr-defined]
    say = lambda _, name, params: written.append((name, params)) or []  # noqa: E731
    desk.ledger.database = SimpleNamespace(run=say)  # type: ignore[attr-defined]
    desk.ledger.transact = lambda work: work(None)  # type: ignore[method-assign]
    desk.intake.claims._first_positions(desk.consumer, "orders", Source(1, "orders", 1, "id", "cluster"), [3])
    name, params = written[-1]
    assert (name, params["partition"], params["position"]) == ("insert_claims", [0, 3], [5, 5])
