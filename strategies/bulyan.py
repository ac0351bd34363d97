"""Bulyan (El Mhamdi et al. 2018) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import bulyan
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "bulyan",
    paper="El Mhamdi et al. 2018, The Hidden Vulnerability of Distributed Learning in Byzantium",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class Bulyan(FederatedStrategy):
    """Select ``n − 2f`` updates by repeated Krum, then average per coordinate those nearest the median.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n >= 4f + 3``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, num_byzantine: int, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(bulyan.Bulyan(num_byzantine=num_byzantine), **options)
