"""The same rule as a Flower strategy: it only has to choose its aggregator."""

from typing import Unpack

from fl_plugins.registry import Kind, register
from strategies import FederatedStrategy, StrategyOptions

from .sign_vote import SignVote


@register(
    Kind.STRATEGY,
    "sign_vote",
    paper="Bernstein et al. 2019, signSGD with Majority Vote is Communication Efficient, Algorithm 1",
    contract=SignVote.contract,
)
class SignVoteStrategy(FederatedStrategy):
    """Move every coordinate by one step in the direction that most clients want.

    Parameters
    ----------
    step : float
        Length of the step, > 0.
    **options
        What all strategies take, see :class:`strategies.options.Settings`.
    """

    def __init__(self, *, step: float = 0.001, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(SignVote(step=step), **options)
