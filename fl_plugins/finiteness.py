"""Whether a client's parameters, and their difference from the global ones, are finite, in one reading."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aggregation.threads import one_blas_thread
from .records import Layout
from .training import NamedArrays

Range = tuple[Any, Any]
"""Least and greatest value of an array; NaN if it holds one."""

_RANGE_ELEMENTS = 1 << 16
"""Elements that are looked at twice while they are in cache."""

_MODERATE = 1e30
"""Far below the largest float32; so is its sum with 1.8e19, the root of that, or in float64 with 1e140."""

_LARGEST = 1e140
"""Largest entry of a float64 update: rules that take norms sum squares of entries in float64, and one client
whose squares overflow there would end the round for all. float32 squares never do."""


def float_ranges(arrays: NamedArrays) -> dict[str, Range]:
    """Return the range of every float32 and float64 array that has elements."""
    return {
        key: _range(values)
        for key, values in arrays.items()
        if values.size and values.dtype in (np.float32, np.float64)
    }


def find_non_finite(
    arrays: NamedArrays, base: NamedArrays, layout: Layout, *, ranges: Mapping[str, Range]
) -> str | None:
    """Return what is wrong with the first array that is not finite, or overflows, in its model's dtype.

    Parameters
    ----------
    arrays, base : NamedArrays
        One client's parameters, and the global ones that it started from.
    layout : Layout
        The model's; both have it.
    ranges : Mapping[str, Range]
        Those of ``base``, the same for every client of a round.
    """
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        for key in layout.float_keys:
            if not _is_finite(arrays[key], base[key], ranges.get(key), layout.compute_dtype):
                return not_finite(key, base[key].dtype)
    return None


def not_finite(key: str, dtype: Any) -> str:
    """Return what is wrong with the array ``key`` of a model in ``dtype``."""
    beyond = f" (as does an update beyond {_LARGEST:g})" if np.dtype(dtype) == np.float64 else ""
    return f"array {key!r} has NaN or infinite values, or overflows the model's {dtype}{beyond}"


def _is_finite(values: NDArray[Any], base: NDArray[Any], base_range: Range | None, dtype: Any) -> bool:
    """Whether ``values − base`` in ``dtype``, and ``values`` in the dtype of ``base``, are finite."""
    if base_range is not None and _is_surely_finite(values, base_range, dtype, base.dtype):
        return True
    # The difference, not the reply: 3e38 − (−3e38) overflows although both are finite.
    update = np.subtract(values, base, dtype=dtype, casting="unsafe")
    return _is_bounded(update, dtype) and bool(np.isfinite(values.astype(base.dtype, copy=False)).all())


def _is_bounded(updates: NDArray[Any], dtype: Any) -> bool:
    """Whether differences in ``dtype`` are finite, and their squares too."""
    if np.dtype(dtype) == np.float64:
        return bool((np.abs(updates) <= _LARGEST).all())  # not so for NaN
    return bool(np.isfinite(updates).all())


def _is_surely_finite(values: NDArray[Any], base: Range, dtype: Any, narrow: Any) -> bool:
    """Whether little work shows that neither ``values − base`` nor ``values`` in ``narrow`` overflow.

    Usually the sum of squares does, which reads the array once: one that is finite has no term that is not.
    Else the extremes may: subtraction and its rounding are monotone, so no difference exceeds theirs.
    """
    if values.dtype not in (np.float32, np.float64):
        return False
    if values.dtype == narrow and -_MODERATE < base[0] <= base[1] < _MODERATE:
        flat = values.reshape(-1, order="A")
        if np.vdot(flat, flat) < _LARGEST**2:  # neither inf nor NaN is
            return True
    least, greatest = _range(values)
    differences = np.subtract([greatest, least], base, dtype=dtype, casting="unsafe")
    fitted = np.asarray([least, greatest]).astype(narrow)
    return _is_bounded(differences, dtype) and bool(np.isfinite([*fitted, *base]).all())


def _range(values: NDArray[Any]) -> Range:
    """Return the least and the greatest value, reading the array from memory once."""
    flat = values.reshape(-1, order="A")
    parts = [flat[start : start + _RANGE_ELEMENTS] for start in range(0, flat.size, _RANGE_ELEMENTS)]
    # np.min and np.max hand NaN on; Python's would not.
    extremes = [(part.min(), part.max()) for part in parts]
    return np.min([low for low, _ in extremes]), np.max([high for _, high in extremes])
