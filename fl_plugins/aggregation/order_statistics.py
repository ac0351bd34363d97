"""Order statistics of every column at once: what trimmed mean and median share.

A sorting network compares whole rows, so each of its steps is one vector operation over all columns of a
block; sorting column by column is several times slower in NumPy. Only the comparisons that the wanted ranks
depend on are made.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core import Aggregate
from .rows import Rows, finite_blocks


def trimmed(rows: Rows, *, num_trimmed: int, rule: str) -> Aggregate:
    """Return per column the mean of what is left without the ``num_trimmed`` lowest and highest values.

    Guarantees
    ----------
    Summed in float64 in ascending order, and never outside the kept values: the result depends on the rows
    and not on their order, bit for bit.
    """
    n, d = rows.shape
    kept = n - 2 * num_trimmed
    value: NDArray[Any] = np.empty(d, rows.dtype)
    counts = np.zeros(n)
    for columns, block in finite_blocks(rows, rule=rule):
        ranked = select_ranks(block, num_trimmed, n - num_trimmed)
        low, high = ranked[0], ranked[-1]
        total = low.astype(np.float64)
        for values in ranked[1:]:
            total += values
        value[columns] = np.clip(total / kept, low, high)
        counts += _kept_counts(block, low, high, num_trimmed)
    return Aggregate(value, counts / counts.sum())


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
    block: NDArray[Any], low: NDArray[Any], high: NDArray[Any], num_trimmed: int
) -> NDArray[np.float64]:
    """Return ``(n,)``: how many of each row's values were kept; equal values share what is kept of them."""
    n, width = block.shape
    inside = (block >= low) & (block <= high)
    counts = np.array([np.count_nonzero(row) for row in inside], dtype=np.float64)
    if counts.sum() == (n - 2 * num_trimmed) * width:
        return counts
    tied = inside.sum(axis=0) > n - 2 * num_trimmed
    counts = np.array([np.count_nonzero(row) for row in inside[:, ~tied]], dtype=np.float64)
    block, low, high = block[:, tied], low[tied], high[tied]
    at_low, at_high = block == low, block == high
    below, above = (block < low).sum(axis=0), (block > high).sum(axis=0)
    lowest = np.minimum(below + at_low.sum(axis=0), n - num_trimmed) - num_trimmed
    highest = above + at_high.sum(axis=0) - num_trimmed
    shares = ((block > low) & (block < high)).astype(np.float64)
    shares += np.where(at_low, lowest / at_low.sum(axis=0), 0.0)
    shares += np.where(at_high & (low < high), highest / at_high.sum(axis=0), 0.0)
    counts += shares.sum(axis=1)
    return counts
