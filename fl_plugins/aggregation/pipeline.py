"""Blocks of rows through a compiled kernel: while it computes one on all cores, the next is being read.

Rows that are differences of received buffers go to the kernel as those buffers, which it subtracts itself:
JAX reads a buffer at a multiple of 64 bytes where it lies and copies any other in C++. One thread of ours
calls it; with one per core they wait for each other at every call.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rows import Difference, DifferenceRows, Rows, aligned, apart, require_finite
from .threads import in_threads

COMPILED_MAX_ROWS = 128
"""Beyond, compiling a sorting network takes tens of seconds."""

COMPILED_MIN_ELEMENTS = 4_000_000
"""Below n·d of this, NumPy takes some 20 ms: importing JAX and loading a program take longer."""

_ELEMENTS = 1 << 21
"""8 MB in float32, more than a core's cache: a call costs 0.1 ms and 5 microseconds per row."""

_BLOCKS_PER_INPUT = 20
"""At least: the two blocks that are in memory at once then stay within 10 % of the input."""

_READ_COLUMNS = 1 << 15
"""Columns that one thread reads at a time."""

_AHEAD = 2
"""Blocks that are being read or computed at once."""


def is_worth_compiling(rows: Rows) -> bool:
    """Whether ``(n, d)`` rows should go through a compiled kernel."""
    n, d = rows.shape
    return 2 <= n <= COMPILED_MAX_ROWS and n * d >= COMPILED_MIN_ELEMENTS


def kernel_width(n: int, d: int) -> int:
    """Return how many columns a kernel for ``(n, d)`` rows computes at once: few programs for all sizes.

    >>> kernel_width(50, 10**6), kernel_width(50, 10**7)
    (32784, 32784)
    """
    wanted = max(min(_ELEMENTS, n * d // _BLOCKS_PER_INPUT) // n, 256)
    return apart(1 << (wanted.bit_length() - 1))


def read_in_threads(
    rows: Rows, start: int, out: NDArray[Any], chosen: NDArray[np.intp] | None = None
) -> None:
    """Do what ``rows.read_into(start, out, chosen)`` does on all cores: reading mixed rows computes them."""

    def read(first: int) -> None:
        rows.read_into(start + first, out[:, first : first + _READ_COLUMNS], chosen)

    in_threads(read, range(0, out.shape[1], _READ_COLUMNS))


def through_kernel(
    rows: Rows,
    kernel: Callable[[NDArray[Any], list[NDArray[Any]]], Any],
    *,
    width: int,
    rule: str,
    order: NDArray[np.intp] | None = None,
) -> NDArray[Any]:
    """Return the ``(d,)`` results of ``kernel(b, [a, ...])`` for every ``width`` columns of ``(n, d)`` rows.

    The kernel gets vectors of ``width`` whose differences a − b are the rows, and 0 beyond the last column.
    It gives ``(width,)`` that is not finite wherever a row is not. ``order`` names the rows in messages.

    Raises
    ------
    ReplyError
        Naming the first row that holds NaN or Inf.
    """
    n, d = rows.shape
    value: NDArray[Any] = np.empty(d, rows.dtype)
    zeros = aligned(width, rows.dtype)
    zeros[:] = 0
    buffers: dict[int, NDArray[Any]] = {}
    pending: deque[tuple[slice, Any]] = deque()

    def vectors(number: int, start: int, size: int) -> Difference:
        found = rows.differences(start, size) if isinstance(rows, DifferenceRows) and size == width else None
        if found is not None:
            return found
        turn = number % _AHEAD
        if turn not in buffers:
            buffers[turn] = aligned(n * width, rows.dtype).reshape(n, width)
        block = buffers[turn]
        block[:, size:] = 0
        read_in_threads(rows, start, block[:, :size])
        return zeros, list(block)

    def take() -> None:
        columns, result = pending.popleft()
        size = columns.stop - columns.start
        # Adding 0: which of 0.0 and -0.0 a kernel gives may depend on the order of the rows.
        found = np.add(np.asarray(result)[:size], 0.0, out=value[columns])
        if not np.isfinite(found).all():
            block = np.empty((n, size), rows.dtype)
            rows.read_into(columns.start, block)
            require_finite(columns, block, rule=rule, order=order)

    for number, start in enumerate(range(0, d, width)):
        if len(pending) == _AHEAD:
            take()
        size = min(width, d - start)
        pending.append((slice(start, start + size), kernel(*vectors(number, start, size))))
    while pending:
        take()
    return value
