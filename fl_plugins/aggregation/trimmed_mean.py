"""Coordinate-wise trimmed mean (Yin et al. 2018, Definition 2)."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import ConfigError, ConfigTypeError, PreconditionError
from ..registry import Kind, register
from .core import ROBUST, Aggregate, check_count, validate_unweighted
from .order_statistics import trimmed
from .rows import Rows


@register(
    Kind.AGGREGATOR,
    "trimmed_mean",
    paper="Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Def. 2",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Per coordinate, drop the f lowest and the f highest values and average the rest.

    Exactly one of the two parameters is given.

    Parameters
    ----------
    num_byzantine : int, optional
        f >= 0, the hostile clients to tolerate; needs ``n > 2f``.
    fraction : float, optional
        f as a fraction of the updates, in (0, 0.5): ``f = floor(fraction · n)``, of the decimal number as
        written (0.29 of 100 is 29). It must trim something. In a strategy n is the cohort that was
        sampled, see :meth:`for_cohort`.

    Guarantees
    ----------
    With at most f arbitrary rows, every coordinate of the result lies within the range of the other rows.
    The order of the rows does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter breaks its rule, or both or none are given.
    """

    num_byzantine: int | None = None
    fraction: float | None = None

    name: ClassVar[str] = "trimmed_mean"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        if (self.num_byzantine is None) == (self.fraction is None):
            raise ConfigError(
                f"trimmed_mean: num_byzantine={self.num_byzantine} and fraction={self.fraction}, but exactly "
                "one of them says how much to trim; give one."
            )
        if self.num_byzantine is not None:
            check_count(self.num_byzantine, rule=self.name, name="num_byzantine")
        elif not isinstance(self.fraction, float):
            raise ConfigTypeError(
                f"trimmed_mean: fraction={self.fraction!r} is a {type(self.fraction).__name__}; give a "
                "number in (0, 0.5), or a count as num_byzantine."
            )
        elif not 0 < self.fraction < 0.5:
            raise ConfigError(
                f"trimmed_mean: fraction={self.fraction} but it must be in (0, 0.5); half or more of the "
                "updates cannot be trimmed at each end."
            )

    def num_trimmed(self, n: int) -> int:
        """Return f, the values dropped at each end of every coordinate, for ``n`` updates.

        >>> TrimmedMean(fraction=0.29).num_trimmed(100)
        29
        """
        if self.num_byzantine is not None:
            return self.num_byzantine
        # The shortest decimal that reads back as this float is what the user wrote; 0.29 itself is < 0.29.
        return int(Decimal(repr(float(self.fraction or 0))) * n)

    def for_cohort(self, n: int) -> "TrimmedMean":
        """Return the rule that drops as many values as ``fraction`` of ``n`` sampled clients are.

        A hostile client does not stay away: with 2 of 10 hostile and one honest one late, a fifth of the 9
        replies would be 1.
        """
        self.check(n)
        return TrimmedMean(num_byzantine=self.num_trimmed(n))

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f`` and, for a fraction, ``f >= 1``."""
        trimmed_count = self.num_trimmed(n)
        if n < 1 or n <= 2 * trimmed_count:
            raise PreconditionError(
                f"trimmed_mean: n={n} updates but num_byzantine={trimmed_count} needs n > 2f, that is n >= "
                f"{2 * trimmed_count + 1}; raise min_train_nodes or lower num_byzantine."
            )
        if self.fraction is not None and trimmed_count == 0:
            needed = math.ceil(1 / Decimal(repr(float(self.fraction))))
            raise PreconditionError(
                f"trimmed_mean: fraction={self.fraction} of n={n} updates trims nothing, which is no "
                f"defence; it needs n >= {needed}, or give a larger fraction."
            )

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        self.check(valid.shape[0])
        return trimmed(valid, num_trimmed=self.num_trimmed(valid.shape[0]), rule=self.name)


def trimmed_mean(
    updates: Rows | NDArray[Any], *, num_byzantine: int | None = None, fraction: float | None = None
) -> NDArray[Any]:
    """Return the ``(d,)`` trimmed mean of ``(n, d)`` updates; see :class:`TrimmedMean`.

    >>> import numpy as np
    >>> trimmed_mean(np.array([[1.0], [2.0], [9e9], [3.0], [0.0]]), num_byzantine=1)
    array([2.])
    """
    return TrimmedMean(num_byzantine=num_byzantine, fraction=fraction)(updates).value
