"""The round loop: quarantine, quorum, retry, checkpoints, exact resume, early stop."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl_plugins.aggregation.mean import Mean
from fl_plugins.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    FLPluginsError,
    PreconditionError,
    QuorumError,
)
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, ROLL_CALL
from strategies import FedAvg, FederatedStrategy, Krum, TrimmedMean, folding

Client = Callable[[Message, Context], Message]
MakeClient = Callable[..., Client]


class Events(list[dict[str, Any]]):
    """An event log in memory."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self if entry["event"] == event]


def _run(
    strategy: FederatedStrategy,
    client: Client,
    initial: ArrayRecord,
    *,
    num_nodes: int = 5,
    overrides: dict[int, Client] | None = None,
    silent: tuple[int, ...] = (),
    **options: Any,
) -> tuple[Any, Events]:
    events = Events()
    given = {"num_rounds": 2, "timeout_s": 5.0, "seed": 1, "emit": events, **options}
    with InProcessGrid(client, num_nodes, overrides=overrides, silent=silent) as grid:
        return strategy.run(grid, initial, RunOptions(**given)), events


def _values(record: ArrayRecord) -> dict[str, Any]:
    return {key: array.numpy() for key, array in record.items()}


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

    result, events = _run(
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

    result, events = _run(FedAvg(fraction_evaluate=0.0), flaky, initial, num_nodes=4, num_rounds=1)
    assert len(events.of("round_retried")) == 1
    np.testing.assert_array_equal(result.arrays["params/b"].numpy(), [2, 2])


def test_silent_nodes_are_reported_missing_and_the_round_goes_on(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    _, events = _run(
        FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, silent=(4,), timeout_s=0.3, num_rounds=1
    )
    assert events.of("aggregated")[0]["missing"] == ["node-4"]
    assert events.of("aggregated")[0]["accepted"] == 4


def test_zero_replies_end_in_a_clear_error(initial: ArrayRecord, make_client: MakeClient) -> None:
    with pytest.raises(QuorumError, match="0 of 3 replies are usable"):
        _run(FedAvg(max_attempts=1), make_client(1.0), initial, num_nodes=3, silent=(1, 2, 3), timeout_s=0.2)


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
        _run(
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
    result, _ = _run(
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
    by_examples, _ = _run(
        FedAvg(fraction_evaluate=0.0), make_client(0.0), initial, num_nodes=2, overrides=heavy, num_rounds=1
    )
    uniform, _ = _run(
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


def test_an_overflowing_model_ends_the_run_and_keeps_the_last_finite_parameters(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, server_optimizer=optax.sgd(10.0))
    with pytest.raises(DivergenceError, match="robust strategy") as caught:
        _run(strategy, make_client(1e38), initial, num_rounds=5)
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
        _run(FedAvg(max_attempts=1), broken, initial, silent=silent, timeout_s=0.2)


def test_a_metric_that_is_nan_everywhere_is_no_divergence(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    with pytest.raises(QuorumError, match="0 of 5"):
        _run(FedAvg(max_attempts=1), make_client(1.0, loss=float("nan")), initial)


def test_a_wide_reply_that_does_not_fit_a_narrow_model_is_quarantined(
    make_client: MakeClient, make_reply: Callable[..., Message]
) -> None:
    model = ArrayRecord({"w": Array(np.zeros(3, np.float16))})

    def wide(message: Message, _: Context) -> Message:
        return make_reply(message, {"w": np.full(3, 1e30, np.float32)}, {"num-examples": 1})

    strategy = FedAvg(fraction_evaluate=0.0)
    result, events = _run(strategy, make_client(1.0), model, overrides={2: wide}, num_rounds=1)
    assert [event["node"] for event in events.of("reply") if event["status"] == "quarantined"] == [2]
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.ones(3, np.float16))


def test_trimmed_mean_by_fraction_trims_for_the_cohort_and_not_for_those_who_answered(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    hostile = make_client(1e9)
    result, _ = _run(
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


def test_a_fresh_run_never_mixes_its_checkpoints_with_an_earlier_runs(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    _run(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="resume=True"):
        _run(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path, num_rounds=1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("other", [optax.sgd(0.001, momentum=0.1), optax.adam(1.0)])
def test_resume_refuses_another_server_optimizer(
    other: Any, initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def run(optimizer: Any, **options: Any) -> None:
        strategy = FedAvg(server_optimizer=optimizer)
        _run(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, **options)

    run(optax.sgd(1.0, momentum=0.9))
    run(optax.sgd(1.0, momentum=0.9), resume=True)
    with pytest.raises(CheckpointError, match="rule="):
        run(other, resume=True)


def test_a_refused_resume_gives_no_result_that_could_overwrite_a_good_one(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    _run(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError) as caught:
        _run(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True, seed=99)
    assert caught.value.result is None


def test_an_error_in_evaluation_keeps_the_round_that_was_just_trained(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def evaluate(number: int, _: ArrayRecord) -> None:
        if number == 2:
            raise ZeroDivisionError

    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "num_rounds": 3}
    with pytest.raises(ZeroDivisionError) as caught:
        _run(FedAvg(), make_client(1.0), initial, evaluate_fn=evaluate, **options)
    reached = caught.value.result  # type: ignore[attr-defined]
    np.testing.assert_array_equal(reached.arrays["params/b"].numpy(), [3, 3])
    resumed, _ = _run(FedAvg(), make_client(1.0), initial, resume=True, **options)
    np.testing.assert_array_equal(resumed.arrays["params/b"].numpy(), [4, 4])


def test_too_few_nodes_for_evaluation_do_not_end_a_run_that_trains(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    strategy = FedAvg(num_train_nodes=3, num_evaluate_nodes=50)
    result, events = _run(strategy, make_client(1.0), initial, timeout_s=0.3)
    assert result.evaluate_metrics_clientapp == {}
    assert events[-1]["event"] == "run_finished"


def test_a_cohort_is_the_same_for_the_same_seed_and_another_for_another(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    def cohorts(seed: int) -> list[list[str]]:
        strategy = FedAvg(num_train_nodes=3, fraction_evaluate=0.0)
        _, events = _run(strategy, make_client(1.0), initial, num_nodes=10, num_rounds=6, seed=seed)
        return [event["sampled"] for event in events.of("round_started")]

    assert cohorts(4) == cohorts(4)
    assert cohorts(4) != cohorts(5)
    assert all(len(cohort) == 3 for cohort in cohorts(4))


def test_a_seed_that_is_not_given_is_drawn_and_recorded(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    seeds = {
        _run(FedAvg(), make_client(1.0), initial, seed=None)[1].of("run_started")[0]["seed"] for _ in range(3)
    }
    assert len(seeds) == 3


class _Killed(BaseException):
    """Stands for kill -9: nothing in the library catches it."""


def _strategies() -> dict[str, Callable[[], FederatedStrategy]]:
    return {
        "fedavg": lambda: FedAvg(num_train_nodes=4, fraction_evaluate=0.5),
        "fedadam": lambda: FedAvg(num_train_nodes=4, server_optimizer=optax.adam(0.1)),
        "krum": lambda: Krum(num_byzantine=1, num_train_nodes=5),
    }


@pytest.mark.parametrize("name", _strategies())
@pytest.mark.parametrize("killed_in", [0, 1, 3])
def test_resume_after_a_kill_ends_bit_for_bit_as_if_undisturbed(
    name: str, killed_in: int, initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(lambda partition: 0.1 * (partition + 1))

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"norm": float(np.abs(arrays["params/w"].numpy()).sum()), "round": number})

    def evaluate_then_die(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number == killed_in:
            raise _Killed
        return evaluate(number, arrays)

    make = _strategies()[name]
    undisturbed, _ = _run(make(), client, initial, num_nodes=6, num_rounds=5, evaluate_fn=evaluate)
    shared: dict[str, Any] = {"num_nodes": 6, "num_rounds": 5, "checkpoint_dir": tmp_path}
    with pytest.raises(_Killed):
        _run(make(), client, initial, evaluate_fn=evaluate_then_die, **shared)
    resumed, events = _run(make(), client, initial, evaluate_fn=evaluate, resume=True, **shared)
    assert events.of("run_started")[0]["resumed_from"] == (killed_in - 1 if killed_in else None)
    for key, value in _values(undisturbed.arrays).items():
        assert _values(resumed.arrays)[key].tobytes() == value.tobytes()
    assert resumed.evaluate_metrics_serverapp == undisturbed.evaluate_metrics_serverapp
    assert resumed.train_metrics_clientapp == undisturbed.train_metrics_clientapp


def test_resume_of_a_finished_run_changes_nothing_and_more_rounds_continue_it(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    first, _ = _run(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path)
    again, _ = _run(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True)
    longer, _ = _run(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True, num_rounds=3)
    np.testing.assert_array_equal(again.arrays["params/b"].numpy(), first.arrays["params/b"].numpy())
    np.testing.assert_array_equal(longer.arrays["params/b"].numpy(), [4, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": Krum(num_byzantine=1)}, "rule="),
        ({"seed": 2}, "seed="),
        ({"identity": {"task": "digits"}}, "task="),
        ({"identity": {"client": "supervised()"}}, "client="),
        ({"initial": ArrayRecord({"other": Array(np.zeros(3, np.float32))})}, "layout="),
    ],
)
def test_resume_refuses_a_checkpoint_of_another_run(
    change: dict[str, Any], message: str, initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    _run(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    given: dict[str, Any] = {"strategy": FedAvg(), "initial": initial, "client": make_client(1.0), **change}
    with pytest.raises(CheckpointError, match=message):
        _run(**given, checkpoint_dir=tmp_path, resume=True)


def test_a_failed_save_ends_the_run_but_keeps_the_older_checkpoint(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def fill_the_disk(number: int, _: ArrayRecord) -> None:
        if number == 2:
            (tmp_path / "round-000002.ckpt").mkdir()

    with pytest.raises(OSError, match="round-000002"):
        _run(
            FedAvg(),
            make_client(1.0),
            initial,
            checkpoint_dir=tmp_path,
            evaluate_fn=fill_the_disk,
            num_rounds=3,
        )
    assert (tmp_path / "round-000001.ckpt").is_file()


class _StopAt:
    def __init__(self, value: float) -> None:
        self.value = value

    def should_stop(self, history: Any) -> str | None:
        reached = history and history[-1][1]["norm"] >= self.value
        return f"norm reached {self.value}" if reached else None


def test_early_stop_ends_the_run_says_why_and_keeps_the_checkpoint(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"norm": float(arrays["params/b"].numpy()[0])})

    options: dict[str, Any] = {
        "stopper": _StopAt(3.0),
        "evaluate_fn": evaluate,
        "num_rounds": 9,
        "checkpoint_dir": tmp_path,
        "checkpoint_every": 100,
    }
    result, events = _run(FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, **options)
    assert events.of("run_stopped") == [{"event": "run_stopped", "round": 2, "reason": "norm reached 3.0"}]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert (tmp_path / "round-000002.ckpt").is_file()
    resumed, _ = _run(FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, resume=True, **options)
    np.testing.assert_array_equal(resumed.arrays["params/b"].numpy(), result.arrays["params/b"].numpy())


def test_resume_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="resume=True"):
        RunOptions(num_rounds=1, resume=True)


@pytest.mark.parametrize(
    "options",
    [
        {"fraction_train": 1.5},
        {"fraction_evaluate": -0.1},
        {"num_train_nodes": 0},
        {"min_train_nodes": 0},
        {"quorum": 0.0},
        {"quorum": 1.1},
        {"max_attempts": 0},
        {"max_num_examples": 0},
        {"num_train_nodes": 2.5},
        {"max_attempts": 1.5},
        {"min_train_nodes": True},
        {"quorum": True},
        {"quorum": float("nan")},
        {"max_num_examples": float("nan")},
        {"fraction_train": "0.5"},
        {"server_optimizer": "adam"},
        {"server_optimizer": optax.adam},
    ],
)
def test_options_out_of_range_are_refused_by_name_at_construction(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        FedAvg(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_rounds": 2.5},
        {"num_rounds": -1},
        {"seed": "1"},
        {"timeout_s": 0},
        {"evaluate_every": 0},
        {"checkpoint_dir": "somewhere"},
    ],
)
def test_run_options_of_the_wrong_type_or_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RunOptions(**{"num_rounds": 1, **options})


def test_the_callers_config_is_not_changed(initial: ArrayRecord, make_client: MakeClient) -> None:
    config = ConfigRecord({"lr": 0.1})
    with InProcessGrid(make_client(1.0), 3) as grid:
        FedAvg().start(grid, initial, num_rounds=2, train_config=config)
        assert grid.sent[0].content.config_records["config"]["lr"] == 0.1
        assert grid.sent[0].content.config_records["config"]["server-round"] == 1
    assert dict(config) == {"lr": 0.1}


def test_aggregate_without_configure_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="call configure first"):
        FedAvg().aggregate_train(1, [])


def test_every_error_of_a_run_is_one_of_ours(initial: ArrayRecord, make_client: MakeClient) -> None:
    with pytest.raises(FLPluginsError) as caught:
        _run(FedAvg(min_available_nodes=9), make_client(1.0), initial, timeout_s=0.1)
    assert caught.value.result is not None


def test_fewer_usable_replies_than_the_quorum_are_not_aggregated(
    initial: ArrayRecord, make_client: MakeClient
) -> None:
    def crash(_: Message, __: Context) -> Message:
        raise RuntimeError("gone")

    strategy = FedAvg(quorum=0.8, max_attempts=1, fraction_evaluate=0.0)
    with pytest.raises(QuorumError, match=r"3 of 5 replies are usable, but quorum=0\.8 needs 4"):
        _run(strategy, make_client(1.0), initial, overrides={1: crash, 2: crash})
    enough = FedAvg(quorum=0.6, max_attempts=1, fraction_evaluate=0.0)
    _run(enough, make_client(1.0), initial, overrides={1: crash, 2: crash})


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
            _run(strategy, client, model, num_nodes=7, num_rounds=1, roll_call=True)[0].arrays["w"].data
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
        _run(strategy, make_client(1.0), initial, silent=(1, 2), timeout_s=0.2)


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
            _run(strategy, make_client(1.0), model, num_nodes=num_nodes, num_rounds=1)
            return tracemalloc.get_traced_memory()[1] / (4 * d)
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(folding, "_BATCH_REPLIES", 4)
    mean, krum = FedAvg(fraction_evaluate=0.0), Krum(num_byzantine=2, fraction_evaluate=0.0)
    grown, control = (peak(rule, 60) - peak(rule, 20) for rule in (mean, krum))
    assert grown < 8, "40 clients more are not 40 models more; a few are in flight"
    assert control > 35, "the negative control keeps them all"
