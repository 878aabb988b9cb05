"""The local services themselves: crashes, stale files, a folder that the server's account may not enter."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from eventflow.local import LocalServiceError, Postgres
from eventflow.local.jars import Jar, _fetch, cache_folder, class_path, pinned


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
