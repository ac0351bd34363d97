"""Majority vote on the sign of every coordinate (Bernstein et al. 2019, Algorithm 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..registry import Kind, register
from .combinations import as_shares
from .core import ROBUST, Aggregate, check_count, check_majority, check_positive, validate_unweighted
from .rows import Rows, finite_blocks


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
        n, d = valid.shape
        self.check(n)
        value: NDArray[Any] = np.empty(d, valid.dtype)
        agreed = np.zeros(n)
        for columns, block in finite_blocks(valid, rule=self.name):
            votes = np.sign(block).astype(np.int8)
            winner = np.sign(votes.sum(axis=0, dtype=np.int64))
            value[columns] = self.step * winner
            agreed += ((votes == winner) & (winner != 0)).sum(axis=1)
        return Aggregate(value, as_shares(agreed))


def sign_majority(updates: Rows | NDArray[Any], *, step: float, num_byzantine: int = 0) -> NDArray[Any]:
    """Return the ``(d,)`` vote of ``(n, d)`` updates; see :class:`SignMajority`.

    >>> sign_majority(np.array([[9.0, 1.0], [-1.0, 1.0], [-1.0, 0.0]]), step=0.5)
    array([-0.5,  0.5])
    """
    return SignMajority(step=step, num_byzantine=num_byzantine)(updates).value
