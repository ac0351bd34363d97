"""Squared Euclidean distances between updates, exact to rounding whatever their offset and scale.

The usual ‖x‖² + ‖y‖² − 2⟨x, y⟩ in the input's dtype cancels: on float32 parameters of scale 1 it returns
negative "squared distances" and a diagonal that is not 0. Here it runs over updates: in float32 if no pair
cancels, else in float64, and every pair for which that would still cancel is computed again from the
differences themselves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .core import validate_unweighted
from .gram import FLOAT32, FLOAT64, inner_products
from .rows import (
    DenseRows,
    Rows,
    SelectedRows,
    blocks,
    canonical_order,
    refuse_non_finite,
    spread_columns,
)

_CANCELLATION = {FLOAT32: 0.4, FLOAT64: 1e-8}
"""A pair whose ‖x−y‖² is below this share of ‖x‖² + ‖y‖² is not left to products in that dtype.

Float64 has lost half of its digits there. In float32 a product of 2,048 columns adds 128 terms in each of 16
lanes: an error of 4·10⁻⁶ of the norms if every rounding goes the same way, and of some 10⁻⁷ usually.
"""

_TINY = {FLOAT32: 1e-32, FLOAT64: 0.0}
"""Squares of float32 below 1e-38 lose digits or vanish: so much per column they may be of a distance."""

_SAMPLED_COLUMNS = 1_024
"""From so many it is guessed whether float32 will do."""


def pairwise_squared_distances(updates: Rows | NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(n, n)`` squared distances between the rows, in float64.

    Guarantees
    ----------
    - Symmetric, never negative, exactly 0 on the diagonal and between identical rows.
    - Relative error below 1e-5 for every pair, even if rows share an offset of any size (the differences are
      those of the given numbers) or one row is 10²⁰ times larger than the others: there is no centre that an
      attacker could move.
    - Permuting the rows permutes the result, bit for bit.
    - No overflow for any float32 input; float64 distances beyond 10¹⁵⁴ become ``inf``, the farthest.

    Raises
    ------
    PreconditionError, StructureError, ReplyError
        No rows; no columns or not floats; a row with NaN or Inf.
    """
    rows = validate_unweighted(updates, None, rule="pairwise_squared_distances")
    n, d = rows.shape
    order = canonical_order(rows)
    distances = None
    if rows.dtype == FLOAT32 and d >= _SAMPLED_COLUMNS:
        distances = _in_float32(rows, order)
    if distances is None:
        gram = inner_products(rows, order)
        distances, unsafe = _from_products(gram, d, FLOAT64)
        if not np.isfinite(gram).all():  # overflow, or a row that is not finite
            refuse_non_finite(rows, rule="pairwise_squared_distances")
        if unsafe.any():
            distances[unsafe] = _direct(SelectedRows(rows, order), unsafe)
    upper = np.triu(distances, 1)
    result = np.empty((n, n))
    result[np.ix_(order, order)] = upper + upper.T
    return result


def _in_float32(rows: Rows, order: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """Return the distances of the ordered rows from float32 products, or ``None`` if any pair cancels."""
    sample = DenseRows(spread_columns(rows, _SAMPLED_COLUMNS))
    if _from_products(inner_products(sample, order), _SAMPLED_COLUMNS, FLOAT32)[1].any():
        return None
    gram = inner_products(rows, order, dtype=FLOAT32)
    distances, unsafe = _from_products(gram, rows.shape[1], FLOAT32)
    return None if unsafe.any() else distances


def _from_products(
    gram: NDArray[np.float64], d: int, dtype: DType
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return squared distances of ``d`` columns, and which of the upper triangle ``dtype`` cannot give."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.diag(gram)[:, None] + np.diag(gram)
        distances = norms - 2.0 * gram
        least = np.maximum(_CANCELLATION[dtype] * norms, _TINY[dtype] * d)
        return distances, np.triu(~(distances > least), 1)  # NaN (from overflow) is unsafe too


def _direct(rows: SelectedRows, pairs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return Σ(xᵢ − xⱼ)² for the pairs that the upper-triangular mask marks, in the mask's order."""
    sums = np.zeros(pairs.shape)
    anchors = np.flatnonzero(pairs.any(axis=1))
    with np.errstate(over="ignore"):
        for _, block in blocks(rows, 2048):
            wide = block.astype(np.float64)
            for i in anchors:
                difference = wide[pairs[i]] - wide[i]
                sums[i, pairs[i]] += np.einsum("ij,ij->i", difference, difference)
    return sums[pairs]
