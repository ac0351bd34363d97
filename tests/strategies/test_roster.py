"""Stable names make cohorts reproducible although Flower draws node ids anew in every simulation."""

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins._flower import LOST_MESSAGE_ERRORS
from fl_plugins.errors import CheckpointError, ConfigError, QuorumError
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, CLIENT_IDS, PARTITIONS
from strategies.roster import Roster, name_order, sample_cohort


def _named(message: Message, context: Context) -> Message:
    name = str(context.node_config["partition-id"])
    return Message(RecordDict({"config": ConfigRecord({CLIENT_ID: name})}), reply_to=message)


def _stock(message: Message, _: Context) -> Message:
    raise ValueError("No query function registered with name 'roll_call'")


@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 2**32))
def test_a_cohort_depends_on_names_and_seed_but_not_on_node_ids(
    order: list[int], size: int, seed: int
) -> None:
    straight = {str(index): 1000 + index for index in range(12)}
    shuffled = {str(index): 7 * node + 1 for node, index in enumerate(order)}
    rng = np.random.default_rng
    one = sample_cohort(straight, size, rng=rng(seed))
    other = sample_cohort(shuffled, size, rng=rng(seed))
    assert list(one) == list(other)
    assert len(set(one)) == size


def test_every_client_is_sampled_equally_often() -> None:
    clients = {str(node): node for node in range(10)}
    counts = Counter(
        name for seed in range(2000) for name in sample_cohort(clients, 3, rng=np.random.default_rng(seed))
    )
    # Binomial(2000, 0.3): mean 600, sd 20.5; five sd leave a chance of about 6e-6 for ten names.
    assert max(abs(count - 600) for count in counts.values()) < 5 * 20.5


def test_numeric_names_sort_by_value() -> None:
    assert sorted(["10", "node-7", "9", "abc"], key=name_order) == ["9", "10", "abc", "node-7"]


def test_roll_call_learns_names_and_asks_each_node_once() -> None:
    with InProcessGrid(_named, 3) as grid:
        roster = Roster(roll_call=True)
        assert roster.wait_for(grid, 3, timeout_s=5) == {"0": 1, "1": 2, "2": 3}
        roster.wait_for(grid, 3, timeout_s=5)
        assert len(grid.sent) == 3


def test_stock_clients_keep_their_node_ids() -> None:
    with InProcessGrid(_stock, 2) as grid:
        assert Roster(roll_call=True).wait_for(grid, 2, timeout_s=5) == {"node-1": 1, "node-2": 2}


def test_two_nodes_that_claim_one_name_stay_apart() -> None:
    def impostor(message: Message, _: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord({CLIENT_ID: "0"})}), reply_to=message)

    with InProcessGrid(_named, 2, overrides={2: impostor}) as grid:
        assert Roster(roll_call=True).wait_for(grid, 2, timeout_s=5) == {"0": 1, "0@2": 2}


def test_too_few_nodes_end_in_an_error_with_numbers_not_in_an_endless_wait() -> None:
    with InProcessGrid(_named, 2) as grid, pytest.raises(QuorumError, match=r"2 nodes .* but 5 are needed"):
        Roster().wait_for(grid, 5, timeout_s=0.1)


def _hosting(ids: list[int]) -> Any:
    def host(message: Message, _: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord({CLIENT_IDS: ids})}), reply_to=message)

    return host


def _look(roster: Roster, grid: InProcessGrid, nodes: list[int]) -> dict[str, int]:
    """Return the clients while these nodes are connected."""
    grid.get_node_ids = lambda: nodes  # type: ignore[method-assign]
    return roster.wait_for(grid, 1, timeout_s=5)


def test_the_clients_of_cohort_nodes_are_named_and_ordered_whatever_the_nodes() -> None:
    with InProcessGrid(_hosting([0, 10, 2]), 2, overrides={1: _hosting([9, 1])}) as grid:
        roster = Roster(roll_call=True, virtual_clients=11)
        clients = roster.wait_for(grid, 5, timeout_s=5)
        assert list(clients.items()) == [("0", 2), ("1", 1), ("2", 2), ("9", 1), ("10", 2)]
        assert all(map(roster.is_host, (1, 2)))
        assert roster.wait_for(grid, 5, timeout_s=5) is clients, "nothing is done while nothing changes"


def test_a_newcomer_cannot_take_over_clients_that_another_node_hosts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with InProcessGrid(_hosting([0, 1]), 2, overrides={1: _hosting([0, 1, 2])}) as grid:
        roster = Roster(roll_call=True, virtual_clients=3)
        assert _look(roster, grid, [2]) == {"0": 2, "1": 2}
        assert _look(roster, grid, [1, 2]) == {"0": 2, "1": 2, "2": 1}
        assert "node 1 claims to host clients 0, 1, which other nodes have had before" in caplog.text


def test_a_node_that_starts_again_under_another_id_gets_its_clients_back() -> None:
    with InProcessGrid(_hosting([0, 1]), 3) as grid:
        roster = Roster(roll_call=True, virtual_clients=2)
        assert _look(roster, grid, [3]) == {"0": 3, "1": 3}
        assert _look(roster, grid, [2, 3]) == {"0": 3, "1": 3}
        assert _look(roster, grid, [2]) == {"0": 2, "1": 2}
        assert _look(roster, grid, [2, 3]) == {"0": 2, "1": 2}


def test_two_that_claim_a_client_at_the_same_time_are_an_error() -> None:
    with InProcessGrid(_hosting([0, 1]), 2) as grid, pytest.raises(ConfigError, match="nodes 1 and 2 both"):
        Roster(roll_call=True, virtual_clients=2).wait_for(grid, 1, timeout_s=5)


def test_a_single_client_cannot_call_itself_by_a_virtual_clients_name() -> None:
    with InProcessGrid(_hosting([0, 1]), 2, overrides={1: _named}) as grid:
        clients = Roster(roll_call=True, virtual_clients=2).wait_for(grid, 3, timeout_s=5)
        assert clients == {"0": 2, "1": 2, "0@1": 1}


def test_nobody_hosts_virtual_clients_in_a_run_that_has_none() -> None:
    with InProcessGrid(_named, 2, overrides={2: _hosting([0, 1])}) as grid:
        assert Roster(roll_call=True).wait_for(grid, 1, timeout_s=5) == {"0": 1}


def test_in_a_run_with_virtual_clients_a_node_that_does_not_know_the_question_is_left_out() -> None:
    with InProcessGrid(_hosting([0, 1]), 2, overrides={2: _stock}) as grid:
        roster = Roster(roll_call=True, virtual_clients=2)
        assert roster.wait_for(grid, 2, timeout_s=5) == {"0": 1, "1": 1}


def _dealt(partitions: int) -> Any:
    def answer(message: Message, context: Context) -> Message:
        told = ConfigRecord({CLIENT_ID: str(context.node_config["partition-id"]), PARTITIONS: partitions})
        return Message(RecordDict({"config": told}), reply_to=message)

    return answer


def test_a_resumed_run_leaves_out_nodes_whose_data_were_dealt_in_another_way() -> None:
    with InProcessGrid(_dealt(4), 3, overrides={2: _dealt(5), 3: _named}) as grid:
        fresh = Roster(roll_call=True)
        assert fresh.wait_for(grid, 3, timeout_s=5) == {"0": 1, "1": 2, "2": 3}
        assert fresh.dealt() == [4, 5]
        resumed = Roster(roll_call=True, partitions=frozenset({4}))
        assert resumed.wait_for(grid, 2, timeout_s=5) == {"0": 1, "2": 3}
        assert resumed.dealt() == [4]


def test_a_run_is_not_resumed_on_data_that_were_dealt_anew() -> None:
    with (
        InProcessGrid(_dealt(5), 3) as grid,
        pytest.raises(CheckpointError, match=r"dealt among \[4\] clients.*num-partitions=5"),
    ):
        Roster(roll_call=True, partitions=frozenset({4})).wait_for(grid, 3, timeout_s=5)


def test_a_node_that_comes_back_under_another_id_gets_its_name_back() -> None:
    with InProcessGrid(_named, 2) as grid:
        roster = Roster(roll_call=True)
        assert roster.wait_for(grid, 2, timeout_s=5) == {"0": 1, "1": 2}
        grid.replace_node(1, 7)
        assert roster.wait_for(grid, 2, timeout_s=5) == {"0": 7, "1": 2}
        grid.replace_node(7, 1)
        assert roster.wait_for(grid, 2, timeout_s=5) == {"0@1": 1, "1": 2}


def test_a_node_that_answers_rounds_later_gets_its_name_and_nobody_waits_for_it() -> None:
    with InProcessGrid(_named, 3, silent=[2]) as grid:
        roster = Roster(roll_call=True)
        assert roster.wait_for(grid, 3, timeout_s=0.2) == {"0": 1, "2": 3, "node-2": 2}
        began = time.monotonic()
        assert roster.wait_for(grid, 3, timeout_s=60) == {"0": 1, "2": 3, "node-2": 2}
        grid._silent = frozenset()
        assert roster.wait_for(grid, 3, timeout_s=60) == {"0": 1, "1": 2, "2": 3}
        assert time.monotonic() - began < 10
        assert len(grid.sent) == 3, "the question that it had is answered; no other was sent"
        assert roster.take_renamed() == {"node-2": "1"}
        assert roster.take_renamed() == {}
        clients = roster.wait_for(grid, 3, timeout_s=60)
        assert roster.wait_for(grid, 3, timeout_s=60) is clients


@pytest.mark.parametrize("code", sorted(LOST_MESSAGE_ERRORS))
def test_a_node_whose_question_was_lost_is_asked_again_once_it_is_back(code: int) -> None:
    answers: list[Any] = [lambda message, _: Message(Error(code, "gone"), reply_to=message), _named]

    def client(message: Message, context: Context) -> Message:
        return answers.pop(0)(message, context)  # type: ignore[no-any-return]

    with InProcessGrid(_named, 2, overrides={2: client}) as grid:
        roster = Roster(roll_call=True)
        assert _look(roster, grid, [1, 2]) == {"0": 1, "node-2": 2}
        assert _look(roster, grid, [1]) == {"0": 1}
        assert len(grid.sent) == 2, "a node that is away is not asked"
        assert _look(roster, grid, [1, 2]) == {"0": 1, "1": 2}
        assert len(grid.sent) == 3


def test_whose_app_does_not_know_the_question_is_not_asked_again() -> None:
    with InProcessGrid(_stock, 2) as grid:
        roster = Roster(roll_call=True)
        clients = roster.wait_for(grid, 2, timeout_s=5)
        assert roster.wait_for(grid, 2, timeout_s=5) is clients
        assert len(grid.sent) == 2


def test_what_a_node_says_late_is_judged_like_what_others_said_in_time() -> None:
    def impostor(message: Message, _: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord({CLIENT_ID: "0"})}), reply_to=message)

    late: Any = {2: _dealt(5), 3: impostor}
    with InProcessGrid(_dealt(4), 3, overrides=late, silent=[2, 3]) as grid:
        roster = Roster(roll_call=True, partitions=frozenset({4}))
        assert roster.wait_for(grid, 3, timeout_s=0.2) == {"0": 1, "node-2": 2, "node-3": 3}
        grid._silent = frozenset()
        served = [roster.wait_for(grid, 1, timeout_s=5) for _ in range(2)]  # the grid gives one at a time
        assert served[-1] == {"0": 1, "0@3": 3}, "2 has data that were dealt otherwise, 3 another's name"


def test_a_cohort_node_that_answers_late_brings_its_clients() -> None:
    with InProcessGrid(_hosting([0, 1]), 2, overrides={2: _hosting([2])}, silent=[2]) as grid:
        roster = Roster(roll_call=True, virtual_clients=3)
        assert roster.wait_for(grid, 2, timeout_s=0.2) == {"0": 1, "1": 1}
        grid._silent = frozenset()
        assert roster.wait_for(grid, 3, timeout_s=5) == {"0": 1, "1": 1, "2": 2}
