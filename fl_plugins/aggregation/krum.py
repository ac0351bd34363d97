"""Krum and Multi-Krum (Blanchard et al. 2017, Section 4).

=====  ====================================================
n      updates
f      ``num_byzantine``, the hostile clients to tolerate
m      ``num_selected``, the updates that Multi-Krum averages
=====  ====================================================
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError
from ..registry import Kind, register
from .combinations import combine
from .core import ROBUST, Aggregate, check_count, validate_unweighted
from .distances import pairwise_squared_distances
from .rows import Rows, canonical_order
from .threads import in_threads

_READ_COLUMNS = 1 << 18
"""Columns of the one row that a thread reads at a time."""

_PAPER = (
    "Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, Section 4"
)


@register(Kind.AGGREGATOR, "krum", paper=_PAPER, contract=ROBUST)
@dataclass(frozen=True, kw_only=True)
class Krum:
    """The one update with the least sum of squared distances to its n − f − 2 nearest others.

    On heterogeneous clients it fails without any attacker: it is one client's update.

    Parameters
    ----------
    num_byzantine : int
        f >= 0; needs ``n >= 2f + 3``.

    Guarantees
    ----------
    The result is one of the rows, bit for bit. Equal scores go to the row that comes first in lexicographic
    order of content, so the order of arrival never matters.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "krum"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 2f + 3``."""
        _check_cohort(n, self.num_byzantine, rule=self.name)

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        self.check(valid.shape[0])
        return _mean_of(valid, rank_by_krum(valid, num_byzantine=self.num_byzantine)[:1], rule=self.name)


@register(Kind.AGGREGATOR, "multi_krum", paper=_PAPER, contract=ROBUST)
@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """The unweighted mean of the m updates with the best Krum scores.

    Parameters
    ----------
    num_byzantine : int
        f >= 0; needs ``n >= 2f + 3``.
    num_selected : int, optional
        m, from 1 (Krum) to ``n − f``. By default ``n − f − 2``, as many as a score counts neighbours.

    Guarantees
    ----------
    Summed in float64 in order of rank and never outside the selected values. Ties and order of arrival
    as for :class:`Krum`.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter is too small or no ``int``.
    """

    num_byzantine: int
    num_selected: int | None = None

    name: ClassVar[str] = "multi_krum"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")
        if self.num_selected is not None:
            check_count(self.num_selected, rule=self.name, name="num_selected", minimum=1)

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 2f + 3`` and ``m <= n − f``."""
        _check_cohort(n, self.num_byzantine, rule=self.name)
        if self.num_selected is not None and self.num_selected > n - self.num_byzantine:
            raise PreconditionError(
                f"multi_krum: n={n} updates but num_selected={self.num_selected} needs m <= n - f = "
                f"{n - self.num_byzantine}; raise min_train_nodes or lower num_selected."
            )

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        count = n - self.num_byzantine - 2 if self.num_selected is None else self.num_selected
        return _mean_of(valid, rank_by_krum(valid, num_byzantine=self.num_byzantine)[:count], rule=self.name)


def krum(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(d,)`` row of ``(n, d)`` updates that Krum selects; see :class:`Krum`.

    >>> krum(np.array([[1.0], [1.1], [0.9], [1.2], [50.0]]), num_byzantine=1)
    array([1.])
    """
    return Krum(num_byzantine=num_byzantine)(updates).value


def multi_krum(
    updates: Rows | NDArray[Any], *, num_byzantine: int, num_selected: int | None = None
) -> NDArray[Any]:
    """Return the ``(d,)`` mean of the rows that Multi-Krum selects; see :class:`MultiKrum`.

    >>> multi_krum(np.array([[1.0], [1.5], [0.5], [1.0], [50.0]]), num_byzantine=1, num_selected=4)
    array([1.])
    """
    return MultiKrum(num_byzantine=num_byzantine, num_selected=num_selected)(updates).value


def krum_scores(distances: NDArray[np.float64], *, num_byzantine: int) -> NDArray[np.float64]:
    """Return ``(n,)`` scores: the sum of the n − f − 2 smallest of each row's distances to others.

    ``distances`` is ``(n, n)``. A row itself is masked, not sorted away: a duplicate of it is 0 away too.
    """
    n = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    with np.errstate(over="ignore"):  # float64 updates beyond 1e153: inf, the worst score
        scores: NDArray[np.float64] = np.sort(others, axis=1)[:, : n - num_byzantine - 2].sum(axis=1)
    return scores


def rank_by_krum(rows: Rows, *, num_byzantine: int) -> NDArray[np.intp]:
    """Return the row indices from the best Krum score to the worst, ties in canonical order."""
    order = canonical_order(rows)
    scores = krum_scores(pairwise_squared_distances(rows), num_byzantine=num_byzantine)
    return order[np.argsort(scores[order], kind="stable")]


def _check_cohort(n: int, num_byzantine: int, *, rule: str) -> None:
    """Raise unless ``n >= 2f + 3``."""
    if n < 2 * num_byzantine + 3:
        raise PreconditionError(
            f"{rule}: n={n} updates but num_byzantine={num_byzantine} needs n >= 2f+3 = "
            f"{2 * num_byzantine + 3}; raise min_train_nodes or lower num_byzantine."
        )


def _mean_of(rows: Rows, selected: NDArray[np.intp], *, rule: str) -> Aggregate:
    """Return the unweighted mean of the selected (finite) rows, summed in their order; of one row, itself."""
    shares = np.zeros(rows.shape[0])
    shares[selected] = 1.0 / len(selected)
    if len(selected) > 1:
        return Aggregate(combine(rows, selected, shares[selected], rule=rule), shares)
    value: NDArray[Any] = np.empty((1, rows.shape[1]), rows.dtype)

    def read(start: int) -> None:
        rows.read_into(start, value[:, start : start + _READ_COLUMNS], selected)

    in_threads(read, range(0, rows.shape[1], _READ_COLUMNS))
    return Aggregate(value[0], shares)
