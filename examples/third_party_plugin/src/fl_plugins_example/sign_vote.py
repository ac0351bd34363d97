"""Majority vote on the sign of every coordinate (Bernstein et al. 2019, signSGD with majority vote).

The rule is pure: updates in, update out. It does not know Flower and is tested without it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation import Aggregate, Rows
from fl_plugins.aggregation.core import ROBUST, validate_unweighted
from fl_plugins.aggregation.rows import finite_blocks
from fl_plugins.contracts import Contract
from fl_plugins.errors import ConfigError, PreconditionError
from fl_plugins.registry import Kind, register


@register(
    Kind.AGGREGATOR,
    "sign_vote",
    paper="Bernstein et al. 2019, signSGD with Majority Vote is Communication Efficient, Algorithm 1",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class SignVote:
    """Move every coordinate by one step in the direction that most clients want; a tie does not move it.

    Parameters
    ----------
    step : float
        Length of the step, > 0. The size of an update plays no part, only its sign.

    Guarantees
    ----------
    Fewer than half of the clients cannot turn a coordinate on which the others agree.

    Raises
    ------
    ConfigError
        If ``step`` is not finite and > 0.
    """

    name: ClassVar[str] = "sign_vote"
    contract: ClassVar[Contract] = ROBUST

    step: float = 0.001

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise ConfigError(f"sign_vote: step={self.step}, but it must be finite and > 0.")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"sign_vote: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused. A vote on the winning side contributes."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n, d = valid.shape
        value = np.zeros(d, valid.dtype)
        agreed = np.zeros(n)
        for columns, block in finite_blocks(valid, rule=self.name):
            votes = np.sign(block)
            winner = np.sign(votes.sum(axis=0))
            value[columns] = self.step * winner
            agreed += ((votes == winner) & (winner != 0)).sum(axis=1)
        total = agreed.sum()
        return Aggregate(value, agreed / total if total else np.full(n, 1.0 / n))
