"""Mean around median (Xie et al. 2018) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import meamed
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "meamed",
    paper="Xie et al. 2018, Generalized Byzantine-tolerant SGD",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class MeaMed(FederatedStrategy):
    """Per coordinate, average the ``n − f`` values nearest the median.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, num_byzantine: int, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(meamed.MeaMed(num_byzantine=num_byzantine), **options)
