"""What a pre-aggregator is and gives: linear combinations of the clients' rows, never stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .core import Stateful
from .rows import WIDENED_COLUMNS, Rows, blocks, widened

_READ_ELEMENTS = 1 << 19
"""Values that are read at once to be mixed: whoever reads all columns needs no second copy of the input."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """New rows, and how much of each row that came in is in them.

    Parameters
    ----------
    rows : Rows
        ``(m, d)``.
    mixing : NDArray
        ``(m, n)`` float64, >= 0: row k of the result is Σᵢ ``mixing[k, i]`` · (row i that came in).
    state : Mapping[str, NDArray]
        The next round's state of a :class:`~fl_plugins.aggregation.core.Stateful` pre-aggregator.
    """

    rows: Rows
    mixing: NDArray[np.float64]
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@runtime_checkable
class PreAggregator(Protocol):
    """What may stand before a rule in a chain: configuration only, called with the updates of one round."""

    @property
    def name(self) -> str:
        """Name in specs and messages."""
        ...

    def check(self, n: int) -> None:
        """Check the precondition for ``n`` updates; raises ``PreconditionError``."""
        ...

    def num_outputs(self, n: int) -> int:
        """Return m, the rows that it makes of ``n``."""
        ...

    def __call__(self, rows: Rows | NDArray[Any]) -> Mixed:
        """Mix ``(n, d)`` updates."""
        ...


def call_preaggregator(
    stage: PreAggregator, rows: Rows, *, state: Mapping[str, NDArray[Any]] | None = None
) -> Mixed:
    """Call ``stage``, with ``state`` if it is stateful (``None`` or empty: before the first round)."""
    if not isinstance(stage, Stateful):
        return stage(rows)
    stateful: Any = stage
    result: Mixed = stateful(rows, state=state or None)
    return result


class MixedRows:
    """``matrix @ rows[order]`` as :class:`Rows`, computed a block of columns at a time in float64.

    With ``order`` canonical, both the rows and their order are those of the content, not of the arrival.
    Where the matrix averages (rows with sum 1), no value leaves the range of its column, even by rounding.
    """

    def __init__(self, rows: Rows, order: NDArray[np.intp], matrix: NDArray[np.float64]) -> None:
        self._rows, self._order, self._matrix = rows, order, matrix
        self._averages = bool(np.allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=1e-12))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, d)``."""
        return self._matrix.shape[0], self._rows.shape[1]

    @property
    def dtype(self) -> DType:
        """The dtype of the rows that are mixed."""
        return self._rows.dtype

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Read columns of all or some of the mixed rows."""
        n, width = len(self._order), out.shape[1]
        matrix = self._matrix if rows is None else self._matrix[rows]
        step = max(_READ_ELEMENTS // n // WIDENED_COLUMNS, 1) * WIDENED_COLUMNS
        ordered: NDArray[Any] = np.empty((n, min(step, width)), self.dtype)
        for read in range(0, width, step):
            block = ordered[:, : width - read]
            self._rows.read_into(start + read, block, self._order)
            self._mix(matrix, block, out[:, read : read + step])

    def _mix(self, matrix: NDArray[np.float64], block: NDArray[Any], out: NDArray[Any]) -> None:
        """Fill ``out`` with ``matrix @ block``; what is not finite is found by whoever reads it."""
        for place, wide in widened(slice(0, out.shape[1]), block):
            with np.errstate(invalid="ignore"):
                mixed = np.dot(matrix, wide)  # unlike @, dot lets other threads run
            # A float64 mean of float32 values leaves their range by less than rounding to float32 removes.
            if self._averages and self.dtype == np.float64:
                np.clip(mixed, wide.min(axis=0), wide.max(axis=0), out=mixed)
            out[:, place] = mixed


class ScaledRows:
    """``factors[i] · rows[i]`` as :class:`Rows`; a factor of 1 changes no bit."""

    def __init__(self, rows: Rows, factors: NDArray[np.float64]) -> None:
        self._rows, self._factors = rows, factors

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        return self._rows.shape

    @property
    def dtype(self) -> DType:
        """The dtype of the rows that are scaled."""
        return self._rows.dtype

    def read_into(self, start: int, out: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Read columns of all or some of the scaled rows."""
        self._rows.read_into(start, out, rows)
        for values, factor in zip(out, self._factors if rows is None else self._factors[rows], strict=True):
            if factor != 1.0:
                values[:] = values.astype(np.float64) * factor


def scaled(rows: Rows, factors: NDArray[np.float64]) -> Mixed:
    """Return the rows times ``(n,)`` factors, in order of arrival."""
    return Mixed(ScaledRows(rows, factors), np.diag(factors))


def mixed(rows: Rows, order: NDArray[np.intp], matrix: NDArray[np.float64]) -> Mixed:
    """Return ``matrix @ rows[order]``; ``matrix`` is ``(m, n)``."""
    mixing = np.empty_like(matrix)
    mixing[:, order] = matrix
    return Mixed(MixedRows(rows, order, matrix), mixing)


def to_dense(rows: Rows) -> NDArray[Any]:
    """Return the rows as one ``(n, d)`` array."""
    values: NDArray[Any] = np.empty(rows.shape, rows.dtype)
    for columns, block in blocks(rows, 8_192):
        values[:, columns] = block
    return values
