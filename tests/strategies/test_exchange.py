"""The exchange yields replies as they land and gives up at the deadline."""

import time
from collections.abc import Iterable
from itertools import pairwise

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl_plugins.testing import InProcessGrid
from strategies.exchange import exchange


def _messages(nodes: list[int]) -> list[Message]:
    content = RecordDict({"config": ConfigRecord(), "arrays": ArrayRecord()})
    return [Message(content, node, "train") for node in nodes]


def _echo(message: Message, _: object) -> Message:
    return Message(RecordDict(), reply_to=message)


def test_first_reply_comes_before_the_last_is_served() -> None:
    served: list[int] = []

    def client(message: Message, _: object) -> Message:
        served.append(message.metadata.dst_node_id)
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(client, 3) as grid:
        replies = exchange(grid, _messages([1, 2, 3]), timeout_s=10)
        next(replies)
        assert len(served) == 1
        assert len(list(replies)) == 2


def test_silent_nodes_are_absent_after_the_deadline_and_not_before() -> None:
    with InProcessGrid(_echo, 3, silent=[2]) as grid:
        started = time.monotonic()
        replies = list(exchange(grid, _messages([1, 2, 3]), timeout_s=0.3))
        assert {reply.metadata.src_node_id for reply in replies} == {1, 3}
        assert time.monotonic() - started >= 0.3


def test_nothing_to_send_returns_at_once() -> None:
    with InProcessGrid(_echo, 1) as grid:
        assert list(exchange(grid, [], timeout_s=60)) == []


def test_messages_expire_soon_after_the_deadline_so_that_nobody_serves_them_hours_later() -> None:
    with InProcessGrid(_echo, 2) as grid:
        messages = _messages([1, 2])
        assert {message.metadata.ttl for message in messages} == {43200.0}  # Flower's 12 hours
        list(exchange(grid, messages, timeout_s=10))
        assert {message.metadata.ttl for message in grid.sent} == {310.0}
        list(exchange(grid, _messages([1]), timeout_s=1e6))
        assert grid.sent[-1].metadata.ttl == 43200.0


def test_the_deadline_is_a_monotonic_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that jumps (NTP, daylight saving, an operator) neither shortens nor lengthens a round."""
    calls = iter(range(10**6))
    with InProcessGrid(_echo, 2, silent=[2]) as grid:
        messages = _messages([1, 2])
        real = time.monotonic
        monkeypatch.setattr(time, "time", lambda: 1e9 + 3600.0 * next(calls))
        started = real()
        assert len(list(exchange(grid, messages, timeout_s=0.3))) == 1
        assert 0.3 <= real() - started < 30


def test_a_link_that_takes_long_to_look_is_left_in_peace_for_twice_as_long() -> None:
    looked: list[tuple[float, float]] = []

    class Slow(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            began = time.monotonic()
            time.sleep(0.03)
            found = super().pull_messages(message_ids)
            looked.append((began, time.monotonic()))
            return found

    with Slow(_echo, 1, silent=[1]) as grid:
        assert list(exchange(grid, _messages([1]), timeout_s=0.5)) == []
    assert len(looked) > 2
    for (began, ended), (again, _) in pairwise(looked[:-1]):
        assert again - ended >= 2 * (ended - began) * 0.99
