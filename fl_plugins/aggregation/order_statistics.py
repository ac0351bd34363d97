"""Order statistics of every column at once: what trimmed mean, median, mean around median and Bulyan share.

A sorting network compares whole rows, so each of its steps is one vector operation over all columns of a
block; sorting column by column is several times slower in NumPy. Only the comparisons that the wanted ranks
depend on are made.

Large inputs go through the same network compiled by JAX, which reads every element once, up to 64 rows where
they lie in memory. It takes a fourth to a tenth of NumPy's time. Compiling takes 0.1 s at n=10, 0.4 s at
n=50, 1.4 s at n=100 and grows as n·log²n, hence the limits. ``benchmarks/aggregation.py`` has whole calls.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core import Aggregate
from .in_memory import DIRECT_MAX_ROWS, is_worth_compiling, kernel_width, through_kernel
from .rows import Rows, block_width, map_blocks, require_finite, spread_columns

_COMPILED_ELEMENTS = 1 << 20
"""Of blocks of many rows: 4 MB in float32."""

_NUMPY_ELEMENTS = 1 << 18
"""1 MB: the network goes over a block many times."""

COUNTED_COLUMNS = 1 << 12
"""So many columns are counted for ``contribution``: a share is then known to one percent."""


Window = tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]
"""Sum, least and greatest of the kept values of each column."""


def trimmed(rows: Rows, *, num_trimmed: int, rule: str) -> Aggregate:
    """Return per column the mean of what is left without the ``num_trimmed`` lowest and highest values.

    Guarantees
    ----------
    Summed in float64 in ascending order, and never outside the kept values: the result depends on the rows
    and not on their order, bit for bit. ``contribution`` is counted on all columns, or
    where there are more, on :data:`COUNTED_COLUMNS` of them that are spread evenly.
    """
    return _combine(rows, kept=rows.shape[0] - 2 * num_trimmed, moving=False, rule=rule)


def around_median(rows: Rows, *, num_kept: int, rule: str) -> Aggregate:
    """Return per column the mean of the ``num_kept`` values that are nearest its median.

    Guarantees
    ----------
    As :func:`trimmed`. Of two values equally far on either side the lower is kept, so that nothing depends
    on the order of the rows.
    """
    return _combine(rows, kept=num_kept, moving=True, rule=rule)


def _combine(rows: Rows, *, kept: int, moving: bool, rule: str) -> Aggregate:
    """Apply the NumPy or the compiled kernel to every block."""
    n = rows.shape[0]
    first, stop = (0, n) if moving else ((n - kept) // 2, (n + kept) // 2)

    def window(block: NDArray[Any]) -> Window:
        ranked = select_ranks(block, first, stop)
        with np.errstate(over="ignore"):  # a sum beyond float64 is put back between least and greatest
            return _nearest_median(ranked, kept) if moving else _middle(ranked)

    if is_worth_compiling(*rows.shape):
        network = _comparators(n, first, stop)
        value = _compiled_means(rows, kept, network, moving=moving, rule=rule)
    else:
        value = _numpy_means(rows, kept, window, rule=rule)
    counted = spread_columns(rows, COUNTED_COLUMNS)
    _, low, high = window(counted)
    counts = _kept_counts(counted, low, high, kept, None if moving else first)
    return Aggregate(value, counts / counts.sum())


def _numpy_means(
    rows: Rows, kept: int, window: Callable[[NDArray[Any]], Window], *, rule: str
) -> NDArray[Any]:
    """Return the ``(d,)`` means of the kept values."""
    value: NDArray[Any] = np.empty(rows.shape[1], rows.dtype)

    def work(columns: slice, block: NDArray[Any]) -> None:
        require_finite(columns, block, rule=rule)
        total, low, high = window(block)
        mean = np.clip((total / kept).astype(rows.dtype), low, high)
        np.add(mean, 0.0, out=value[columns])  # which of 0.0 and -0.0 is kept depends on arrival

    map_blocks(rows, work, width=block_width(*rows.shape, elements=_NUMPY_ELEMENTS))
    return value


def _compiled_means(
    rows: Rows, kept: int, network: Sequence[tuple[int, int]], *, moving: bool, rule: str
) -> NDArray[Any]:
    """Return the ``(d,)`` means of the kept values."""
    from ._compiled import window_kernel

    n, d = rows.shape
    direct = n <= DIRECT_MAX_ROWS
    width = kernel_width(n, d) if direct else block_width(n, d, elements=_COMPILED_ELEMENTS)
    kernel = window_kernel(n, width, rows.dtype, kept, network, moving=moving, direct=direct)
    # The result is not finite where a value is not, or where float64 overflows.
    if direct:
        return through_kernel(rows, kernel, width=width, check=partial(require_finite, rule=rule))
    value: NDArray[Any] = np.empty(d, rows.dtype)

    def work(columns: slice, block: NDArray[Any]) -> None:
        size = block.shape[1]
        whole = block if size == width else np.pad(block, ((0, 0), (0, width - size)))
        # Adding 0: which of 0.0 and -0.0 is kept depends on arrival.
        found = np.add(np.asarray(kernel(whole))[:size], 0.0, out=value[columns])
        if not np.isfinite(found).all():
            require_finite(columns, block, rule=rule)

    map_blocks(rows, work, width=width)
    return value


def _middle(ranked: list[NDArray[Any]]) -> Window:
    """Return sum, least and greatest of the ``ranked`` values; as ``_compiled._middle``."""
    total = ranked[0].astype(np.float64)
    for values in ranked[1:]:
        total += values
    return total, ranked[0], ranked[-1]


def _nearest_median(ranked: Sequence[NDArray[Any]], kept: int) -> Window:
    """Return sum, least and greatest of the ``kept`` nearest the median; as ``_compiled._nearest_median``."""
    start = _window_start(ranked, kept)
    total = np.zeros(start.shape)
    for i, values in enumerate(ranked):
        total += np.where((start <= i) & (i < start + kept), values, 0.0)
    everything = np.stack(ranked)
    low = np.take_along_axis(everything, start[None], axis=0)[0]
    high = np.take_along_axis(everything, start[None] + kept - 1, axis=0)[0]
    return total, low, high


def _window_start(ranked: Sequence[NDArray[Any]], kept: int) -> NDArray[np.intp]:
    """Return the rank of the least of the ``kept`` values nearest the median of sorted rows.

    The window moves up past rank i as long as that value is farther from the median than its successor.
    Values are halved so that no sum of two overflows.
    """
    n = len(ranked)
    halves = [values.astype(np.float64) * 0.5 for values in ranked]
    median = halves[(n - 1) // 2] + halves[n // 2]
    start = np.zeros(median.shape, np.intp)
    for i in range(n - kept):
        start += halves[i] + halves[i + kept] < median
    return start


def select_ranks(block: NDArray[Any], first: int, stop: int) -> list[NDArray[Any]]:
    """Return, for each rank in ``first:stop``, the ``(b,)`` values of that rank in each column.

    ``block`` is ``(n, b)``, finite, and left as it is.

    >>> select_ranks(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]]), 1, 2)
    [array([2., 2.])]
    """
    wires = list(block.copy())
    spare = np.empty_like(wires[0])
    for low, high in _comparators(len(wires), first, stop):
        np.minimum(wires[low], wires[high], out=spare)
        np.maximum(wires[low], wires[high], out=wires[high])
        wires[low], spare = spare, wires[low]
    return wires[first:stop]


@lru_cache(maxsize=64)
def _comparators(n: int, first: int, stop: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort of ``n`` wires, without what ranks ``first:stop`` do not need.

    Batcher 1968, Sorting Networks and their Applications.
    """
    network: list[tuple[int, int]] = []
    run = 1
    while run < n:
        step = run
        while step >= 1:
            for start in range(step % run, n - step, 2 * step):
                network += [
                    (low, low + step)
                    for low in range(start, min(start + step, n - step))
                    if low // (2 * run) == (low + step) // (2 * run)
                ]
            step //= 2
        run *= 2
    wanted = set(range(first, stop))
    needed = []
    for pair in reversed(network):
        if not wanted.isdisjoint(pair):
            needed.append(pair)
            wanted.update(pair)
    return tuple(reversed(needed))


def _kept_counts(
    block: NDArray[Any], low: NDArray[Any], high: NDArray[Any], kept: int, start: int | None
) -> NDArray[np.float64]:
    """Return ``(n,)``: how many of each row's values were kept; equal values share what is kept of them.

    ``start`` is the rank of ``low``, ``None`` where the kept values are those nearest the median.
    """
    inside = block == low if kept == 1 else block >= low
    if kept > 1:
        inside &= block <= high
    counts = np.array([np.count_nonzero(flags) for flags in inside], dtype=np.float64)
    # Where no values tie, what lies between the least and the greatest kept value was kept.
    if counts.sum() == kept * block.shape[1]:
        return counts
    # Flags added as bytes, which is many times faster than as integers, while they cannot overflow.
    narrow = np.uint8 if len(block) < 256 else np.uint32
    tied = np.flatnonzero(np.add.reduce(inside.view(np.uint8), axis=0, dtype=narrow) > kept)
    counts -= np.count_nonzero(inside[:, tied], axis=1)
    block, low, high = block[:, tied], low[tied], high[tied]
    first = _window_start(list(np.sort(block, axis=0)), kept) if start is None else start
    at_low, at_high = block == low, block == high
    lows, highs = at_low.sum(axis=0), at_high.sum(axis=0)
    lowest = np.minimum((block < low).sum(axis=0) + lows, first + kept) - first
    highest = first + kept - (len(block) - (block > high).sum(axis=0) - highs)
    shares = ((block > low) & (block < high)).astype(np.float64)
    shares += np.where(at_low, lowest / lows, 0.0)
    shares += np.where(at_high & (low < high), highest / highs, 0.0)
    counts += shares.sum(axis=1)
    return counts
