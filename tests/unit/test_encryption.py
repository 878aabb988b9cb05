import base64
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventflow.encryption import AesGcm, codec_of
from eventflow.errors import SettingsError, UnreadableError
from eventflow.settings import Settings, load_settings

URL = "postgresql://me@db.example/shop"
OLD, NEW = bytes(range(32)), bytes(range(32, 64))  # told by the tests' names: the same in every process
TEXT = base64.b64encode(OLD).decode()


def test_round_trip_and_nothing_shows() -> None:
    codec = AesGcm({"2026": OLD})
    for payload in (b"", b"secret", os.urandom(100_000)):
        label, stored = codec.encode(payload)
        assert label == "2026"
        assert not payload or payload not in stored
        assert codec.decode(label, stored) == payload
        assert codec.encode(payload)[1] != stored
    assert repr(codec) == "AesGcm(2026)"


def test_rotation() -> None:
    """The new key is first made known everywhere, then put first; then the old one can go."""
    before, between, after = AesGcm({"old": OLD}), AesGcm({"old": OLD, "new": NEW}), AesGcm({"new": NEW, "old": OLD})
    for writer, label in ((before, "old"), (between, "old"), (after, "new")):
        found, stored = writer.encode(b"v")
        assert found == label
        assert {reader.decode(found, stored) for reader in (between, after)} == {b"v"}
    assert before.secrets[0] == between.secrets[0] == after.secrets[1]


def test_a_key_that_is_gone() -> None:
    label, stored = AesGcm({"old": OLD}).encode(b"v")
    with pytest.raises(
        UnreadableError, match="under the key 'old', which this process does not have; it has 'new', 'more'"
    ):
        AesGcm({"new": NEW, "more": OLD}).decode(label, stored)


def test_another_key_of_that_name_or_a_changed_value() -> None:
    label, stored = AesGcm({"a": OLD}).encode(b"v")
    changed = [stored[:n] + bytes([stored[n] ^ 1]) + stored[n + 1 :] for n in range(len(stored))]
    for codec, value in (
        (AesGcm({"a": NEW}), stored),
        *((AesGcm({"a": OLD}), v) for v in (*changed, stored[:-1], b"")),
    ):
        with pytest.raises(
            UnreadableError, match="under the key 'a', and was changed, or that key is another one here"
        ):
            codec.decode(label, value)
    with pytest.raises(UnreadableError):
        AesGcm({"b": OLD}).decode("b", stored)  # the id is bound, too


def test_each_process_encrypts_under_a_key_derived_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = AesGcm({"a": OLD}), AesGcm({"a": OLD})
    salts = {codec.encode(b"v")[1][:16] for codec in (one, one, other)}
    assert len(salts) == 2
    monkeypatch.setattr(one, "_left", 1)
    renewed = {one.encode(b"v")[1][:16] for _ in range(3)}
    assert len(renewed) == 2, "after so many values the salt is another one"
    assert other.decode(*one.encode(b"v")) == b"v"


def test_from_many_threads() -> None:
    codec = AesGcm({"a": OLD, "b": NEW})
    wrong: list[int] = []

    def work(n: int) -> None:
        for i in range(300):
            payload = f"{n} {i}".encode() * 50
            if codec.decode(*codec.encode(payload)) != payload:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- settings ------------------------------------------------------------------------------------------

OTHER = base64.urlsafe_b64encode(b"\xff" * 32).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"a:{TEXT},b:{OTHER}", f" a:{TEXT}, b : {OTHER} ,", f'["a:{TEXT}", "b:{OTHER}"]', f'{{"a": "{TEXT}", "b": "{OTHER}"}}',
    ],
)  # fmt: skip
def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EVENTFLOW_ENCRYPTION_KEYS", text)
    settings = load_settings(database_url=URL)
    assert list(settings.encryption_keys) == ["a", "b"]
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert TEXT not in shown
        assert OTHER not in shown
    codec = codec_of(settings)
    assert codec is not None
    assert codec.encode(b"v")[0] == "a"
    assert AesGcm({"a": OLD}).decode(*codec.encode(b"v")) == b"v"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: unset it where nothing shall be encrypted"),
        (TEXT, "must be `id:key,...`, or a JSON list of such; number 1 has no colon"),
        (f"a:{TEXT},{OTHER}", "must be `id:key,...`, or a JSON list of such; number 2 has no colon"),
        (f"[{TEXT}", "must be `id:key,...`, or a JSON list of such"),
        (f"a:{TEXT},a:{OTHER}", "two keys have the same id"),
        (f"a b:{TEXT}", "the id of a key is 1 to 64 letters, digits, `.`, `_` and `-`"),
        (f"a:{TEXT[:-4]}", "the key 'a' is not 32 bytes in base64; `openssl rand -base64 32` makes one"),
        (f"a:!{TEXT}", "the key 'a' is not 32 bytes in base64; `openssl rand -base64 32` makes one"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("EVENTFLOW_ENCRYPTION_KEYS", text)
    with pytest.raises(SettingsError) as error:
        load_settings(database_url=URL)
    assert str(error.value) == f"EVENTFLOW_ENCRYPTION_KEYS: {said}"
    with pytest.raises(ValidationError) as invalid:
        Settings(database_url=URL)
    assert not text or text not in str(invalid.value)


def test_one_codec_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert codec_of(load_settings(database_url=URL)) is None
    own = AesGcm({"vault": OLD})
    assert codec_of(load_settings(database_url=URL, payload_codec=own)) is own
    with pytest.raises(SettingsError, match="EVENTFLOW_ENCRYPTION_KEYS and EVENTFLOW_PAYLOAD_CODEC are both set"):
        load_settings(database_url=URL, payload_codec=own, encryption_keys={"a": TEXT})
    with pytest.raises(SettingsError, match="PAYLOAD_CODEC: must be a payload codec, with `encode`"):
        load_settings(database_url=URL, payload_codec=7)
    monkeypatch.setenv("EVENTFLOW_PAYLOAD_CODEC", "tests.unit.test_encryption")
    with pytest.raises(SettingsError, match="EVENTFLOW_PAYLOAD_CODEC: must name a payload codec as `module:name`"):
        load_settings(database_url=URL)


OWN = AesGcm({"own": NEW})


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("tests.unit.test_encryption:OWN", ""),
        ("tests.unit.test_encryption:GONE", "'tests.unit.test_encryption:GONE': AttributeError: module"),
        ("no_such_module:codec", "'no_such_module:codec': ModuleNotFoundError: No module named 'no_such_module'"),
        ("tests.unit.test_encryption:URL", "'tests.unit.test_encryption:URL' is no payload codec: it has no 'decode'"),
    ],
)
def test_a_codec_of_the_environment(monkeypatch: pytest.MonkeyPatch, place: str, said: str) -> None:
    monkeypatch.setenv("EVENTFLOW_PAYLOAD_CODEC", place)
    settings = load_settings(database_url=URL)
    if not said:
        assert codec_of(settings) is OWN
        return
    with pytest.raises(SettingsError) as error:
        codec_of(settings)
    assert str(error.value).startswith(f"EVENTFLOW_PAYLOAD_CODEC: {said}")


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["cryptography"] = None
import eventflow
from eventflow.encryption import AesGcm
try:
    AesGcm({"a": bytes(32)})
except eventflow.EventflowError as error:
    print(error)
"""
    file = tmp_path / "program.py"
    file.write_text(program)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=root, check=False, timeout=60
    )
    assert done.stdout == 'encryption needs cryptography: pip install "eventflow[encryption]"\n', done.stderr


@pytest.mark.parametrize("keys", [{}, {"a": b"short"}])
def test_keys_in_code(keys: dict[str, bytes]) -> None:
    with pytest.raises(SettingsError, match="32 bytes"):
        AesGcm(keys)
