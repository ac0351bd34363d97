"""The round loop: quarantine, quorum, retry, divergence, who is sampled."""

from collections.abc import Callable

import numpy as np
import optax
import pytest
from flwr.app import Array, ArrayRecord, Context, Message

from fl_plugins.errors import ConfigError, DivergenceError, FLPluginsError, QuorumError
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg

from .round_support import Events, MakeClient, run_in_process


def test_three_rounds_with_stock_clients_through_flwrs_own_signature(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    with InProcessGrid(make_client(0.5), 4) as grid:
        result = FedAvg().start(grid, initial, num_rounds=3)
    np.testing.assert_array_equal(result.arrays["params/w"].numpy(), np.full((3, 2), 1.5, np.float32))
    assert result.arrays["state/steps"].numpy() == 8
    assert result.arrays["state/steps"].numpy().dtype == np.int64
    assert set(result.train_metrics_clientapp) == {1, 2, 3}
    assert result.evaluate_metrics_clientapp[3]["loss"] == 1.0


def test_b9_one_malformed_reply_is_quarantined_with_node_and_reason_and_the_run_goes_on(
    initial: ArrayRecord, make_client: MakeClient, make_reply: Callable[..., Message]
) -> None:
    def nan_client(message: Message, _: Context) -> Message:
        arrays = {key: array.numpy() for key, array in message.content.array_records["arrays"].items()}
        return make_reply(
            message, {**arrays, "params/w": np.full((3, 2), np.nan, np.float32)}, {"num-examples": 1}
        )

    def crash(_: Message, __: Context) -> Message:
        raise RuntimeError("disk on fire")

    result, events = run_in_process(
        FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, overrides={2: nan_client, 3: crash}
    )
    refused = {(e["node"], e["status"]) for e in events.of("reply") if e["status"] != "accepted"}
    assert refused == {(2, "quarantined"), (3, "failed")}
    assert any("NaN" in e["reason"] for e in events.of("reply"))
    assert any("disk on fire" in e["reason"] for e in events.of("reply"))
    np.testing.assert_array_equal(result.arrays["params/b"].numpy(), [3, 3])
    assert events.of("round_finished")[0]["quarantined"] == 1


def test_without_quorum_the_round_is_retried_and_then_ends_with_the_parameters_so_far(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    calls = {"train": 0}
    good = make_client(1.0)

    def fails_from_round_two(message: Message, context: Context) -> Message:
        if message.content.config_records["config"]["server-round"] == 2:
            calls["train"] += 1
            raise RuntimeError("gone")
        return good(message, context)

    events = Events()
    strategy = FedAvg(quorum=0.8, max_attempts=3, fraction_evaluate=0.0)
    options = RunOptions(num_rounds=4, timeout_s=5, seed=1, emit=events)
    with InProcessGrid(fails_from_round_two, 4) as grid, pytest.raises(QuorumError, match="0 of 4") as caught:
        strategy.run(grid, initial, options)
    assert calls["train"] == 3 * 4
    assert [event["attempt"] for event in events.of("round_retried")] == [1, 2]
    np.testing.assert_array_equal(caught.value.result.arrays["params/b"].numpy(), [2, 2])
    assert events[-1]["event"] == "run_failed"


def test_a_retry_that_finds_quorum_goes_on(initial: ArrayRecord, make_client: MakeClient) -> None:
    good = make_client(1.0)
    attempts: list[int] = []

    def flaky(message: Message, context: Context) -> Message:
        attempts.append(1)
        if len(attempts) <= 4:
            raise RuntimeError("not yet")
        return good(message, context)

    result, events = run_in_process(FedAvg(fraction_evaluate=0.0), flaky, initial, num_nodes=4, num_rounds=1)
    assert len(events.of("round_retried")) == 1
    np.testing.assert_array_equal(result.arrays["params/b"].numpy(), [2, 2])


def test_silent_nodes_are_reported_missing_and_the_round_goes_on(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    _, events = run_in_process(
        FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, silent=(4,), timeout_s=0.3, num_rounds=1
    )
    assert events.of("aggregated")[0]["missing"] == ["node-4"]
    assert events.of("aggregated")[0]["accepted"] == 4


def test_zero_replies_end_in_a_clear_error(initial: ArrayRecord, make_client: MakeClient) -> None:
    with pytest.raises(QuorumError, match="0 of 3 replies are usable"):
        run_in_process(
            FedAvg(max_attempts=1), make_client(1.0), initial, num_nodes=3, silent=(1, 2, 3), timeout_s=0.2
        )


def test_an_overflowing_model_ends_the_run_and_keeps_the_last_finite_parameters(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, server_optimizer=optax.sgd(10.0))
    with pytest.raises(DivergenceError, match="robust strategy") as caught:
        run_in_process(strategy, make_client(1e38), initial, num_rounds=5)
    assert np.isfinite(caught.value.result.arrays["params/w"].numpy()).all()


def test_a_model_that_is_nan_for_every_client_has_diverged_and_is_not_retried(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    events = Events()
    options = RunOptions(num_rounds=3, timeout_s=5, seed=1, emit=events)
    client = make_client(lambda _: float("nan"))
    with InProcessGrid(client, 4) as grid, pytest.raises(DivergenceError, match="4 of 4 clients reply"):
        FedAvg().run(grid, initial, options)
    assert events.of("round_retried") == []
    assert events[-1]["kind"] == "DivergenceError"


@pytest.mark.parametrize("lie", [{"delta": float("nan")}, {"delta": 1.0, "loss": float("nan")}])
def test_one_broken_client_while_the_others_are_late_is_no_divergence(
    lie: dict[str, float], initial: ArrayRecord, make_client: MakeClient
) -> None:
    broken = make_client(**lie)
    silent = (2, 3, 4, 5)
    with pytest.raises(QuorumError, match="0 of 5"):
        run_in_process(FedAvg(max_attempts=1), broken, initial, silent=silent, timeout_s=0.2)


def test_a_metric_that_is_nan_everywhere_is_no_divergence(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    with pytest.raises(QuorumError, match="0 of 5"):
        run_in_process(FedAvg(max_attempts=1), make_client(1.0, loss=float("nan")), initial)


def test_a_wide_reply_that_does_not_fit_a_narrow_model_is_quarantined(
    make_client: MakeClient, make_reply: Callable[..., Message]
) -> None:
    model = ArrayRecord({"w": Array(np.zeros(3, np.float16))})

    def wide(message: Message, _: Context) -> Message:
        return make_reply(message, {"w": np.full(3, 1e30, np.float32)}, {"num-examples": 1})

    strategy = FedAvg(fraction_evaluate=0.0)
    result, events = run_in_process(strategy, make_client(1.0), model, overrides={2: wide}, num_rounds=1)
    assert [event["node"] for event in events.of("reply") if event["status"] == "quarantined"] == [2]
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.ones(3, np.float16))


def test_a_retry_samples_another_cohort(initial: ArrayRecord) -> None:
    def crash(_: Message, __: Context) -> Message:
        raise RuntimeError("gone")

    events = Events()
    options = RunOptions(num_rounds=1, timeout_s=5, seed=1, emit=events)
    with InProcessGrid(crash, 20) as grid, pytest.raises(QuorumError):
        FedAvg(num_train_nodes=5, max_attempts=3).run(grid, initial, options)
    cohorts = [tuple(event["sampled"]) for event in events.of("round_started")]
    assert [event["attempt"] for event in events.of("round_started")] == [1, 2, 3]
    assert len(set(cohorts)) == 3


def test_too_few_nodes_for_evaluation_do_not_end_a_run_that_trains(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    strategy = FedAvg(num_train_nodes=3, num_evaluate_nodes=50)
    result, events = run_in_process(strategy, make_client(1.0), initial, timeout_s=0.3)
    assert result.evaluate_metrics_clientapp == {}
    assert events[-1]["event"] == "run_finished"


def test_a_cohort_is_the_same_for_the_same_seed_and_another_for_another(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    def cohorts(seed: int) -> list[list[str]]:
        strategy = FedAvg(num_train_nodes=3, fraction_evaluate=0.0)
        _, events = run_in_process(strategy, make_client(1.0), initial, num_nodes=10, num_rounds=6, seed=seed)
        return [event["sampled"] for event in events.of("round_started")]

    assert cohorts(4) == cohorts(4)
    assert cohorts(4) != cohorts(5)
    assert all(len(cohort) == 3 for cohort in cohorts(4))


def test_a_seed_that_is_not_given_is_drawn_and_recorded(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    seeds = {
        run_in_process(FedAvg(), make_client(1.0), initial, seed=None)[1].of("run_started")[0]["seed"]
        for _ in range(3)
    }
    assert len(seeds) == 3


def test_aggregate_without_configure_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="call configure first"):
        FedAvg().aggregate_train(1, [])


def test_every_error_of_a_run_is_one_of_ours(initial: ArrayRecord, make_client: MakeClient) -> None:
    with pytest.raises(FLPluginsError) as caught:
        run_in_process(FedAvg(min_available_nodes=9), make_client(1.0), initial, timeout_s=0.1)
    assert caught.value.result is not None


def test_fewer_usable_replies_than_the_quorum_are_not_aggregated(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    def crash(_: Message, __: Context) -> Message:
        raise RuntimeError("gone")

    strategy = FedAvg(quorum=0.8, max_attempts=1, fraction_evaluate=0.0)
    with pytest.raises(QuorumError, match=r"3 of 5 replies are usable, but quorum=0\.8 needs 4"):
        run_in_process(strategy, make_client(1.0), initial, overrides={1: crash, 2: crash})
    enough = FedAvg(quorum=0.6, max_attempts=1, fraction_evaluate=0.0)
    run_in_process(enough, make_client(1.0), initial, overrides={1: crash, 2: crash})
