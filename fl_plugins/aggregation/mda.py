"""Minimum diameter averaging (El-Mhamdi et al. 2021, Section 4.2; Rousseeuw 1985)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import ConfigError
from ..registry import Kind, register
from .combinations import combine, to_arrival
from .core import ROBUST, Aggregate, check_count, check_majority, validate_unweighted
from .distances import pairwise_squared_distances
from .rows import Rows, canonical_order

MAX_BYZANTINE = 20
"""Largest f of the exact search: its work grows as 1.47ᶠ, to seconds here and to hours at twice as many."""


@register(
    Kind.AGGREGATOR,
    "mda",
    paper="El-Mhamdi et al. 2021, Distributed Momentum for Byzantine-resilient Stochastic Gradient Descent",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class Mda:
    """The mean of the n − f updates whose largest mutual distance is least.

    Exact: instead of trying all C(n, f) subsets it asks, for a threshold on the distance, whether f updates
    cover every pair that is farther apart, which is decided in at most 1.47ᶠ steps for any n.

    Parameters
    ----------
    num_byzantine : int
        f, from 0 to 20; needs ``n > 2f``.

    Guarantees
    ----------
    Of several subsets with the least diameter, it takes the first in lexicographic order of content, so the
    order of the rows does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative, above 20, or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "mda"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")
        if self.num_byzantine > MAX_BYZANTINE:
            raise ConfigError(
                f"{self.name}: num_byzantine={self.num_byzantine} but the exact search ends at "
                f"{MAX_BYZANTINE}; use multi_krum, or chain nearest_neighbor_mixing with trimmed_mean."
            )

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        order = canonical_order(valid)
        distances = pairwise_squared_distances(valid)[np.ix_(order, order)]
        chosen = least_diameter_subset(distances, n - self.num_byzantine)
        shares = np.zeros(n)
        shares[chosen] = 1.0 / len(chosen)
        return Aggregate(combine(valid, order, shares, rule=self.name), to_arrival(order, shares))


def mda(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(d,)`` mean of the closest n − f of ``(n, d)`` updates; see :class:`Mda`.

    >>> mda(np.array([[1.0], [1.5], [0.5], [1.0], [50.0]]), num_byzantine=1)
    array([1.])
    """
    return Mda(num_byzantine=num_byzantine)(updates).value


def least_diameter_subset(distances: NDArray[np.float64], size: int) -> list[int]:
    """Return the lexicographically first ``size`` indices whose largest of ``(n, n)`` distances is least."""
    n = len(distances)
    everyone = (1 << n) - 1
    thresholds = np.unique(distances)
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if _can_cover(_far_pairs(distances, thresholds[middle]), everyone, n - size):
            high = middle
        else:
            low = middle + 1
    far = _far_pairs(distances, thresholds[low])
    chosen: list[int] = []
    remaining, budget = everyone, n - size
    for index in range(n):
        if len(chosen) == size:
            break
        if not remaining >> index & 1:
            continue
        # With `index` in the subset, whoever is far from it must go.
        excluded = far[index] & remaining
        cost = excluded.bit_count()
        if cost <= budget and _can_cover(far, remaining & ~excluded, budget - cost):
            chosen.append(index)
            remaining, budget = remaining & ~excluded, budget - cost
        else:
            remaining, budget = remaining & ~(1 << index), budget - 1
    return chosen


def _far_pairs(distances: NDArray[np.float64], threshold: float) -> list[int]:
    """Return for each index the bit set of those farther away than ``threshold``."""
    return [sum(1 << int(j) for j in np.flatnonzero(row > threshold)) for row in distances]


def _can_cover(far: list[int], among: int, budget: int) -> bool:
    """Whether removing at most ``budget`` of the indices in ``among`` leaves no far pair."""
    worst, degree, edges = -1, 0, 0
    rest = among
    while rest:
        index = (rest & -rest).bit_length() - 1
        rest &= rest - 1
        here = (far[index] & among).bit_count()
        edges += here
        if here > degree:
            worst, degree = index, here
    edges //= 2
    if edges > budget * degree:
        return False
    if degree <= 2:
        return _cover_of_paths(far, among) <= budget
    neighbours = far[worst] & among
    if _can_cover(far, among & ~(1 << worst), budget - 1):
        return True
    return degree <= budget and _can_cover(far, among & ~(neighbours | 1 << worst), budget - degree)


def _cover_of_paths(far: list[int], among: int) -> int:
    """Return the least cover of a graph whose degrees are at most 2: paths of k nodes and rings."""
    total = 0
    while among:
        component = frontier = among & -among
        while frontier:
            index = (frontier & -frontier).bit_length() - 1
            frontier &= frontier - 1
            new = far[index] & among & ~component
            component |= new
            frontier |= new
        size = component.bit_count()
        members = component
        degrees = 0
        while members:
            index = (members & -members).bit_length() - 1
            members &= members - 1
            degrees += (far[index] & component).bit_count()
        total += (size + 1) // 2 if degrees == 2 * size and size > 1 else size // 2
        among &= ~component
    return total
