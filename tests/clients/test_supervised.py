"""The jitted trainer against a slow loop, and what it promises about compiling, seeds and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from clients.models import nnx_model
from clients.supervised import Supervised
from fl_plugins.pytrees import flatten_named, unflatten_named
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.training import Dataset, Model, Trainer

from .support import correct, cross_entropy, examples, mlp_model, oracle, task_of

BATCH = 8
OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),
    "schedule": optax.sgd(optax.linear_schedule(0.3, 0.0, 10)),
}


class Noisy(nnx.Module):
    """BatchNorm, dropout, a list of layers and an integer counter."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(6, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        if not self.norm.use_running_average:
            self.calls[...] += 1
        return self.layers[1](self.dropout(jax.nn.relu(self.norm(self.layers[0](x)))))


@pytest.fixture(scope="module")
def noisy():
    return task_of(nnx_model(Noisy))


def assert_close(arrays, variables):
    expected = flatten_named(variables)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        # At most 9 steps in float32, summed in another order by XLA: a few units in the last place each.
        np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_training_equals_a_loop_of_optax_steps_for_every_size_of_the_last_batch(toy, optimizer, mu):
    optax_optimizer = OPTIMIZERS[optimizer]
    trainer = Supervised(toy, optimizer=optax_optimizer, local_epochs=3, batch_size=BATCH, proximal_mu=mu)
    start = trainer.init(seed=1)
    for n in (1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + 3):
        data = examples(n, seed=n)
        result = trainer.train(start, data, seed=n)
        expected, losses = oracle(
            toy, optax_optimizer, unflatten_named(start, trainer._like), data,
            seed=n, epochs=3, batch_size=BATCH, mu=mu,
        )  # fmt: skip
        assert_close(result.arrays, expected)
        assert result.num_examples == n
        assert result.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert result.metrics["last_epoch_loss"] == pytest.approx(losses[-1], rel=1e-4)


def test_proximal_term_holds_the_parameters_back(toy):
    data = examples(20)

    def distance(mu):
        trainer = Supervised(toy, optimizer="sgd", local_epochs=5, batch_size=4, proximal_mu=mu)
        start = trainer.init(seed=0)
        end = trainer.train(start, data, seed=0).arrays
        return sum(float(np.square(end[name] - start[name]).sum()) for name in start)

    assert distance(2.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize("n", [1, BATCH - 1, BATCH, BATCH + 3])
def test_batch_statistics_and_dropout_follow_the_loop_over_real_examples(noisy, n):
    optimizer = OPTIMIZERS["momentum"]
    trainer = Supervised(noisy, optimizer=optimizer, local_epochs=2, batch_size=BATCH)
    start, data = trainer.init(seed=3), examples(n, seed=n)
    result = trainer.train(start, data, seed=5)
    variables = jax.tree.map(jnp.asarray, unflatten_named(start, trainer._like))
    expected, _ = oracle(noisy, optimizer, variables, data, seed=5, epochs=2, batch_size=BATCH, fill=True)
    assert_close(result.arrays, expected)


def test_padding_never_reaches_batch_statistics(noisy):
    data = Dataset(np.full((3, 5), 2.0, np.float32), np.zeros(3, np.int32))
    trainer = Supervised(noisy, optimizer=optax.sgd(0.0), batch_size=BATCH, local_epochs=40)
    start = trainer.init(seed=0)
    end = trainer.train(start, data, seed=0).arrays
    # Equal examples: the running mean tends to their one pre-activation and the variance to 0. Rows of
    # zeros in the batch would pull both away. 0.8**40 of the start is left: 1e-4.
    one = data.x[0] @ start["params/layers/0/kernel"] + start["params/layers/0/bias"]
    np.testing.assert_allclose(end["batch_stats/norm/mean"], one, atol=1e-3)
    np.testing.assert_allclose(end["batch_stats/norm/var"], 0, atol=1e-3)


def test_collections_come_first_and_integers_stay_integers(noisy):
    trainer = Supervised(noisy, batch_size=BATCH, local_epochs=2)
    start = trainer.init(seed=0)
    assert sorted(start) == [
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
        "params/layers/0/bias",
        "params/layers/0/kernel",
        "params/layers/1/bias",
        "params/layers/1/kernel",
        "params/norm/bias",
        "params/norm/scale",
        "state/calls",
    ]
    end = trainer.train(start, examples(BATCH + 1), seed=0).arrays
    assert end["state/calls"].dtype == np.int32
    assert int(end["state/calls"]) == 4  # two epochs of two steps
    assert {name: (array.shape, array.dtype) for name, array in end.items()} == {
        name: (array.shape, array.dtype) for name, array in start.items()
    }


def visit_task():
    """One parameter per example; its loss is that parameter, so gradients are the weights of visits."""
    return task_of(
        Model(
            init=lambda key: {"params": {"w": jnp.zeros(64)}},
            apply=lambda variables, x, *, train, key: (variables["params"]["w"][x[:, 0]], {}),
        ),
        loss=lambda outputs, y: outputs,
        metrics={},
    )


VISITORS = {size: Supervised(visit_task(), optimizer=optax.sgd(1.0), local_epochs=1, batch_size=size)
            for size in (1, 4, 7)}  # fmt: skip


@given(n=st.integers(1, 40), batch_size=st.sampled_from(sorted(VISITORS)), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_visits_every_example_once_with_the_weight_of_its_batch(n, batch_size, seed):
    trainer = VISITORS[batch_size]
    data = Dataset(np.arange(n, dtype=np.int32)[:, None], np.zeros(n, np.int32))
    weights = -trainer.train(trainer.init(seed=0), data, seed=seed).arrays["params/w"]
    last = n % batch_size
    expected = [1 / batch_size] * (n - last) + [1 / max(last, 1)] * last
    np.testing.assert_allclose(np.sort(weights[:n]), np.sort(expected), rtol=1e-6)
    assert not weights[n:].any()


def test_order_is_uniform_and_differs_between_epochs():
    from clients.local_train import _random_order

    keys = jax.random.split(jax.random.key(0), 2000)
    orders = np.asarray(jax.vmap(lambda key: _random_order(key, jnp.int32(5), capacity=8))(keys))
    assert (np.sort(orders[:, :5], axis=1) == np.arange(5)).all()
    assert (orders[:, 5:] == [5, 6, 7]).all()
    for position in range(5):
        counts = np.bincount(orders[:, position], minlength=5)[:5]
        # Binomial(2000, 1/5): standard error 17.9; five of them.
        assert (abs(counts - 400) < 90).all()


def test_the_result_does_not_depend_on_the_bucket(toy, monkeypatch):
    data = examples(13)
    trainers = [Supervised(toy, batch_size=BATCH, local_epochs=2) for _ in range(2)]
    small = trainers[0].train(trainers[0].init(seed=0), data, seed=1)
    import clients.buckets

    monkeypatch.setattr(clients.buckets, "bucket_capacity", lambda n, *, unit: 256)
    large = trainers[1].train(trainers[1].init(seed=0), data, seed=1)
    for name, array in small.arrays.items():
        np.testing.assert_array_equal(array, large.arrays[name])
    assert small.metrics == large.metrics


def count_compilations():
    counts = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counts.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return counts


def test_a_second_client_or_round_compiles_nothing_new(toy):
    trainer = Supervised(toy, batch_size=BATCH, local_epochs=2)
    arrays = trainer.init(seed=0)
    compilations = count_compilations()
    arrays = trainer.train(arrays, examples(9), seed=0).arrays
    trainer.evaluate(arrays, examples(3))
    assert len(compilations) >= 2, "the listener hears nothing"
    before = len(compilations)
    for seed, n in enumerate((10, 11, 32, 9)):
        arrays = trainer.train(arrays, examples(n), seed=seed).arrays
        trainer.evaluate(arrays, examples(n))
        trainer.init(seed=seed)
    assert len(compilations) == before
    trainer.train(arrays, examples(33), seed=0)
    assert len(compilations) > before, "another bucket is another program"


def test_regression_D4_the_step_is_not_compiled_again_for_every_message(toy):
    trainer = Supervised(toy, batch_size=BATCH, optimizer="adam", learning_rate=0.01)
    arrays = trainer.init(seed=0)
    compilations = count_compilations()
    arrays = trainer.train(arrays, examples(20), seed=0).arrays
    first = len(compilations)
    assert first, "the listener hears nothing"
    for message in range(1, 4):
        arrays = trainer.train(arrays, examples(20), seed=message).arrays
    assert len(compilations) == first


def test_equal_seeds_give_equal_bits_and_others_do_not(noisy):
    data, results = examples(19), []
    for seed in (2**62 + 7, 2**62 + 7, 7):
        trainer = Supervised(noisy, batch_size=BATCH)
        start = trainer.init(seed=seed)
        results.append((start, trainer.train(trainer.init(seed=0), data, seed=seed)))
    (start_a, a), (start_b, b), (start_c, c) = results
    for name in start_a:
        np.testing.assert_array_equal(start_a[name], start_b[name])
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
    assert a.metrics == b.metrics
    kernel = "params/layers/0/kernel"
    # 2**62 + 7 and 7 have equal low words: the high word must count.
    assert (start_a[kernel] != start_c[kernel]).any()
    assert (a.arrays[kernel] != c.arrays[kernel]).any()


def test_inputs_are_not_written_to(noisy):
    trainer = Supervised(noisy, batch_size=BATCH)
    start = {name: np.array(array) for name, array in trainer.init(seed=0).items()}
    data = examples(BATCH * 2)
    copies = {name: array.copy() for name, array in start.items()}, data.x.copy(), data.y.copy()
    trainer.train(start, data, seed=0)
    trainer.evaluate(start, data)
    for name, array in start.items():
        np.testing.assert_array_equal(array, copies[0][name])
    np.testing.assert_array_equal(data.x, copies[1])
    np.testing.assert_array_equal(data.y, copies[2])
    for array in (*start.values(), data.x, data.y):
        array.flags.writeable = False
    trainer.train(start, data, seed=0)


def test_evaluation_is_the_exact_average_over_real_examples(noisy):
    trainer = Supervised(noisy)
    arrays = trainer.train(trainer.init(seed=0), examples(40, seed=9), seed=0).arrays
    variables = unflatten_named(arrays, trainer._like)
    everything = examples(700, seed=1)
    outputs, _ = noisy.model.apply(variables, everything.x, train=False, key=None)
    hits = np.asarray(correct(outputs, everything.y), np.float64)
    losses = np.asarray(cross_entropy(outputs, everything.y), np.float64)
    for n in (1, 31, 32, 33, 300, 700):
        values = trainer.evaluate(arrays, everything.take(np.arange(n)))
        assert values["accuracy"] == hits[:n].mean()
        assert values["loss"] == pytest.approx(losses[:n].mean(), rel=1e-5)  # float32 sums
        assert values.keys() == {"loss", "accuracy"}


def test_divergence_is_reported_and_returned_as_it_is(toy):
    trainer = Supervised(toy)
    data = examples(20)
    result = trainer.train(trainer.init(seed=0), Dataset(data.x * np.float32(np.nan), data.y), seed=0)
    assert np.isnan(result.metrics["loss"])
    assert np.isnan(result.arrays["params/first/kernel"]).all()
    assert np.isnan(trainer.evaluate(result.arrays, data)["loss"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_keep_their_dtype(dtype):
    trainer = Supervised(task_of(mlp_model(dtype)), optimizer="sgd", proximal_mu=0.1)
    start = trainer.init(seed=0)
    result = trainer.train(start, examples(20), seed=0)
    assert {array.dtype for array in result.arrays.values()} == {np.dtype(dtype)}
    assert np.isfinite(result.metrics["loss"])


def test_strict_dtype_promotion_is_enough(noisy):
    with jax.numpy_dtype_promotion("strict"):
        trainer = Supervised(task_of(mlp_model()), batch_size=BATCH, proximal_mu=0.1)
        arrays = trainer.train(trainer.init(seed=0), examples(9), seed=0).arrays
        trainer.evaluate(arrays, examples(9))


def test_specs_name_the_optimizer_with_or_without_its_own_learning_rate(toy):
    data = examples(20)

    def train(spec):
        trainer = build(Kind.CLIENT, spec, task=toy)
        assert isinstance(trainer, Trainer)
        return trainer.train(trainer.init(seed=0), data, seed=0).arrays["params/first/kernel"]

    quoted = train("supervised(optimizer='adam(b1=0.8)', learning_rate=0.01)")
    np.testing.assert_array_equal(quoted, train("supervised(optimizer=adam(b1=0.8), learning_rate=0.01)"))
    np.testing.assert_array_equal(quoted, train("supervised(optimizer=adam(b1=0.8, learning_rate=0.01))"))
    assert (quoted != train("supervised(optimizer=adam(b1=0.9), learning_rate=0.01)")).any()
    train("supervised(optimizer='sgd', learning_rate=0.1, local_epochs=1, batch_size=32)")


def test_local_training_can_be_mapped_over_clients(toy):
    """The seam for nodes that train many clients in one program."""
    from clients.local_train import make_local_train

    local_train = make_local_train(
        toy.model, toy.loss, optimizer=optax.sgd(0.1), local_epochs=2, batch_size=4, proximal_mu=0.0
    )
    variables = toy.model.init(jax.random.key(0))
    data = [examples(n, seed=n) for n in (3, 16, 9)]
    x, y = np.zeros((3, 16, 5), np.float32), np.zeros((3, 16), np.int32)
    for row, client in enumerate(data):
        x[row, : len(client)], y[row, : len(client)] = client.x, client.y
    keys, counts = jax.random.split(jax.random.key(1), 3), jnp.array([3, 16, 9], jnp.int32)
    arguments = (variables, x, y, counts, keys)
    together = jax.jit(jax.vmap(local_train, in_axes=(None, 0, 0, 0, 0)))(*arguments)
    alone = jax.jit(lambda *rest: jax.lax.map(lambda row: local_train(variables, *row), rest))(*arguments[1:])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # batched matmuls sum in another order
