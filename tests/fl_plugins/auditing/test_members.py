"""Membership inference against runs: what memorises is seen through, what is private is not.

Coins are the operating system's; every comparison is five standard deviations or more from its edge.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clients.supervised import Supervised
from clients.tasks.digits import digits
from fl_plugins.auditing import MembershipFinding, infer_membership
from fl_plugins.errors import ConfigError, ContractError, QuorumError
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.training import ClientData, Dataset, Task

CLIENT_DP = (
    "dp_fedavg(fedavg(weighting='uniform'), unit='client', adjacency='{}', population=3, delta=1e-5, "
    "clip_norm=0.5, noise_multiplier=3.0)"
)


NUM_RECORDS = 250
"""Of every client."""


def memorised() -> Task:
    """Digits with labels that say nothing: a model can only know them by heart."""
    task = digits(model="mlp")

    def load(client: int, count: int) -> ClientData:
        data = task.load_partition(client, count)
        labels = np.random.default_rng(client).integers(0, 10, NUM_RECORDS).astype(data.train.y.dtype)
        return replace(data, train=Dataset(data.train.x[:NUM_RECORDS], labels))

    return replace(task, load_partition=load)


def infer(strategy: str, **given: Any) -> MembershipFinding:
    task = memorised()
    defaults: dict[str, Any] = {"num_clients": 3, "num_rounds": 3, "shadow_models": 0}
    trainer = given.pop("trainer", None) or Supervised(task, local_epochs=20, learning_rate=0.1)
    return infer_membership(lambda: build(Kind.STRATEGY, strategy), trainer, task, **{**defaults, **given})


def test_labels_known_by_heart_give_members_away() -> None:
    # Steps small enough that no run ends in a spike of its loss, as one in six did at 0.1.
    trainer = Supervised(memorised(), local_epochs=100, learning_rate=0.03)
    one = "fedavg(min_available_nodes=1, min_train_nodes=1)"
    found = infer(one, trainer=trainer, shadow_models=1, num_clients=1)
    assert found.auc > 0.6
    assert found.finding.lower_bound > 0.1
    assert found.epsilon_if_independent > 0.5
    assert found.finding.accounted is None
    assert found.num_members + found.num_others == NUM_RECORDS
    assert "unit record, adjacency add_remove" in str(found)
    assert "AUC" in str(found)


def test_central_noise_hides_them_and_an_epsilon_for_clients_counts_only_under_replace() -> None:
    for adjacency, covers in (("replace", True), ("zero_out", False)):
        found = infer(CLIENT_DP.format(adjacency), num_rounds=1)
        assert abs(found.auc - 0.5) < 0.13
        assert (found.finding.accounted is not None) is covers
        assert f"unit client, adjacency {adjacency}" in str(found)
        assert not found.finding.violated


def test_layers_that_ask_something_of_clients_are_served() -> None:
    spec = "local_dp(fedavg(weighting='uniform'), clip_norm=0.5, epsilon=1.0, delta=1e-5, max_rounds=5)"
    assert abs(infer(spec, num_rounds=1).auc - 0.5) < 0.13


def test_a_trainer_that_accounts_for_records_is_compared_with_its_epsilon() -> None:
    task = memorised()
    spec = "dp_supervised(clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.1, num_steps=5)"
    trainer = build(Kind.CLIENT, spec, task=task)
    found = infer("fedavg", trainer=trainer, num_rounds=2)
    assert found.finding.accounted == pytest.approx(trainer.epsilon(100, num_trainings=2))
    assert not found.finding.violated


def test_runs_that_cannot_be_and_foreign_strategies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_plugins.auditing._grid._PATIENCE", 3)
    spec = "dp_supervised(clip_norm=1.0, noise_multiplier=2.0, expected_batch_size=5000)"
    trainer = build(Kind.CLIENT, spec, task=memorised())
    with pytest.raises(ConfigError, match=r"no client has trained: .*expected_batch_size"):
        infer(CLIENT_DP.format("replace"), trainer=trainer, num_rounds=1)
    with pytest.raises(QuorumError, match="waits for more than the 1 clients"):
        infer("fedavg", num_clients=1)
    with pytest.raises(ContractError, match="no fl-plugins strategy"):
        infer_membership(object, trainer, memorised(), num_clients=2, num_rounds=1)
