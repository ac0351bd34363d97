"""One client's update as one float64 vector, its norm, and the factor that clips it: for server and client.

Which arrays count is a rule of its own: those that are trained. An array that is not clipped and noised with the
others would leave the client, or the server, unprotected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .records import Layout
from .training import NamedArrays

_TRAINED = "params/"

_ROUNDING = 1.0 - 2.0**-30
"""Clipped updates end a little inside: a norm is computed with a relative error of at most some d·2⁻⁵³."""


def trained_keys(owner: str, layout: Layout, *, keep_others: bool) -> tuple[str, ...]:
    """Return the arrays that are clipped and released: the floats of ``params/``, or all if there are none such.

    Raises
    ------
    ConfigError
        If the model has others (normalisation statistics, counters) and is not told to keep them as they are.
    """
    floats = layout.float_keys
    named = tuple(key for key in floats if key.startswith(_TRAINED)) or floats
    others = sorted({*floats, *layout.other_keys}.difference(named))
    if others and not keep_others:
        raise ConfigError(
            f"{owner}: the model has {others[0]!r} ({len(others)} arrays that are not trained by gradients), which "
            "no noise protects; use a model without (GroupNorm or LayerNorm for BatchNorm), or "
            'untrained_arrays="keep" to leave them at their initial values.'
        )
    if not named:
        raise ConfigError(f"{owner}: the model has no float array to train; give one that has.")
    return named


class UpdateVector:
    """Reads replies into one buffer: Δ over the trained arrays in the layout's order, ``(d,)`` float64.

    Parameters
    ----------
    layout, base
        The model, and the parameters that clients start from.
    keys : Sequence[str]
        The arrays that count, see :func:`trained_keys`.
    """

    def __init__(self, layout: Layout, base: Mapping[str, NDArray[Any]], keys: Sequence[str]) -> None:
        self._layout, self._base, self._keys = layout, base, tuple(keys)
        self.values: NDArray[np.float64] = np.zeros(sum(base[key].size for key in self._keys))

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> float:
        """Fill ``values`` with reply − base and return their norm; what is not finite becomes zero as a whole."""
        start = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for key in self._keys:
                base = self._base[key].reshape(-1)
                place = slice(start, start + base.size)
                start += base.size
                values = np.asarray(arrays[key]).reshape(-1)
                np.subtract(values, base, out=self.values[place], dtype=np.float64, casting="unsafe")
            norm = _norm(self.values)
        if not math.isfinite(norm):
            self.values[:] = 0.0
            return 0.0
        return norm

    def add_to_base(self, values: NDArray[np.float64]) -> NamedArrays:
        """Return base + ``values`` in the model's dtypes, and every other array as it is in the base.

        Raises
        ------
        DivergenceError
            If a sum does not fit its array's dtype.
        """
        update = self._layout.split(self.spread(values))
        moved = {key: np.asarray(self._base[key], np.float64) + update[key] for key in update}
        cast = self._layout.cast(moved)
        return {key: cast[key] if key in self._keys else np.asarray(self._base[key]) for key in self._base}

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``values`` as a vector of the whole layout, with zeros for arrays that do not count."""
        parts: list[NDArray[np.float64]] = []
        start = 0
        for entry in self._layout.float_entries:
            if entry.key in self._keys:
                parts.append(values[start : start + entry.size])
                start += entry.size
            else:
                parts.append(np.zeros(entry.size))
        return np.concatenate(parts)


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return what an update of that norm is multiplied by so that it has at most ``clip_norm``; zero stays zero.

    >>> clip_factor(0.0, 0.5), clip_factor(0.5, 0.5), clip_factor(2.0, 0.5) < 0.25
    (1.0, 1.0, True)
    """
    return 1.0 if norm <= clip_norm else clip_norm * _ROUNDING / norm


def _norm(values: NDArray[np.float64]) -> float:
    """Return the norm, also where squares are beyond float64."""
    norm = math.sqrt(float(np.dot(values, values)))
    if math.isinf(norm):
        largest = float(np.abs(values).max())
        if math.isfinite(largest):
            scaled = values / largest
            norm = largest * math.sqrt(float(np.dot(scaled, scaled)))
    return norm
