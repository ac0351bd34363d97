"""Static clipping of every update's norm (Sun et al. 2019, Section 4)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..errors import PreconditionError
from ..registry import Kind, register
from .combinations import clip_factors, row_norms, to_arrival
from .core import check_positive, validate_unweighted
from .mixing import Mixed, scaled, to_dense
from .rows import Rows, canonical_order


@register(
    Kind.PREAGGREGATOR,
    "clip",
    paper="Sun et al. 2019, Can You Really Backdoor Federated Learning?, Section 4",
)
@dataclass(frozen=True)
class Clip:
    """Scale each update to a norm of at most ``max_norm``.

    Parameters
    ----------
    max_norm : float
        Largest Euclidean norm, > 0, in the unit of the updates.

    Guarantees
    ----------
    An update within the bound is left as it is, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``max_norm`` is not a finite number > 0.
    """

    max_norm: float

    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        check_positive(self.max_norm, rule=self.name, name="max_norm")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"{self.name}: n={n} updates but n >= 1 is needed; wait for a reply.")

    def num_outputs(self, n: int) -> int:
        """Return ``n``."""
        return n

    def __call__(self, rows: Rows | NDArray[Any]) -> Mixed:
        """Clip ``(n, d)`` updates."""
        valid = validate_unweighted(rows, None, rule=self.name)
        order = canonical_order(valid)
        factors = clip_factors(row_norms(valid, order, rule=self.name), self.max_norm)
        return scaled(valid, to_arrival(order, factors))


def clip(updates: Rows | NDArray[Any], *, max_norm: float) -> NDArray[Any]:
    """Return the ``(n, d)`` clipped rows; see :class:`Clip`.

    >>> import numpy as np
    >>> clip(np.array([[3.0, 4.0], [0.5, 0.0]]), max_norm=1.0).round(12)
    array([[0.6, 0.8],
           [0.5, 0. ]])
    """
    return to_dense(Clip(max_norm)(updates).rows)
