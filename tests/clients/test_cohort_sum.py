"""Updates summed by the program that trains: the bits of the models that it would have returned."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clients.models import nnx_model
from clients.supervised import Supervised
from fl_plugins.aggregation.streaming import WeightedSum
from fl_plugins.errors import DataError
from fl_plugins.records import Layout, UpdateRows
from fl_plugins.training import CohortSum, Dataset, NamedArrays, SumsCohorts

from .support import CLASSES, FEATURES, examples, mlp_model, task_of

ROOT = Path(__file__).parents[2]
SIZES = (7, 16, 1, 40, 9)
SEEDS = [2**40 + i for i in range(len(SIZES))]


class BatchNormed(nnx.Module):
    """Carries running statistics, all of them float32."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.dense = nnx.BatchNorm(FEATURES, rngs=rngs), nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x))


def trainer(**options) -> Supervised:
    return Supervised(task_of(mlp_model()), local_epochs=2, batch_size=8, **options)


def datasets() -> list[Dataset]:
    return [examples(n, seed=n) for n in SIZES]


def mean_of_models(
    trainer: Supervised, arrays: NamedArrays, cohort: list[Dataset], *, weighted: bool, left_out: int = -1
) -> bytes:
    """The mean update by way of all models, as a node computes it from ``train_cohort``."""
    trained = trainer.train_cohort(arrays, cohort, seeds=SEEDS)
    used = [i for i in range(len(cohort)) if i != left_out]
    layout = Layout.of(arrays)
    rows = UpdateRows(layout, arrays, [{k: v[i] for k, v in trained.arrays.items()} for i in used])
    weights = np.array([float(len(cohort[i])) if weighted else 1.0 for i in used])
    total = WeightedSum.zeros(layout.size)
    total.add_rows(rows, weights)
    return total.divided_by(float(weights.sum()), np.dtype(np.float32)).tobytes()


def mean_of_sum(arrays: NamedArrays, summed: CohortSum, weight: float) -> bytes:
    layout = Layout.of(arrays)
    total = WeightedSum.zeros(layout.size)
    for part in summed.parts:
        high, low = (np.concatenate([half[key].ravel() for key in layout.float_keys]) for half in part)
        total.merge(WeightedSum(high, low))
    return total.divided_by(weight, np.dtype(np.float32)).tobytes()


@pytest.mark.parametrize("weighted", [True, False])
def test_the_sum_has_the_bits_of_the_models_that_are_not_returned(weighted):
    ours = trainer()
    assert isinstance(ours, SumsCohorts)
    arrays, cohort = ours.init(seed=1), datasets()
    summed = ours.sum_cohort(arrays, cohort, seeds=SEEDS, weighted=weighted)
    weight = float(sum(SIZES) if weighted else len(SIZES))
    assert mean_of_sum(arrays, summed, weight) == mean_of_models(ours, arrays, cohort, weighted=weighted)
    other = mean_of_models(ours, arrays, cohort, weighted=not weighted)
    assert mean_of_sum(arrays, summed, weight) != other  # the negative control
    trained = ours.train_cohort(arrays, cohort, seeds=SEEDS)
    for name, values in trained.metrics.items():
        np.testing.assert_array_equal(summed.metrics[name], values)
    assert summed.num_examples.tolist() == list(SIZES)
    assert not summed.not_finite


def test_a_client_that_diverges_is_named_and_left_out():
    ours = trainer()
    arrays, cohort = ours.init(seed=1), datasets()
    cohort[3] = Dataset(np.full_like(cohort[3].x, np.nan), cohort[3].y)
    summed = ours.sum_cohort(arrays, cohort, seeds=SEEDS, weighted=False)
    assert list(summed.not_finite) == [3]
    diverged = ours.train_cohort(arrays, cohort, seeds=SEEDS).arrays[summed.not_finite[3]]
    assert not np.isfinite(diverged[3] - arrays[summed.not_finite[3]]).all()
    without = mean_of_models(ours, arrays, cohort, weighted=False, left_out=3)
    assert mean_of_sum(arrays, summed, 4.0) == without


def test_statistics_that_are_carried_along_are_summed_too():
    ours = Supervised(task_of(nnx_model(BatchNormed)), local_epochs=2, batch_size=8)
    arrays, cohort = ours.init(seed=1), datasets()
    assert any(not key.startswith("params/") for key in arrays)
    summed = ours.sum_cohort(arrays, cohort, seeds=SEEDS, weighted=True)
    found = mean_of_sum(arrays, summed, float(sum(SIZES)))
    assert found == mean_of_models(ours, arrays, cohort, weighted=True)


def test_what_cannot_be_summed_exactly_is_left_to_others():
    narrow = Supervised(task_of(mlp_model(jnp.bfloat16)), batch_size=8)
    assert narrow.sum_cohort(narrow.init(seed=1), datasets(), seeds=SEEDS, weighted=True) is None
    batched = trainer(mapping="vmap")
    assert batched.sum_cohort(batched.init(seed=1), datasets(), seeds=SEEDS, weighted=True) is None
    with pytest.raises(DataError, match="Dataset 1 of 2"):
        trainer().sum_cohort(trainer().init(seed=1), [examples(3), examples(0)], seeds=[0, 1], weighted=True)


def test_two_devices_add_up_to_the_bits_of_one():
    script = textwrap.dedent("""
        import jax
        from tests.clients.test_cohort_sum import SEEDS, SIZES, datasets, mean_of_models, mean_of_sum, trainer

        assert len(jax.local_devices()) == 2
        ours = trainer()
        arrays, cohort = ours.init(seed=1), datasets()
        summed = ours.sum_cohort(arrays, cohort, seeds=SEEDS, weighted=True)
        assert len(summed.parts) > 1
        found = mean_of_sum(arrays, summed, float(sum(SIZES)))
        with jax.default_device(jax.local_devices()[0]):
            assert mean_of_models(trainer(), arrays, cohort, weighted=True) == found
    """)
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )
