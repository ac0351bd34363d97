"""Inner products of all pairs of rows in float64, the one expensive part of every rule that uses distances.

Products of float32 blocks would take two thirds of the time, but their error reaches 9e-6 of ‖x‖² + ‖y‖²
where a few values dominate: too much for pairs closer than that.
"""

from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rows import WIDENED_COLUMNS, Rows, SelectedRows, block_width, map_blocks

_ELEMENTS = 1 << 20
"""Values that are read at once: fewer make the calls count."""

_LEAST_PIECE = 1_024
"""From n=31 on, pieces small enough for that are not worth it."""

_SMALL = 1_000_000
"""OpenBLAS multiplies (m, k) by (k, n) without packing them first while m·n·k is no larger."""


def inner_products(
    rows: Rows, order: NDArray[np.intp], *, center: NDArray[Any] | int | None = None
) -> NDArray[np.float64]:
    """Return the ``(n, n)`` inner products of the rows in ``order``.

    Parameters
    ----------
    rows : Rows
        ``(n, d)``. Values that are not finite, or products beyond float64, make their entries so.
    order : NDArray
        ``(n,)``, the canonical order: a BLAS may sum differently for another position of a row.
    center : NDArray or int, optional
        A ``(d,)`` vector, or the position of a row in ``order``, that is subtracted from all rows first.

    Guarantees
    ----------
    Symmetric; summed over blocks in the order of the columns, so equal rows in equal order give equal bits.
    """
    n, d = rows.shape
    width = block_width(n, d, elements=_ELEMENTS)
    piece = min(width, WIDENED_COLUMNS)
    while piece > _LEAST_PIECE and n * (n + 1) * piece > _SMALL:
        piece //= 2
    scratch = local()

    def work(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        if not hasattr(scratch, "padded"):
            scratch.padded = np.zeros((n + 1, piece))
        gram = np.zeros((n, n))
        for start in range(0, block.shape[1], piece):
            part = block[:, start : start + piece]
            padded = scratch.padded if part.shape[1] == piece else np.zeros((n + 1, part.shape[1]))
            wide = padded[1:]
            wide[...] = part
            if isinstance(center, int):
                wide -= wide[center].copy()
            elif center is not None:
                first = columns.start + start
                wide -= center[first : first + part.shape[1]]
            gram += _product(padded)
        return gram

    def quiet(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):  # every thread has its own
            return work(columns, block)

    parts = map_blocks(SelectedRows(rows, order), quiet, width=width)
    with np.errstate(over="ignore", invalid="ignore"):
        upper: NDArray[np.float64] = np.triu(np.sum(parts, axis=0))
    return upper + np.triu(upper, 1).T


def _product(padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of all rows but the first, which is 0, with their transpose.

    Small products are twice as fast in OpenBLAS as general ones, and as SYRK, which is what a matrix times
    its own transpose becomes in NumPy. The additional row makes the two factors differ, so that it does not.
    ``dot``, unlike ``@``, lets other threads run.
    """
    rows = padded[1:]
    small = rows.shape[0] * padded.size <= _SMALL
    product: NDArray[np.float64] = np.dot(rows, padded.T)[:, 1:] if small else np.dot(rows, rows.T)
    return product
