"""Trust bootstrapped from clean data at the server (FLTrust: Cao, Fang, Liu and Gong 2021, Algorithm 2).

g₀ is the update that the server trains on its own root data. TSᵢ = max(0, cos(gᵢ, g₀)) is a client's trust;
the result is Σᵢ TSᵢ · (‖g₀‖/‖gᵢ‖) gᵢ / Σᵢ TSᵢ.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..errors import PreconditionError, ReplyError, StructureError
from .combinations import combine, row_norms, to_arrival
from .core import ROBUST, Aggregate, validate_unweighted
from .rows import Rows, canonical_order, map_finite_blocks


@dataclass(frozen=True, eq=False, kw_only=True)
class RootTrust:
    """Average updates by how far each points the way of the server's own, all at its length.

    Parameters
    ----------
    root_update : NDArray
        g₀, ``(d,)``, finite and not 0: this round's update on the root data.

    Guarantees
    ----------
    Any number of hostile clients may be there, and the result's norm is at most ‖g₀‖ (to rounding): the
    trust rests on the root data instead. ``contribution`` is TSᵢ/ΣTS; an update of 0 has no trust. The order
    of the rows does not matter, bit for bit.

    Raises
    ------
    StructureError
        If ``root_update`` is not a ``(d,)`` vector.
    ReplyError
        If it is not finite.
    """

    root_update: NDArray[Any]

    name: ClassVar[str] = "root_trust"
    contract: ClassVar[Contract] = ROBUST

    def __post_init__(self) -> None:
        if np.ndim(self.root_update) != 1:
            raise StructureError(
                f"{self.name}: root_update has shape {np.shape(self.root_update)} but (d,) is needed."
            )
        if not np.isfinite(self.root_update).all():
            raise ReplyError(f"{self.name}: root_update has NaN or infinite values; look at the root data.")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"{self.name}: n={n} updates but n >= 1 is needed; wait for a reply.")

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused.

        Raises
        ------
        PreconditionError
            If g₀ is 0, or no update points its way: there is nothing to trust.
        """
        valid = validate_unweighted(rows, weights, rule=self.name)
        n, d = valid.shape
        root = np.asarray(self.root_update)
        if root.shape != (d,):
            raise StructureError(f"{self.name}: root_update has d={root.size} but the updates have d={d}.")
        order = canonical_order(valid)
        norms = row_norms(valid, order, rule=self.name)

        def multiply(columns: slice, block: NDArray[Any]) -> NDArray[np.float64]:
            part = root[columns].astype(np.float64)
            return np.append(np.dot(block.astype(np.float64), part), np.dot(part, part))

        totals = np.sum(map_finite_blocks(valid, multiply, rule=self.name, order=order), axis=0)
        products, root_norm = totals[:-1], float(np.sqrt(totals[-1]))
        safe = np.where(norms > 0, norms, 1.0)
        trust = np.maximum(products / safe / (root_norm or 1.0), 0.0)
        total = float(trust.sum())
        if total == 0.0:
            raise PreconditionError(
                f"{self.name}: none of n={n} updates points the way of the root update (norm {root_norm:g}), "
                "so there is nothing to trust; look at the root data, or sample more nodes."
            )
        shares = trust / total
        value = combine(valid, order, shares * root_norm / safe, rule=self.name, convex=False)
        return Aggregate(value, to_arrival(order, shares))


def root_trust(updates: Rows | NDArray[Any], *, root_update: NDArray[Any]) -> NDArray[Any]:
    """Return the ``(d,)`` trusted mean of ``(n, d)`` updates; see :class:`RootTrust`.

    >>> root_trust(np.array([[0.0, 2.0], [9.0, 0.0], [0.0, -5.0]]), root_update=np.array([0.0, 1.0]))
    array([0., 1.])
    """
    return RootTrust(root_update=root_update)(updates).value
