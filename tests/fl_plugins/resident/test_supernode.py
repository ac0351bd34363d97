"""A SuperNode that looks for messages soon after the last one and seldom when there are none."""

import pytest

from fl_plugins.resident.supernode import Pauses


def test_pauses_grow_with_the_time_without_a_message_up_to_flowers_own() -> None:
    pauses = Pauses()
    made = [pauses.instead_of(3) for _ in range(200)]
    assert made[0] == 0.05
    assert made == sorted(made)
    assert made[-1] == 3
    waited = 0.0
    for pause in made:  # a message waits for at most 5 % of the time since the last one, or 0.05 s
        assert pause <= max(0.05, 0.05 * waited) + 1e-12
        waited += pause


def test_after_a_reply_the_node_looks_soon_again() -> None:
    pauses = Pauses()
    for _ in range(200):
        pauses.instead_of(3)
    assert pauses.instead_of(0.5) == 0.05
    assert pauses.instead_of(3) == 0.05


@pytest.mark.parametrize("seconds", [0.001, 0.01])
def test_a_short_pause_is_not_made_longer(seconds: float) -> None:
    assert Pauses().instead_of(seconds) == seconds


def test_a_superlink_that_takes_long_to_answer_is_asked_less() -> None:
    now = 0.0
    pauses = Pauses(clock=lambda: now)
    now += pauses.instead_of(3)
    for asking_s, pause in ((0.01, 0.05), (0.1, 0.4), (0.2, 0.8), (5.0, 3.0), (0.0, 0.05 * 4.3)):
        now += asking_s
        made = pauses.instead_of(3)
        assert made == pytest.approx(pause, abs=1e-9)
        now += made
    now += 0.01
    assert pauses.instead_of(0.5) == 0.05
    now += 10.0  # in which the message was served: that is no asking
    assert pauses.instead_of(3) == 0.05
