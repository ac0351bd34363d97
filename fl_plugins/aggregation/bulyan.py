"""Bulyan (El Mhamdi et al. 2018, Section 4).

=====  ========================================================
n      updates
f      ``num_byzantine``, the hostile clients to tolerate
θ      n − 2f, the updates that are selected
β      θ − 2f, the values that are averaged in every coordinate
=====  ========================================================
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError
from ..registry import Kind, register
from .core import ROBUST, Aggregate, check_count, validate_unweighted
from .distances import pairwise_squared_distances
from .krum import krum_scores
from .order_statistics import around_median
from .rows import Rows, SelectedRows, canonical_order


@register(
    Kind.AGGREGATOR,
    "bulyan",
    paper="El Mhamdi et al. 2018, The Hidden Vulnerability of Distributed Learning in Byzantium, Section 4",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class Bulyan:
    """Select θ updates by Krum, one after the other, then average per coordinate the β nearest the median.

    The selection is the paper's: the winner is taken out and Krum runs again on the rest. (Taking the θ best
    scores of one run, as Flower does, is another rule.)

    Parameters
    ----------
    num_byzantine : int
        f >= 0; needs ``n >= 4f + 3``.

    Guarantees
    ----------
    At most f of the 2f + β selected are hostile, so every coordinate's median lies within the range of the
    honest ones, and the result no farther from it than the farthest of them. The order of the rows does not
    matter, bit for bit: equal scores go to the row that comes first in lexicographic order of content, and
    of two values equally far from the median the lower is kept.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "bulyan"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 4f + 3``."""
        if n < 4 * self.num_byzantine + 3:
            raise PreconditionError(
                f"bulyan: n={n} updates but num_byzantine={self.num_byzantine} needs n >= 4f+3 = "
                f"{4 * self.num_byzantine + 3}; raise min_train_nodes or lower num_byzantine."
            )

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        selected = select_by_krum(valid, num_byzantine=self.num_byzantine, count=n - 2 * self.num_byzantine)
        found = around_median(
            SelectedRows(valid, selected), num_kept=n - 4 * self.num_byzantine, rule=self.name
        )
        contribution = np.zeros(n)
        contribution[selected] = found.contribution
        return Aggregate(found.value, contribution)


def bulyan(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return Bulyan's ``(d,)`` aggregate of ``(n, d)`` updates; see :class:`Bulyan`.

    >>> bulyan(np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [99.0]]), num_byzantine=1)
    array([2.])
    """
    return Bulyan(num_byzantine=num_byzantine)(updates).value


def select_by_krum(rows: Rows, *, num_byzantine: int, count: int) -> NDArray[np.intp]:
    """Return the ``count`` rows that Krum selects in turn, each from those that are left.

    With r rows left a score counts the r − f − 2 nearest others, and one where that is less than one (only
    the last steps for f <= 1: the paper leaves them open).
    """
    order = canonical_order(rows)
    distances = pairwise_squared_distances(rows)[np.ix_(order, order)]
    left = np.arange(len(order))
    chosen = []
    for _ in range(count):
        neighbours = max(len(left) - num_byzantine - 2, 1)
        scores = krum_scores(distances[np.ix_(left, left)], num_byzantine=len(left) - neighbours - 2)
        best = int(scores.argmin())
        chosen.append(left[best])
        left = np.delete(left, best)
    selected: NDArray[np.intp] = order[np.array(chosen)]
    return selected
