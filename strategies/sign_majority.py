"""Majority vote on signs (Bernstein et al. 2019) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import sign_majority
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "sign_majority",
    paper="Bernstein et al. 2019, signSGD with Majority Vote is Communication Efficient",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class SignMajority(FederatedStrategy):
    """Move every parameter by one step in the direction that most updates have.

    Parameters
    ----------
    step : float
        Length of the step, > 0.
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, step: float, num_byzantine: int = 0, **options: Unpack[StrategyOptions]) -> None:
        rule = sign_majority.SignMajority(step=step, num_byzantine=num_byzantine)
        super().__init__(rule, **options)
