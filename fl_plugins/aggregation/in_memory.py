"""Rows that lie in memory, through a compiled kernel that reads them where they lie.

JAX on a CPU takes a vector that begins at a multiple of 64 bytes as it is and copies any other, and received
buffers begin anywhere. A kernel therefore gets a *window* of each: from the last such multiple before the
columns that are wanted, with how many elements later they begin, which it skips itself. The first and the
last columns of each array, which have no such window, and arrays that are smaller than one, are gathered in
blocks.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .threads import in_threads

SLACK = 16
"""A window has so many elements more than are wanted of it: 64 bytes in float32."""

COMPILED_MAX_ROWS = 128
"""Beyond, compiling a sorting network takes tens of seconds."""

DIRECT_MAX_ROWS = 64
"""Beyond, so many places in memory at once take longer than gathering blocks (100: ten times as long)."""

COMPILED_MIN_ELEMENTS = 4_000_000
"""Below n·d of this, NumPy takes some 20 ms: importing JAX and loading a program take longer."""

_MOST_COLUMNS = 1 << 18
"""Of one call, which costs 0.1 ms and some microseconds per row."""

_LEAST_ELEMENTS = 1 << 20
"""Of one block; up to 4 MB whatever the input."""

_READ_COLUMNS = 1 << 14
"""Columns that one thread gathers at a time."""

_AHEAD = 2
"""Calls whose results are not there yet: while one computes, the next is prepared."""

Kernel = Callable[[NDArray[np.int32], Sequence[NDArray[Any]]], Any]
"""``(skipped, [b, a, ...]) -> (width,)`` of the rows a − b; see :func:`through_kernel`."""


@dataclass(frozen=True)
class Run:
    """Adjacent columns that lie in memory: row i is ``vectors[i] − base``, or ``vectors[i]`` without one.

    Parameters
    ----------
    start : int
        The first column.
    base : NDArray, optional
        ``(size,)``, contiguous, as every vector.
    vectors : Sequence[NDArray]
        One for each row.
    """

    start: int
    base: NDArray[Any] | None
    vectors: Sequence[NDArray[Any]]

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.vectors[0])

    def selected(self, rows: Sequence[int]) -> "Run":
        """Return the run of some rows in the order given."""
        return Run(self.start, self.base, [self.vectors[row] for row in rows])

    def is_direct(self, dtype: Any) -> bool:
        """Whether no element needs a cast or a shift by part of an element."""
        given = [*self.vectors] if self.base is None else [self.base, *self.vectors]
        return all(
            vector.dtype == dtype and vector.flags.c_contiguous and vector.ctypes.data % vector.itemsize == 0
            for vector in given
        )


@runtime_checkable
class InMemory(Protocol):
    """Rows some of whose columns lie in memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        ...

    @property
    def dtype(self) -> Any:
        """Float32 or float64."""
        ...

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Fill ``out`` with columns, as :class:`fl_plugins.aggregation.rows.Rows` do."""
        ...

    def runs(self) -> list[Run]:
        """Return what lies in memory, from the left to the right; not necessarily in the rows' dtype."""
        ...


def is_worth_compiling(n: int, d: int) -> bool:
    """Whether ``(n, d)`` rows should go through a compiled kernel."""
    return 2 <= n <= COMPILED_MAX_ROWS and n * d >= COMPILED_MIN_ELEMENTS


def kernel_width(n: int, d: int) -> int:
    """Return how many columns a kernel for ``(n, d)`` rows computes at once: few programs for all sizes.

    A gathered block has at most 10 % of a large input.

    >>> kernel_width(50, 10**6), kernel_width(50, 10**7), kernel_width(50, 10**5)
    (65536, 262144, 16384)
    """
    wanted = min(max(d // 10, _LEAST_ELEMENTS // n), _MOST_COLUMNS)
    return int(1 << max(wanted.bit_length() - 1, 8))


def through_kernel(
    rows: Any, kernel: Kernel, *, width: int, check: Callable[[slice, NDArray[Any]], None]
) -> NDArray[Any]:
    """Return the ``(d,)`` results of ``kernel`` for every column of ``(n, d)`` rows.

    Parameters
    ----------
    rows : Rows
        Those that are :class:`InMemory` are not copied.
    kernel : Kernel
        For ``width`` columns. It gets vectors of ``width + SLACK`` and how many elements of each come before
        the first column. It gives ``(width,)``, not finite wherever a row is not, perhaps before its result
        is there.
    check : callable
        Called with columns and their ``(n, b)`` block if the result of some is not finite.
    """
    n, d = rows.shape
    value: NDArray[Any] = np.empty(d, rows.dtype)
    zeros = _aligned_zeros(width + SLACK, rows.dtype)
    pending: deque[tuple[list[slice], Any]] = deque()

    def take() -> None:
        columns, result = pending.popleft()
        found = np.asarray(result)
        first = 0
        for place in columns:
            size = place.stop - place.start
            # Adding 0, which XLA would leave out: the sign of a zero may depend on the order of the rows.
            np.add(found[first : first + size], 0.0, out=value[place])
            first += size
            # A sum that is finite has no term that is not.
            if not math.isfinite(value[place].sum()) and not np.isfinite(value[place]).all():
                block = np.empty((n, size), rows.dtype)
                rows.read_into(place.start, block)
                check(place, block)

    gaps: list[slice] = []
    end = 0
    for run in [run for run in runs_of(rows) if run.size >= width + 2 * SLACK]:
        for start in _starts(run.size, width):
            if len(pending) == _AHEAD:
                take()
            place = slice(run.start + start, run.start + start + width)
            pending.append(([place], kernel(*_windows(run, start, width, zeros))))
        gaps += [slice(end, run.start + SLACK)]
        end = run.start + run.size - SLACK
    gaps.append(slice(end, d))
    skipped = np.zeros(n + 1, np.int32)
    block = None
    for columns in _packed(gaps, width):
        while pending:  # it may still be reading the block
            take()
        if block is None:
            block = _aligned_zeros(n * (width + SLACK), rows.dtype).reshape(n, width + SLACK)
        _gather(rows, columns, block)
        pending.append((columns, kernel(skipped, [zeros, *block])))
    while pending:
        take()
    return value


def runs_of(rows: Any) -> list[Run]:
    """Return the runs of rows that are :class:`InMemory` whose elements need no cast; else none."""
    if not isinstance(rows, InMemory):
        return []
    return [run for run in rows.runs() if run.is_direct(rows.dtype)]


def _starts(size: int, width: int) -> list[int]:
    """Return where in ``size`` elements calls begin: the last ends with the last window, and may overlap."""
    last = size - SLACK - width
    return [*range(SLACK, last, width), last]


def _windows(
    run: Run, start: int, width: int, zeros: NDArray[Any]
) -> tuple[NDArray[np.int32], list[NDArray[Any]]]:
    """Return what a kernel gets for ``width`` columns from ``start`` of a run."""
    size = zeros.itemsize
    vectors = run.vectors if run.base is None else [run.base, *run.vectors]
    skipped = [(vector.ctypes.data // size + start) % (64 // size) for vector in vectors]
    windows = [
        vector[start - skip : start - skip + width + SLACK]
        for vector, skip in zip(vectors, skipped, strict=True)
    ]
    if run.base is None:
        skipped, windows = [0, *skipped], [zeros, *windows]
    return np.array(skipped, np.int32), windows


def _packed(gaps: Sequence[slice], width: int) -> list[list[slice]]:
    """Return the columns of the gaps in lists of ``width`` columns at most."""
    packed: list[list[slice]] = []
    room = 0
    for gap in gaps:
        start = gap.start
        while start < gap.stop:
            if room == 0:
                packed.append([])
                room = width
            size = min(room, gap.stop - start)
            packed[-1].append(slice(start, start + size))
            start, room = start + size, room - size
    return packed


def _gather(rows: Any, columns: Sequence[slice], block: NDArray[Any]) -> None:
    """Fill ``block`` with the columns, side by side, on all cores; what is left over becomes 0."""
    parts = []
    first = 0
    for place in columns:
        for start in range(place.start, place.stop, _READ_COLUMNS):
            size = min(_READ_COLUMNS, place.stop - start)
            parts.append((start, first, size))
            first += size
    block[:, first:] = 0

    def read(part: tuple[int, int, int]) -> None:
        start, at, size = part
        rows.read_into(start, block[:, at : at + size])

    if len(parts) == 1:
        read(parts[0])
    else:
        in_threads(read, parts)


def _aligned_zeros(size: int, dtype: Any) -> NDArray[Any]:
    """Return zeros at a multiple of 64 bytes."""
    raw: NDArray[Any] = np.zeros(size * dtype.itemsize + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size * dtype.itemsize].view(dtype)
