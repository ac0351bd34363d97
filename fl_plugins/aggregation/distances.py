"""Squared Euclidean distances between updates, exact to rounding whatever their offset and scale.

The usual ‖x‖² + ‖y‖² − 2⟨x, y⟩ in the input's dtype cancels: on float32 parameters of scale 1 it returns
negative "squared distances" and a diagonal that is not 0. Here each step is used only for the pairs for which
its rounding cannot matter, and the others are left to the next:

1. large float32 inputs: products of float32 blocks, relative to one of the rows, summed over blocks in
   float64; for pairs that are not much closer to each other than to that row;
2. the same in float64, relative to 0; for pairs that lose at most half of its digits;
3. the sum of the squared differences themselves.

Measured on 2 busy cores with AVX2, for 10⁶ columns: step 1 takes 20, 89 and 199 ms for n = 10, 50 and 100,
step 2 with the conversion 14, 196 and 345. Step 1 is compiled by JAX: NumPy's BLAS takes seconds where two
threads call it on busy cores.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core import validate_unweighted
from .rows import BLOCK_COLUMNS, Rows, SelectedRows, canonical_order, finite_blocks, map_blocks

_SINGLE_CANCELLATION = 0.05
"""The same for float32 products of 2048 columns: measured, their error is below 3e-7 of ‖x‖² + ‖y‖²."""

_SINGLE_TINY = 1e-30
"""A mean squared difference below this is lost in float32's smallest numbers."""

_SINGLE_MIN_ELEMENTS = 4_000_000
"""Below n·d of this, step 2 takes some 30 ms: importing JAX and loading a program take longer."""

_SINGLE_MIN_ROWS = 16
"""For fewer rows the product takes less time than reading them, and step 2 as long as step 1."""

_SINGLE_COLUMNS = 16_384

_CANCELLATION = 1e-8
"""A pair whose ‖x−y‖² is below this share of ‖x‖² + ‖y‖² has lost half of float64's digits, or more."""


def pairwise_squared_distances(updates: Rows | NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(n, n)`` squared distances between the rows, in float64.

    Guarantees
    ----------
    - Symmetric, never negative, exactly 0 on the diagonal and between identical rows.
    - Relative error below 1e-5 for every pair (1e-6 for float64 rows), even if rows share an offset of any
      size (the differences are those of the given numbers) or one row is 10²⁰ times larger than the others:
      an attacker who moves the centre makes the next step do the work, and nothing else.
    - Permuting the rows permutes the result, bit for bit.
    - No overflow for any float32 input; float64 distances beyond 10¹⁵⁴ become ``inf``, the farthest.

    Raises
    ------
    PreconditionError, StructureError, ReplyError
        No rows; no columns or not floats; a row with NaN or Inf.
    """
    rows = validate_unweighted(updates, None, rule="pairwise_squared_distances")
    # A BLAS may sum differently for another position of a row, so rows always take the same one.
    order = canonical_order(rows)
    ordered = SelectedRows(rows, order)
    n, d = rows.shape
    single = rows.dtype == np.float32 and n >= _SINGLE_MIN_ROWS and n * d >= _SINGLE_MIN_ELEMENTS
    with np.errstate(over="ignore", invalid="ignore"):
        distances, unsafe = _single(ordered) if single else _double(ordered)
        if single and np.count_nonzero(unsafe) > n:  # a few, such as copies of one row, need no other pass
            distances, unsafe = _double(ordered)
    if not np.isfinite(distances).all():  # overflow, or a row that is not finite
        for _ in finite_blocks(rows, rule="pairwise_squared_distances"):
            pass
    if unsafe.any():
        distances[unsafe] = _direct(ordered, unsafe)
    upper = np.triu(distances, 1)
    result = np.empty((n, n))
    result[np.ix_(order, order)] = upper + upper.T
    return result


def _single(rows: SelectedRows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return squared distances from float32 products, and which of the upper triangle cannot be relied on."""
    from ._compiled import gram_kernel

    n, d = rows.shape
    centre = _central(rows)
    compiled = gram_kernel(n, _SINGLE_COLUMNS)

    def work(_: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            if block.shape[1] == _SINGLE_COLUMNS:
                gram: NDArray[np.float64] = compiled(block, centre).astype(np.float64)
                return gram
            moved: NDArray[np.float64] = (block - block[centre]).astype(np.float64)
            return np.asarray(moved @ moved.T)

    gram: NDArray[np.float64] = np.sum(map_blocks(rows, work, width=_SINGLE_COLUMNS), axis=0)
    return _distances(gram, cancellation=_SINGLE_CANCELLATION, least=_SINGLE_TINY * d)


def _central(rows: SelectedRows) -> int:
    """Return the row whose median distance to the others is least on a few columns.

    A hostile choice makes the next step do the work, nothing else.
    """
    _, sample = next(rows.blocks(256))
    wide = sample.astype(np.float64)
    between = np.square(wide[:, None] - wide).sum(axis=2)
    return int(np.median(between, axis=1).argmin())


def _double(rows: SelectedRows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """As :func:`_single`, in float64 and relative to 0."""
    gram = np.zeros((rows.shape[0], rows.shape[0]))
    for _, block in rows.blocks(BLOCK_COLUMNS):
        wide = block.astype(np.float64)
        gram += wide @ wide.T
    return _distances(gram, cancellation=_CANCELLATION, least=0.0)


def _distances(
    gram: NDArray[np.float64], *, cancellation: float, least: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return ‖x‖² + ‖y‖² − 2⟨x, y⟩, and which of the upper triangle are too small beside their terms."""
    norms = np.diag(gram)[:, None] + np.diag(gram)
    distances = norms - 2.0 * gram
    # NaN and infinity (from overflow) cannot be relied on either
    safe = (distances > cancellation * norms) & (distances > least) & np.isfinite(distances)
    return distances, np.triu(~safe, 1)


def _direct(rows: SelectedRows, pairs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return Σ(xᵢ − xⱼ)² for the pairs that the upper-triangular mask marks, in the mask's order."""
    sums = np.zeros(pairs.shape)
    anchors = np.flatnonzero(pairs.any(axis=1))
    with np.errstate(over="ignore"):
        for _, block in rows.blocks(2048):
            wide = block.astype(np.float64)
            for i in anchors:
                difference = wide[pairs[i]] - wide[i]
                sums[i, pairs[i]] += np.einsum("ij,ij->i", difference, difference)
    return sums[pairs]
