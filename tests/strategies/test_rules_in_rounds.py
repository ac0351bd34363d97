"""What a rule may rely on in a round: its precondition, its weights, the cohort, the order of its sum."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fl_plugins.aggregation.mean import Mean
from fl_plugins.errors import ConfigError, PreconditionError
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, ROLL_CALL
from strategies import FedAvg, FederatedStrategy, Krum, TrimmedMean, folding

from .round_support import MakeClient, run_in_process


def test_b4_f_too_large_for_the_cohort_is_an_error_before_any_message(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    with InProcessGrid(make_client(1.0), 6) as grid:
        with pytest.raises(PreconditionError, match=r"krum.*2f"):
            Krum(num_byzantine=2).start(grid, initial, num_rounds=1)
        assert grid.sent == []


def test_b4_preconditions_hold_for_the_replies_that_came_not_for_those_asked_for(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    with pytest.raises(PreconditionError, match="krum"):
        run_in_process(
            Krum(num_byzantine=2, max_attempts=2),
            make_client(1.0),
            initial,
            num_nodes=7,
            silent=(1,),
            timeout_s=0.2,
        )


def test_b5_a_claimed_number_of_examples_never_decides_a_robust_aggregate(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    liar = make_client(100.0, examples=10**7)
    result, _ = run_in_process(
        TrimmedMean(fraction=0.2, fraction_evaluate=0.0),
        make_client(1.0),
        initial,
        overrides={1: liar},
        num_rounds=1,
    )
    np.testing.assert_array_equal(result.arrays["params/b"].numpy(), [2, 2])


def test_fedavg_weights_by_examples_unless_told_otherwise(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    heavy = {1: make_client(4.0, examples=30)}
    by_examples, _ = run_in_process(
        FedAvg(fraction_evaluate=0.0), make_client(0.0), initial, num_nodes=2, overrides=heavy, num_rounds=1
    )
    uniform, _ = run_in_process(
        FedAvg(weighting="uniform", fraction_evaluate=0.0),
        make_client(0.0),
        initial,
        num_nodes=2,
        overrides=heavy,
        num_rounds=1,
    )
    np.testing.assert_allclose(by_examples.arrays["params/b"].numpy(), 1 + 4 * 30 / 40, rtol=1e-6)
    np.testing.assert_allclose(uniform.arrays["params/b"].numpy(), 3.0, rtol=1e-6)
    with pytest.raises(ConfigError, match="weighting='examlpes'"):
        FedAvg(weighting="examlpes")


def test_trimmed_mean_by_fraction_trims_for_the_cohort_and_not_for_those_who_answered(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    hostile = make_client(1e9)
    result, _ = run_in_process(
        TrimmedMean(fraction=0.2, fraction_evaluate=0.0),
        make_client(1.0),
        initial,
        num_nodes=10,
        overrides={1: hostile, 2: hostile},
        silent=(10,),
        timeout_s=0.3,
        num_rounds=1,
    )
    np.testing.assert_array_equal(result.arrays["params/b"].numpy(), [2, 2])


def test_the_sum_goes_by_client_names_so_that_new_node_ids_change_no_bit(
    make_reply: Callable[..., Message],
) -> None:
    model = ArrayRecord({"w": Array(np.zeros(500))})
    targets = np.random.default_rng(3).normal(size=(7, 500)) * 10.0 ** np.arange(7)[:, None]

    def result(names: list[int]) -> bytes:
        def client(message: Message, context: Context) -> Message:
            name = names[int(context.node_config["partition-id"])]
            if message.metadata.message_type == ROLL_CALL:
                return Message(RecordDict({"config": ConfigRecord({CLIENT_ID: str(name)})}), reply_to=message)
            return make_reply(message, {"w": targets[name]}, {"num-examples": name + 1})

        strategy = FedAvg(fraction_evaluate=0.0)
        return bytes(
            run_in_process(strategy, client, model, num_nodes=7, num_rounds=1, roll_call=True)[0]
            .arrays["w"]
            .data
        )

    assert result([0, 1, 2, 3, 4, 5, 6]) == result([3, 6, 0, 5, 1, 4, 2])


class _NeedsFour:
    """A rule that relies on the strategy to ask for its precondition."""

    name = "needs_four"
    contract = Mean().contract

    def check(self, n: int) -> None:
        if n < 4:
            raise PreconditionError(f"needs_four: n={n}")

    def __call__(self, rows: Any, weights: Any = None) -> Any:
        return Mean()(rows, weights)


def test_the_strategy_itself_asks_the_rule_for_its_precondition_on_the_replies_that_came(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    strategy = FederatedStrategy(_NeedsFour(), quorum=0.1, max_attempts=1)
    with pytest.raises(PreconditionError, match="n=3"):
        run_in_process(strategy, make_client(1.0), initial, silent=(1, 2), timeout_s=0.2)


def test_a_rule_without_repr_is_described_by_its_attributes() -> None:
    class Plain(_NeedsFour):
        def __init__(self, strength: float) -> None:
            self.strength = strength

    assert "Plain(strength=2.0)" in FederatedStrategy(Plain(2.0)).describe()


def test_a_mean_keeps_one_sum_and_not_every_reply(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = 200_000
    model = ArrayRecord({"w": Array(np.zeros(d, np.float32))})

    def peak(strategy: FederatedStrategy, num_nodes: int) -> float:
        """Return the most memory in use, in models."""
        tracemalloc.start()
        try:
            run_in_process(strategy, make_client(1.0), model, num_nodes=num_nodes, num_rounds=1)
            return tracemalloc.get_traced_memory()[1] / (4 * d)
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(folding, "_BATCH_REPLIES", 4)
    mean, krum = FedAvg(fraction_evaluate=0.0), Krum(num_byzantine=2, fraction_evaluate=0.0)
    grown, control = (peak(rule, 60) - peak(rule, 20) for rule in (mean, krum))
    assert grown < 8, "40 clients more are not 40 models more; a few are in flight"
    assert control > 35, "the negative control keeps them all"
