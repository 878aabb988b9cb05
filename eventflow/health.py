"""How a process is, for who watches it: whether it lives, is ready for more, and has started; and its metrics.

With `EVENTFLOW_HTTP_PORT` it answers over HTTP, from a thread of its own, so that a program whose loop stands still says so:
`/live`, `/ready`, `/started` (200 or 503, with the reasons as JSON) and `/metrics`. A program with a server of its own calls
the functions of these names, or mounts `app()`.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import eventflow.readings as readings
from eventflow.consumer import Lag
from eventflow.context import runtime
from eventflow.database import Database
from eventflow.errors import SettingsError
from eventflow.readings import Readings, Values, of_lags
from eventflow.settings import Settings

__all__ = ["Check", "app", "live", "metrics", "ready", "started"]

logger = logging.getLogger(__name__)

_STOP = 5.0  # seconds for the answers under way when the program ends


@dataclass(frozen=True, slots=True)
class Check:
    """What a check has come to: whether all is well, and if not, why, in words."""

    ok: bool
    reasons: tuple[str, ...] = ()


class Watched(Protocol):
    """What is asked of the executor that runs now."""

    def loop_age(self) -> float: ...
    def lease_age(self) -> float: ...
    def runs(self) -> int: ...
    def waiting_for_partitions(self) -> list[str]: ...
    def lags(self) -> list[tuple[str, list[Lag]]]: ...


class Health:
    """One running application, as it is watched. `of` gives the executor that runs now, None between two."""

    def __init__(self, settings: Settings, database: Database, of: Callable[[], Watched | None]) -> None:
        self._settings, self._of = settings, of
        self._begun = self._leaving = False
        self._away_since: float | None = None
        self.readings = Readings(database, settings.application, self._values)

    def begun(self) -> None:
        """Its first executor runs."""
        self._begun = True

    def leave(self) -> None:
        """It takes nothing more."""
        self._leaving = True

    def started(self) -> Check:
        """Whether it has begun to run."""
        return Check(True) if self._begun else Check(False, ("it has not begun to run",))

    def live(self) -> Check:
        """Whether its loop turns and its lease is held, or did and was within the last `EVENTFLOW_LIVE_WITHIN` seconds."""
        if not self._begun:
            return Check(True)
        bound, watched = self._settings.live_within, self._of()
        lease = self._lease_age(watched)
        reasons: list[str] = []
        if watched is not None and (still := watched.loop_age()) > bound:
            reasons.append(f"the event loop stands still for {still:.0f} s")
        if lease > self._settings.lease + bound:
            reasons.append(f"the lease was not renewed for {lease:.0f} s")
        return Check(not reasons, tuple(reasons))

    def ready(self) -> Check:
        """Whether it runs, with its lease, has been given its partitions, and none is further behind than is allowed."""
        watched = self._of()
        if not self._begun or watched is None:
            return Check(False, ("it runs nothing now",) if self._begun else self.started().reasons)
        reasons: list[str] = []
        if self._leaving:
            reasons.append("it leaves")
        if (lease := watched.lease_age()) > self._settings.lease:
            reasons.append(f"the lease is not held: it was renewed {lease:.0f} s ago")
        reasons += [f"{name} waits for its partitions" for name in watched.waiting_for_partitions()]
        for name, lags in watched.lags():
            reasons += [f"{name}: {text}" for lag in lags if (text := _behind(lag, self._settings.ready_within))]
        return Check(not reasons, tuple(reasons))

    def _lease_age(self, watched: Watched | None) -> float:
        """Seconds since the last beat; between two executors, since the last one ended."""
        if watched is not None:
            self._away_since = None
            return watched.lease_age()
        now = time.monotonic()
        self._away_since = self._away_since or now
        return now - self._away_since + self._settings.lease

    def _values(self) -> Values:
        watched = self._of()
        if watched is None:
            return {}
        return of_lags(watched.lags()) | {
            "runs": {(): float(watched.runs())}, "lease_age_seconds": {(): watched.lease_age()},
        }  # fmt: skip


def _behind(lag: Lag, bound: float) -> str | None:
    where = f"{lag.topic}/{lag.partition}"
    if lag.seconds is None:
        return f"{where} has {lag.offsets:,} messages, of which it has read none yet"
    return f"{where} is {lag.seconds:.0f} s behind" if lag.seconds > bound else None


# ---- for one's own server ------------------------------------------------------------------------


def _health(what: str) -> Health:
    return cast("Any", runtime(what)).health


def live() -> Check:
    """Whether this process's loop turns and its lease is held; what is not live is to be restarted.

    For up to `EVENTFLOW_LIVE_WITHIN` seconds neither counts: user code that blocks the loop for a while, or a database that
    restarts, is no reason to lose what runs.

    Raises:
        NotRunningError: outside `running()`.

    """
    return _health("health.live").live()


def ready() -> Check:
    """Whether this process has been given its partitions, holds its lease, and is no more than `EVENTFLOW_READY_WITHIN` behind.

    Raises:
        NotRunningError: outside `running()`.

    """
    return _health("health.ready").ready()


def started() -> Check:
    """Whether this process has begun to run.

    Raises:
        NotRunningError: outside `running()`.

    """
    return _health("health.started").started()


def metrics() -> bytes:
    """This process's metrics in Prometheus' text format. Blocks for two seconds at most; not for the event loop.

    Raises:
        NotRunningError: outside `running()`.
        ImportError: prometheus_client is missing: it is in `eventflow[http]`.

    """
    return _health("health.metrics").readings.text()


def app() -> Any:
    """An ASGI application (Starlette) with `/live`, `/ready`, `/started` and `/metrics`, to be mounted in one's own server.

    Raises:
        NotRunningError: outside `running()`.
        ImportError: Starlette is missing: it is in `eventflow[http]`.

    """
    return _asgi(_health("health.app"))


# ---- HTTP ----------------------------------------------------------------------------------------


def _asgi(health: Health) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def answers(check: Callable[[], Check]) -> Callable[[Request], Response]:
        def answer(_: Request) -> Response:
            found = check()
            return JSONResponse({"ok": found.ok, "reasons": found.reasons}, 200 if found.ok else 503)

        return answer

    def text(_: Request) -> Response:
        return Response(health.readings.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    checks = {"/live": health.live, "/ready": health.ready, "/started": health.started}
    return Starlette(routes=[*(Route(path, answers(check)) for path, check in checks.items()), Route("/metrics", text)])


class Server:
    """Health over HTTP, in a thread of its own."""

    def __init__(self, settings: Settings, health: Health) -> None:
        """Take the port.

        Raises:
            SettingsError: it is in use, or may not be had; or what serves it is not installed.

        """
        assert settings.http_port is not None
        where = f"EVENTFLOW_HTTP_PORT: port {settings.http_port} of {settings.http_host}"
        try:
            import uvicorn

            asgi = _asgi(health)
            import prometheus_client  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise SettingsError(f"EVENTFLOW_HTTP_PORT needs `pip install 'eventflow[http]'`: {error}") from None
        try:
            family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
            self._socket = socket.create_server((settings.http_host, settings.http_port), family=family, backlog=64)
        except OSError as error:
            raise SettingsError(f"{where}: {error.strerror or error}") from None
        self.port: int = self._socket.getsockname()[1]
        self._host = f"[{settings.http_host}]" if ":" in settings.http_host else settings.http_host
        config = uvicorn.Config(asgi, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="eventflow http", daemon=True)

    def start(self) -> None:
        self._thread.start()
        logger.info("health and metrics at http://%s:%d", self._host, self.port)

    def stop(self) -> None:
        """End it, and give the port back."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def watch(settings: Settings, database: Database, of: Callable[[], Watched | None]) -> tuple[Health, Server | None]:
    """What a running application is watched by; the port is taken, where there is to be one.

    Raises:
        SettingsError: it cannot be had.

    """
    health = Health(settings, database, of)
    return health, None if settings.http_port is None else Server(settings, health)


def export(health: Health) -> None:
    """Have OpenTelemetry's instruments tell its metrics, where a program has set these up."""
    readings.export(health.readings)


def close(health: Health) -> None:
    """It is over."""
    readings.unexport(health.readings)
    health.readings.close()
