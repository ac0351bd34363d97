"""Inner products of all pairs of rows, the one expensive part of every rule that uses distances.

A few thousand columns at a time are multiplied in float64, or in float32 where whoever asks can do with that,
and their sums are added in float64.
"""

from collections.abc import Sequence
from itertools import pairwise
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .rows import Rows, SelectedRows, block_width, map_blocks

FLOAT32: DType = np.dtype(np.float32)
FLOAT64: DType = np.dtype(np.float64)

_ELEMENTS = 1 << 20
"""Values that are read at once: fewer make the calls count."""

_STACKED_ELEMENTS = 1 << 18
"""Values that are multiplied by one call: 1 MB in float32, about what a core's cache holds."""

_SMALL = 1_000_000
"""OpenBLAS multiplies (m, k) by (k, n) without packing them first while m·n·k is no larger."""

_GROUP_ROWS = 12
"""Rows that are multiplied at once by themselves and those after them: the rest is the other triangle."""

_MOST_PIECE = {FLOAT64: 4_096, FLOAT32: 2_048}
"""Columns of one product: float32 sums of more would be too coarse."""

_LEAST_PIECE = 256
"""Beyond some 300 rows it is not small any more for OpenBLAS, and SYRK takes half the time."""


def inner_products(
    rows: Rows,
    order: NDArray[np.intp],
    *,
    center: NDArray[Any] | int | None = None,
    dtype: DType = FLOAT64,
) -> NDArray[np.float64]:
    """Return the ``(n, n)`` inner products of the rows in ``order``.

    Parameters
    ----------
    rows : Rows
        ``(n, d)``. Values that are not finite, or products beyond the dtype, make their entries so.
    order : NDArray
        ``(n,)``, the canonical order: a BLAS may sum differently for another position of a row.
    center : NDArray or int, optional
        A ``(d,)`` vector, or the position of a row in ``order``, that is subtracted from all rows first.
    dtype : dtype
        Of the products, float64 or float32.

    Guarantees
    ----------
    Symmetric; summed over blocks in the order of the columns, so equal rows in equal order give equal bits.
    """
    n, d = rows.shape
    width = block_width(n, d, elements=_ELEMENTS)
    piece = min(_piece(n, dtype), width)
    groups = _groups(n, piece)
    most = max(_STACKED_ELEMENTS // (n * piece), 1)
    scratch = local()

    def work(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        if not hasattr(scratch, "stacked"):
            scratch.stacked = np.zeros((most, n + 1, piece), dtype)
        gram = np.zeros((n, n))
        stop = block.shape[1]
        whole = stop // piece
        steps = [(i * piece, min(most, whole - i), piece) for i in range(0, whole, most)]
        if whole * piece < stop:
            steps.append((whole * piece, 1, stop - whole * piece))
        for start, count, length in steps:
            stacked = scratch.stacked[:count]
            if length < piece:
                stacked = np.zeros((1, n + 1, length), dtype)
            part = slice(start, start + count * length)
            wide = stacked[:, 1:]
            wide[...] = block[:, part].reshape(n, count, length).transpose(1, 0, 2)
            if isinstance(center, int):
                wide -= wide[:, center : center + 1].copy()
            elif center is not None:
                first = columns.start + start
                wide -= center[first : first + count * length].reshape(count, 1, length)
            _add_products(gram, stacked, groups)
        return gram

    def quiet(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):  # every thread has its own
            return work(columns, block)

    parts = map_blocks(SelectedRows(rows, order), quiet, width=width)
    with np.errstate(over="ignore", invalid="ignore"):
        upper: NDArray[np.float64] = np.triu(np.sum(parts, axis=0))
    return upper + np.triu(upper, 1).T


def _piece(n: int, dtype: DType) -> int:
    """Return how many columns of ``n`` rows make one product.

    >>> _piece(10, np.dtype("float64")), _piece(50, np.dtype("float32")), _piece(1000, np.dtype("float64"))
    (4096, 1024, 256)
    """
    columns = _SMALL // (min(_GROUP_ROWS, n) * (n + 1))
    return max(min(1 << max(columns.bit_length() - 1, 0), _MOST_PIECE[dtype]), _LEAST_PIECE)


def _groups(n: int, piece: int) -> list[tuple[int, int]]:
    """Return which of ``n`` rows are multiplied at once; none where that is no small product.

    >>> _groups(20, 1024), _groups(2000, 256)
    ([(0, 10), (10, 20)], [])
    """
    if min(_GROUP_ROWS, n) * (n + 1) * piece > _SMALL:
        return []
    return list(pairwise(np.linspace(0, n, -(-n // _GROUP_ROWS) + 1).astype(int).tolist()))


def _add_products(
    gram: NDArray[np.float64], stacked: NDArray[Any], groups: Sequence[tuple[int, int]]
) -> None:
    """Add, for ``(m, n + 1, k)`` matrices whose first row is 0, the upper triangles of rows times rows.

    Small products take half the time in OpenBLAS of general ones, and of SYRK, which is what a matrix times
    its own transpose becomes in NumPy. One row before a group makes its factors differ, so that it does not.
    One call for all m: threads that enter and leave NumPy every ten microseconds wait for each other.
    """
    rows = stacked[:, 1:]
    if not groups:
        gram += np.matmul(rows, rows.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    for start, stop in groups:
        products = np.matmul(rows[:, start:stop], stacked[:, start:].transpose(0, 2, 1))
        gram[start:stop, start:] += products.sum(axis=0, dtype=np.float64)[:, 1:]
