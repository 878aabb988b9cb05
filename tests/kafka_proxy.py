"""A proxy before an only Kafka broker, through which its clients reach it; it can keep fetches, or have metadata name no brokers.

The latter does a broker that its controller has fenced, which may be itself: for a moment after it hung, at the end of a controlled
shutdown, in a rolling upgrade. librdkafka (2.10 to 2.16) then lets go of every broker that it knew (its issue 5301).
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

_FETCH, _METADATA, _FIND_COORDINATOR = 1, 3, 10  # Kafka's numbers of requests
_FLEXIBLE = 9  # the version of a metadata response from on its lengths are varints


class KafkaProxy:
    """One; `fenced` is when it names no brokers, `hidden` how often it has done so."""

    def __init__(self, bootstrap: str) -> None:
        host, port = bootstrap.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.fenced = False
        self.hidden = 0
        self._fetch_no_more: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="kafka proxy", daemon=True).start()

    def keep_fetches(self) -> None:
        """What is open now is answered to everything but fetches; those are kept for good."""
        self._fetch_no_more |= self._open

    def close(self) -> None:
        self._listener.close()
        for side in list(self._open):
            side.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                asked: dict[int, tuple[int, int]] = {}  # by correlation id: which request, in which version
                for ends in ((client, server, self._note(client, asked)), (server, client, self._answer(asked))):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as frames:
            while len(size := frames.read(4)) == 4:
                frame = change(frames.read(int.from_bytes(size)))
                if frame:
                    sink.sendall(len(frame).to_bytes(4) + frame)
        for side in (source, sink):
            self._open.discard(side)
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _note(self, client: socket.socket, asked: dict[int, tuple[int, int]]) -> Callable[[bytes], bytes]:
        def change(frame: bytes) -> bytes:
            kind, version, correlation = struct.unpack(">hhi", frame[:8])
            if kind == _FETCH and client in self._fetch_no_more:
                return b""
            if kind in {_METADATA, _FIND_COORDINATOR}:
                asked[correlation] = kind, version
            return frame

        return change

    def _answer(self, asked: dict[int, tuple[int, int]]) -> Callable[[bytes], bytes]:
        def change(frame: bytes) -> bytes:
            kind, version = asked.pop(int.from_bytes(frame[:4]), (0, 0))
            if kind == _METADATA:
                assert version >= _FLEXIBLE, version
                return self._of_metadata(frame)
            if kind == _FIND_COORDINATOR:
                assert version < 3, version  # then its port is what comes last
                return frame[:-4] + self.port.to_bytes(4) if frame[-4:] != b"\xff" * 4 else frame
            return frame

        return change

    def _of_metadata(self, frame: bytes) -> bytes:
        """With this proxy's port as the broker's, or without brokers."""
        at = 9  # behind the correlation id, no tags, and the throttle time
        count, begin = _varint(frame, at)
        at, brokers = begin, b""
        for _ in range(count - 1):
            length, host = _varint(frame, at + 4)
            port = host + length - 1
            length, rack = _varint(frame, port + 4)
            end = rack + max(0, length - 1) + 1
            brokers += frame[at:port] + self.port.to_bytes(4) + frame[port + 4 : end]
            at = end
        if self.fenced:
            self.hidden += 1
            return frame[:9] + b"\x01" + frame[at:]
        return frame[:begin] + brokers + frame[at:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned one, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
