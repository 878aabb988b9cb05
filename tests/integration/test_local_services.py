"""The local services themselves: crashes, stale files, a folder that the server's account may not enter."""

import os
import pwd
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from eventflow.local import Kafka, LocalServiceError, Postgres, kafka, services
from eventflow.local.jars import Jar, _fetch, cache_folder, class_path, pinned
from eventflow.local.place import accessible_copy


def one(server: Postgres) -> int:
    with psycopg.connect(server.url) as connection:
        return connection.execute("select 1").fetchone()[0]  # type: ignore[index]


def test_postgres_comes_back_after_a_crash(private_postgres: Postgres) -> None:
    port = private_postgres.port
    private_postgres.kill()
    private_postgres.start()
    assert (private_postgres.port, one(private_postgres)) == (port, 1)


def test_two_starts_at_once_are_one_server(private_root: Path) -> None:
    servers = [Postgres(private_root), Postgres(private_root)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s: s.start(), servers))
        assert {one(s) for s in servers} == {1}
        assert sum(s.pid is not None for s in servers) == 1
    for server in servers:
        server.stop()


def test_two_starts_of_kafka_at_once_are_one_broker(private_root: Path) -> None:
    """The second finds the first, and stops nothing."""
    brokers = [Kafka(private_root), Kafka(private_root)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda b: b.start(), brokers))
        [own, other] = sorted(brokers, key=lambda b: b.pid is None)
        assert own.pid is not None
        assert other.pid is None
        assert own.bootstrap_servers == other.bootstrap_servers
        other.stop()
        client = AdminClient({"bootstrap.servers": other.bootstrap_servers})
        assert len(client.describe_cluster(request_timeout=5).result(6).nodes) == 1
        own.stop()


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where first starts leave what later ones find: nothing is there yet, as on a new machine."""
    (tmp_path / "kafka.jar").touch()
    jars = os.pathsep.join([str(tmp_path / "kafka.jar"), class_path()])
    monkeypatch.setattr(kafka, "class_path", lambda *_: jars)
    return tmp_path


def test_what_a_first_start_leaves_to_later_ones(private_root: Path, left: Path) -> None:
    """Kept by the first; where what Java had loaded is not what it should be, a broker starts all the same."""
    steps, clusters, kept = list[Any](), set[str](), left
    for folder in ("first", "second", "third"):
        if folder == "third":
            (kept / "loaded.aot").write_bytes(b"nothing of the kind")
        (private_root / folder).mkdir()
        broker = Kafka(private_root / folder)
        broker.start(lambda *step: steps.append(step))
        clusters.add(AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=5).cluster_id)
        broker.stop()
        [kept] = [one for one in left.iterdir() if one.is_dir()]
        assert sorted(one.name for one in kept.iterdir()) == ["bootstrap.checkpoint", "loaded.aot"]
    assert [(done, total) for _, done, total in steps] == [(0, 1), (1, 1)]
    assert len(clusters) == 3, "each is a cluster of its own"


def test_a_rehearsal_that_fails_leaves_nothing_in_the_way(
    private_root: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Kafka(private_root)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(kafka, "wait_until", _interrupt)
        broker.start()
    broker.start()
    try:
        command = Path(f"/proc/{broker.pid}/cmdline").read_text()
        [kept] = [one for one in left.iterdir() if one.is_dir()]
        assert f"-XX:AOTCache={kept / 'loaded.aot'}" in command
        assert not (private_root / "kafka" / "rehearsal").exists()
    finally:
        broker.stop()


def test_who_starts_both_is_told_what_is_done_once(private_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[str, int, int]]()
    monkeypatch.setattr(Postgres, "start", lambda _: None)
    monkeypatch.setattr(Kafka, "start", lambda _, progress: progress("what is done once", 0, 1))
    with services(private_root, progress=lambda *step: told.append(step)):
        assert told[-1] == ("what is done once", 0, 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_broker_is_told_the_features_of_its_version(private_kafka: Kafka) -> None:
    """As by Kafka's own tool: without, groups know no new protocol (KIP-848), and transactions are of the first version."""
    told = (private_kafka._home / "data" / "bootstrap.checkpoint").read_bytes()
    assert all(feature in told for feature in (b"metadata.version", b"group.version", b"transaction.version"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose folders PostgreSQL's account may not enter")
def test_a_folder_that_the_server_may_not_enter() -> None:
    closed = Path(tempfile.mkdtemp(dir="/var/tmp"))
    closed.chmod(0o700)
    server = Postgres(closed / ".eventflow")
    place = Path((closed / ".eventflow" / "location").read_text().strip())
    try:
        server.start()
        assert one(server) == 1
        assert place.parent == Path("/var/tmp")
    finally:
        server.stop()
        shutil.rmtree(closed)
        shutil.rmtree(place)


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    class_path()
    jar = min(pinned(), key=lambda j: (cache_folder() / "kafka-4.3.1" / j.file).stat().st_size)
    wrong = Jar(jar.group, jar.artifact, jar.version, jar.classifier, "0" * 64)
    with pytest.raises(LocalServiceError, match=r"jars\.lock"):
        _fetch(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_half_finished_download_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut short, one that is missing, the folder of a download that was killed: only what lacks is fetched."""
    whole = {Path(part).name: Path(part) for part in class_path().split(os.pathsep)}
    folder = tmp_path / next(iter(whole.values())).parent.name
    folder.mkdir()
    for name, path in whole.items():
        (folder / name).symlink_to(path)
        (folder / name).with_suffix(".sha256").write_text(path.with_suffix(".sha256").read_text())
    cut, missing = sorted(whole, key=lambda name: whole[name].stat().st_size)[:2]
    (folder / cut).unlink()
    (folder / cut).write_bytes(whole[cut].read_bytes()[:-1])  # its seal says that it was whole once
    (folder / missing).unlink()
    (folder / "partial-killed").mkdir()
    (folder / "partial-killed" / missing).write_bytes(b"half")
    monkeypatch.setenv("EVENTFLOW_CACHE", str(tmp_path))
    told: list[tuple[int, int]] = []
    paths = class_path(lambda _, done, total: told.append((done, total))).split(os.pathsep)
    assert told == [(len(whole) - 2 + n, len(whole)) for n in (0, 1, 2)]
    assert {Path(path).parent for path in paths} == {folder}
    for name in (cut, missing):
        assert (folder / name).read_bytes() == whole[name].read_bytes()


@pytest.mark.parametrize(
    "killed",
    ["another", "same"],
)
def test_a_copy_that_was_killed_is_made_anew(tmp_path: Path, killed: str) -> None:
    """PostgreSQL's files, where its account may not enter the wheel's folder: half of them are never taken for all."""
    closed, place = tmp_path / "closed" / "pginstall", tmp_path / "place"
    closed.mkdir(parents=True)
    (closed / "postgres").write_text("whole")
    closed.parent.chmod(0o700)
    half = place / f"pginstall.partial-{1 if killed == 'another' else os.getpid()}"
    half.mkdir(parents=True)
    (half / "postgres").write_text("wh")
    who = next(each for each in pwd.getpwall() if each.pw_uid != os.geteuid())
    for _ in range(2):
        copy = accessible_copy(closed, place, who)
        assert (copy.name, (copy / "postgres").read_text()) == ("pginstall", "whole")


def test_an_initdb_that_was_killed_is_run_anew(private_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PG_VERSION is one of the first files that it writes: what it says counts only when all is there."""
    server = Postgres(private_root)

    def killed(command: list[str], **_: object) -> None:
        (Path(command[command.index("-D") + 1]) / "PG_VERSION").write_text("18\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eventflow.local.postgres.subprocess.run", killed)
        server.start()
    try:
        server.start()
        assert one(server) == 1
    finally:
        server.stop()
