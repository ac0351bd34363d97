"""Noise on integers, and Laplace noise: arrays from a :class:`NoiseSource`.

Integer noise is drawn by inverting a table of its distribution function, computed in integers and kept to 128
bits: a 64-bit word finds the entry, and in the rare case that it ties with one, a second word decides.

**Distance from the true distribution.** Values beyond the table have probability < 2⁻¹²⁰ together, and each
of at most 2¹⁸ entries is off by less than 2⁻¹²⁵: a draw is within 2⁻¹⁰⁵ in total variation. All draws
that a release ever takes, say 2⁴⁵, add less than 2⁻⁶⁰ to δ.

Laplace noise is continuous, in float64: as with Gaussian noise, sum and noise are added and then rounded to a
grid (see :mod:`.noise`). Its tail ends at 36.7 scales (probability 2⁻⁵³), so the ε of the accounting holds
up to that much δ for each value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_number

from .noise import add_on_grid
from .random import NoiseSource

MAX_STD = 4096.0
"""Largest standard deviation in grid steps; a finer grid gains nothing (rounding adds 1/4 step² at most)."""

MIN_STD = 0.25
"""Smallest one: below, the noise is nearly always 0, and nobody is protected."""

_FRACTION = 192
"""Binary places of the weights while a table is made."""

_PLACES = 128
"""Binary places of the table."""

_LOW = (1 << 64) - 1
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerTable:
    """The distribution function of noise on the integers from ``first``; :meth:`draw` inverts it.

    Parameters
    ----------
    first : int
        The smallest value.
    high, low : NDArray
        ``(values − 1,)`` uint64: P(X ≤ first + i) times 2⁶⁴, its whole part and the next 64 binary places.
    """

    first: int
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @classmethod
    def symmetric(cls, weights: list[int]) -> Self:
        """Return the table of a distribution in which k and −k both have weight ``weights[|k|]``."""
        both = weights[:0:-1] + weights
        total, running = sum(both), 0
        bounds = []
        for weight in both[:-1]:
            running += weight
            bounds.append((running << _PLACES) // total)
        return cls(
            first=1 - len(weights),
            high=np.array([bound >> 64 for bound in bounds], np.uint64),
            low=np.array([bound & _LOW for bound in bounds], np.uint64),
        )

    def draw(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """Return ``size`` independent values."""
        words = source.words(size)
        out = np.empty(size, np.int64)
        for start in range(0, size, _CHUNK):
            part = words[start : start + _CHUNK]
            # A word equal to an entry's high half is above it unless the low half says otherwise.
            index = np.searchsorted(self.high, part, side="right")
            tied = np.flatnonzero(self.high[np.maximum(index - 1, 0)] == part)
            for at in tied:
                index[at] = self._untie(int(part[at]), int(source.words(1)[0]))
            out[start : start + _CHUNK] = index
        return out + self.first

    def _untie(self, high: int, low: int) -> int:
        """Return how many entries are ≤ the 128-bit number."""
        begin, end = (
            int(np.searchsorted(self.high, np.uint64(high), side=side)) for side in ("left", "right")
        )
        return begin + int(np.searchsorted(self.low[begin:end], np.uint64(low), side="right"))


def discrete_gaussian(size: int, *, std: float, source: NoiseSource) -> NDArray[np.int64]:
    """Return ``size`` independent discrete Gaussians: P(k) ∝ exp(−k² / 2std²).

    Raises
    ------
    ConfigError
        If ``std`` is outside [MIN_STD, MAX_STD].
    """
    _check_std("discrete Gaussian", std)
    return _gaussian_table(float(std)).draw(size, source)


def skellam(size: int, *, std: float, source: NoiseSource) -> NDArray[np.int64]:
    """Return ``size`` independent Skellam values (differences of two equal Poissons) of variance std².

    Raises
    ------
    ConfigError
        If ``std`` is outside [MIN_STD, MAX_STD].
    """
    _check_std("Skellam", std)
    return _skellam_table(float(std)).draw(size, source)


def laplace(size: int, *, scale: float, source: NoiseSource) -> NDArray[np.float64]:
    """Return ``size`` independent Laplace values: density exp(−|x| / scale) / 2·scale."""
    check_number("Laplace", "scale", scale, minimum=0.0, open_below=True)
    words = source.words(size)
    magnitude = (words >> np.uint64(11)).astype(np.float64)
    magnitude += 1.0
    magnitude *= 2.0**-53
    np.log(magnitude, out=magnitude)
    magnitude *= -scale
    return np.where(words & np.uint64(1), magnitude, -magnitude)


def add_laplace(
    total: Mapping[str, NDArray[Any]], scale: float, source: NoiseSource
) -> dict[str, NDArray[np.float64]]:
    """Return ``total`` plus independent Laplace noise on every value, rounded to the grid; inputs stay.

    Raises
    ------
    ConfigError
        If a value is not finite, or so large beside ``scale`` that float64 would lose the noise's low bits.
    """
    return add_on_grid(total, scale, lambda count: laplace(count, scale=scale, source=source))


@lru_cache(maxsize=8)
def _gaussian_table(std: float) -> IntegerTable:
    """Return the table, from w(k + 1) = w(k) · h(k) and h(k + 1) = h(k) · e^(−1/std²)."""
    with localcontext() as context:
        context.prec = 80
        half = -1 / (2 * Decimal(std) ** 2)
        step = int(half.exp() * (1 << _FRACTION))
        ratio = int((2 * half).exp() * (1 << _FRACTION))
    weights = [1 << _FRACTION]
    while weights[-1] >> (_FRACTION - _PLACES):
        weights.append(weights[-1] * step >> _FRACTION)
        step = step * ratio >> _FRACTION
    return IntegerTable.symmetric(weights)


@lru_cache(maxsize=8)
def _skellam_table(std: float) -> IntegerTable:
    """Return the table of e^(−μ) I_|k|(μ), from I_{k−1} = I_{k+1} + (2k/μ)·I_k downwards (Miller)."""
    numerator, denominator = (std * std).as_integer_ratio()
    start = math.ceil(15.0 * std) + 64
    values = [0, 1 << _FRACTION]
    for k in range(start, 0, -1):
        values.append(values[-2] + 2 * k * values[-1] * denominator // numerator)
    values.reverse()
    largest = values[0].bit_length()
    kept = [value for value in values if value.bit_length() > largest - _PLACES]
    assert len(kept) < start, "the recurrence started beyond the table"
    return IntegerTable.symmetric(kept)


def _check_std(owner: str, std: float) -> None:
    """Check that there is a table for it."""
    check_number(owner, "std", std, minimum=MIN_STD, maximum=MAX_STD)
