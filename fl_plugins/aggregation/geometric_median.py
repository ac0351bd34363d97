"""Geometric median by the smoothed Weiszfeld algorithm (RFA: Pillutla, Kakade and Harchaoui 2022, Alg. 2).

Minimises Σᵢ ‖z − xᵢ‖, with ν = ``smoothing`` × (the spread of the majority) below which a distance counts
as ν. The paper's ν is absolute; relative to the spread, the result scales with the updates.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..registry import Kind, register
from .combinations import combine, embed, to_arrival
from .core import ROBUST, Aggregate, check_count, check_majority, check_positive, validate_unweighted
from .rows import Rows, canonical_order


@register(
    Kind.AGGREGATOR,
    "geometric_median",
    paper="Pillutla et al. 2022, Robust Aggregation for Federated Learning, Algorithm 2",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class GeometricMedian:
    """The point with the least sum of distances to all updates, a weighted mean of them.

    Parameters
    ----------
    num_byzantine : int
        f >= 0, the hostile clients to tolerate: only the precondition ``n > 2f`` uses it.
    tolerance : float
        The iteration ends when a step is at most this part of the spread.
    max_iterations : int
        It also ends after so many steps, >= 1; each costs O(n²), whatever d is.
    smoothing : float
        ν as a part of the spread.

    Guarantees
    ----------
    A convex combination of the rows; ``contribution`` holds its weights. If more than half of the rows are
    equal, it is that row. The order of the rows does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule.
    """

    num_byzantine: int = 0
    tolerance: float = 1e-9
    max_iterations: int = 1000
    smoothing: float = 1e-6

    name: ClassVar[str] = "geometric_median"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")
        check_count(self.max_iterations, rule=self.name, name="max_iterations", minimum=1)
        check_positive(self.tolerance, rule=self.name, name="tolerance")
        check_positive(self.smoothing, rule=self.name, name="smoothing")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        self.check(valid.shape[0])
        order = canonical_order(valid)
        shares = self._weiszfeld(embed(valid, order, rule=self.name))
        return Aggregate(combine(valid, order, shares, rule=self.name), to_arrival(order, shares))

    def _weiszfeld(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ``(n,)`` weights of the points in their geometric median."""
        n = len(points)
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        # From the mean of the majority around the medoid: near the optimum however far a minority is, and
        # (unlike a row itself) no point at which the iteration would stick.
        medoid = int(distances.sum(axis=1).argmin())
        near = np.argsort(distances[medoid], kind="stable")[: n // 2 + 1]
        shares = np.zeros(n)
        shares[near] = 1.0 / len(near)
        spread = float(distances[medoid, near].mean())
        if spread == 0.0:
            return shares
        at = shares @ points
        for _ in range(self.max_iterations):
            inverse = 1.0 / np.maximum(np.linalg.norm(points - at, axis=1), self.smoothing * spread)
            shares = inverse / inverse.sum()
            last, at = at, shares @ points
            if float(np.linalg.norm(at - last)) <= self.tolerance * spread:
                break
        return shares


def geometric_median(
    updates: Rows | NDArray[Any],
    *,
    num_byzantine: int = 0,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
    smoothing: float = 1e-6,
) -> NDArray[Any]:
    """Return the ``(d,)`` geometric median of ``(n, d)`` updates; see :class:`GeometricMedian`.

    >>> geometric_median(np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0], [1.0, 1.0]])).round(6)
    array([1., 1.])
    """
    rule = GeometricMedian(
        num_byzantine=num_byzantine,
        tolerance=tolerance,
        max_iterations=max_iterations,
        smoothing=smoothing,
    )
    return rule(updates).value
