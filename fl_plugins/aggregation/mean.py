"""The mean of the updates, weighted or uniform (McMahan et al. 2017, Algorithm 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Access, Contract, Weighting
from ..errors import PreconditionError
from ..registry import Kind, register
from .core import Aggregate, validate
from .rows import Rows, finite_blocks

_CONTRACT = Contract(access=Access.SUM, weighting=Weighting.EXAMPLES)


@register(
    Kind.AGGREGATOR,
    "mean",
    paper="McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data",
    contract=_CONTRACT,
)
@dataclass(frozen=True, kw_only=True)
class Mean:
    """Weighted mean of the updates; without weights every client counts the same.

    No defence: one client, or one claimed weight, can move it anywhere.

    Guarantees
    ----------
    Accumulated in float64 as a convex combination, so it overflows for no finite input.
    """

    name: ClassVar[str] = "mean"
    contract: ClassVar[Contract] = _CONTRACT

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"mean: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates with ``(n,)`` weights, finite and > 0, of any scale."""
        valid, shares = validate(rows, weights, rule=self.name)
        value: NDArray[Any] = np.empty(valid.shape[1], valid.dtype)
        for columns, block in finite_blocks(valid, rule=self.name):
            value[columns] = shares @ block.astype(np.float64)
        return Aggregate(value, shares)


def mean(updates: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the ``(d,)`` mean of ``(n, d)`` updates; see :class:`Mean`.

    >>> mean(np.array([[0.0, 2.0], [4.0, 2.0]]), np.array([3, 1]))
    array([1., 2.])
    """
    return Mean()(updates, weights).value
