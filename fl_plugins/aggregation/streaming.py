"""Σ wᵢ·xᵢ in two float64: the same bits in whatever order, grouping or process the terms are added.

A plain float64 sum depends on the order of its terms, so a mean folded as replies arrive, or summed in parts
by several nodes, would differ from run to run. Here every addition keeps its rounding error (TwoSum: Knuth,
TAOCP vol. 2, §4.2.2), and the errors are summed beside it.

==========  ==========================================================
wᵢ, xᵢ      weight and row of client i; wᵢ·xᵢ is one float64 product
high, low   ``(d,)`` float64 each; the sum is the real number high + low
==========  ==========================================================

**Why the order does not matter.** TwoSum is exact, so rounding happens only in ``low``. Float32 rows times
whole weights below 2²⁹ are exact in float64 (24 + 29 = 53 bits), hence all terms of one coordinate are
multiples of one power of two. As long as their magnitudes span less than about 2⁵³/n², ``low`` never needs
more than 53 bits: the sum is *exact*, and what is exact has no order. Beyond that (one update 10¹⁰ times
another, for n = 1,000) the sum is still within about n²·2⁻¹⁰⁶ of Σ|wᵢ·xᵢ|, and the result differs only if the
true mean lies that close to where float32 rounding switches. Float64 rows have terms that are rounded once
each, the same for everyone, and sums of the same relative accuracy.
"""

from collections.abc import Iterable
from functools import partial
from threading import local
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from ..errors import StructureError
from .rows import Rows, aligned, map_blocks, most_threads
from .threads import in_threads

_COLUMNS = 4_096
"""Columns at a time: six float64 vectors of them stay in a core's second-level cache."""

_TERMS = 8
"""Rows that one call of the compiled kernel adds; with 16 an element takes 5 % less, but 17 rows 32."""

_COMPILED_COLUMNS = 16_384
"""Columns of one call, which costs some 30 microseconds; its rows in float32 are half a core's cache."""

_COMPILED_MIN_ROWS = 4
"""The kernel adds 8 terms, zeros if need be, in the time in which NumPy adds three."""

_COMPILED_MIN_ELEMENTS = 1 << 20
"""Below, NumPy takes 3 ms: importing JAX and loading a program take longer."""

_FACTOR_BITS = 29
"""A float32 times a number of so many bits is exact in float64: 24 + 29 = 53."""

_BLOCK_ELEMENTS = 1 << 20
"""Elements that a thread reads at once if there are few rows: handing out work costs tens of microseconds."""


class WeightedSum:
    """A running Σ wᵢ·xᵢ over ``(d,)`` in O(d) memory, however many rows are added.

    Not finite terms make the sum not finite where they are: check rows before, or the result after.

    Parameters
    ----------
    high, low : NDArray
        ``(d,)`` float64: where to start; they are added to in place.

    Raises
    ------
    StructureError
        If they are not two float64 vectors of one length.
    """

    def __init__(self, high: NDArray[np.float64], low: NDArray[np.float64]) -> None:
        if high.ndim != 1 or high.shape != low.shape or {high.dtype, low.dtype} != {np.dtype(np.float64)}:
            raise StructureError(
                f"weighted sum: high has shape {high.shape} and dtype {high.dtype}, low {low.shape} and "
                f"{low.dtype}, but both are (d,) float64; send what WeightedSum holds."
            )
        self.high, self.low = high, low
        self._is_empty = False

    @classmethod
    def zeros(cls, d: int) -> Self:
        """Return an empty sum."""
        empty = cls(np.zeros(d), np.zeros(d))
        empty._is_empty = True
        return empty

    def add_block(self, columns: slice, block: NDArray[Any], weights: NDArray[np.float64]) -> None:
        """Add ``weights @ block`` to ``b`` adjacent columns; ``block`` is ``(n, b)`` and left as it is.

        Several threads may add to different columns at once.
        """
        self._is_empty = False
        factors = weights.tolist()
        for start in range(0, block.shape[1], _COLUMNS):
            part = block[:, start : start + _COLUMNS]
            place = slice(columns.start + start, columns.start + start + part.shape[1])
            high, low = self.high[place], self.low[place]
            term, scratch = np.empty_like(high), (np.empty_like(high), np.empty_like(high))
            with np.errstate(over="ignore", invalid="ignore"):
                for row, factor in zip(part, factors, strict=True):
                    np.multiply(row, factor, out=term, dtype=np.float64)
                    _two_sum(high, low, term, scratch)

    def add_rows(self, rows: Rows, weights: NDArray[np.float64]) -> None:
        """Add ``(n, d)`` rows with ``(n,)`` weights on all cores, in compiled code if they are many."""
        n, d = rows.shape
        if n < _COMPILED_MIN_ROWS or n * d < _COMPILED_MIN_ELEMENTS:
            add = partial(self.add_block, weights=weights)
            map_blocks(rows, add, width=max(_COLUMNS, _BLOCK_ELEMENTS // n))
            return
        self._add_compiled(rows, weights)

    def _add_compiled(self, rows: Rows, weights: NDArray[np.float64]) -> None:
        """Add rows in few readings and writings of the sum, with the bits of NumPy."""
        from ._compiled import two_sum_kernel

        self._is_empty = False
        n, d = rows.shape
        width = _COMPILED_COLUMNS
        multiplied = rows.dtype == np.float32 and _are_short(weights)
        dtype = np.dtype(np.float32 if multiplied else np.float64)
        kernel = two_sum_kernel(_TERMS, width, dtype)
        groups = [np.arange(first, min(first + _TERMS, n)) for first in range(0, n, _TERMS)]
        factors = np.zeros((len(groups), _TERMS))
        factors.flat[:n] = weights
        buffers = local()

        def work(start: int) -> None:
            size = min(width, d - start)
            place = slice(start, start + size)
            if not hasattr(buffers, "sums"):
                buffers.sums = aligned(2 * width, np.dtype(np.float64)).reshape(2, width)
                buffers.rows = aligned(_TERMS * width, rows.dtype).reshape(_TERMS, width)
                buffers.terms = buffers.rows
                if dtype != rows.dtype or not multiplied:
                    buffers.terms = aligned(_TERMS * width, dtype).reshape(_TERMS, width)
            # Zeros where there is no row or column change neither sum.
            high, low = buffers.sums
            for total, whole in ((high, self.high), (low, self.low)):
                total[:size], total[size:] = whole[place], 0.0
            buffers.rows[:, size:] = 0.0
            for group, factor in zip(groups, factors, strict=True):
                rows.read_into(start, buffers.rows[: len(group), :size], group)
                buffers.rows[len(group) :] = 0.0
                if not multiplied:
                    with np.errstate(over="ignore", invalid="ignore"):
                        np.multiply(buffers.rows, factor[:, None], out=buffers.terms, dtype=np.float64)
                high, low = kernel(high, low, factor, buffers.terms)
                # The buffer is written to again: no kernel may still be reading it.
                low.block_until_ready()
            self.high[place], self.low[place] = np.asarray(high)[:size], np.asarray(low)[:size]

        in_threads(work, range(0, d, width), at_most=most_threads(_TERMS, d, width=width))

    def merge(self, other: "WeightedSum", *, scale: float = 1.0) -> None:
        """Add ``scale`` times another sum, a power of two; the other is left as it is.

        Raises
        ------
        StructureError
            If it has another length.
        """
        if self.high.shape != other.high.shape:
            raise StructureError(
                f"weighted sum: {self.high.size} elements and {other.high.size} cannot be added; both must "
                "be of the same model."
            )
        if self._is_empty:
            self._is_empty = False
            for mine, theirs in ((self.high, other.high), (self.low, other.low)):
                np.multiply(theirs, scale, out=mine)
                mine += 0.0  # what 0 + −0 is
            return
        for start in range(0, self.high.size, _COLUMNS):
            part = slice(start, start + _COLUMNS)
            high, low = self.high[part], self.low[part]
            scratch = (np.empty_like(high), np.empty_like(high))
            with np.errstate(over="ignore", invalid="ignore"):
                _two_sum(high, low, other.high[part] * scale, scratch)
                low += other.low[part] * scale

    def divided_by(self, total: float, dtype: DType) -> NDArray[Any]:
        """Return the sum divided by ``total``, ``(d,)`` of ``dtype``, for example a mean; a fresh array."""
        value: NDArray[Any] = np.empty(self.high.shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, self.high.size, _COLUMNS):
                part = slice(start, start + _COLUMNS)
                value[part] = _divide(self.high[part], self.low[part], total)
        return value


def power_of_two_above(weights: Iterable[float]) -> float:
    """Return a power of two that no sum of these finite weights > 0 exceeds; dividing by it is exact.

    >>> power_of_two_above([3.0, 5.0, 1.0])
    32.0
    """
    values = list(weights)
    return float(2.0 ** min(int(np.frexp(max(values))[1]) + (len(values) - 1).bit_length(), 1023))


def _are_short(weights: NDArray[np.float64]) -> bool:
    """Return whether every weight has at most :data:`_FACTOR_BITS` significant bits."""
    mantissas = np.ldexp(np.frexp(weights)[0], _FACTOR_BITS)
    return bool((mantissas == np.rint(mantissas)).all())


def _divide(high: NDArray[np.float64], low: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Return ``(high + low) / total`` with one step of correction: w·x / w is x in float64 too."""
    whole = high + low
    quotient = whole / total
    # The exact product quotient·total = product + error (Dekker's splitting, 2²⁷ + 1).
    a = quotient * 134217729.0
    a -= a - quotient
    b = total * 134217729.0
    b -= b - total
    rest, last = quotient - a, total - b
    product = quotient * total
    error = ((a * b - product) + a * last + rest * b) + rest * last
    correction = (((high - product) - error) + low) / total
    # Near the largest float64 the splitting overflows; the quotient is then as good as a division is.
    return np.where(np.isfinite(correction), quotient + correction, quotient)


def _two_sum(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    term: NDArray[np.float64],
    scratch: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Add ``term``, which is overwritten, to ``high``, and what rounding loses to ``low``."""
    total, part = scratch
    np.add(high, term, out=total)
    np.subtract(total, high, out=part)  # the term as it was added
    np.subtract(term, part, out=term)  # what of the term is missing
    np.subtract(total, part, out=part)  # the old sum as it was added
    np.subtract(high, part, out=part)  # what of the old sum is missing
    np.add(term, part, out=term)
    np.add(low, term, out=low)
    high[:] = total
