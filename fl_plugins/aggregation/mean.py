"""The mean of the updates, weighted or uniform (McMahan et al. 2017, Algorithm 1)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Access, Contract, Weighting
from ..dtypes import DType
from ..errors import PreconditionError
from ..registry import Kind, register
from .core import Aggregate, validate
from .rows import Rows, refuse_non_finite
from .streaming import WeightedSum, power_of_two_above

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
    The order of the rows, and who adds up which of them, does not matter, bit for bit (see
    :mod:`fl_plugins.aggregation.streaming`). It overflows for no finite input.
    """

    name: ClassVar[str] = "mean"
    contract: ClassVar[Contract] = _CONTRACT

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"mean: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates with ``(n,)`` weights, finite and > 0, of any scale."""
        valid, _ = validate(rows, weights, rule=self.name)
        n, d = valid.shape
        given = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        scaled = given / power_of_two_above(given.tolist())
        total = WeightedSum.zeros(d)
        total.add_rows(valid, scaled)
        if not np.isfinite(total.high).all():  # no sum of finite rows overflows, with weights below 1
            refuse_non_finite(valid, rule=self.name)
        return self.from_sum(total, scaled, dtype=valid.dtype)

    def from_sum(self, total: WeightedSum, weights: NDArray[np.float64], *, dtype: DType) -> Aggregate:
        """Return the mean from the weighted sum of the updates."""
        shares = weights / weights.max()
        # fsum, for the total must not depend on the order either.
        return Aggregate(
            total.divided_by(math.fsum(weights.tolist()), dtype), shares / math.fsum(shares.tolist())
        )


def mean(updates: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the ``(d,)`` mean of ``(n, d)`` updates; see :class:`Mean`.

    >>> mean(np.array([[0.0, 2.0], [4.0, 2.0]]), np.array([3, 1]))
    array([1., 2.])
    """
    return Mean()(updates, weights).value
