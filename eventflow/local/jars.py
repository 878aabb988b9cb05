"""Apache Kafka's jars: fetched once, each held against its pinned SHA-256, kept in the user's cache.

`jars.lock` pins every jar of the class path. A file arrives under a name of its own and is renamed when its hash is
right, so a half-finished download is never taken for a jar.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eventflow.local.errors import LocalServiceError
from eventflow.local.place import locked

Progress = Callable[[str, int, int], None]
_LOCK = Path(__file__).parent / "jars.lock"


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar of the class path."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @property
    def file(self) -> str:
        """Its file's name."""
        tail = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{tail}.jar"


def cache_folder() -> Path:
    """`EVENTFLOW_CACHE`, else `eventflow` in the user's cache folder."""
    if named := os.environ.get("EVENTFLOW_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eventflow"


def pinned() -> list[Jar]:
    """The jars of `jars.lock`."""
    jars: list[Jar] = []
    for line in _LOCK.read_text(encoding="utf-8").splitlines():
        group, artifact, version, tail = line.split(":")
        classifier, digest = tail.split(" ")
        jars.append(Jar(group, artifact, version, classifier, digest))
    return jars


def class_path(progress: Progress | None = None) -> str:
    """The class path of Kafka; fetches what the cache lacks, and tells `progress` (what is done, how far, of how much).

    Raises:
        LocalServiceError: a jar cannot be fetched, or is not the one that is pinned.

    """
    jars = pinned()
    version = next(jar.version for jar in jars if jar.artifact.startswith("kafka_"))
    folder = cache_folder() / f"kafka-{version}"
    with locked(folder / "lock"):
        missing = [jar for jar in jars if not _is_right(folder / jar.file, jar)]
        if missing:
            _fetch_all(missing, folder, len(jars), progress)
    return os.pathsep.join(str(folder / jar.file) for jar in jars)


def _is_right(path: Path, jar: Jar) -> bool:
    """Whether the jar is there and whole; its hash is read once, and remembered beside it."""
    seal = path.with_suffix(".sha256")
    if not path.exists():
        return False
    mark = f"{jar.sha256} {path.stat().st_size}"
    if seal.exists() and seal.read_text(encoding="utf-8") == mark:
        return True
    if _digest(path) != jar.sha256:
        return False
    seal.write_text(mark, encoding="utf-8")
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_all(missing: list[Jar], folder: Path, total: int, progress: Progress | None) -> None:
    done = total - len(missing)
    if progress is not None:
        progress("fetching Apache Kafka", done, total)
    with ThreadPoolExecutor(4) as pool:
        for fetched in [pool.submit(_fetch, jar, folder) for jar in missing]:
            fetched.result()
            done += 1
            if progress is not None:
                progress("fetching Apache Kafka", done, total)


def _fetch(jar: Jar, folder: Path) -> None:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError:
        raise LocalServiceError('local services need an extra: pip install "eventflow[local]"') from None
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    try:
        context = MavenContext(repo_cache=partial, local_repos=[], resolver=PythonResolver())
        component = context.project(jar.group, jar.artifact).at_version(jar.version)
        try:
            found = context.resolver.download(component.artifact(jar.classifier, "jar"))
        except Exception as error:
            raise LocalServiceError(f"{jar.file} cannot be fetched: {error}") from error
        if found is None or _digest(found) != jar.sha256:
            raise LocalServiceError(f"{jar.file} is not the file that jars.lock pins; nothing of it was kept")
        found.replace(folder / jar.file)
        _is_right(folder / jar.file, jar)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
