"""Where local services keep their data, and as whom they run.

Below the folder given, as a rule. As root, PostgreSQL must run as another account; where that account may not enter the
folder (`/root`), data and a copy of PostgreSQL's files go to a folder of its own under `/var/tmp`, named in
`.eventflow/location`.
"""

import fcntl
import os
import pwd
import shutil
import socket
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from eventflow.local.errors import LocalServiceError


def account() -> pwd.struct_passwd | None:
    """The account for PostgreSQL: None for our own; `postgres`, else `nobody`, where we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LocalServiceError("running as root, and there is no account `postgres` or `nobody` to run PostgreSQL as")


def may_enter(folder: Path, who: pwd.struct_passwd) -> bool:
    """Whether the account may pass through every folder down to this one."""
    for part in (folder, *folder.parents):
        if not part.exists():
            continue
        status = part.stat()
        if status.st_uid == who.pw_uid:
            needed = stat.S_IXUSR
        elif status.st_gid == who.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def data_folder(root: Path) -> Path:
    """The folder for the data of services that belong to `root`; made if it is not there."""
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    note = root / "location"
    if note.exists():
        known = Path(note.read_text(encoding="utf-8").strip())
        if known.is_dir():
            return known
    who = account()
    if who is None or may_enter(root, who):
        place = root
    else:
        place = Path(tempfile.mkdtemp(prefix="eventflow-", dir="/var/tmp"))
        place.chmod(0o711)
    note.write_text(f"{place}\n", encoding="utf-8")
    return place


def accessible_copy(folder: Path, place: Path, who: pwd.struct_passwd | None) -> Path:
    """The folder itself, or a copy below `place` where the account may not enter it."""
    if who is None or may_enter(folder, who):
        return folder
    copy = place / folder.name
    if not copy.exists():
        partial = place / f"{folder.name}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed, and whose process id came again
        shutil.copytree(folder, partial, symlinks=True)
        try:
            partial.rename(copy)
        except OSError:
            shutil.rmtree(partial)
    return copy


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Hold a file's lock, so that two starts do not race."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return True
    return fields[0] != "Z"


def free_port() -> int:
    """A TCP port on loopback that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kept_port(note: Path) -> int:
    """The port noted in this file; a free one, noted, where there is none."""
    if note.exists():
        return int(note.read_text(encoding="utf-8"))
    port = free_port()
    note.write_text(str(port), encoding="utf-8")
    return port
