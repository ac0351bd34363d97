"""Inner products of all pairs of rows, the one expensive part of every rule that uses distances."""

from itertools import pairwise
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .rows import Rows, SelectedRows, block_width, map_blocks

_ELEMENTS = 1 << 20
"""Values that are read at once: fewer make the calls count."""

_WIDENED_ELEMENTS = 1 << 16
"""Values that are in float64 at once; more leave the cache."""

_SMALL = 1_000_000
"""OpenBLAS multiplies (m, k) by (k, n) without packing them first while m·n·k is no larger."""

_GROUP_ROWS = 12
"""Rows that are multiplied at once by themselves and those after them: the rest is the other triangle."""

_MOST_PIECE = 4_096
_LEAST_PIECE = 256
"""Columns of one product. Beyond some 300 rows, the least is not small any more for OpenBLAS."""


def inner_products(
    rows: Rows,
    order: NDArray[np.intp],
    *,
    center: NDArray[Any] | int | None = None,
    product_dtype: DType | None = None,
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
    product_dtype : dtype, optional
        In which a few thousand columns are multiplied and added up, float64 by default; their sums are added
        up in float64. Float32 takes less time.

    Guarantees
    ----------
    Symmetric; summed over blocks in the order of the columns, so equal rows in equal order give equal bits.
    """
    n, d = rows.shape
    dtype = np.dtype(np.float64) if product_dtype is None else product_dtype
    piece = _piece(n)
    step = max(_WIDENED_ELEMENTS // (n * piece), 1) * piece
    scratch = local()

    def prepared(columns: slice, part: NDArray[Any]) -> NDArray[Any]:
        if part.dtype == dtype and center is None:
            return part
        if not hasattr(scratch, "wide"):
            scratch.wide = np.empty((n, step), dtype)
        wide: NDArray[Any] = scratch.wide[:, : part.shape[1]]
        wide[...] = part
        if isinstance(center, int):
            wide -= wide[center].copy()
        elif center is not None:
            wide -= center[columns]
        return wide

    def work(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
        gram = np.zeros((n, n))
        with np.errstate(over="ignore", invalid="ignore"):  # every thread has its own
            for start in range(0, block.shape[1], step):
                part = block[:, start : start + step]
                first = columns.start + start
                _add_products(gram, prepared(slice(first, first + part.shape[1]), part), piece)
        return gram

    width = block_width(n, d, elements=_ELEMENTS)
    parts = map_blocks(SelectedRows(rows, order), work, width=width)
    with np.errstate(over="ignore", invalid="ignore"):
        upper: NDArray[np.float64] = np.triu(np.sum(parts, axis=0))
    return upper + np.triu(upper, 1).T


def _piece(n: int) -> int:
    """Return how many columns of ``n`` rows make one product.

    >>> _piece(10), _piece(50), _piece(1000)
    (4096, 1024, 256)
    """
    columns = _SMALL // (min(_GROUP_ROWS, n) * (n + 1))
    return min(1 << max(columns.bit_length() - 1, 0), _MOST_PIECE) if columns > _LEAST_PIECE else _LEAST_PIECE


def _add_products(gram: NDArray[np.float64], part: NDArray[Any], piece: int) -> None:
    """Add the upper triangle of ``part @ part.T``, ``piece`` columns at a time, to the ``(n, n)`` sums.

    What is left of the columns is a shorter product.
    """
    size = part.shape[1]
    whole = size // piece * piece
    for columns, length in ((slice(0, whole), piece), (slice(whole, size), size - whole)):
        if columns.start < columns.stop:
            stacked = part[:, columns].reshape(len(part), -1, length).transpose(1, 0, 2)
            _add_stacked(gram, stacked)


def _add_stacked(gram: NDArray[np.float64], stacked: NDArray[Any]) -> None:
    """Add the upper triangles of all products of ``(m, n, k)`` matrices with their transposes.

    One call for all m, since entering and leaving NumPy costs as much as a small product. Each group of rows
    takes one row before it as well: two equal factors would become SYRK, which is half as fast here.
    """
    n = stacked.shape[1]
    groups = max(-(-n // _GROUP_ROWS), min(n, 2))
    edges = np.linspace(0, n, groups + 1).astype(int).tolist()
    for start, stop in pairwise(edges):
        before = max(start - 1, 0)
        products = np.matmul(stacked[:, start:stop], stacked[:, before:].transpose(0, 2, 1))
        gram[start:stop, before:] += products.sum(axis=0, dtype=np.float64)
