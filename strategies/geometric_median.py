"""Geometric median (RFA: Pillutla et al. 2022) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import geometric_median
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "geometric_median",
    paper="Pillutla et al. 2022, Robust Aggregation for Federated Learning",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class GeometricMedian(FederatedStrategy):
    """Take the point with the least sum of distances to all updates.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    tolerance : float
        The iteration ends when a step is at most this part of the updates' spread.
    max_iterations : int
        It also ends after so many steps.
    smoothing : float
        Part of the spread below which distances are not told apart.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self,
        *,
        num_byzantine: int = 0,
        tolerance: float = 1e-9,
        max_iterations: int = 1000,
        smoothing: float = 1e-6,
        **options: Unpack[StrategyOptions],
    ) -> None:
        rule = geometric_median.GeometricMedian(
            num_byzantine=num_byzantine,
            tolerance=tolerance,
            max_iterations=max_iterations,
            smoothing=smoothing,
        )
        super().__init__(rule, **options)
