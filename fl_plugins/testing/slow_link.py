"""A TCP proxy that lets only so many bytes a second through: a node on a slow link, for tests only."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE = 1024


@dataclass
class SlowLink:
    """Where it listens, how fast it is, and how much has gone through it."""

    port: int
    bytes_per_s: float
    carried: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def slow_link(to: tuple[str, int], *, bytes_per_s: float) -> Iterator[SlowLink]:
    """Forward connections from a free loopback port to an address, each direction at ``bytes_per_s``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = SlowLink(listener.getsockname()[1], bytes_per_s)
        thread = threading.Thread(target=_accept, args=(listener, to, link), daemon=True)
        thread.start()
        try:
            yield link
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _accept(listener: socket.socket, to: tuple[str, int], link: SlowLink) -> None:
    """Serve connections until the listener is shut down."""
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(to)
        except OSError:  # nobody there: the node sees its connection closed
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, sink, link), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, link: SlowLink) -> None:
    """Copy one direction until it ends, then end the other side's, too."""
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            time.sleep(len(piece) / link.bytes_per_s)
            sink.sendall(piece)
            with link.lock:
                link.carried += len(piece)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
