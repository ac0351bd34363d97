"""Noise on a sum: Gaussian on the float64 sum, then rounded to a grid.

Floating-point noise has holes: which values x + noise can take depends on x, and the low bits of one output
tell 0 from C (Mironov 2012). Here sum and noise are added in float64 and *then* rounded to multiples of a
power of two g, by default the largest one ≤ std · 2⁻¹⁰. A cell of the grid then holds about 2⁴⁰ values of
the float64 noise, so its probability is off by some 2⁻⁴⁰ of itself whatever x is; the rounding
adds g²/12, less than 10⁻⁷ of the variance. This is not an exact sampler: for a proof without that
argument use discrete noise on integers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_number
from fl_plugins.errors import ConfigError

from .random import NoiseSource

GRID_BITS = 10
"""The default grid is the largest power of two ≤ std · 2^−GRID_BITS."""


def grid_for(std: float) -> float:
    """Return the default grid.

    >>> grid_for(1.0) == 2.0**-10, grid_for(3.0) == 2.0**-9
    (True, True)
    """
    check_number("noise", "std", std, minimum=0.0, open_below=True)
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS)


def add_gaussian(
    total: Mapping[str, NDArray[Any]], std: float, source: NoiseSource
) -> dict[str, NDArray[np.float64]]:
    """Return ``total`` plus independent N(0, std²) on every value, rounded to the grid; inputs stay.

    Raises
    ------
    ConfigError
        If a value is not finite, or so large beside ``std`` that float64 would lose the noise's low bits.
    """
    return add_on_grid(total, std, lambda count: source.normal(count, std=std))


def add_on_grid(
    total: Mapping[str, NDArray[Any]], scale: float, draw: Callable[[int], NDArray[np.floating[Any]]]
) -> dict[str, NDArray[np.float64]]:
    """Return ``total`` plus ``draw(size)`` on every array, rounded to the grid of ``scale``; inputs stay.

    Raises
    ------
    ConfigError
        If a value is not finite, or so large beside ``scale`` that float64 would lose the noise's low bits.
    """
    grid = grid_for(scale)
    most = grid * 2.0**52
    noised = {}
    for key, value in total.items():
        exact = np.asarray(value, dtype=np.float64)
        if not np.all(np.abs(exact) < most):  # NaN is not smaller either
            raise ConfigError(
                f"noise: {key} has a value that is not finite, or not below {most:g}, beside which noise of "
                f"scale {scale:g} does not have its distribution in float64; clip what is summed."
            )
        noised[key] = np.asarray(
            np.rint((exact + draw(exact.size).reshape(exact.shape)) / grid) * grid, dtype=np.float64
        )
    return noised
