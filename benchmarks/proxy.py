"""A TCP proxy before PostgreSQL that counts round trips: how often a client speaks after the server has spoken."""

import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit, urlunsplit

from psycopg import conninfo


@dataclass(slots=True)
class Proxy:
    """Forwards every connection to one server. Use as a context manager; `trips` may be read at any time."""

    url: str
    trips: int = 0
    connections: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def address(self) -> str:
        """The URL that leads through this proxy."""
        parts = urlsplit(self.url)
        user = parts.netloc.rpartition("@")[0]
        port = self._listener.getsockname()[1]
        place = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        keep = {k: v for k, v in parse_qs(parts.query).items() if k not in ("host", "port")}
        query = "&".join(f"{k}={v[0]}" for k, v in {**keep, "sslmode": ["disable"]}.items())
        return urlunsplit(parts._replace(netloc=place, query=query))

    def _server(self) -> socket.socket:
        target = conninfo.conninfo_to_dict(self.url)
        host, port = str(target.get("host", "127.0.0.1")), int(target.get("port", 5432) or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            _Link(self, client, self._server()).start()

    def count(self) -> None:
        """One more round trip."""
        with self._lock:
            self.trips += 1


@dataclass(slots=True)
class _Link:
    proxy: Proxy
    client: socket.socket
    server: socket.socket
    answered: bool = True

    def start(self) -> None:
        self.proxy.connections += 1
        for end in (self.client, self.server):
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._forward, daemon=True).start()
        threading.Thread(target=self._back, daemon=True).start()

    def _forward(self) -> None:
        while data := _receive(self.client):
            if self.answered:
                self.answered = False
                self.proxy.count()
            _send(self.server, data)
        self._close()

    def _back(self) -> None:
        while data := _receive(self.server):
            self.answered = True
            _send(self.client, data)
        self._close()

    def _close(self) -> None:
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(262_144)
    except OSError:
        return b""


def _send(end: socket.socket, data: bytes) -> None:
    try:
        end.sendall(data)
    except OSError:
        pass
