"""Many clients in one program: the same as one by one, whatever their sizes, and compiled once."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.buckets import stack_in_bucket
from clients.cohort import SLOTS, CohortProgram, deal_blocks
from clients.mapping import MIN_SPEEDUP, choose_mapping, measure_mapping
from clients.models import nnx_model
from clients.networks import CNN, Transformer
from clients.supervised import Supervised
from fl_plugins.errors import DataError, StructureError
from fl_plugins.training import Dataset, TrainsCohorts

from .support import examples, mlp_model, task_of
from .test_supervised import Noisy, count_compilations

ROOT = Path(__file__).parents[2]
BATCH = 8


def image_task(channels=(4, 5)):
    return task_of(nnx_model(lambda rngs: CNN((8, 8, 1), 3, channels=channels, hidden=6, rngs=rngs)))


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(size=(n, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32))


def token_task():
    from clients.losses import accuracy, softmax_cross_entropy

    network = nnx_model(lambda rngs: Transformer(11, context=6, width=8, heads=2, depth=1, rngs=rngs))
    return task_of(network, loss=softmax_cross_entropy, metrics={"accuracy": accuracy})


def tokens(n, seed=0):
    text = np.random.default_rng(seed).integers(0, 11, (n, 7)).astype(np.int32)
    return Dataset(text[:, :-1], text[:, 1:])


CASES = {
    "mlp": (lambda: task_of(mlp_model()), examples, {"optimizer": "adam", "learning_rate": 0.01}),
    "proximal": (lambda: task_of(mlp_model()), examples, {"proximal_mu": 0.5}),
    "bfloat16": (lambda: task_of(mlp_model(jnp.bfloat16)), examples, {"optimizer": "sgd"}),
    "float16": (lambda: task_of(mlp_model(jnp.float16)), examples, {"optimizer": "sgd"}),
    "batch_norm_and_dropout": (lambda: task_of(nnx_model(Noisy)), examples, {}),
    "cnn": (image_task, images, {}),  # with so few channels, convolutions are matrix products
    "wide_cnn": (lambda: image_task((8, 9)), images, {}),
    "transformer": (token_task, tokens, {}),
}


@pytest.fixture(scope="module")
def trainer():
    return Supervised(task_of(mlp_model()), batch_size=BATCH)


@pytest.fixture(scope="module")
def start(trainer):
    return trainer.init(seed=0)


def assert_cohort_equals_one_by_one(trainer, datasets, seeds):
    start = trainer.init(seed=0)
    cohort = trainer.train_cohort(start, datasets, seeds=seeds)
    assert cohort.num_examples.dtype == np.int64
    assert list(cohort.num_examples) == [len(data) for data in datasets]
    for client, (data, seed) in enumerate(zip(datasets, seeds, strict=True)):
        alone = trainer.train(start, data, seed=seed)
        assert alone.arrays.keys() == cohort.arrays.keys()
        for name, array in alone.arrays.items():
            assert array.dtype == cohort.arrays[name].dtype
            np.testing.assert_array_equal(cohort.arrays[name][client], array, err_msg=f"{client} {name}")
        assert alone.metrics == {name: values[client] for name, values in cohort.metrics.items()}
    together = trainer.evaluate_cohort(start, datasets)
    for client, data in enumerate(datasets):
        assert trainer.evaluate(start, data) == {name: values[client] for name, values in together.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_cohort_gives_every_client_the_bits_that_it_gets_alone(case):
    task, make, options = CASES[case]
    trainer = Supervised(task(), batch_size=BATCH, **options)
    assert isinstance(trainer, TrainsCohorts)
    sizes = (1, 8, 9, 30, 31, 32, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 9)
    datasets = [make(n, seed=i) for i, n in enumerate(sizes)]
    assert_cohort_equals_one_by_one(trainer, datasets, [7 * i + 2**62 for i in range(len(sizes))])


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=20),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_sizes_and_seeds_give_the_bits_of_one_by_one(trainer, sizes, seed):
    datasets = [examples(n, seed=i) for i, n in enumerate(sizes)]
    assert_cohort_equals_one_by_one(trainer, datasets, [seed >> (i % 8) for i in range(len(sizes))])


def test_the_comparison_sees_a_seed_that_went_to_another_client(trainer, start):
    """Negative control of the two tests above."""
    data = examples(20)
    right = trainer.train_cohort(start, [data, data], seeds=[1, 2]).arrays
    wrong = trainer.train_cohort(start, [data, data], seeds=[2, 1]).arrays
    name = "params/first/kernel"
    assert (right[name] != wrong[name]).any()
    np.testing.assert_array_equal(right[name][::-1], wrong[name])


@pytest.mark.parametrize("case", ["proximal", "batch_norm_and_dropout", "cnn"])
def test_vmap_equals_the_loop_to_rounding(case):
    task, make, options = CASES[case]
    options = {**options, "optimizer": "sgd", "learning_rate": 0.05, "batch_size": BATCH}
    datasets = [make(n, seed=i) for i, n in enumerate((9, 20, 32, 10, 11, 12))]
    results = [Supervised(task(), mapping=mapping, **options) for mapping in ("loop", "vmap")]
    start = results[0].init(seed=0)
    loop, vmap = (trainer.train_cohort(start, datasets, seeds=range(6)) for trainer in results)
    for name, array in loop.arrays.items():
        # At most 10 steps of plain SGD in float32, batched products summed in another order.
        np.testing.assert_allclose(vmap.arrays[name], array, rtol=2e-4, atol=2e-5, err_msg=name)
    for name, values in loop.metrics.items():
        np.testing.assert_allclose(vmap.metrics[name], values, rtol=1e-4)
    evaluated = [trainer.evaluate_cohort(start, datasets) for trainer in results]
    np.testing.assert_allclose(evaluated[0]["loss"], evaluated[1]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(evaluated[0]["accuracy"], evaluated[1]["accuracy"])


@pytest.mark.parametrize("mapping", ["loop", "vmap"])
def test_a_client_that_diverges_harms_no_other(mapping):
    trainer = Supervised(task_of(mlp_model()), batch_size=BATCH, mapping=mapping)
    start = trainer.init(seed=0)
    good = [examples(n, seed=n) for n in (9, 20, 12)]
    bad = Dataset(np.full((15, 5), np.nan, np.float32), np.zeros(15, np.int32))
    with_bad = trainer.train_cohort(start, [good[0], bad, *good[1:]], seeds=range(4))
    without = trainer.train_cohort(start, [good[0], examples(15), *good[1:]], seeds=range(4))
    for name, array in with_bad.arrays.items():
        assert np.isnan(array[1]).all()
        np.testing.assert_array_equal(array[[0, 2, 3]], without.arrays[name][[0, 2, 3]])
    assert np.isnan(with_bad.metrics["loss"][1])


def test_another_number_of_clients_compiles_nothing_new(trainer, start):
    def round_of(m):
        datasets = [examples(9 + (i + m) % 20, seed=i) for i in range(m)]
        trainer.train_cohort(start, datasets, seeds=range(m))
        trainer.evaluate_cohort(start, datasets)

    round_of(5)
    round_of(1)
    compilations = count_compilations()
    for m in (1, 2, 16, 17, 33, 11, 40):
        round_of(m)
    assert not compilations
    fresh = Supervised(task_of(mlp_model()), batch_size=BATCH + 1)
    fresh.train_cohort(fresh.init(seed=0), [examples(9)], seeds=[0])
    assert compilations, "the listener hears nothing"


def test_no_clients_give_no_rows(trainer, start):
    cohort = trainer.train_cohort(start, [], seeds=[])
    assert {name: (array.shape, array.dtype) for name, array in cohort.arrays.items()} == {
        name: ((0, *array.shape), array.dtype) for name, array in start.items()
    }
    one = trainer.train_cohort(start, [examples(3)], seeds=[0])
    assert cohort.metrics.keys() == one.metrics.keys()
    assert all(values.shape == (0,) for values in cohort.metrics.values())
    assert cohort.num_examples.shape == (0,)
    empty = trainer.evaluate_cohort(start, [])
    assert {name: values.shape for name, values in empty.items()} == {"loss": (0,), "accuracy": (0,)}


def test_bad_cohorts_are_refused_with_the_client_that_is_wrong(trainer, start):
    datasets = [examples(4), examples(0), examples(4)]
    for call in (
        lambda: trainer.train_cohort(start, datasets, seeds=range(3)),
        lambda: trainer.evaluate_cohort(start, datasets),
    ):
        with pytest.raises(DataError, match="Dataset 1 of 3: 0 examples"):
            call()
    with pytest.raises(ValueError, match="zip"):
        trainer.train_cohort(start, [examples(4)], seeds=[1, 2])
    with pytest.raises(StructureError, match="params/"):
        trainer.train_cohort({}, [examples(4)], seeds=[1])


def test_inputs_are_not_written_to_and_results_do_not_share_memory(trainer, start):
    datasets = [examples(BATCH, seed=i) for i in range(3)]
    copies = {name: array.copy() for name, array in start.items()}
    first = trainer.train_cohort(start, datasets, seeds=range(3))
    kept = {name: array.copy() for name, array in first.arrays.items()}
    trainer.train_cohort(start, [examples(BATCH, seed=9)] * 3, seeds=range(3))
    for name, array in copies.items():
        np.testing.assert_array_equal(start[name], array)
        np.testing.assert_array_equal(first.arrays[name], kept[name])
    for i, data in enumerate(datasets):
        np.testing.assert_array_equal(data.x, examples(BATCH, seed=i).x)


# -- Blocks -----------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=90),
    num_devices=st.sampled_from([1, 2, 4]),
    ladder=st.sampled_from(sorted(SLOTS.values())),
)
def test_blocks_hold_every_client_once_in_its_own_bucket(sizes, num_devices, ladder):
    datasets = [examples(n) for n in sizes]
    blocks = list(deal_blocks(datasets, unit=BATCH, sizes=ladder, num_devices=num_devices))
    assert sorted(client for block in blocks for client in block.clients) == list(range(len(sizes)))
    for block in blocks:
        per_device = block.slots // len(block.counts)
        assert per_device in ladder
        assert len(block.counts) in (1, num_devices)
        # Device d has the slots from d * per_device on; the real ones come first.
        expected = [d * per_device + i for d, count in enumerate(block.counts) for i in range(count)]
        assert sorted(block.positions) == expected
        assert block.counts.max() - block.counts.min() <= 1
        assert all(len(datasets[client]) <= block.capacity for client in block.clients)
        assert all(4 * len(datasets[client]) > block.capacity or block.capacity == BATCH
                   for client in block.clients)  # fmt: skip


def test_stacked_data_is_not_copied_by_jax():
    for slots in (1, 3):
        stacked = stack_in_bucket([images(5)], [0], slots=slots, capacity=8)
        assert jax.device_put(stacked.x).unsafe_buffer_pointer() == stacked.x.ctypes.data


def test_one_large_client_does_not_pad_the_small_ones():
    blocks = list(deal_blocks([examples(8)] * 5 + [examples(5000)], unit=BATCH, sizes=(1, 16), num_devices=1))
    assert sorted((block.capacity, block.slots) for block in blocks) == [(8, 16), (8192, 1)]


# -- Choosing the mapping ---------------------------------------------------------------------------------


class Clock:
    """Time that passes only while a block runs."""

    def __init__(self, seconds):
        self.seconds, self.now, self.runs = seconds, 0.0, []

    def run(self, mapping):
        self.runs.append(mapping)
        self.now += self.seconds[mapping]

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("loop", "vmap", "chosen"),
    [(2.0, 1.0, "vmap"), (MIN_SPEEDUP, 1.0, "vmap"), (MIN_SPEEDUP - 0.1, 1.0, "loop"), (1.0, 20.0, "loop")],
)
def test_vmap_has_to_win_clearly(loop, vmap, chosen):
    clock = Clock({"loop": loop, "vmap": vmap})
    assert measure_mapping(clock.run, clock=clock) == chosen
    assert set(clock.runs) == {"loop", "vmap"}


def test_on_a_cpu_nothing_is_tried():
    assert choose_mapping(lambda mapping: pytest.fail("tried"), platform="cpu") == "loop"


def test_elsewhere_both_are_timed_once_and_the_choice_is_kept(monkeypatch):
    import clients.cohort

    asked = []

    def choose(run, *, platform):
        for mapping in ("loop", "vmap"):
            run(mapping)
        asked.append(platform)
        return "vmap"

    monkeypatch.setattr(clients.cohort, "choose_mapping", choose)
    trainer = Supervised(task_of(mlp_model()), batch_size=BATCH)
    datasets = [examples(n, seed=n) for n in (9, 200, 12, 9)]
    start = trainer.init(seed=0)
    trainer.train(start, datasets[0], seed=0)
    assert not asked, "one client alone needs no choice"
    chosen = trainer.train_cohort(start, datasets, seeds=range(4))
    trainer.train_cohort(start, datasets, seeds=range(4))
    assert len(asked) == 1
    vmap = Supervised(task_of(mlp_model()), batch_size=BATCH, mapping="vmap")
    for name, array in vmap.train_cohort(start, datasets, seeds=range(4)).arrays.items():
        np.testing.assert_array_equal(chosen.arrays[name], array)


# -- Several devices --------------------------------------------------------------------------------------

SIZES = (9, 30, 31, 12, 13, 14, 15, 16, 17, 18, 10, 32, 11, 25, 26, 27, 28, 29, 30, 9, 10)
"""One bucket, and with two devices one block that is not full on either."""

ON_TWO_DEVICES = textwrap.dedent(
    """
    import sys
    import jax
    import numpy as np
    from tests.clients.test_cohort import CASES, SIZES
    from clients.supervised import Supervised

    out, case, mapping = sys.argv[1:]
    task, make, options = CASES[case]
    trainer = Supervised(task(), batch_size=8, mapping=mapping, **options)
    assert len(trainer._train.devices) == jax.local_device_count() == 2
    datasets = [make(n, seed=i) for i, n in enumerate(SIZES)]
    start = trainer.init(seed=0)
    cohort = trainer.train_cohort(start, datasets, seeds=range(len(SIZES)))
    values = trainer.evaluate_cohort(start, datasets)
    assert {many for (_, many), program in trainer._train.programs.items() if program._cache_size()} == {True}
    np.savez(out, **cohort.arrays, **{"train " + k: v for k, v in cohort.metrics.items()},
             **{"evaluate " + k: v for k, v in values.items()})
    """
)


@pytest.mark.parametrize(("case", "mapping"), [("proximal", "loop"), ("cnn", "loop"), ("proximal", "vmap")])
def test_sharding_over_two_devices_changes_nothing(tmp_path, case, mapping):
    finished = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES, str(tmp_path / "two.npz"), case, mapping],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    two = dict(np.load(tmp_path / "two.npz"))
    task, make, options = CASES[case]
    trainer = Supervised(task(), batch_size=BATCH, **options)
    datasets = [make(n, seed=i) for i, n in enumerate(SIZES)]
    start = trainer.init(seed=0)
    cohort = trainer.train_cohort(start, datasets, seeds=range(len(SIZES)))
    values = trainer.evaluate_cohort(start, datasets)
    one = {
        **cohort.arrays,
        **{f"train {name}": rows for name, rows in cohort.metrics.items()},
        **{f"evaluate {name}": rows for name, rows in values.items()},
    }
    assert one.keys() == two.keys()
    for name, array in one.items():
        if mapping == "loop":
            np.testing.assert_array_equal(two[name], array, err_msg=name)
        else:  # batched products sum in another order, and momentum carries the rounding on
            np.testing.assert_allclose(two[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_default_device_is_the_only_one_used():
    with jax.default_device(jax.devices()[0]):
        assert len(CohortProgram(function=lambda *_: None, unit=1).devices) == 1


class Counter(nnx.Module):
    """A model whose only state says how often it was run."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(3))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        self.calls[...] += 1
        return x[:, :3] * self.scale[...]


def test_every_client_takes_its_own_number_of_steps():
    for mapping in ("loop", "vmap"):
        trainer = Supervised(task_of(nnx_model(Counter)), batch_size=4, local_epochs=3, mapping=mapping)
        cohort = trainer.train_cohort(
            trainer.init(seed=0), [examples(n) for n in (1, 4, 5, 40)], seeds=range(4)
        )
        assert list(cohort.arrays["state/calls"]) == [3, 3, 6, 30]
