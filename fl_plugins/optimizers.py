"""Optax's optimizers by name, for trainers and for the server (Reddi et al. 2021).

Defaults are optax's own. optax is imported when an optimizer is built, so that listing plugins stays cheap.
"""

import math
from typing import TYPE_CHECKING

from .errors import ConfigError
from .registry import Kind, register

if TYPE_CHECKING:
    import optax


@register(Kind.OPTIMIZER, "sgd", paper="Sutskever et al. 2013 (momentum); Nesterov 1983")
def sgd(
    learning_rate: float, momentum: float = 0.0, nesterov: bool = False
) -> "optax.GradientTransformation":
    """Stochastic gradient descent, with (Nesterov) momentum if ``momentum`` is not 0.

    Parameters
    ----------
    learning_rate : float
        Step size, > 0.
    momentum : float
        Part of the last step that is kept, in [0, 1).
    nesterov : bool
        Look ahead along the momentum.
    """
    import optax

    _positive("sgd", learning_rate=learning_rate)
    _decay("sgd", momentum=momentum)
    if nesterov and momentum == 0.0:
        raise ConfigError(
            "sgd: nesterov=True, but momentum=0.0 leaves nothing to look ahead along; set momentum."
        )
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)


@register(Kind.OPTIMIZER, "adam", paper="Kingma and Ba 2015, Algorithm 1")
def adam(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> "optax.GradientTransformation":
    """Adam.

    Parameters
    ----------
    learning_rate : float
        Step size, > 0.
    b1, b2 : float
        Decay of the first and second moment, in [0, 1).
    eps : float
        Added to the root of the second moment, > 0.
    """
    import optax

    _positive("adam", learning_rate=learning_rate, eps=eps)
    _decay("adam", b1=b1, b2=b2)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@register(Kind.OPTIMIZER, "adamw", paper="Loshchilov and Hutter 2019, Algorithm 2")
def adamw(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4
) -> "optax.GradientTransformation":
    """Adam with decoupled weight decay.

    Parameters
    ----------
    learning_rate : float
        Step size, > 0.
    b1, b2 : float
        Decay of the first and second moment, in [0, 1).
    eps : float
        Added to the root of the second moment, > 0.
    weight_decay : float
        Strength of the decay, multiplied by the learning rate; >= 0.
    """
    import optax

    _positive("adamw", learning_rate=learning_rate, eps=eps)
    _decay("adamw", b1=b1, b2=b2)
    _not_negative("adamw", weight_decay=weight_decay)
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


@register(Kind.OPTIMIZER, "yogi", paper="Zaheer et al. 2018, Algorithm 2")
def yogi(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3
) -> "optax.GradientTransformation":
    """Yogi: Adam whose second moment moves by additive steps.

    Parameters
    ----------
    learning_rate : float
        Step size, > 0.
    b1, b2 : float
        Decay of the first and second moment, in [0, 1).
    eps : float
        Added to the root of the second moment, > 0.
    """
    import optax

    _positive("yogi", learning_rate=learning_rate, eps=eps)
    _decay("yogi", b1=b1, b2=b2)
    return optax.yogi(learning_rate, b1=b1, b2=b2, eps=eps)


@register(Kind.OPTIMIZER, "adagrad", paper="Duchi et al. 2011, Figure 1")
def adagrad(
    learning_rate: float, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> "optax.GradientTransformation":
    """Adagrad.

    Parameters
    ----------
    learning_rate : float
        Step size, > 0.
    initial_accumulator_value : float
        What the sum of squared gradients starts from, >= 0.
    eps : float
        Added under the root of that sum, > 0.
    """
    import optax

    _positive("adagrad", learning_rate=learning_rate, eps=eps)
    _not_negative("adagrad", initial_accumulator_value=initial_accumulator_value)
    return optax.adagrad(learning_rate, initial_accumulator_value=initial_accumulator_value, eps=eps)


def _positive(optimizer: str, **values: float) -> None:
    """Check that every value is finite and > 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{optimizer}: {name}={value}, but it must be finite and > 0.")


def _not_negative(optimizer: str, **values: float) -> None:
    """Check that every value is finite and >= 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{optimizer}: {name}={value}, but it must be finite and >= 0.")


def _decay(optimizer: str, **values: float) -> None:
    """Check that every value lies in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{optimizer}: {name}={value}, but it must lie in [0, 1).")
