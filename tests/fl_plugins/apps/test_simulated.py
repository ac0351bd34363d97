"""Roles that a run gives simulated nodes, and that a deployed node takes from nobody but its operator."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fl_plugins.apps import simulated
from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.apps.simulated import data_of, own_config
from fl_plugins.errors import ConfigError, QuorumError
from fl_plugins.records import to_named
from fl_plugins.testing import InProcessGrid


def context(partition: int, num_partitions: int = 7, **run: Any) -> Context:
    run_config = {key.replace("_", "-"): value for key, value in run.items()}
    own = {"partition-id": partition, "num-partitions": num_partitions}
    return Context(run_id=1, node_id=1, node_config=own, state=RecordDict(), run_config=run_config)  # type: ignore[arg-type]


@pytest.fixture
def in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]


def test_the_last_simulated_nodes_are_helpers_and_data_are_dealt_among_the_others(in_ray: None) -> None:
    roles = [own_config(context(i, simulated_helpers=2))["secagg-role"] for i in range(7)]
    assert roles == ["client"] * 5 + ["helper"] * 2
    assert [data_of(context(i, simulated_helpers=2)) for i in range(5)] == [(i, 5) for i in range(5)]
    with pytest.raises(ConfigError, match="partition-id=5 of 7 is a helper and has no data"):
        data_of(context(5, simulated_helpers=2))
    assert own_config(context(0, simulated_sum_key="/k"))["secagg-sum-key"] == "/k"
    assert own_config(context(6)) == {"partition-id": 6, "num-partitions": 7}


@pytest.mark.parametrize("given", [{"simulated_helpers": 1}, {"simulated_sum_key": "/k"}])
@pytest.mark.parametrize("ray", [None, SimpleNamespace(is_initialized=lambda: False)])
def test_a_deployed_node_takes_neither_role_nor_key_from_a_run(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], ray: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ConfigError, match="this node is not simulated: its operator says what it is"):
        own_config(context(6, **given))
    assert data_of(context(6)) == (6, 7)


def run(strategy: str, num_nodes: int, **chosen: Any) -> Any:
    config = RunConfig(task="breast_cancer(model='logistic')", strategy=strategy, num_rounds=1, **chosen)
    run_config = {**RunConfig.defaults(), **{k.replace("_", "-"): v for k, v in vars(config).items()}}
    with InProcessGrid(ready_made, num_nodes, run_config=run_config) as grid:  # type: ignore[arg-type]
        return to_named(run_app(grid, config).arrays)


def test_a_run_with_simulated_helpers_trains_what_the_same_clients_train_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulated, "in_actor", lambda: True)
    strategy = "additive_aggregation(fedavg(), helpers=2, max_weight=1000, clip=4.0, evaluate=['loss'])"
    helped = run(strategy, 6, simulated_helpers=2)
    plain = run("fedavg()", 4)
    for key, array in plain.items():
        assert np.abs(helped[key] - array).max() < 2e-6


def test_without_them_the_error_says_how_helpers_are_simulated() -> None:
    strategy = (
        "additive_aggregation(fedavg(on_shortfall='raise'), helpers=2, max_weight=1000, stage_timeout_s=0.1)"
    )
    with pytest.raises(QuorumError, match="in a simulation: simulated-helpers=2 in the run config"):
        run(strategy, 4)
