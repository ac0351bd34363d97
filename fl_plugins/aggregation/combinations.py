"""What rules share whose result is a combination of whole rows, Σ aᵢxᵢ.

Such a rule needs the rows only through their inner products. It is therefore solved on n points of n
coordinates that have the rows' geometry (:func:`embed`) and read the d columns again only to apply the
coefficients (:func:`combine`): two or three passes over the updates, however many iterations it makes.
Everything is computed over rows in canonical order, so the order of arrival changes no bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ReplyError
from .gram import inner_products
from .in_memory import DIRECT_MAX_ROWS, is_worth_compiling, kernel_width, through_kernel
from .rows import (
    Rows,
    SelectedRows,
    block_width,
    map_blocks,
    refuse_non_finite,
    require_finite,
    widened,
)

_ELEMENTS = 1 << 20
"""Values that are read at once."""

_ROWS_PER_PROGRAM = 4
"""A compiled combination is of a multiple of so many rows."""

_FAR = 1e6
"""A centre whose squared distance to the others is so many times the medoid's costs them digits."""


def combine(
    rows: Rows,
    order: NDArray[np.intp],
    coefficients: NDArray[np.float64],
    *,
    rule: str,
    convex: bool = True,
) -> NDArray[Any]:
    """Return the ``(d,)`` combination of the rows, in their dtype, accumulated in float64.

    Parameters
    ----------
    rows : Rows
        ``(n, d)``.
    order : NDArray
        The canonical order; the rows are summed in it.
    coefficients : NDArray
        ``(n,)``, one for each row *in canonical order*. A row with 0 plays no part.
    rule : str
        The name in messages.
    convex : bool
        Whether the coefficients are >= 0 with sum 1: then no value leaves the range of the rows that count,
        not even by rounding.
    """
    counted = np.flatnonzero(coefficients)
    shares = coefficients[counted]
    chosen = order[counted]
    selected = SelectedRows(rows, chosen)
    check = partial(require_finite, rule=rule, order=chosen)
    if rows.dtype == np.float32 and len(chosen) <= DIRECT_MAX_ROWS and is_worth_compiling(*selected.shape):
        return _combine_compiled(selected, shares, check)
    value: NDArray[Any] = np.empty(rows.shape[1], rows.dtype)
    # A float64 sum of float32 values leaves their range by less than rounding to float32 removes.
    clipped = convex and rows.dtype == np.float64

    def work(columns: slice, block: NDArray[Any]) -> None:
        for place, wide in widened(columns, block):
            total = np.dot(shares, wide)  # unlike @, dot lets other threads run
            if clipped:
                np.clip(total, wide.min(axis=0), wide.max(axis=0), out=total)
            value[place] = total
        if not np.isfinite(value[columns]).all():
            check(columns, block)

    map_blocks(selected, work, width=block_width(*selected.shape, elements=_ELEMENTS))
    return value


def _combine_compiled(
    rows: Rows, shares: NDArray[np.float64], check: Callable[[slice, NDArray[Any]], None]
) -> NDArray[Any]:
    """Return Σ shareᵢ·rowᵢ of ``(n, d)`` float32 rows, each read from memory once."""
    from ._compiled import combination_kernel

    n = rows.shape[0]
    # Few programs for any number of rows: those missing are the first one again, with share 0.
    missing = -n % _ROWS_PER_PROGRAM
    filled = SelectedRows(rows, np.append(np.arange(n), np.zeros(missing, np.intp)))
    width = kernel_width(*filled.shape)
    kernel = partial(combination_kernel(n + missing, width), np.append(shares, np.zeros(missing)))
    return through_kernel(filled, kernel, width=width, check=lambda columns, block: check(columns, block[:n]))


def to_arrival(order: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``values``, given in canonical order, in order of arrival."""
    result = np.empty_like(values)
    result[order] = values
    return result


def as_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values >= 0 scaled to sum 1; equal shares if all are 0."""
    total = float(values.sum())
    return values / total if total > 0 else np.full(len(values), 1.0 / len(values))


def row_norms(
    rows: Rows, order: NDArray[np.intp], *, rule: str, center: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Return ``(n,)`` Euclidean norms of the rows (minus ``center``, ``(d,)``) in canonical order."""

    def work(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        squares = np.zeros(len(block))
        with np.errstate(over="ignore", invalid="ignore"):
            for place, wide in widened(columns, block):
                if center is not None:
                    wide -= center[place]
                squares += np.einsum("ij,ij->i", wide, wide)
        return squares

    ordered = SelectedRows(rows, order)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = map_blocks(ordered, work, width=block_width(*rows.shape, elements=_ELEMENTS))
        squares = np.sum(parts, axis=0)
    if not np.isfinite(squares).all():  # a row that is not, or a norm beyond float64
        refuse_non_finite(rows, rule=rule)
    return np.sqrt(_finite(squares, order, rule=rule))


def clip_factors(norms: NDArray[np.float64], max_norm: float) -> NDArray[np.float64]:
    """Return min(1, max_norm/‖x‖) for each norm; exactly 1 where nothing is clipped."""
    clipped = norms > max_norm
    return np.where(clipped, max_norm / np.where(clipped, norms, 1.0), 1.0)


def embed(rows: Rows, order: NDArray[np.intp], *, rule: str) -> NDArray[np.float64]:
    """Return ``(n, n)`` points, in canonical order, that lie to each other as the rows do.

    Guarantees
    ----------
    With c the row that is the origin (one in the midst of the majority, whatever a minority sends), inner
    products of xᵢ − c and xⱼ − c are exact to about n·10⁻¹⁶·‖xᵢ − c‖·‖xⱼ − c‖: a common offset does not
    matter, and a row that is 10²⁰ times larger than the others costs the others no digit.
    """
    center = 0
    for _ in range(4):
        gram = _gram(rows, order, center, rule=rule)
        squares = np.diag(gram)
        with np.errstate(over="ignore", invalid="ignore"):  # float64 updates near 1e154
            spread = np.median(np.maximum(squares[:, None] + squares - 2.0 * gram, 0.0), axis=1)
            medoid = int(spread.argmin())
            if spread[center] <= _FAR * spread[medoid]:
                break
        center = medoid
    return _points(gram)


def embed_from(
    rows: Rows, order: NDArray[np.intp], center: NDArray[Any], *, rule: str
) -> NDArray[np.float64]:
    """Return the points of :func:`embed` with ``center``, a ``(d,)`` vector, as the origin."""
    return _points(_gram(rows, order, center, rule=rule))


def _gram(
    rows: Rows, order: NDArray[np.intp], center: int | NDArray[Any], *, rule: str
) -> NDArray[np.float64]:
    """Return ``(n, n)`` inner products of the rows minus a vector, or minus the row at a position."""
    gram = inner_products(rows, order, center=center)
    if not np.isfinite(gram).all():  # a row that is not, or a norm beyond float64
        refuse_non_finite(rows, rule=rule)
    _finite(np.diag(gram), order, rule=rule)
    return gram


def _points(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points with these inner products.

    The decomposition is that of the *correlations*: scaling each point by its own norm afterwards keeps the
    error of a small one relative to itself.
    """
    norms = np.sqrt(np.diag(gram))
    safe = np.where(norms > 0, norms, 1.0)
    values, vectors = np.linalg.eigh(gram / safe[:, None] / safe)
    points: NDArray[np.float64] = norms[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    return points


def _finite(squares: NDArray[np.float64], order: NDArray[np.intp], *, rule: str) -> NDArray[np.float64]:
    """Return squared norms if float64 holds them all."""
    beyond = np.flatnonzero(~np.isfinite(squares))
    if beyond.size:
        raise ReplyError(
            f"{rule}: row {order[beyond[0]]} of {len(squares)} has a norm beyond 1e154, the square root of "
            "float64's range; quarantine that client's reply."
        )
    return squares
