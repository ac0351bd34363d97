"""Mean of updates of bounded norm (Sun et al. 2019) as a Flower strategy."""

from typing import Unpack

from fl_plugins.aggregation import norm_bounded_mean
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "norm_bounded_mean",
    paper="Sun et al. 2019, Can You Really Backdoor Federated Learning?",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class NormBoundedMean(FederatedStrategy):
    """Average the updates, each first clipped to a norm of at most ``max_norm``.

    It bounds the damage of a round and cures nothing: hostile clients push as far as the bound lets them.

    Parameters
    ----------
    max_norm : float
        Largest Euclidean norm of an update, > 0.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, max_norm: float, **options: Unpack[StrategyOptions]) -> None:
        rule = norm_bounded_mean.NormBoundedMean(max_norm=max_norm)
        super().__init__(rule, **options)
