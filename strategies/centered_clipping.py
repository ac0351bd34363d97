"""Centered clipping (Karimireddy et al. 2021) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import centered_clipping
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "centered_clipping",
    paper="Karimireddy et al. 2021, Learning from History for Byzantine Robust Optimization",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class CenteredClipping(FederatedStrategy):
    """Move the last round's aggregate by the mean of the clipped differences from it.

    What it remembers is part of the checkpoint: a resumed run goes on exactly.

    Parameters
    ----------
    max_norm : float
        Distance from the last round's aggregate beyond which an update is clipped (the paper's τ), > 0.
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    iterations : int
        How often a round moves, >= 1.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self,
        *,
        max_norm: float,
        num_byzantine: int = 0,
        iterations: int = 1,
        **options: Unpack[StrategyOptions],
    ) -> None:
        rule = centered_clipping.CenteredClipping(
            max_norm=max_norm, num_byzantine=num_byzantine, iterations=iterations
        )
        super().__init__(rule, **options)
