"""Mean around median, MeaMed (Xie et al. 2018, Definition 4)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError
from ..registry import Kind, register
from .core import ROBUST, Aggregate, check_count, validate_unweighted
from .order_statistics import around_median
from .rows import Rows


@register(
    Kind.AGGREGATOR,
    "meamed",
    paper="Xie et al. 2018, Generalized Byzantine-tolerant SGD, Definition 4 (mean around median)",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class MeaMed:
    """Per coordinate, average the n − f values nearest the median.

    On heterogeneous clients under a colluding attack it is among the weakest rules: hostile values near the
    median push out honest ones.

    Parameters
    ----------
    num_byzantine : int
        f >= 0, the hostile clients to tolerate; needs ``n > 2f``.

    Guarantees
    ----------
    With at most f arbitrary rows the result is no farther from the median than the farthest honest value.
    The order of the rows does not matter, bit for bit: of two values equally far from the median the lower
    is kept.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``.
    """

    num_byzantine: int

    name: ClassVar[str] = "meamed"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        if n < 1 or n <= 2 * self.num_byzantine:
            raise PreconditionError(
                f"meamed: n={n} updates but num_byzantine={self.num_byzantine} needs n > 2f, that is n >= "
                f"{2 * self.num_byzantine + 1}; raise min_train_nodes or lower num_byzantine."
            )

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        return around_median(valid, num_kept=n - self.num_byzantine, rule=self.name)


def meamed(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(d,)`` mean around the median of ``(n, d)`` updates; see :class:`MeaMed`.

    >>> import numpy as np
    >>> meamed(np.array([[1.0], [2.0], [3.0], [4.0], [90.0]]), num_byzantine=1)
    array([2.5])
    """
    return MeaMed(num_byzantine=num_byzantine)(updates).value
