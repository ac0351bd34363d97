"""A TCP proxy that lets only so many bytes a second through: a node on a slow link, for tests only."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE = 1024
_END_TIMEOUT_S = 10.0


@dataclass
class SlowLink:
    """Where it listens, how fast it is, and how much has gone through it."""

    port: int
    to: tuple[str, int]
    bytes_per_s: float
    carried: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: dict[socket.socket, threading.Thread] = field(default_factory=dict)

    def accept_all(self, listener: socket.socket) -> None:
        """Serve connections until the listener is shut down, and end them then."""
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
                with self._lock:
                    self._open[near] = thread
                thread.start()
        with self._lock:
            left = list(self._open.items())
        for near, thread in left:
            _shut(near)
            thread.join(_END_TIMEOUT_S)

    def _serve(self, near: socket.socket) -> None:
        """Carry one connection, both ways, until either side ends it."""
        with near, suppress(OSError), socket.create_connection(self.to) as far:
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()
        with self._lock:
            del self._open[near]

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Carry one direction until it ends."""
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                time.sleep(len(piece) / self.bytes_per_s)
                with self._lock:
                    self.carried += len(piece)
                sink.sendall(piece)
        _shut(source)
        _shut(sink)


@contextmanager
def slow_link(to: tuple[str, int], *, bytes_per_s: float) -> Iterator[SlowLink]:
    """Forward connections from a free loopback port to an address, each direction at ``bytes_per_s``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = SlowLink(listener.getsockname()[1], to, bytes_per_s)
        thread = threading.Thread(target=link.accept_all, args=(listener,), daemon=True)
        thread.start()
        try:
            yield link
        finally:
            _shut(listener)
            thread.join(_END_TIMEOUT_S)


def _shut(end: socket.socket) -> None:
    """End a connection, whoever waits for it; it is closed by the thread that it belongs to."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
