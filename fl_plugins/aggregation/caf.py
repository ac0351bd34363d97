"""CAF, the covariance-bound agnostic filter (Allouah, Guerraoui and Stephan 2025, Algorithm 2).

A spectral filter that needs no bound on the honest covariance: every update has a weight cᵢ, 1 at first.
While Σcᵢ > n − 2f, the direction of the largest weighted variance is found and updates that stand out in it
lose weight, cᵢ ← cᵢ(1 − τᵢ/τ_max) with τᵢ the squared deviation along it. The result is the weighted mean at
which that variance was least.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..registry import Kind, register
from .combinations import combine, embed, to_arrival
from .core import ROBUST, Aggregate, check_count, check_majority, validate_unweighted
from .rows import Rows, canonical_order


@register(
    Kind.AGGREGATOR,
    "caf",
    paper="Allouah et al. 2025, Towards Trustworthy Federated Learning with Untrusted Participants, Alg. 2",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class Caf:
    """The weighted mean after filtering out what inflates the variance in any direction.

    Parameters
    ----------
    num_byzantine : int
        f >= 0; needs ``n > 2f``. With 0 it is the mean.

    Guarantees
    ----------
    The dominant direction is exact (an eigenvector of an n × n matrix, no random power iteration), so equal
    updates give equal results. τ_max is taken over updates that still have weight, so each of at most
    2f steps removes one. A convex combination of the rows; the order of the rows does not matter, bit for
    bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "caf"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        self.check(valid.shape[0])
        order = canonical_order(valid)
        shares = self._filter(embed(valid, order, rule=self.name))
        return Aggregate(combine(valid, order, shares, rule=self.name), to_arrival(order, shares))

    def _filter(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ``(n,)`` weights, with sum 1, of the best mean."""
        n = len(points)
        kept = np.ones(n)
        best, least = kept / n, np.inf
        while self.num_byzantine and kept.sum() > n - 2 * self.num_byzantine:
            shares = kept / kept.sum()
            deviations = points - shares @ points
            # The n × n form has the covariance's nonzero spectrum, and its small entries stay small beside
            # those of a row that is 10²⁰ times larger but has no weight left.
            scaled = np.sqrt(shares)[:, None] * deviations
            variances, directions = np.linalg.eigh(scaled.T @ scaled)
            if variances[-1] < least:
                best, least = shares, float(variances[-1])
            outlying = (deviations @ directions[:, -1]) ** 2
            most = outlying[kept > 0].max()
            if most == 0.0:
                break
            kept = kept * np.maximum(1.0 - outlying / most, 0.0)
        return best


def caf(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(d,)`` filtered mean of ``(n, d)`` updates; see :class:`Caf`.

    >>> caf(np.array([[1.0], [3.0], [2.0], [2.0], [9e9]]), num_byzantine=1).round(6)
    array([2.])
    """
    return Caf(num_byzantine=num_byzantine)(updates).value
