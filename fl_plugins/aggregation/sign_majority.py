"""Majority vote on the sign of every coordinate (Bernstein et al. 2019, Algorithm 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..registry import Kind, register
from .combinations import as_shares
from .core import ROBUST, Aggregate, check_count, check_majority, check_positive, validate_unweighted
from .rows import Rows, map_finite_blocks


@register(
    Kind.AGGREGATOR,
    "sign_majority",
    paper="Bernstein et al. 2019, signSGD with Majority Vote is Communication Efficient, Algorithm 1",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class SignMajority:
    """Move every coordinate by one step in the direction that most updates have; a tie does not move it.

    Parameters
    ----------
    step : float
        Length of the step, > 0, in the unit of the parameters. The size of an update plays no part.
    num_byzantine : int
        f >= 0, the hostile clients to tolerate: only the precondition ``n > 2f`` uses it.

    Guarantees
    ----------
    A zero abstains. f arbitrary rows cannot turn a coordinate on which more than ``n/2`` honest rows agree.
    ``contribution`` is the share of the winning votes that are the row's.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule.
    """

    step: float
    num_byzantine: int = 0

    name: ClassVar[str] = "sign_majority"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_positive(self.step, rule=self.name, name="step")
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self.num_byzantine, rule=self.name)

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        self.check(valid.shape[0])
        value: NDArray[Any] = np.empty(valid.shape[1], valid.dtype)

        def vote(columns: slice, block: NDArray[Any]) -> NDArray[np.intp]:
            ahead = np.count_nonzero(block > 0, axis=0) - np.count_nonzero(block < 0, axis=0)
            winner = np.sign(ahead).astype(np.int8)
            value[columns] = self.step * winner
            agreeing: NDArray[np.intp] = np.count_nonzero((np.sign(block) == winner) & (winner != 0), axis=1)
            return agreeing

        agreed: NDArray[np.float64] = np.sum(
            map_finite_blocks(valid, vote, rule=self.name), axis=0, dtype=np.float64
        )
        return Aggregate(value, as_shares(agreed))


def sign_majority(updates: Rows | NDArray[Any], *, step: float, num_byzantine: int = 0) -> NDArray[Any]:
    """Return the ``(d,)`` vote of ``(n, d)`` updates; see :class:`SignMajority`.

    >>> sign_majority(np.array([[9.0, 1.0], [-1.0, 1.0], [-1.0, 0.0]]), step=0.5)
    array([-0.5,  0.5])
    """
    return SignMajority(step=step, num_byzantine=num_byzantine)(updates).value
