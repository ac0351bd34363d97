"""Private federations through Flower's real simulation engine: central, local and distributed noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Run = Callable[..., Any]


def _events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def test_a_budget_ends_a_simulated_run_and_the_ledger_has_every_round(flwr_run: Run, tmp_path: Path) -> None:
    run = flwr_run(
        ROOT,
        num_supernodes=4,
        strategy="dp_fedavg(fedavg(weighting='uniform'), unit='client', adjacency='add_remove', "
        "population=4, sampling=poisson(rate=0.5), clip_norm=1.0, noise_multiplier=2.0, delta=1e-5, "
        "max_epsilon=3.0)",
        task="digits(model='mlp')",
        num_rounds=9,
        run_dir=str(tmp_path / "run"),
    )
    assert run.status == "finished:completed", run.output
    spent = [event["epsilon"] for event in _events(tmp_path / "run", "privacy")]
    assert 1 <= len(spent) < 9
    assert spent == sorted(spent)
    assert spent[-1] <= 3.0
    (stopped,) = _events(tmp_path / "run", "run_stopped")
    assert "max_epsilon=3" in stopped["reason"]
    ledger = (tmp_path / "run" / "privacy_ledger.jsonl").read_text()
    lines = [json.loads(line) for line in ledger.splitlines()]
    assert sum(line["line"] == "committed" for line in lines) == len(spent)


def test_simulated_nodes_protect_themselves_as_announced(flwr_run: Run, tmp_path: Path) -> None:
    run = flwr_run(
        ROOT,
        num_supernodes=3,
        strategy="local_dp(fedavg(weighting='uniform'), clip_norm=1.0, epsilon=8.0, delta=1e-5, "
        "max_rounds=2)",
        task="digits(model='mlp')",
        num_rounds=3,
        run_dir=str(tmp_path / "run"),
    )
    assert run.status == "finished:completed", run.output
    assert [event["accepted"] for event in _events(tmp_path / "run", "aggregated")] == [3, 3]
    assert _events(tmp_path / "run", "run_stopped")


def test_simulated_nodes_add_the_noise_themselves_and_the_budget_ends_the_run(
    flwr_run: Run, tmp_path: Path
) -> None:
    run = flwr_run(
        ROOT,
        num_supernodes=4,
        strategy="distributed_dp(fedavg(weighting='uniform', min_available_nodes=4), unit='client', "
        "adjacency='zero_out', population=4, min_clients=4, clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, "
        "max_epsilon=8.0)",
        task="digits(model='mlp')",
        num_rounds=4,
        run_dir=str(tmp_path / "run"),
    )
    assert run.status == "finished:completed", run.output
    assert [event["survivors"] for event in _events(tmp_path / "run", "secure_aggregation")] == [4, 4]
    spent = [event["epsilon"] for event in _events(tmp_path / "run", "privacy")]
    assert 4.0 < spent[0] < spent[1] <= 8.0
    (stopped,) = _events(tmp_path / "run", "run_stopped")
    assert (stopped["round"], "max_epsilon=8" in stopped["reason"]) == (2, True)
    assert (tmp_path / "run" / "final_model.ckpt").exists()
