"""Mean of updates clipped to a fixed norm (Sun et al. 2019, Section 4, "norm thresholding")."""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError
from ..registry import Kind, register
from .combinations import as_shares, clip_factors, combine, row_norms, to_arrival
from .core import ROBUST, Aggregate, check_positive, validate_unweighted
from .rows import Rows, canonical_order


@register(
    Kind.AGGREGATOR,
    "norm_bounded_mean",
    paper="Sun et al. 2019, Can You Really Backdoor Federated Learning?, Section 4",
    contract=ROBUST,
)
@dataclass(frozen=True, kw_only=True)
class NormBoundedMean:
    """The unweighted mean of the updates, each first scaled to a norm of at most ``max_norm``.

    A bound on the damage, no cure: f hostile clients move the result by up to ``2·f·max_norm/n``, in a
    direction of their choice, every round.

    Parameters
    ----------
    max_norm : float
        Largest Euclidean norm, > 0, in the unit of the updates.

    Guarantees
    ----------
    The result has a norm of at most ``max_norm`` (to rounding); changing one row moves it by at most
    ``2·max_norm/n``. The order of the rows does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``max_norm`` is not a finite number > 0.
    """

    max_norm: float

    name: ClassVar[str] = "norm_bounded_mean"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        check_positive(self.max_norm, rule=self.name, name="max_norm")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"{self.name}: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused. A clipped row's contribution is smaller."""
        valid = validate_unweighted(rows, weights, rule=self.name)
        n = valid.shape[0]
        order = canonical_order(valid)
        factors = clip_factors(row_norms(valid, order, rule=self.name), self.max_norm)
        unclipped = bool((factors == 1.0).all())
        value = combine(valid, order, factors / n, rule=self.name, convex=unclipped)
        return Aggregate(value, to_arrival(order, as_shares(factors)))


def norm_bounded_mean(updates: Rows | NDArray[Any], *, max_norm: float) -> NDArray[Any]:
    """Return the ``(d,)`` mean of clipped ``(n, d)`` updates; see :class:`NormBoundedMean`.

    >>> import numpy as np
    >>> norm_bounded_mean(np.array([[3.0, 4.0], [0.0, 1.0]]), max_norm=1.0).round(12)
    array([0.3, 0.9])
    """
    return NormBoundedMean(max_norm=max_norm)(updates).value
