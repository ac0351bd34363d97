"""Canary records through dp_supervised, and through trainers that promise what they do not keep."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.dp_sgd import DPSupervised
from clients.supervised import Supervised
from fl_plugins.auditing import audit_trainer, canary_task
from fl_plugins.errors import ContractError
from fl_plugins.training import Dataset, NamedArrays, TrainResult

NUM_RECORDS = 500


def trainer(**given: Any) -> DPSupervised:
    defaults: dict[str, Any] = {
        "clip_norm": 0.7,
        "noise_multiplier": 1.0,
        "expected_batch_size": NUM_RECORDS,
        "num_steps": 1,
    }
    return DPSupervised(canary_task(NUM_RECORDS), **{**defaults, **given})


class Promising:
    """A trainer that reports the ε of another."""

    def __init__(self, does: DPSupervised, says: DPSupervised, *, same_bits: bool = False) -> None:
        self._does, self._says, self._same_bits = does, says, same_bits
        self.delta, self.adjacency = says.delta, says.adjacency
        self.init, self.evaluate = does.init, does.evaluate

    def train(self, arrays: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
        bits = SeededBits(seed) if self._same_bits else None
        result = self._does.train(arrays, data, seed=seed, random=bits)
        epsilon = self._says.epsilon(len(data))
        return replace(result, metrics={**result.metrics, f"epsilon_record_{self.adjacency}": epsilon})


class SeededBits:
    """Bits that follow from the run's seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def fill(self, array: NDArray[Any]) -> None:
        array[...] = self._rng.integers(0, 2**32, size=array.shape, dtype=np.uint64).astype(array.dtype)


@pytest.mark.parametrize(
    ("given", "adjacency"),
    [
        ({}, "zero_out"),
        ({"sampling_rate": 1.0}, "add_remove"),
        ({"sampling_rate": 0.5, "expected_batch_size": 250, "num_steps": 6}, "add_remove"),
    ],
)
def test_sound_training_passes_and_its_leak_is_seen(given: dict[str, Any], adjacency: str) -> None:
    finding = audit_trainer(trainer(**given), num_records=NUM_RECORDS)
    assert f"unit record, adjacency {adjacency}" in str(finding)
    assert not finding.violated
    assert finding.accounted is not None
    assert 0.05 < finding.lower_bound < finding.accounted


@pytest.mark.parametrize("adjacency", ["zero_out", "add_remove"])
@pytest.mark.parametrize("kind", ["no noise", "seeded noise"])
def test_broken_training_is_caught(kind: str, adjacency: str) -> None:
    rate = {"sampling_rate": 1.0} if adjacency == "add_remove" else {}
    says = trainer(noise_multiplier=2.0, **rate)
    if kind == "no noise":
        broken = Promising(trainer(noise_multiplier=1e-4, **rate), says)
    else:
        broken = Promising(says, says, same_bits=True)
    finding = audit_trainer(broken, num_records=NUM_RECORDS)
    assert finding.accounted == pytest.approx(1.993, abs=1e-3)
    assert finding.violated


def test_clipping_to_more_than_is_said_is_caught() -> None:
    """Gradients are clipped to 4 where noise is made for 1: a fourth of the noise multiplier."""
    says = trainer(noise_multiplier=4.0)
    does = trainer(clip_norm=2.8, noise_multiplier=0.25)
    assert audit_trainer(Promising(does, says), num_records=NUM_RECORDS).violated


def test_trainers_that_promise_nothing_are_refused() -> None:
    with pytest.raises(ContractError, match="Supervised does not say what it promises"):
        audit_trainer(Supervised(canary_task(5)), num_records=5)


def test_the_canaries_gradients_are_orthogonal_and_beyond_any_clip_norm() -> None:
    task = canary_task(4)
    data = task.load_partition(0, 1).train
    model = trainer().init(seed=0)
    assert model["params/w"].shape == (NUM_RECORDS,)
    np.testing.assert_array_equal(data.x @ data.x.T, np.eye(4))
