"""CAF, a spectral filter (Allouah et al. 2025) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import caf
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "caf",
    paper="Allouah et al. 2025, Towards Trustworthy Federated Learning with Untrusted Participants",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class Caf(FederatedStrategy):
    """Average what is left after filtering out updates that inflate the variance in any direction.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, num_byzantine: int, **options: Unpack[StrategyOptions]) -> None:
        rule = caf.Caf(num_byzantine=num_byzantine)
        super().__init__(rule, **options)
