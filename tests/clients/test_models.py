"""Flax modules as pure models: collections, modes, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from clients.models import linen_model, nnx_model
from clients.supervised import Supervised
from fl_plugins.errors import ConfigError

from .support import examples, task_of


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return jnp.stack([self.first(x), self.second(x)]) * self.scale


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        x = linen.Dense(6)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(3)(x)


class PlainLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x)


class DeterministicLinen(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic):
        return linen.Dropout(0.5)(linen.Dense(3)(x), deterministic=deterministic)


def test_nnx_dropout_follows_the_key_and_every_stream_has_its_own():
    model = nnx_model(Dropping)
    variables = model.init(jax.random.key(0))
    assert list(variables) == ["params"]  # RNG state is not part of the model
    x = jnp.ones((1, 200))
    first, _ = model.apply(variables, x, train=True, key=jax.random.key(1))
    again, _ = model.apply(variables, x, train=True, key=jax.random.key(1))
    other, _ = model.apply(variables, x, train=True, key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()
    # Binomial(200, 1/2): standard error 7; five of them.
    assert abs(int((np.asarray(first[0]) == 0).sum()) - 100) < 35
    evaluated, _ = model.apply(variables, x, train=False, key=None)
    np.testing.assert_array_equal(evaluated, jnp.ones((2, 1, 200)))


def test_nnx_init_gives_the_module_s_own_values():
    key = jax.random.key(5)
    variables = nnx_model(lambda rngs: nnx.Linear(4, 3, rngs=rngs)).init(key)
    np.testing.assert_array_equal(
        variables["params"]["kernel"], nnx.Linear(4, 3, rngs=nnx.Rngs(key)).kernel.get_value()
    )


def test_nnx_evaluation_leaves_statistics_alone_and_training_moves_them():
    model = nnx_model(lambda rngs: nnx.BatchNorm(5, momentum=0.5, rngs=rngs))
    variables = model.init(jax.random.key(0))
    x = examples(8).x
    _, kept = model.apply(variables, x, train=False, key=None)
    np.testing.assert_array_equal(kept["batch_stats"]["mean"], np.zeros(5))
    _, moved = model.apply(variables, x, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.5 * x.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_path_that_is_both_index_and_name_is_refused():
    class Twin(nnx.Module):
        def __init__(self, rngs):
            self.parts = nnx.Dict({"0": nnx.Param(jnp.ones(2))})

    assert nnx_model(Twin).init(jax.random.key(0))["params"] == {"parts": {"0": pytest.approx(np.ones(2))}}
    from clients import models

    class Variable:
        def get_value(self):
            return np.ones(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_leaves", lambda state: [(("a", 0), Variable()), (("a", "0"), Variable())])
        with pytest.raises(ConfigError, match="'a/0' occurs twice"):
            models._nested(object())


@pytest.mark.parametrize("module", [Linen(), PlainLinen(), DeterministicLinen()])
def test_linen_modules_train_and_keep_their_collections(module):
    trainer = Supervised(task_of(linen_model(module, jnp.ones((1, 5)))), batch_size=8)
    start = trainer.init(seed=0)
    result = trainer.train(start, examples(20), seed=0)
    assert start.keys() == result.arrays.keys()
    assert {name.partition("/")[0] for name in start} <= {"params", "batch_stats"}
    changed = [name for name in start if (start[name] != result.arrays[name]).any()]
    assert set(changed) == set(start)
    assert (
        trainer.evaluate(result.arrays, examples(20))["loss"] < trainer.evaluate(start, examples(20))["loss"]
    )


def test_linen_dropout_is_off_in_evaluation_and_follows_the_key_in_training():
    model = linen_model(DeterministicLinen(), jnp.ones((1, 5)))
    variables = model.init(jax.random.key(0))
    x = examples(50).x
    outputs = [model.apply(variables, x, train=True, key=jax.random.key(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()
    assert (np.asarray(model.apply(variables, x, train=False, key=None)[0]) != 0).all()
