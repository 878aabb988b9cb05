"""Messages as they were fetched: what a cut leaves, what they weigh, and the runs that they become."""

from typing import Any

import pytest

from eventflow.errors import CodecError
from eventflow.fetched import Fetched
from eventflow.flow import HEAVY
from eventflow.kafka import UNNAMED, Message, headers_from_json, headers_json, message_reader
from eventflow.registry import Spec, make_spec
from eventflow.retry import Retry
from eventflow.runs import Claim


class FakeMessage:
    def __init__(self, offset: int, value: bytes | None) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes:
        return b"k"

    def headers(self) -> list[tuple[str, bytes]]:
        return [("h", b"1")]

    def timestamp(self) -> tuple[int, int]:
        return 1, 1000 + self._offset


class Nameless(FakeMessage):
    """As the binding has a message with a header whose name is not UTF-8: whoever asks twice takes a null pointer."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset, b"1")
        self._asked, self._headers = False, None

    def headers(self) -> Any:
        if self._headers is not None:
            return self._headers
        assert not self._asked, "a segmentation fault"
        self._asked = True
        raise SystemError("<method 'headers'> returned a result with an exception set")

    def set_headers(self, headers: Any) -> None:
        self._headers = headers


def spec() -> Spec:
    async def handler(message: Message[int]) -> None: ...

    return make_spec(handler, "handler", Retry(0), 0)


def fetched(*messages: tuple[int, bytes | None], first: int = 10, generation: int = 1) -> Fetched:
    claim = Claim(1, 1, "g", "orders", 3, 1, 2, "kafka:g:orders:2:3:", first, generation)
    one = Fetched(spec(), claim, first)
    one.messages = [FakeMessage(*message) for message in messages]
    one.end = messages[-1][0] + 1
    claim.handed = len(one)
    return one


def test_a_cut_leaves_no_hole_and_covers_nothing_twice() -> None:
    one = fetched((10, b"1"), (12, b"2"), (20, b"3"), first=8)
    head = one.cut(2)
    assert [(part.first, part.end, len(part)) for part in (head, one)] == [(8, 13, 2), (13, 21, 1)]
    assert (one.head().first, one.head().end) == (13, 21)


def test_what_is_heavy_is_counted_until_it_is_let_go_of() -> None:
    heavy = b"x" * (HEAVY + 1)
    one = fetched((10, heavy), (11, b"light"), (12, heavy), (13, None))
    claim = one.claim
    assert one.weigh() == claim.weight == 2 * (HEAVY + 1)
    head = one.cut(2)
    assert (head.weight, one.weight, claim.weight) == (HEAVY + 1, HEAVY + 1, 2 * (HEAVY + 1))
    head.let_go()
    assert (claim.weight, claim.in_flight()) == (HEAVY + 1, 2)
    runs = one.runs("app")
    assert [run.weight for run in runs] == [HEAVY + 1, 0]
    for run in runs:
        claim.lighten(run)
    assert claim.weight == 0


def test_its_runs_are_those_that_there_would_have_been() -> None:
    runs = fetched((10, b"1"), (12, b"2"), first=8, generation=2).runs("app")
    assert [(run.workflow_id, run.first, run.offset) for run in runs] == [
        ("kafka:g:orders:2:3:10:g2", 8, 10), ("kafka:g:orders:2:3:12:g2", 11, 12),
    ]  # fmt: skip
    assert [(run.value, run.key, run.headers, run.timestamp, run.application) for run in runs] == [
        (value, b"k", [("h", b"1")], stamp, "app") for value, stamp in ((b"1", 1010), (b"2", 1012))
    ]


@pytest.mark.parametrize("generation", [1, 3])
def test_what_it_reads_says_where_it_was(generation: int) -> None:
    one = fetched((10, b"1"), (12, b"2"), generation=generation)
    messages: list[Message[Any]] = one.read()
    assert [(m.topic, m.partition, m.incarnation, m.generation, m.key) for m in messages] == [
        ("orders", 3, 2, generation, b"k")
    ] * 2
    assert [m.offset for m in messages] == [10, 12]
    assert messages[0].headers["h"] == b"1"


def test_what_cannot_be_read_says_so() -> None:
    one = fetched((10, b"1"), (11, b""))
    with pytest.raises(CodecError, match="orders/3/11 cannot be decoded"):
        one.read()


def test_a_header_whose_name_cannot_be_read_is_a_fault_of_its_message_alone() -> None:
    """However often it is read, also in another process, from the ledger; what comes before and behind it is well."""
    one = fetched((10, b"1"), (12, b"2"))
    one.messages.insert(1, Nameless(11))
    for _ in range(2):
        with pytest.raises(CodecError, match="orders/3/11 cannot be decoded: a header's name is not UTF-8"):
            one.read()
    runs = one.runs("app")
    assert [(run.value, run.headers == UNNAMED) for run in runs] == [(b"1", False), (b"1", True), (b"2", False)]
    kept = headers_from_json(headers_json(runs[1].headers))
    prepared = list[object]()
    for reader in (runs[1].spec.reader, message_reader(Message[Any], Foreign(prepared))):
        reader.prepare(b"1", None, kept, "orders")
        with pytest.raises(CodecError, match="not UTF-8"):
            reader.read(b"1", None, kept, "orders", 3, 11, 1, 1)
    assert prepared == []


class Foreign:
    """A deserializer that prepares."""

    def __init__(self, prepared: list[object]) -> None:
        self._prepared = prepared

    def prepare(self, data: bytes, **_: Any) -> None:
        self._prepared.append(data)

    def __call__(self, data: bytes, **_: Any) -> Any:
        return data
