"""The matrix of updates, read a block of columns at a time, and what every rule asks of it first."""

from collections.abc import Callable, Iterator
from threading import local
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType, compute_dtype, is_float
from ..errors import PreconditionError, ReplyError, StructureError
from .in_memory import Run, runs_of
from .threads import in_threads

BLOCK_COLUMNS = 8_192
"""Columns per block: enough that NumPy's call overhead vanishes, few enough that a row stays in cache."""

WIDENED_COLUMNS = 4_096
"""Columns that are widened to float64 at once; more leave the cache."""

_BLOCKS_PER_INPUT = 32
"""At least: two threads' blocks then stay below 10 % of a large input."""

_LEAST_MEMORY = 1 << 22
"""Elements; up to so many all threads' blocks may hold together, whatever the input."""

_LEAST_ELEMENTS = 1 << 18
"""1 MB in float32; below, a block is not worth its calls, whatever its part of the input."""

_HEAD_COLUMNS = 16
"""So many columns usually tell all rows apart."""

_SPREAD_PIECES = 16
"""In so many pieces columns are read from all over."""

T = TypeVar("T")


@runtime_checkable
class Rows(Protocol):
    """An ``(n, d)`` float32 or float64 matrix that need not exist as one array."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        ...

    @property
    def dtype(self) -> DType:
        """Float32 or float64."""
        ...

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Fill ``out``, ``(n, b)`` of the dtype, with columns ``start:start + b`` of all or some rows.

        Several threads may read at once.
        """
        ...


class DenseRows:
    """An ``(n, d)`` array as :class:`Rows`; it is never written to.

    Narrower floats (float16, bfloat16, 8-bit) are computed in float32.

    Raises
    ------
    StructureError
        If the array is not two-dimensional or not of floats.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        if values.ndim != 2:
            raise StructureError(
                f"updates have shape {values.shape} but (n, d) is needed; one row per client."
            )
        if not is_float(values.dtype):
            raise StructureError(
                f"updates have dtype {values.dtype} but floats are needed; integer state is combined with "
                "fl_plugins.records.combine_integers."
            )
        self._values = values
        self._dtype = compute_dtype([values.dtype.newbyteorder("=")])

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        n, d = self._values.shape
        return n, d

    @property
    def dtype(self) -> DType:
        """Float64 for a float64 array, else float32."""
        return self._dtype

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Copy the columns of all or some rows."""
        columns = slice(start, start + out.shape[1])
        for target, row in zip(out, range(len(out)) if rows is None else rows, strict=True):
            target[:] = self._values[row, columns]

    def runs(self) -> list[Run]:
        """Return the whole array."""
        return [Run(0, None, list(self._values))]


class SelectedRows:
    """Some rows of others, in the order given; nothing is copied until a block is read.

    Parameters
    ----------
    rows : Rows
        ``(n, d)``.
    selected : NDArray
        ``(m,)`` indices.
    """

    def __init__(self, rows: Rows, selected: NDArray[np.intp]) -> None:
        self._rows = rows
        self._selected = selected

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, d)``."""
        return len(self._selected), self._rows.shape[1]

    @property
    def dtype(self) -> DType:
        """As the rows'."""
        return self._rows.dtype

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Read columns of all or some of the selected rows."""
        self._rows.read_into(start, out, self._selected if rows is None else self._selected[rows])

    def runs(self) -> list[Run]:
        """Return the selected rows of what lies in memory."""
        return [run.selected(self._selected.tolist()) for run in runs_of(self._rows)]


def blocks(rows: Rows, max_columns: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield ``(columns, (n, b) array)``, left to right, ``b <= max_columns``.

    Every array is fresh, C-contiguous and the caller's to overwrite.
    """
    n, d = rows.shape
    for start in range(0, d, max_columns):
        stop = min(start + max_columns, d)
        block: NDArray[Any] = np.empty((n, stop - start), rows.dtype)
        rows.read_into(start, block)
        yield slice(start, stop), block


def block_width(n: int, d: int, *, elements: int) -> int:
    """Return the columns of a block, a power of 2: about ``elements`` values, and a small part of the input.

    >>> block_width(10, 10**7, elements=1 << 20), block_width(10, 10**5, elements=1 << 20)
    (65536, 16384)
    """
    wanted = min(elements, max(n * d // _BLOCKS_PER_INPUT, _LEAST_ELEMENTS)) // n
    return 1 << max(wanted.bit_length() - 1, 8)


def most_threads(n: int, d: int, *, width: int) -> int:
    """Return how many blocks of ``width`` columns there may be at once: 10 % of a large input.

    The width must not depend on the number of cores, since sums of blocks are rounded.

    >>> most_threads(50, 10**6, width=16_384), most_threads(10, 10**4, width=8_192)
    (6, 51)
    """
    return max(max(n * d // 10, _LEAST_MEMORY) // (n * width), 1)


def spread_columns(rows: Rows, size: int) -> NDArray[Any]:
    """Return all columns, or where there are more, ``size`` of them, evenly spread in pieces."""
    n, d = rows.shape
    size = min(d, size)
    values: NDArray[Any] = np.empty((n, size), rows.dtype)
    pieces = 1 if size == d else _SPREAD_PIECES
    width = size // pieces
    for piece in range(pieces):
        start = piece * (d - width) // max(pieces - 1, 1)
        rows.read_into(start, values[:, piece * width : (piece + 1) * width])
    return values


def map_blocks(rows: Rows, work: Callable[[slice, NDArray[Any]], T], *, width: int) -> list[T]:
    """Return ``work(columns, block)`` for every block of ``width`` columns (the last may be narrower).

    One thread per core reads and works; ``work`` must be thread-safe and may overwrite its block, but not
    keep it: a thread's blocks share one buffer. Results are ordered by column, and so is the first error
    raised.
    """
    n, d = rows.shape
    buffers = local()

    def one(start: int) -> T:
        if not hasattr(buffers, "flat"):
            buffers.flat = aligned(n * min(width, d), rows.dtype)
        size = min(width, d - start)
        block = buffers.flat[: n * size].reshape(n, size)
        rows.read_into(start, block)
        return work(slice(start, start + size), block)

    return in_threads(one, range(0, d, width), at_most=most_threads(n, d, width=width))


def map_finite_blocks(
    rows: Rows,
    work: Callable[[slice, NDArray[Any]], T],
    *,
    rule: str,
    order: NDArray[np.intp] | None = None,
    elements: int = 1 << 18,
) -> list[T]:
    """Return :func:`map_blocks` over blocks of the rows in ``order``, each checked while it is in cache.

    Raises
    ------
    ReplyError
        Naming the first row, as given, that holds NaN or Inf.
    """
    n, d = rows.shape

    def checked(columns: slice, block: NDArray[Any]) -> T:
        require_finite(columns, block, rule=rule, order=order)
        return work(columns, block)

    ordered = rows if order is None else SelectedRows(rows, order)
    return map_blocks(ordered, checked, width=block_width(n, d, elements=elements))


def widened(columns: slice, block: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield a block's columns a few at a time in float64, fresh arrays, with where they stand in the rows."""
    for start in range(0, block.shape[1], WIDENED_COLUMNS):
        part = block[:, start : start + WIDENED_COLUMNS].astype(np.float64)
        yield slice(columns.start + start, columns.start + start + part.shape[1]), part


def aligned(size: int, dtype: DType) -> NDArray[Any]:
    """Return an uninitialised vector at a multiple of 64 bytes, which JAX on a CPU reads without a copy."""
    raw: NDArray[Any] = np.empty(size * dtype.itemsize + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size * dtype.itemsize].view(dtype)


def as_rows(updates: Rows | NDArray[Any], *, rule: str) -> Rows:
    """Return ``updates`` as :class:`Rows` with at least one row and one column.

    Raises
    ------
    PreconditionError
        If there are no rows.
    StructureError
        If there are no columns, or an array is not an ``(n, d)`` array of floats.
    """
    rows = updates if isinstance(updates, Rows) else DenseRows(np.asarray(updates))
    n, d = rows.shape
    if n == 0:
        raise PreconditionError(f"{rule}: n=0 updates but n >= 1 is needed; wait for a reply.")
    if d == 0:
        raise StructureError(
            f"{rule}: the updates have d=0 elements; the model has no float array to aggregate."
        )
    return rows


def finite_blocks(
    rows: Rows, *, rule: str, max_columns: int = BLOCK_COLUMNS
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the blocks of ``rows``, each checked while it is in cache.

    Raises
    ------
    ReplyError
        Naming the first row that holds NaN or Inf.
    """
    for columns, block in blocks(rows, max_columns):
        require_finite(columns, block, rule=rule)
        yield columns, block


def refuse_non_finite(rows: Rows, *, rule: str) -> None:
    """Read all rows to find which is not finite, once a result says that one may be.

    Raises
    ------
    ReplyError
        Naming the first row that holds NaN or Inf, if there is one.
    """
    for _ in finite_blocks(rows, rule=rule):
        pass


def require_finite(
    columns: slice, block: NDArray[Any], *, rule: str, order: NDArray[np.intp] | None = None
) -> None:
    """Check one block of all rows, which come in ``order``.

    Raises
    ------
    ReplyError
        Naming the first row that holds NaN or Inf.
    """
    finite = np.isfinite(block)
    if finite.all():
        return
    names = np.arange(len(block)) if order is None else order
    index = min(np.flatnonzero(~finite.all(axis=1)), key=lambda position: int(names[position]))
    column = int(finite[index].argmin())
    raise ReplyError(
        f"{rule}: row {names[index]} of {len(block)} is {block[index, column]} at column "
        f"{columns.start + column}, but updates must be finite; quarantine that client's reply "
        "(non_finite_rows names them)."
    )


def non_finite_rows(updates: Rows | NDArray[Any]) -> list[int]:
    """Return the indices of the rows that hold NaN or Inf: quarantine those before aggregating.

    >>> non_finite_rows(np.array([[0.0, 1.0], [np.nan, 0.0], [0.0, np.inf]]))
    [1, 2]
    """
    rows = as_rows(updates, rule="non_finite_rows")
    bad = np.zeros(rows.shape[0], dtype=bool)
    for _, block in blocks(rows, BLOCK_COLUMNS):
        bad |= ~np.isfinite(block).all(axis=1)
    return np.flatnonzero(bad).tolist()


def canonical_order(updates: Rows | NDArray[Any]) -> NDArray[np.intp]:
    """Return the row indices that sort the rows lexicographically by content.

    What is computed over rows in this order depends on *which* updates came and not on the order they came
    in, to the last bit; so do ties that it breaks. Usually the first columns settle it. Identical rows stay
    in order of arrival, where it cannot matter.

    >>> canonical_order(np.array([[2.0, 0.0], [1.0, 5.0], [1.0, 4.0]]))
    array([2, 1, 0])
    """
    rows = as_rows(updates, rule="canonical_order")
    _, head = next(finite_blocks(rows, rule="canonical_order", max_columns=_HEAD_COLUMNS))
    groups = _split(np.arange(rows.shape[0]), head)
    if len(groups) == rows.shape[0]:
        return np.concatenate(groups)
    for _, block in finite_blocks(rows, rule="canonical_order"):
        groups = [part for group in groups for part in _split(group, block)]
        if len(groups) == rows.shape[0]:
            break
    return np.concatenate(groups)


def _split(group: NDArray[np.intp], block: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Sort rows that were equal so far by the columns of ``block``; rows still equal stay together."""
    done = []
    pending = [(group, 0)]  # no recursion: a thousand sparse rows may differ one by one
    while pending:
        rows, start = pending.pop()
        columns = block[rows, start:]
        differs = (columns != columns[0]).any(axis=0)
        if not differs.any():
            done.append(rows)
            continue
        first = start + int(differs.argmax())
        values = block[rows, first]
        pending += [(rows[values == value], first + 1) for value in np.unique(values)[::-1]]
    return done
