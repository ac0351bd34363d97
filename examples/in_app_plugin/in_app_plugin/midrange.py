"""The smallest strategy that there is: one aggregation rule, chosen by name."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.core import ROBUST, Aggregate, validate_unweighted
from fl_plugins.aggregation.rows import Rows, blocks
from fl_plugins.contracts import Contract
from fl_plugins.registry import Kind, register
from strategies import FederatedStrategy


@dataclass(frozen=True)
class MidrangeRule:
    """Per coordinate, halfway between the lowest and the highest value (for show: it defends nothing)."""

    name: ClassVar[str] = "midrange"
    contract: ClassVar[Contract] = ROBUST

    def check(self, n: int) -> None:
        """Accept any number of updates."""

    def __call__(self, updates: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates into ``(d,)``, a block of columns at a time."""
        rows = validate_unweighted(updates, weights, rule=self.name)
        n, d = rows.shape
        value = np.empty(d, rows.dtype)
        for columns, block in blocks(rows, 65_536):
            value[columns] = (block.min(axis=0) + block.max(axis=0)) / 2
        return Aggregate(value, np.full(n, 1 / n))


@register(Kind.STRATEGY, "midrange", contract=ROBUST)
class Midrange(FederatedStrategy):
    """Move every parameter halfway between the lowest and the highest update."""

    def __init__(self) -> None:
        super().__init__(MidrangeRule())
