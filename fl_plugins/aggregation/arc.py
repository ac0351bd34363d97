"""Adaptive robust clipping, ARC (Allouah et al. 2025, Algorithm 2; arXiv:2405.14432)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..registry import Kind, register
from .combinations import clip_factors, row_norms, to_arrival
from .core import check_count, check_majority, validate_unweighted
from .mixing import Mixed, scaled, to_dense
from .rows import Rows, canonical_order


@register(
    Kind.PREAGGREGATOR,
    "arc",
    paper="Allouah et al. 2025, Adaptive Gradient Clipping for Robust Federated Learning, Algorithm 2",
)
@dataclass(frozen=True, kw_only=True)
class Arc:
    """Clip the k = ⌊2(f/n)(n − f)⌋ updates with the largest norms to the (k+1)-th largest norm.

    Parameters
    ----------
    num_byzantine : int, optional
        f >= 0; needs ``n > 2f``. With 0 nothing is clipped. In a chain it may be left out: it is the rule's.

    Guarantees
    ----------
    k is computed in integers. Whatever is not among the k largest stays as it is, bit for bit; with at most
    f hostile rows, no row is left longer than the longest honest one.

    Raises
    ------
    ConfigError, ConfigTypeError
        If ``num_byzantine`` is negative or no ``int``; at the first use, if nobody has given it.
    """

    num_byzantine: int | None = None

    name: ClassVar[str] = "arc"

    def __post_init__(self) -> None:
        if self.num_byzantine is not None:
            check_count(self.num_byzantine, rule=self.name, name="num_byzantine")

    @property
    def _f(self) -> int:
        if self.num_byzantine is None:
            raise ConfigError(
                "arc: num_byzantine is not given; give it, or put arc() into a chain whose rule has one."
            )
        return self.num_byzantine

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n > 2f``."""
        check_majority(n, self._f, rule=self.name)

    def num_outputs(self, n: int) -> int:
        """Return ``n``."""
        return n

    def num_clipped(self, n: int) -> int:
        """Return k for ``n`` updates.

        >>> Arc(num_byzantine=4).num_clipped(20)
        6
        """
        return 2 * self._f * (n - self._f) // n

    def __call__(self, rows: Rows | NDArray[Any]) -> Mixed:
        """Clip ``(n, d)`` updates."""
        valid = validate_unweighted(rows, None, rule=self.name)
        n = valid.shape[0]
        self.check(n)
        order = canonical_order(valid)
        norms = row_norms(valid, order, rule=self.name)
        threshold = float(np.sort(norms)[n - 1 - self.num_clipped(n)])
        return scaled(valid, to_arrival(order, clip_factors(norms, threshold)))


def arc(updates: Rows | NDArray[Any], *, num_byzantine: int) -> NDArray[Any]:
    """Return the ``(n, d)`` adaptively clipped rows; see :class:`Arc`.

    >>> arc(np.array([[1.0], [2.0], [-9.0]]), num_byzantine=1)
    array([[ 1.],
           [ 2.],
           [-2.]])
    """
    return to_dense(Arc(num_byzantine=num_byzantine)(updates).rows)
