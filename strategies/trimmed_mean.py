"""Coordinate-wise trimmed mean (Yin et al. 2018) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import trimmed_mean
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "trimmed_mean",
    paper="Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class TrimmedMean(FederatedStrategy):
    """Per coordinate, drop the lowest and the highest values and average the rest.

    Parameters
    ----------
    num_byzantine : int, optional
        Values to drop at each end; needs ``n > 2f``.
    fraction : float, optional
        The same as a part of the replies, in ``(0, 0.5)``; one of the two must be given.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self,
        *,
        num_byzantine: int | None = None,
        fraction: float | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        rule = trimmed_mean.TrimmedMean(num_byzantine=num_byzantine, fraction=fraction)
        super().__init__(rule, **options)
