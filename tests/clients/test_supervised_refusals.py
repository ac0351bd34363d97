"""What the jitted trainer refuses: data, arrays, models and parameters that it cannot train with."""

import jax.numpy as jnp
import numpy as np
import pytest

from clients.supervised import Supervised
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError, StructureError
from fl_plugins.training import Dataset, Model

from .support import correct, cross_entropy, examples, mlp_model, task_of


def test_one_example_trains_and_none_is_an_error_that_says_so(toy):
    trainer = Supervised(toy)
    start = trainer.init(seed=0)
    assert trainer.train(start, examples(1), seed=0).num_examples == 1
    for call in (
        lambda: trainer.train(start, examples(0), seed=0),
        lambda: trainer.evaluate(start, examples(0)),
    ):
        with pytest.raises(DataError, match="0 examples"):
            call()


def test_text_is_no_input(toy):
    trainer = Supervised(toy)
    data = Dataset(np.array([["a"] * 5]), np.array([0]))
    with pytest.raises(DataError, match="x has dtype <U1"):
        trainer.train(trainer.init(seed=0), data, seed=0)


def test_arrays_of_another_model_are_refused_by_name(toy):
    trainer = Supervised(toy)
    arrays = trainer.init(seed=0)
    renamed = {name.replace("second", "third"): array for name, array in arrays.items()}
    for wrong in (renamed, {**arrays, "params/first/bias": np.zeros(8, np.float32)}):
        with pytest.raises(StructureError, match="params/"):
            trainer.train(wrong, examples(4), seed=0)
        with pytest.raises(StructureError, match="params/"):
            trainer.evaluate(wrong, examples(4))


def test_a_loss_that_is_already_a_mean_is_refused():
    task = task_of(mlp_model(), loss=lambda outputs, y: cross_entropy(outputs, y).mean())
    trainer = Supervised(task)
    with pytest.raises(StructureError, match=r"loss: returned shape \(\) .* one value per example"):
        trainer.train(trainer.init(seed=0), examples(4), seed=0)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"local_epochs": 0}, ConfigError, "local_epochs=0 must be >= 1"),
        ({"local_epochs": 1.5}, ConfigTypeError, "local_epochs=1.5 must be an int"),
        ({"local_epochs": True}, ConfigTypeError, "local_epochs=True must be an int"),
        ({"batch_size": -1}, ConfigError, "batch_size=-1 must be >= 1"),
        ({"learning_rate": 0.0}, ConfigError, "learning_rate=0.0 must be finite and > 0"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate=nan"),
        ({"learning_rate": "fast"}, ConfigTypeError, "learning_rate='fast' must be a number"),
        ({"proximal_mu": -0.1}, ConfigError, "proximal_mu=-0.1 must be finite and >= 0"),
        ({"mapping": "scan"}, ConfigError, "mapping='scan' must be one of auto, loop, vmap"),
        ({"optimizer": 3}, ConfigTypeError, "optimizer=3 must be the name"),
        ({"optimizer": "sgd(momentum=2.0)"}, ConfigError, "momentum"),
    ],
)
def test_bad_parameters_are_refused_at_construction(toy, parameters, error, message):
    with pytest.raises(error, match=message):
        Supervised(toy, **parameters)


def test_models_that_cannot_be_trained_are_refused_at_construction():
    def model(params):
        return Model(init=lambda key: {"params": params}, apply=lambda *a, **k: None)

    with pytest.raises(ConfigError, match="no parameters"):
        Supervised(task_of(model({})))
    with pytest.raises(ConfigError, match="'w' of task 'toy' has dtype int32"):
        Supervised(task_of(model({"w": jnp.arange(3)})))
    with pytest.raises(ConfigError, match="a metric named 'loss'"):
        Supervised(task_of(mlp_model(), metrics={"loss": correct}))
