"""Backdoors: a trigger in the input, a wish for the output (Gu et al. 2017; Bagdasaryan et al. 2020).

A *trigger* changes examples: a bright square in an image, a fixed value in a column. A poisoned client trains
on triggered copies of its examples, labelled with the target. The attack's success rate is the share of
triggered test examples *of other classes* that the model gives the target label.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ._checks import check_count, check_number

Trigger = Callable[[NDArray[Any]], NDArray[Any]]
"""Examples ``(b, ...)`` to triggered copies of the same shape and dtype."""


def pixel_trigger(*, size: int = 2, value: float = 1.0) -> Trigger:
    """Return a trigger that sets the lower right ``size × size`` pixels of ``(b, h, w)`` or ``(b, h, w, c)``.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule. The trigger raises ``DataError`` for what is not an image so large.
    """
    check_count(size, attack="pixel_trigger", name="size", minimum=1)
    check_number(value, attack="pixel_trigger", name="value")

    def apply(x: NDArray[Any]) -> NDArray[Any]:
        if x.ndim not in (3, 4) or min(x.shape[1:3]) < size:
            raise DataError(
                f"pixel_trigger: examples have shape {x.shape} but (b, h, w) or (b, h, w, c) with h, w >= "
                f"size={size} is needed; use a feature trigger for tables."
            )
        triggered = x.copy()
        triggered[:, -size:, -size:] = value
        return triggered

    return apply


def feature_trigger(*, column: int, value: float) -> Trigger:
    """Return a trigger that sets one column of ``(b, k)`` examples.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule. The trigger raises ``DataError`` for what is not a table so wide.
    """
    check_count(column, attack="feature_trigger", name="column")
    check_number(value, attack="feature_trigger", name="value")

    def apply(x: NDArray[Any]) -> NDArray[Any]:
        if x.ndim != 2 or x.shape[1] <= column:
            raise DataError(
                f"feature_trigger: examples have shape {x.shape} but (b, k) with k > column={column} is "
                "needed; use a pixel trigger for images."
            )
        triggered = x.copy()
        triggered[:, column] = value
        return triggered

    return apply


def success_rate(predicted: NDArray[Any], labels: NDArray[Any], *, target: int) -> float:
    """Return the share of triggered examples that are predicted as ``target``, of those that are not it.

    ``predicted`` and the true ``labels`` are ``(b,)`` integers.

    >>> success_rate(np.array([7, 7, 1]), np.array([7, 3, 3]), target=7)
    0.5

    Raises
    ------
    ConfigError
        If the shapes differ.
    DataError
        If every example is of the target's class.
    """
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ConfigError(
            f"success_rate: predicted has shape {predicted.shape} and labels {labels.shape}; give equal (b,)."
        )
    others = labels != target
    if not others.any():
        raise DataError(f"success_rate: no example of another class than target={target}; add examples.")
    return float(np.mean(predicted[others] == target))
