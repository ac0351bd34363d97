"""The slow link carries every byte both ways, at its rate, and leaves nothing open."""

import socket
import threading
import time

from fl_plugins.testing.slow_link import slow_link


def test_bytes_go_both_ways_slowly_and_whole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                while piece := connection.recv(65536):
                    connection.sendall(piece)

        thread = threading.Thread(target=echo)
        thread.start()
        before = threading.active_count()
        with slow_link(server.getsockname(), bytes_per_s=20_000) as link:
            with socket.create_connection(("127.0.0.1", link.port)) as client:
                sent, got, started = bytes(range(250)) * 8, b"", time.monotonic()
                client.sendall(sent)
                while len(got) < len(sent):
                    got += client.recv(65536)
                assert got == sent
                assert time.monotonic() - started >= len(sent) / 20_000
                assert link.carried == 2 * len(sent)
            thread.join(10)
        assert threading.active_count() == before - 1


def test_a_server_that_is_not_there_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    with (
        slow_link(nobody, bytes_per_s=1e6) as link,
        socket.create_connection(("127.0.0.1", link.port)) as one,
    ):
        one.settimeout(10)
        assert one.recv(1) == b""
