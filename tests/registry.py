"""A schema registry for the tests: Apicurio Registry, a real one, whose API is Confluent's; from Maven Central, as Kafka's jars are.

In memory, on the wheel's Java. It is 158 MB, fetched once and held against its hash; started by the few tests that need it.
"""

import hashlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from eventflow.local.jars import cache_folder
from eventflow.local.kafka import java
from eventflow.local.place import free_port, locked
from eventflow.local.process import end, spawn, wait_until

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"


def program() -> Path:
    """The registry's folder; fetched where the cache lacks it."""
    place = cache_folder() / f"apicurio-{VERSION}"
    with locked(place.with_suffix(".lock")):
        if not place.exists():
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=place.parent))
            try:
                with tarfile.open(_fetch(partial)) as archive:
                    archive.extractall(partial / "program", filter="data")
                (partial / "program").rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return place


def _fetch(folder: Path) -> Path:
    from jgo.maven import MavenContext, PythonResolver

    context = MavenContext(repo_cache=folder, local_repos=[], resolver=PythonResolver())
    component = context.project("io.apicurio", "apicurio-registry-app").at_version(VERSION)
    found = context.resolver.download(component.artifact("all", "tar.gz"))
    assert found is not None
    with found.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return found


class Registry:
    """One registry; what it was told is gone when it ends, its port stays."""

    def __init__(self, root: Path) -> None:
        self._log = root / "registry.log"
        self._port, self._management = free_port(), free_port()
        self._process: subprocess.Popen[Any] | None = None
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    def start(self) -> None:
        options = {
            "quarkus.http.host": "127.0.0.1", "quarkus.http.port": self._port,
            "quarkus.management.host": "127.0.0.1", "quarkus.management.port": self._management,
        }  # fmt: skip
        command = [
            str(java()), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            *(f"-D{name}={value}" for name, value in options.items()), "-jar", str(program() / "quarkus-run.jar"),
        ]  # fmt: skip
        self._process = spawn(command, self._log, signal.SIGTERM)
        wait_until(self._answers, self._process, self._log, "the schema registry", 90)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, signal.SIGTERM, 10)
            self._process = None

    def freeze(self) -> None:
        """It does not answer any more; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False
