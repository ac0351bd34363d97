"""Minimum diameter averaging (El-Mhamdi et al. 2021) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import mda
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "mda",
    paper="El-Mhamdi et al. 2021, Distributed Momentum for Byzantine-resilient Stochastic Gradient Descent",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class Mda(FederatedStrategy):
    """Average the ``n − f`` updates whose largest mutual distance is least.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, 0 to 20; needs ``n > 2f``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, num_byzantine: int, **options: Unpack[StrategyOptions]) -> None:
        rule = mda.Mda(num_byzantine=num_byzantine)
        super().__init__(rule, **options)
