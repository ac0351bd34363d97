"""One client's update over the arrays that count, in float64: for server and client.

Which arrays count is a rule of its own: those that are trained. An array that is not clipped and noised with
the others would leave the client, or the server, unprotected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .privacy.clipping import Clipped, clip_l2, clip_l2_per_layer
from .records import Layout
from .training import NamedArrays

Floats = dict[str, NDArray[np.float64]]


def check_untrained_arrays(owner: str, choice: str) -> None:
    """Check what is to be done with arrays that are not trained.

    Raises
    ------
    ConfigError
        If it is neither ``"refuse"`` nor ``"keep"``.
    """
    if choice not in ("refuse", "keep"):
        raise ConfigError(f"{owner}: untrained_arrays={choice!r}, but it is 'refuse' or 'keep'.")


def trained_keys(owner: str, layout: Layout, *, keep_others: bool) -> tuple[str, ...]:
    """Return the arrays that are clipped and released: the floats of ``params/``, or all if it has none.

    Raises
    ------
    ConfigError
        If the model has others (normalisation statistics, counters) and is not told to keep them as they are.
    """
    named = layout.trained_keys
    others = sorted({*layout.float_keys, *layout.other_keys}.difference(named))
    if others and not keep_others:
        raise ConfigError(
            f"{owner}: the model has {others[0]!r} ({len(others)} arrays that are not trained by gradients), "
            "which no noise protects; use a model without (GroupNorm or LayerNorm for BatchNorm), or "
            'untrained_arrays="keep" to leave them at their initial values.'
        )
    if not named:
        raise ConfigError(f"{owner}: the model has no float array to train; give one that has.")
    return named


class ClippedUpdates:
    """Reads replies into one buffer: reply − base over the trained arrays, clipped.

    Parameters
    ----------
    layout, base
        The model, and the parameters that clients start from.
    keys : Sequence[str]
        The arrays that count, see :func:`trained_keys`.
    clip_norm : float
        The largest norm of what :meth:`read` returns.
    per_layer : bool
        Clip each of the L arrays to clip_norm/√L instead of the whole.
    """

    def __init__(
        self,
        layout: Layout,
        base: Mapping[str, NDArray[Any]],
        keys: Sequence[str],
        *,
        clip_norm: float,
        per_layer: bool = False,
    ) -> None:
        self._layout, self._base = layout, base
        self._clip_norm = clip_norm
        self._layer_norms = dict.fromkeys(keys, clip_norm / math.sqrt(len(keys))) if per_layer else None
        self._update: Floats = {key: np.empty(base[key].shape) for key in keys}

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> Clipped:
        """Return one client's clipped update; what is not finite is zero as a whole."""
        with np.errstate(over="ignore", invalid="ignore"):
            for key, update in self._update.items():
                np.subtract(arrays[key], self._base[key], out=update, dtype=np.float64, casting="unsafe")
        if self._layer_norms is not None:
            return clip_l2_per_layer(self._update, self._layer_norms)
        return clip_l2(self._update, self._clip_norm)

    def move(self, update: Mapping[str, NDArray[np.float64]]) -> NamedArrays:
        """Return base + ``update`` in the model's dtypes, and every other array as it is in the base.

        Raises
        ------
        DivergenceError
            If a sum does not fit its array's dtype.
        """
        floats = {
            key: self._base[key].astype(np.float64) + update[key] if key in update else self._base[key]
            for key in self._layout.float_keys
        }
        cast = self._layout.cast(floats)
        return {key: cast.get(key, np.asarray(self._base[key])) for key in self._base}
