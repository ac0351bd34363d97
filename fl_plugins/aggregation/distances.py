"""Squared Euclidean distances between updates, exact to rounding whatever their offset and scale.

The usual ‖x‖² + ‖y‖² − 2⟨x, y⟩ in the input's dtype cancels: on float32 parameters of scale 1 it returns
negative "squared distances" and a diagonal that is not 0. Here it runs in float64 over updates, and every
pair for which it would still cancel is computed again from the differences themselves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core import validate_unweighted
from .gram import inner_products
from .rows import Rows, SelectedRows, blocks, canonical_order, refuse_non_finite

_CANCELLATION = 1e-8
"""A pair whose ‖x−y‖² is below this share of ‖x‖² + ‖y‖² has lost half of float64's digits, or more."""


def pairwise_squared_distances(updates: Rows | NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(n, n)`` squared distances between the rows, in float64.

    Guarantees
    ----------
    - Symmetric, never negative, exactly 0 on the diagonal and between identical rows.
    - Relative error below 1e-6 for every pair, even if rows share an offset of any size (the differences are
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
    n = rows.shape[0]
    order = canonical_order(rows)
    ordered = SelectedRows(rows, order)
    with np.errstate(over="ignore", invalid="ignore"):
        gram = inner_products(rows, order)
        norms = np.diag(gram)[:, None] + np.diag(gram)
        distances = norms - 2.0 * gram
        unsafe = np.triu(~(distances > _CANCELLATION * norms), 1)  # NaN (from overflow) is unsafe too
    if not np.isfinite(gram).all():  # overflow, or a row that is not finite
        refuse_non_finite(rows, rule="pairwise_squared_distances")
    if unsafe.any():
        distances[unsafe] = _direct(ordered, unsafe)
    upper = np.triu(distances, 1)
    result = np.empty((n, n))
    result[np.ix_(order, order)] = upper + upper.T
    return result


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
