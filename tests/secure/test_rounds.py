"""Secure rounds in one process: the result, who may drop out when, and what leaves a client."""

from typing import Any

from .federation import WatchedGrid, distance, plain_mean, run, secure


def test_a_secure_round_gives_the_result_of_plain_averaging() -> None:
    events: list[dict[str, Any]] = []
    grid = WatchedGrid()
    result = run(secure(), grid, events=events)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6
