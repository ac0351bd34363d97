"""Coordinate-wise median (Yin et al. 2018) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import median
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "median",
    paper="Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class Median(FederatedStrategy):
    """Per coordinate, take the median of the updates.

    Parameters
    ----------
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(median.Median(), **options)
