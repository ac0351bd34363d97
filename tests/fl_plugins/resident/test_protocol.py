"""Frames: what is sent arrives, and what is no frame is refused."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from fl_plugins.resident import protocol
from fl_plugins.resident.protocol import Frame, ProtocolError, check_same_user, receive, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        one.settimeout(10)
        other.settimeout(10)
        yield one, other


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    frame = Frame({"kind": "train", "ü": [1, 2.5, None]}, bytes(range(256)), b"")
    send(pair[0], frame)
    got = receive(pair[1])
    assert (got.header, bytes(got.first), bytes(got.second)) == (frame.header, frame.first, frame.second)


def test_a_frame_that_ends_in_its_middle_is_refused(pair: Pair) -> None:
    send(pair[0], Frame({"kind": "train"}, b"12345"))
    whole = pair[1].recv(1000)
    for cut in (0, 3, 28, len(whole) - 1):
        one, other = socket.socketpair(socket.AF_UNIX)
        with other:
            with one:
                one.sendall(whole[:cut])
            with pytest.raises(ProtocolError, match="left after"):
                receive(other)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(20), "begins with"),
        (struct.pack("!4sQQQ", b"FLP1", protocol.MAX_HEADER_BYTES + 1, 0, 0), "header may have"),
        (struct.pack("!4sQQQ", b"FLP1", 2, 1 << 62, 0), "blob"),
        (struct.pack("!4sQQQ", b"FLP1", 2, 0, 0) + b"{]", "no JSON"),
        (struct.pack("!4sQQQ", b"FLP1", 2, 0, 0) + b"[]", "not an object"),
    ],
)
def test_what_is_no_frame_is_refused(pair: Pair, sent: bytes, words: str) -> None:
    pair[0].sendall(sent)
    with pytest.raises(ProtocolError, match=words):
        receive(pair[1])


def test_a_frame_that_the_other_side_would_refuse_is_not_sent(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="header may have"):
        send(pair[0], Frame({"x": "y" * protocol.MAX_HEADER_BYTES}))


def test_the_kernel_says_that_the_other_end_is_this_process(pair: Pair) -> None:
    assert protocol.peer_credentials(pair[0])[:2] == (os.getpid(), os.getuid())
    check_same_user(pair[0])


def test_a_foreign_user_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "peer_credentials", lambda _: (1, os.getuid() + 1, 0))
    with pytest.raises(PermissionError, match=f"user {os.getuid() + 1} is at the other end"):
        check_same_user(pair[0])
