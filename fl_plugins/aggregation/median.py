"""Coordinate-wise median (Yin et al. 2018, Definition 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError
from ..registry import Kind, register
from .core import ROBUST, Aggregate, validate_unweighted
from .order_statistics import trimmed
from .rows import Rows


@register(
    Kind.AGGREGATOR,
    "median",
    paper="Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Def. 1",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class Median:
    """Per coordinate, the median of the updates: for even n the mean of the middle two.

    Guarantees
    ----------
    With fewer than n/2 arbitrary rows, every coordinate of the result lies within the range of the other
    rows. The order of the rows does not matter, bit for bit. A single update is its own median.
    """

    name: ClassVar[str] = "median"
    contract: ClassVar[Contract] = ROBUST

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"median: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        return trimmed(valid, num_trimmed=(valid.shape[0] - 1) // 2, rule=self.name)


def median(updates: Rows | NDArray[Any]) -> NDArray[Any]:
    """Return the ``(d,)`` coordinate-wise median of ``(n, d)`` updates; see :class:`Median`.

    >>> import numpy as np
    >>> median(np.array([[1.0, 5.0], [9.0, 6.0], [2.0, 7.0], [3.0, 8.0]]))
    array([2.5, 6.5])
    """
    return Median()(updates).value
