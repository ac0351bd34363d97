"""What the replies of a round become: rows of updates for the floats, a robust vote for the integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._layout import Layout
from .aggregation.in_memory import Run
from .dtypes import DType, is_float, supported
from .errors import PreconditionError, StructureError
from .training import NamedArrays


class UpdateRows:
    """The ``(n, d)`` matrix of updates, reply − global, computed a block of columns at a time.

    It reads straight from the buffers that came in: no reply is stacked or flattened whole. Columns follow
    the layout (sorted by name), whatever order a reply's keys have.

    Guarantees
    ----------
    Each element is the correctly rounded difference (one IEEE subtraction of the exact inputs, relative
    error at most 2⁻²⁴ in float32; by Sterbenz's lemma no error at all where reply and global are within a
    factor 2), so float32 is as good as float64 here. A float64 reply or model is subtracted in float64.

    Parameters
    ----------
    layout : Layout
        The model's.
    global_arrays : NamedArrays
        The parameters that the clients started from.
    replies : Sequence[NamedArrays]
        One mapping per client, in the order of the rows.

    Raises
    ------
    StructureError
        If anything has another layout.
    """

    def __init__(self, layout: Layout, global_arrays: NamedArrays, replies: Sequence[NamedArrays]) -> None:
        layout.check(global_arrays, owner="global parameters")
        for index, reply in enumerate(replies):
            layout.check(reply, owner=f"reply {index}")
        self._dtype = layout.compute_dtype
        self._shape = (len(replies), layout.size)
        # reshape(-1) is a view, except of a Fortran-ordered array, which is copied once.
        self._columns = [
            (
                np.asarray(global_arrays[key]).reshape(-1),
                [np.asarray(reply[key]).reshape(-1) for reply in replies],
            )
            for key in layout.float_keys
        ]

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``: replies and float elements."""
        return self._shape

    @property
    def dtype(self) -> DType:
        """The layout's ``compute_dtype``."""
        return self._dtype

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Fill ``out`` with columns ``start:start + b`` of all rows, or of some in the order given.

        The columns may span several arrays. Several threads may read at once. A difference that overflows
        is ±inf: the kernels refuse it with its row.
        """
        stop = start + out.shape[1]
        first = 0
        # Not per array: entering and leaving costs more than a small array's subtraction.
        with np.errstate(over="ignore", invalid="ignore"):
            for base, replies in self._columns:
                low, high = max(start - first, 0), min(stop - first, base.size)
                first += base.size
                if low >= high:
                    continue
                target = slice(first - base.size + low - start, first - base.size + high - start)
                chosen = replies if rows is None else [replies[row] for row in rows]
                same = base.dtype == out.dtype
                part = base[low:high]
                for row, reply in zip(out, chosen, strict=True):
                    if same and reply.dtype == base.dtype:  # naming the dtypes takes as long as 4,000 columns
                        np.subtract(reply[low:high], part, row[target])
                        continue
                    wide = np.float64 in (base.dtype, reply.dtype)
                    np.subtract(
                        reply[low:high],
                        part,
                        out=row[target],
                        dtype=np.float64 if wide else self._dtype,
                        casting="unsafe",
                    )

    def runs(self) -> list[Run]:
        """Return every array's columns; an element that is cast first is the reader's to refuse."""
        runs, first = [], 0
        for base, replies in self._columns:
            runs.append(Run(first, base, replies))
            first += base.size
        return runs


def combine_integers(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the element-wise lower median of integer or bool arrays: state that is never averaged.

    Guarantees
    ----------
    Exact dtype and shape; every element is one that some client sent; with fewer than half of the clients
    lying, it lies between two honest values. No float is involved (int64 beyond 2⁵³ is exact).

    Raises
    ------
    PreconditionError
        If there are no arrays.
    StructureError
        If shapes or dtypes differ or are floats.

    >>> combine_integers([np.array(3), np.array(9), np.array(4), np.array(5)])
    array(4)
    """
    if not values:
        raise PreconditionError("combine_integers: n=0 arrays but n >= 1 is needed; wait for a reply.")
    first = values[0]
    for value in values:
        if value.shape != first.shape or value.dtype != first.dtype:
            raise StructureError(
                f"combine_integers: shape {value.shape} of {value.dtype} against {first.shape} of "
                f"{first.dtype}; all replies need the model's own."
            )
    if is_float(supported(first.dtype, owner="combine_integers")):
        raise StructureError(f"combine_integers: dtype {first.dtype} is a float; use an aggregator.")
    middle = (len(values) - 1) // 2
    return np.asarray(np.partition(np.stack(values), middle, axis=0)[middle])
