"""Frames on the worker's socket: a JSON object and up to two blobs. No pickle: nothing received can run.

A frame is ``FLP1``, three lengths (unsigned 64 bit, big endian), then the JSON object and the two blobs.

=============  ======================================  =======================================
frame          JSON                                    blobs
=============  ======================================  =======================================
request        ``kind``, ``path`` (``sys.path``)       Flower's message, Flower's context
reply          ``status`` = ``ok``, ``pid``,
               ``seconds``                             the reply's records, none
reply          ``status`` = ``error``, ``pid``, and
               what :mod:`.errors_wire` says           none, none
=============  ======================================  =======================================
"""

import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

MAX_HEADER_BYTES = 1 << 20
MAX_BLOB_BYTES = 1 << 31
"""Protobuf's own limit; a larger model is served in the short-lived process."""

_HEAD = struct.Struct("!4sQQQ")
_MAGIC = b"FLP1"
_CREDENTIALS = struct.Struct("3i")
_CHUNK_BYTES = 1 << 20


class ProtocolError(Exception):
    """What came is no frame, or it ended in its middle."""


@dataclass(frozen=True)
class Frame:
    """What one side says."""

    header: dict[str, Any]
    first: bytes | bytearray = b""
    second: bytes | bytearray = b""


def send(connection: socket.socket, frame: Frame) -> None:
    """Send a frame.

    Raises
    ------
    ProtocolError
        If a part is larger than the other side accepts.
    """
    header = json.dumps(frame.header).encode()
    _check_sizes(len(header), len(frame.first), len(frame.second))
    head = _HEAD.pack(_MAGIC, len(header), len(frame.first), len(frame.second)) + header
    connection.sendall(head)
    for blob in (frame.first, frame.second):
        if blob:  # who has all of it may leave: an empty part would find nobody
            connection.sendall(blob)


def receive(connection: socket.socket) -> Frame:
    """Return the frame that comes next.

    Raises
    ------
    ProtocolError
        If the other side leaves before its end, or what it sends is no frame.
    """
    magic, *sizes = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if magic != _MAGIC:
        raise ProtocolError(f"resident worker: a frame begins with {magic!r}, but {_MAGIC!r} is expected.")
    _check_sizes(*sizes)
    header, first, second = (_exactly(connection, size) for size in sizes)
    try:
        told = json.loads(header)
    except ValueError as error:
        raise ProtocolError(f"resident worker: a frame's header is no JSON: {error}.") from None
    if not isinstance(told, dict):
        raise ProtocolError(f"resident worker: a frame's header is a {type(told).__name__}, not an object.")
    return Frame(told, first, second)


def check_same_user(connection: socket.socket) -> None:
    """Refuse the process at the other end if another user runs it.

    The socket's folder is this user's alone already; this holds even if somebody opens it up.

    Raises
    ------
    PermissionError
        If its user is another.
    """
    _, user, _ = peer_credentials(connection)
    if user != os.getuid():
        raise PermissionError(
            f"resident worker: user {user} is at the other end of the socket, but only user {os.getuid()} "
            "may be."
        )


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group at the other end, as the kernel says."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, group = _CREDENTIALS.unpack(raw)
    return pid, user, group


def _check_sizes(header: int, *blobs: int) -> None:
    """Refuse what is larger than a frame may be."""
    if header > MAX_HEADER_BYTES or max(blobs) > MAX_BLOB_BYTES:
        raise ProtocolError(
            f"resident worker: a frame of {header} + {sum(blobs)} bytes, but a header may have "
            f"{MAX_HEADER_BYTES} and a blob {MAX_BLOB_BYTES}."
        )


def _exactly(connection: socket.socket, size: int) -> bytearray:
    """Receive so many bytes; memory is taken as they come, not on the word of a length."""
    received = bytearray()
    while len(received) < size:
        chunk = connection.recv(min(size - len(received), _CHUNK_BYTES))
        if not chunk:
            raise ProtocolError(
                f"resident worker: the other side left after {len(received)} of {size} bytes."
            )
        received += chunk
    return received
