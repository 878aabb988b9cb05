import base64
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.arrays import ByteaArray, TextArray
from eventflow.codec import Arguments, codec_for, decode_error, encode_error, recorded_line
from eventflow.database import sql_folder
from eventflow.errors import CodecError, UnreadableError
from eventflow.payloads import TEXTS, Payloads, Plain, Unread, unread

MESSAGE = ["offset", "key", "value", "headers"]


class Upside:
    """A codec that anybody can undo; it tells what it was asked."""

    def __init__(self, label: str = "upside", secrets: Sequence[bytes] = ()) -> None:
        self.label, self.secrets = label, secrets

    def encode(self, payload: bytes, /) -> tuple[str, bytes]:
        return self.label, payload[::-1]

    def decode(self, label: str, stored: bytes, /) -> bytes:
        if label != "upside":
            raise UnreadableError(f"no key {label!r}")
        return stored[::-1]


class Refuses(Upside):
    def encode(self, payload: bytes, /) -> tuple[str, bytes]:
        raise RuntimeError(f"will not take {payload!r}")

    def decode(self, label: str, stored: bytes, /) -> bytes:
        raise RuntimeError("cannot")


def stored(text: str, label: str = "upside") -> str:
    return f"~{label}:{base64.b64encode(text.encode()[::-1]).decode()}"


UPSIDE, NONE = Payloads(Upside()), Payloads()


def test_without_a_codec_parameters_are_not_touched() -> None:
    params = {"arguments": "{}", "key": [b"k"], "value": [b"v"], "headers": [None]}
    assert NONE.write(params) is params


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_each_kind_of_text_is_encoded_in_each_kind_of_column(name: str) -> None:
    assert UPSIDE.write({"id": "x", name: "[1]"}) == {"id": "x", name: stored("[1]")}
    assert UPSIDE.write({"id": ["x"], name: [None, "[1]"]}) == {"id": ["x"], name: [None, stored("[1]")]}
    packed = UPSIDE.write({name: TextArray(["ä", None])})[name]
    assert (type(packed), packed.values) == (TextArray, [stored("ä"), None])
    assert UPSIDE.write({name: None}) == {name: None}
    [(opened,)] = UPSIDE.read(f"q {name}", [name], [(stored("ä"),)])
    assert opened == "ä"


def test_what_is_no_payload_stays() -> None:
    params = {
        "workflow_id": ["a"],
        "key": ["k"],
        "topic": ["t"],
        "attributes": ['{"a":1}'],
        "source": 7,
        "reason": ["r"],
    }
    assert UPSIDE.write(params) == params


def test_what_was_written_plain_is_read_as_it_is() -> None:
    rows = [("1", '{"args":[]}', None, None), (None, None, "null", '"~no mark"')]
    assert UPSIDE.read("q", ["id", "arguments", "output", "error"], rows) == rows
    assert UPSIDE.read("q", ["id", "arguments", "output", "error"], rows)[0] is rows[0]


bytes_or_none = st.none() | st.binary(max_size=40)


@given(bytes_or_none, bytes_or_none, st.none() | st.text(min_size=1, max_size=20).map(lambda t: f'[["{t!r}",null]]'))
def test_a_message_is_one_payload(key: bytes | None, value: bytes | None, headers: str | None) -> None:
    params = {"id": TextArray(["a", "b"]), "key": [None, key], "value": ByteaArray([b"plain", value]), "headers": None}
    written = UPSIDE.write(params | {"headers": [None, headers]})
    assert written["key"] == [None, None]
    rows = list(zip([1, 2], written["key"], written["value"], written["headers"], strict=True))
    assert UPSIDE.read("messages", MESSAGE, rows) == [(1, None, b"plain", None), (2, key, value, headers)]
    if value is not None or key is not None or headers is not None:
        assert rows[1][3] == "~upside"
        assert NONE.read("messages", MESSAGE, rows)[1][2] == rows[1][2]


def test_a_message_that_begins_as_an_encoded_one_is_none() -> None:
    """Bytes from Kafka may be anything; only the headers' column tells."""
    rows = [(1, b"~upside", b"~upside:eHg=", None), (2, None, b"~", '[["~",null]]')]
    assert UPSIDE.read("messages", MESSAGE, rows) == rows


@pytest.mark.parametrize(
    ("payloads", "text", "why"),
    [
        (NONE, stored("1"), "under the key 'upside', and this process has none: set EVENTFLOW_ENCRYPTION_KEYS"),
        (UPSIDE, stored("1", "gone"), "no key 'gone'"),
        (UPSIDE, "~upside:not base64", "under the key 'upside', and is damaged"),
        (UPSIDE, "~upside", ""),
        (UPSIDE, "~upside:/w==", "under the key 'upside', and is damaged"),  # no UTF-8
        (Payloads(Refuses()), stored("1"), "under the key 'upside', and cannot be decoded: RuntimeError"),
    ],
)
def test_what_cannot_be_decoded_stays_and_says_why(payloads: Payloads, text: str, why: str) -> None:
    [(_, found, other)] = payloads.read("three", ["id", "output", "error"], [(1, text, "{}")])
    if text == "~upside":  # an empty text, in its way
        assert found == ""
        return
    assert type(found) is Unread
    assert (found, other) == (text, "{}")
    assert why in found.why
    error = unread((1, found))
    assert isinstance(error, UnreadableError)
    assert why in str(error)
    assert unread((1, other, None, b"x")) is None


@pytest.mark.parametrize("blob", [None, b"", b"short", b"\xff" * 12])
def test_a_damaged_message(blob: bytes | None) -> None:
    [row] = UPSIDE.read("messages", MESSAGE, [(1, None, blob, "~upside")])
    assert type(row[3]) is Unread
    assert row[2] == blob


def test_whoever_needs_it_is_told() -> None:
    text = Unread("~gone:eA==", "no key 'gone'")
    for decode in (
        codec_for(int).decode, codec_for(Any).decode, codec_for(int).named("the result of 'f'").decode,
        Arguments(test_whoever_needs_it_is_told).decode, decode_error,
    ):  # fmt: skip
        with pytest.raises(UnreadableError, match="no key 'gone'"):
            decode(text)
    assert recorded_line(text) == "UnreadableError: no key 'gone'"
    with pytest.raises(CodecError, match="the result of 'f': no key"):
        codec_for(int).named("the result of 'f'").decode(text)


def test_a_codec_that_refuses_shows_nothing_of_the_value() -> None:
    with pytest.raises(CodecError, match=r"^the payload codec refused a value \(RuntimeError\)$"):
        Payloads(Refuses()).write({"output": ["secret"]})
    with pytest.raises(CodecError, match="a label that cannot be: 'a:b'"):
        Payloads(Upside("a:b")).write({"output": ["secret"]})


def test_a_plain_text_needs_no_codec() -> None:
    assert Payloads(Refuses()).write({"error": [Plain("{}"), None]}) == {"error": ["{}", None]}


def test_digests_of_stream_items_are_keyed() -> None:
    """By the first secret for new ones; by the others, and as they were before there was one, what is there is found."""

    def sources(*secrets: bytes) -> list[str]:
        params = {"workflow_id": ["w"], "key": ["k"], "value": ["1"], "source": ["1.2 0123456789abcdef"]}
        [text] = Payloads(Upside(secrets=secrets)).write(params)["source"]
        return text.split(",")

    assert sources() == ["1.2 0123456789abcdef"]
    new, old, plain = sources(b"new", b"old")
    assert re.fullmatch(r"1\.2 [0-9a-f]{16}", new)
    assert plain == "1.2 0123456789abcdef"
    assert len({new, old, plain}) == 3
    assert sources(b"old")[0] == old
    closed = {"workflow_id": ["w"], "key": ["k"], "value": [None], "source": [None]}
    assert Payloads(Upside(secrets=[b"s"])).write(closed)["source"] == [None]


# ---- the names that tell a payload -------------------------------------------------------------------

# Columns of the ledger that hold what programs gave; what else is text in these tables is documented as plain.
HELD = {"arguments", "output", "error", "steps", "payload", "value", "headers"}


@pytest.mark.parametrize("path", sorted((sql_folder() / "queries").glob("*.sql")), ids=lambda p: p.stem)
def test_queries_call_payloads_by_their_names(path: Any) -> None:
    """A query that is given or gives one under another name would write or read it as it is."""
    code = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("--"))
    given = set(re.findall(r"%\((\w+)\)b", code))
    for table, columns in re.findall(r"insert into eventflow\.(\w+)\s*\(([^)]*)\)", code):
        held = {c.strip().strip('"') for c in columns.split(",")} & HELD
        if table in {"workflows", "checkpoints", "messages", "events", "stream_items", "outbox"}:
            assert held <= given, f"{held - given} is given under another name"
    assert "headers" not in given or ({"key", "value"} <= given and given & {"id", "topic"})
    renamed = re.findall(r"\b(?:arguments|output|error|payload|value|headers)\s+as\s+(\w+)", code)
    assert path.stem == "read_early" or renamed == [], renamed


def test_errors_and_results_pass_as_any_text() -> None:
    error = encode_error(ValueError("secret"))
    [text] = UPSIDE.write({"error": [error]})["error"]
    assert "secret" not in text
    [(found,)] = UPSIDE.read("e", ["error"], [(text,)])
    assert str(decode_error(found)) == "secret"
