"""Checkpoints: exact resume, what is refused, early stop, what an error leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord

from fl_plugins.errors import CheckpointError, ConfigError
from fl_plugins.run_options import RunOptions
from strategies import FedAvg, FederatedStrategy, Krum

from .round_support import MakeClient, run_in_process


def _values(record: ArrayRecord) -> dict[str, Any]:
    return {key: array.numpy() for key, array in record.items()}


def test_a_fresh_run_never_mixes_its_checkpoints_with_an_earlier_runs(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    run_in_process(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="resume=True"):
        run_in_process(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path, num_rounds=1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("other", [optax.sgd(0.001, momentum=0.1), optax.adam(1.0)])
def test_resume_refuses_another_server_optimizer(
    other: Any, initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def run(optimizer: Any, **options: Any) -> None:
        strategy = FedAvg(server_optimizer=optimizer)
        run_in_process(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, **options)

    run(optax.sgd(1.0, momentum=0.9))
    run(optax.sgd(1.0, momentum=0.9), resume=True)
    with pytest.raises(CheckpointError, match="rule="):
        run(other, resume=True)


def test_a_refused_resume_gives_no_result_that_could_overwrite_a_good_one(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    run_in_process(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError) as caught:
        run_in_process(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True, seed=99)
    assert caught.value.result is None


def test_an_error_in_evaluation_keeps_the_round_that_was_just_trained(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def evaluate(number: int, _: ArrayRecord) -> None:
        if number == 2:
            raise ZeroDivisionError

    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "num_rounds": 3}
    with pytest.raises(ZeroDivisionError) as caught:
        run_in_process(FedAvg(), make_client(1.0), initial, evaluate_fn=evaluate, **options)
    reached = caught.value.result  # type: ignore[attr-defined]
    np.testing.assert_array_equal(reached.arrays["params/b"].numpy(), [3, 3])
    resumed, _ = run_in_process(FedAvg(), make_client(1.0), initial, resume=True, **options)
    np.testing.assert_array_equal(resumed.arrays["params/b"].numpy(), [4, 4])


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
    undisturbed, _ = run_in_process(make(), client, initial, num_nodes=6, num_rounds=5, evaluate_fn=evaluate)
    shared: dict[str, Any] = {"num_nodes": 6, "num_rounds": 5, "checkpoint_dir": tmp_path}
    with pytest.raises(_Killed):
        run_in_process(make(), client, initial, evaluate_fn=evaluate_then_die, **shared)
    resumed, events = run_in_process(make(), client, initial, evaluate_fn=evaluate, resume=True, **shared)
    assert events.of("run_started")[0]["resumed_from"] == (killed_in - 1 if killed_in else None)
    for key, value in _values(undisturbed.arrays).items():
        assert _values(resumed.arrays)[key].tobytes() == value.tobytes()
    assert resumed.evaluate_metrics_serverapp == undisturbed.evaluate_metrics_serverapp
    assert resumed.train_metrics_clientapp == undisturbed.train_metrics_clientapp


def test_resume_of_a_finished_run_changes_nothing_and_more_rounds_continue_it(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    first, _ = run_in_process(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path)
    again, _ = run_in_process(strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True)
    longer, _ = run_in_process(
        strategy, make_client(1.0), initial, checkpoint_dir=tmp_path, resume=True, num_rounds=3
    )
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
    run_in_process(FedAvg(), make_client(1.0), initial, checkpoint_dir=tmp_path)
    given: dict[str, Any] = {"strategy": FedAvg(), "initial": initial, "client": make_client(1.0), **change}
    with pytest.raises(CheckpointError, match=message):
        run_in_process(**given, checkpoint_dir=tmp_path, resume=True)


def test_a_failed_save_ends_the_run_but_keeps_the_older_checkpoint(
    initial: ArrayRecord, make_client: MakeClient, tmp_path: Path
) -> None:
    def fill_the_disk(number: int, _: ArrayRecord) -> None:
        if number == 2:
            (tmp_path / "round-000002.ckpt").mkdir()

    with pytest.raises(OSError, match="round-000002"):
        run_in_process(
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
    result, events = run_in_process(FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, **options)
    assert events.of("run_stopped") == [{"event": "run_stopped", "round": 2, "reason": "norm reached 3.0"}]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert (tmp_path / "round-000002.ckpt").is_file()
    resumed, _ = run_in_process(
        FedAvg(fraction_evaluate=0.0), make_client(1.0), initial, resume=True, **options
    )
    np.testing.assert_array_equal(resumed.arrays["params/b"].numpy(), result.arrays["params/b"].numpy())


def test_resume_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="resume=True"):
        RunOptions(num_rounds=1, resume=True)
