"""FedAvg (McMahan et al. 2017, Algorithm 1), with an optional server optimizer (Reddi et al. 2021)."""

from typing import Unpack

from fl_plugins.aggregation.mean import Mean
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "fedavg",
    paper="McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data",
    contract=Contract(access=Access.SUM, weighting=Weighting.EXAMPLES),
)
class FedAvg(FederatedStrategy):
    """Mean of the clients' updates, weighted by the number of examples each claims.

    No defence: one hostile client decides the result. With ``server_optimizer=sgd(learning_rate=1.0,
    momentum=0.9)`` this is FedAvgM, with ``adam(...)`` FedAdam, ``yogi(...)`` FedYogi, ``adagrad(...)``
    FedAdagrad.

    Parameters
    ----------
    weighting : str
        ``"examples"``: by claimed number of examples; ``"uniform"``: every client counts the same.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, weighting: str = "examples", **options: Unpack[StrategyOptions]) -> None:
        choices = [choice.value for choice in Weighting]
        if weighting not in choices:
            raise ConfigError(f"fedavg: weighting={weighting!r}, but it is one of {', '.join(choices)}.")
        super().__init__(Mean(), weighting=Weighting(weighting), **options)
