"""Clipping by key, in float64: what bounds how far one contribution can move the sum.

================================  ============================================================
contribution                      clipped to
================================  ============================================================
zero                              zero
any value NaN or infinite         zero, and ``finite`` is false: one value would hide the norm
integers, bool, unknown dtypes    refused: what cannot be averaged must not be sent
0-d arrays, empty arrays          like all others
================================  ============================================================
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_number
from fl_plugins.dtypes import is_float
from fl_plugins.errors import StructureError

Named = Mapping[str, NDArray[Any]]

_SHRINK = 1.0 - 2.0**-40
"""Rounding in float64 cannot make a clipped norm larger than the bound."""


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """A clipped contribution (float64 arrays by key), its norm before, and whether it was finite."""

    arrays: dict[str, NDArray[np.float64]]
    norm: float
    finite: bool


def l2_norm(update: Named) -> float:
    """Return the L2 norm over all arrays, without overflow or underflow; NaN or inf if a value is."""
    largest = max(
        (float(np.max(np.abs(_float64(value)), initial=0.0)) for value in update.values()), default=0.0
    )
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    # A power of two scales without rounding.
    scale = 2.0 ** math.frexp(largest)[1] if abs(math.frexp(largest)[1]) < 1000 else largest
    return scale * math.sqrt(
        sum(float(np.sum(np.square(_float64(value) / scale))) for value in update.values())
    )


def l1_norm(update: Named) -> float:
    """Return the sum of all absolute values; inf if it is beyond float64, NaN if a value is."""
    with np.errstate(over="ignore"):
        return float(sum(np.sum(np.abs(_float64(value))) for value in update.values()))


def clip_l2(update: Named, clip_norm: float) -> Clipped:
    """Scale all arrays together so that their L2 norm is at most ``clip_norm``.

    Raises
    ------
    StructureError
        If an array is not of a float dtype.
    """
    return _clip(update, clip_norm, l2_norm)


def clip_l1(update: Named, clip_norm: float) -> Clipped:
    """Scale all arrays together so that their L1 norm is at most ``clip_norm``: what Laplace noise needs.

    Raises
    ------
    StructureError
        If an array is not of a float dtype.
    """
    return _clip(update, clip_norm, l1_norm)


def clip_l2_per_layer(update: Named, clip_norms: Mapping[str, float]) -> Clipped:
    """Clip each array to its own norm; the whole then has at most :func:`total_clip_norm` of them.

    Raises
    ------
    StructureError
        If an array has no clip norm, or an array is not of a float dtype.
    """
    if update.keys() != clip_norms.keys():
        odd = sorted(update.keys() ^ clip_norms.keys())
        raise StructureError(f"clip: {odd} are in the update or in the clip norms, but not in both.")
    each = {key: clip_l2({key: value}, clip_norms[key]) for key, value in update.items()}
    finite = all(part.finite for part in each.values())
    arrays = {key: part.arrays[key] if finite else np.zeros(update[key].shape) for key, part in each.items()}
    norm = math.hypot(*(part.norm for part in each.values())) if finite else math.nan
    return Clipped(arrays=arrays, norm=norm, finite=finite)


def total_clip_norm(clip_norms: Mapping[str, float]) -> float:
    """Return the L2 norm that per-layer clipping allows the whole update.

    >>> total_clip_norm({"a": 3.0, "b": 4.0})
    5.0
    """
    return math.hypot(*clip_norms.values())


def _clip(update: Named, clip_norm: float, norm_of: Callable[[Named], float]) -> Clipped:
    """Clip by a norm."""
    check_number("clip", "clip_norm", clip_norm, minimum=0.0, open_below=True)
    for key, value in update.items():
        if not is_float(value.dtype):
            raise StructureError(
                f"clip: {key!r} has dtype {value.dtype}, whose values cannot be clipped and averaged; keep "
                "it out of the update (normalisation statistics and counters stay local)."
            )
    finite = all(bool(np.isfinite(_float64(value)).all()) for value in update.values())
    norm = norm_of(update) if finite else math.nan
    if not finite:
        return Clipped(
            arrays={key: np.zeros(value.shape) for key, value in update.items()}, norm=norm, finite=False
        )
    factor = 1.0 if norm <= clip_norm else clip_norm / norm * _SHRINK
    return Clipped(
        arrays={key: np.asarray(_float64(value) * factor) for key, value in update.items()},
        norm=norm,
        finite=True,
    )


def _float64(value: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values in float64."""
    return np.asarray(value, dtype=np.float64)
