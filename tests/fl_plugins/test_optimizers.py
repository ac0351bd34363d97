"""Optimizers against loops straight from the papers, in float64."""

import inspect
import math
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.registry import Kind, available, load
from fl_plugins.spec import build

RTOL = 1e-12  # a handful of float64 operations per step, five steps
GRADIENTS = np.random.default_rng(0).normal(size=(5, 4))
START = np.array([1.0, -2.0, 0.5, 3.0])


def run(optimizer: optax.GradientTransformation) -> np.ndarray:
    with jax.enable_x64(True):
        parameters = jax.numpy.asarray(START)
        state = optimizer.init(parameters)
        for gradient in GRADIENTS:
            update, state = optimizer.update(jax.numpy.asarray(gradient), state, parameters)
            parameters = optax.apply_updates(parameters, update)
        return np.asarray(parameters)


def sgd(*, rate, momentum=0.0, nesterov=False):
    x, v = START.copy(), np.zeros(4)
    for g in GRADIENTS:
        v = momentum * v + g
        x -= rate * (g + momentum * v if nesterov else v)
    return x


def adam(*, rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    x, m, v = START.copy(), np.zeros(4), np.zeros(4)
    for t, g in enumerate(GRADIENTS, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        x -= rate * (step + weight_decay * x)
    return x


def adagrad(*, rate, start=0.1, eps=1e-7):
    x, s = START.copy(), np.full(4, start)
    for g in GRADIENTS:
        s += g**2
        x -= rate * g / np.sqrt(s + eps)
    return x


def yogi(*, rate, b1=0.9, b2=0.999, eps=1e-3, start=1e-6):
    """Zaheer et al. with bias correction; optax starts both moments from 1e-6."""
    x, m, v = START.copy(), np.full(4, start), np.full(4, start)
    for t, g in enumerate(GRADIENTS, 1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - g**2) * g**2
        x -= rate * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return x


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sgd(learning_rate=0.1)", sgd(rate=0.1)),
        ("sgd(0.1, momentum=0.9)", sgd(rate=0.1, momentum=0.9)),
        ("sgd(0.1, 0.9, nesterov=True)", sgd(rate=0.1, momentum=0.9, nesterov=True)),
        ("adam(0.01, b1=0.8, b2=0.9, eps=0.001)", adam(rate=0.01, b1=0.8, b2=0.9, eps=0.001)),
        ("adam(0.01)", adam(rate=0.01)),
        ("adamw(0.01)", adam(rate=0.01, weight_decay=1e-4)),
        (
            "adamw(0.01, b1=0.5, b2=0.6, eps=0.1, weight_decay=0.3)",
            adam(rate=0.01, b1=0.5, b2=0.6, eps=0.1, weight_decay=0.3),
        ),
        ("adagrad(0.1)", adagrad(rate=0.1)),
        ("adagrad(0.1, initial_accumulator_value=2.0, eps=0.5)", adagrad(rate=0.1, start=2.0, eps=0.5)),
        ("yogi(0.01)", yogi(rate=0.01)),
        ("yogi(0.01, b1=0.5, b2=0.6, eps=0.1)", yogi(rate=0.01, b1=0.5, b2=0.6, eps=0.1)),
    ],
)
def test_an_optimizer_steps_as_its_paper_says(spec, expected):
    np.testing.assert_allclose(run(build(Kind.OPTIMIZER, spec)), expected, rtol=RTOL)


OPTIMIZERS = sorted(entry.name for entry in available(Kind.OPTIMIZER) if entry.owner == "fl-plugins")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_may_come_from_the_program_and_the_text_overrides_it(name):
    given = run(build(Kind.OPTIMIZER, name, defaults={"learning_rate": 0.25}))
    np.testing.assert_array_equal(given, run(build(Kind.OPTIMIZER, f"{name}(learning_rate=0.25)")))
    overridden = run(build(Kind.OPTIMIZER, f"{name}(0.5)", defaults={"learning_rate": 0.25}))
    np.testing.assert_array_equal(overridden, run(build(Kind.OPTIMIZER, f"{name}(0.5)")))
    assert not np.array_equal(given, overridden)
    with pytest.raises(ConfigError, match="learning_rate not given"):
        build(Kind.OPTIMIZER, name)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_a_learning_rate_must_be_finite_and_positive(name, value):
    with pytest.raises(ConfigError, match=f"{name}: learning_rate={value}, but it must be finite and > 0"):
        load(Kind.OPTIMIZER, name).factory(learning_rate=value)


def bad_values():
    rules = {
        **dict.fromkeys(("momentum", "b1", "b2"), (-0.1, 1.0, 1.5, math.nan)),
        "eps": (0.0, -1.0, math.inf),
        **dict.fromkeys(("weight_decay", "initial_accumulator_value"), (-0.1, math.inf, math.nan)),
    }
    for name in OPTIMIZERS:
        for parameter in load(Kind.OPTIMIZER, name).parameters:
            for value in rules.get(parameter.name, ()):
                yield name, parameter.name, value


@pytest.mark.parametrize(("name", "parameter", "value"), list(bad_values()))
def test_every_parameter_has_its_rule(name, parameter, value):
    with pytest.raises(ConfigError, match=f"{name}: {parameter}={value}, but it must"):
        load(Kind.OPTIMIZER, name).factory(learning_rate=0.1, **{parameter: value})


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ConfigError, match="sgd: nesterov=True, but momentum"):
        build(Kind.OPTIMIZER, "sgd(0.1, nesterov=True)")
    with pytest.raises(ConfigTypeError, match="nesterov='yes'"):
        build(Kind.OPTIMIZER, "sgd(0.1, 0.9, nesterov='yes')")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_optax_own(name):
    own = inspect.signature(getattr(optax, name)).parameters
    for parameter in load(Kind.OPTIMIZER, name).parameters:
        if not parameter.required and parameter.name != "momentum":
            assert own[parameter.name].default == parameter.default


def test_importing_the_module_does_not_import_optax_or_jax():
    code = "import sys, fl_plugins.optimizers; print({'optax', 'jax', 'flwr'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
