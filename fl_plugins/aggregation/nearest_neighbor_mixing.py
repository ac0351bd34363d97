"""Nearest-neighbour mixing, NNM (Allouah et al. 2023, Fixing by Mixing, Algorithm 2)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..registry import Kind, register
from .core import check_count, check_majority, validate_unweighted
from .distances import pairwise_squared_distances
from .mixing import Mixed, mixed, to_dense
from .rows import Rows, canonical_order


@register(
    Kind.PREAGGREGATOR,
    "nearest_neighbor_mixing",
    paper="Allouah et al. 2023, Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
)
@dataclass(frozen=True, kw_only=True)
class NearestNeighborMixing:
    """Replace each update by the mean of the n − f that are nearest to it, itself included.

    It makes (f, κ)-robust rules optimal up to constants: κ becomes at most 8f/(n − f) · (κ + 1).

    Parameters
    ----------
    num_byzantine : int
        f >= 0; needs ``n > 2f``.

    Guarantees
    ----------
    n rows out, in canonical order of the rows that came in; among equally near ones, those that come first
    in it. The order of arrival does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "nearest_neighbor_mixing"

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def num_outputs(self, n: int) -> int:
        """Return ``n``."""
        return n

    def __call__(self, rows: Rows | NDArray[Any]) -> Mixed:
        """Mix ``(n, d)`` updates."""
        valid = validate_unweighted(rows, None, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        order = canonical_order(valid)
        distances = pairwise_squared_distances(valid)[np.ix_(order, order)]
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : n - self.num_byzantine]
        matrix = np.zeros((n, n))
        np.put_along_axis(matrix, nearest, 1.0 / (n - self.num_byzantine), axis=1)
        return mixed(valid, order, matrix)


def nearest_neighbor_mixing(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(n, d)`` mixed rows; see :class:`NearestNeighborMixing`.

    >>> nearest_neighbor_mixing(np.array([[0.0], [2.0], [9.0]]), num_byzantine=1)
    array([[1. ],
           [1. ],
           [5.5]])
    """
    return to_dense(NearestNeighborMixing(num_byzantine=num_byzantine)(updates).rows)
