"""Centered clipping (Karimireddy, He and Jaggi 2021, Algorithm 2, "Learning from History").

=====  ==================================================================
v      the centre: the last round's result, 0 before the first
τ      ``max_norm``, the distance from v beyond which an update is clipped
L      ``iterations``
=====  ==================================================================

v ← v + (1/n) Σᵢ (xᵢ − v)·min(1, τ/‖xᵢ − v‖), L times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..dtypes import DType
from ..errors import StructureError
from ..registry import Kind, register
from .combinations import as_shares, clip_factors, embed_from, row_norms, to_arrival
from .core import ROBUST, Aggregate, check_count, check_majority, check_positive, validate_unweighted
from .rows import Rows, SelectedRows, block_width, canonical_order, map_blocks


@register(
    Kind.AGGREGATOR,
    "centered_clipping",
    paper="Karimireddy et al. 2021, Learning from History for Byzantine Robust Optimization, Algorithm 2",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class CenteredClipping:
    """The last round's result, moved by the mean of the clipped differences from it.

    Parameters
    ----------
    max_norm : float
        τ > 0, in the unit of the updates: honest ones should mostly lie within it of the centre.
    num_byzantine : int
        f >= 0, the hostile clients to tolerate: only the precondition ``n > 2f`` uses it.
    iterations : int
        L >= 1.

    Guarantees
    ----------
    An update moves the centre by at most τ/n in each iteration, whatever it is. The state is the centre,
    ``{"center": (d,)}``; called without one, the rule starts at 0. Neither translation nor scale
    equivariant: τ and the centre are absolute.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule.
    """

    max_norm: float
    num_byzantine: int = 0
    iterations: int = 1

    name: ClassVar[str] = "centered_clipping"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_positive(self.max_norm, rule=self.name, name="max_norm")
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")
        check_count(self.iterations, rule=self.name, name="iterations", minimum=1)

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def initial_state(self, d: int, dtype: DType) -> dict[str, NDArray[Any]]:
        """Return the centre 0."""
        return {"center": np.zeros(d, dtype)}

    def __call__(
        self,
        rows: Rows | NDArray[Any],
        weights: NDArray[Any] | None = None,
        *,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> Aggregate:
        """Combine ``(n, d)`` updates around ``state["center"]``; weights are refused.

        ``contribution`` is each row's coefficient in the move, as a share: a clipped row's is smaller.
        """
        valid = validate_unweighted(rows, weights, rule=self.name)
        n, d = valid.shape
        self.check(n)
        center = (self.initial_state(d, valid.dtype) if state is None else state)["center"]
        if center.shape != (d,):
            raise StructureError(
                f"{self.name}: the centre has shape {center.shape} but the updates have d={d}; the state "
                "belongs to another model."
            )
        order = canonical_order(valid)
        moves = self._moves(valid, order, center)  # refuses what is not finite
        value: NDArray[Any] = np.empty(d, valid.dtype)

        def move(columns: slice, block: NDArray[Any]) -> None:
            at = center[columns].astype(np.float64)
            value[columns] = at + np.dot(moves, block - at)

        map_blocks(SelectedRows(valid, order), move, width=block_width(n, d, elements=1 << 18))
        return Aggregate(value, to_arrival(order, as_shares(moves)), {"center": value})

    def _moves(self, rows: Rows, order: NDArray[np.intp], center: NDArray[Any]) -> NDArray[np.float64]:
        """Return a with new centre = v + Σᵢ aᵢ(xᵢ − v), in canonical order."""
        n = rows.shape[0]
        norms = row_norms(rows, order, rule=self.name, center=center)
        moves = clip_factors(norms, self.max_norm) / n
        if self.iterations == 1:
            return moves
        points = embed_from(rows, order, center, rule=self.name)
        for _ in range(self.iterations - 1):
            distances = np.linalg.norm(points - moves @ points, axis=1)
            step = clip_factors(distances, self.max_norm) / n
            moves = (1.0 - step.sum()) * moves + step
        return moves


def centered_clipping(
    updates: Rows | NDArray[Any],
    *,
    max_norm: float,
    num_byzantine: int = 0,
    iterations: int = 1,
    center: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the ``(d,)`` new centre from ``(n, d)`` updates and the old one; see :class:`CenteredClipping`.

    >>> centered_clipping(np.array([[1.0, 0.0], [0.0, 1.0], [8.0, 0.0], [0.0, 0.0]]), max_norm=2.0)
    array([0.75, 0.25])
    """
    rule = CenteredClipping(max_norm=max_norm, num_byzantine=num_byzantine, iterations=iterations)
    return rule(updates, state=None if center is None else {"center": center}).value
