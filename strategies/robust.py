"""The recommended robust strategy, and any rule or chain of rules by name."""

from typing import Annotated, Unpack

from fl_plugins.aggregation import Aggregator, Arc, Caf, Chain
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.registry import Kind, PluginKind, register

from .base import FederatedStrategy
from .options import StrategyOptions


@register(
    Kind.STRATEGY,
    "robust",
    paper="Allouah et al. 2025, Adaptive Gradient Clipping (ARC); Allouah et al. 2025, Alg. 2 (CAF)",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class Robust(FederatedStrategy):
    """Clip adaptively, then filter out what inflates the variance: the default against hostile clients.

    ``robust(num_byzantine=2)`` is ``chain(arc(num_byzantine=2), caf(num_byzantine=2))``, of the rules
    measured the one with the best worst case on heterogeneous clients (docs/robust.md). With
    ``aggregator=...`` it is that rule instead. Exactly one of the two parameters is given.

    Parameters
    ----------
    num_byzantine : int, optional
        Number of hostile clients to tolerate, >= 0; needs ``n > 2f``.
    aggregator : Aggregator, optional
        Any rule, for example ``chain(bucketing(size=2), geometric_median())``.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self,
        *,
        num_byzantine: int | None = None,
        aggregator: Annotated[Aggregator, PluginKind(Kind.AGGREGATOR)] | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        if (num_byzantine is None) == (aggregator is None):
            raise ConfigError(
                f"robust: num_byzantine={num_byzantine} and aggregator={aggregator!r}, but exactly "
                "one of them says what to do; give one."
            )
        if num_byzantine is not None:
            aggregator = Chain(Arc(num_byzantine=num_byzantine), Caf(num_byzantine=num_byzantine))
        if not isinstance(aggregator, Aggregator):
            raise ConfigTypeError(
                f"robust: aggregator={aggregator!r}, but it is a rule, for example median()."
            )
        super().__init__(aggregator, weighting=aggregator.contract.weighting, **options)
