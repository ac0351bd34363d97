"""Krum and Multi-Krum (Blanchard et al. 2017) as Flower strategies."""

from typing import Unpack

from fl_plugins.aggregation import krum
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, register

from .base import FederatedStrategy
from .options import StrategyOptions

_PAPER = "Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
_CONTRACT = Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM)


@register(Kind.STRATEGY, "krum", paper=_PAPER, contract=_CONTRACT)
class Krum(FederatedStrategy):
    """Take the one update that lies closest to its ``n − f − 2`` nearest neighbours.

    Tolerates ``f = num_byzantine`` arbitrary clients of ``n >= 2f + 3`` whose honest updates are alike. On
    heterogeneous (non-IID) clients it loses accuracy without any attacker: it keeps one client's update and
    drops the others.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(self, *, num_byzantine: int, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(krum.Krum(num_byzantine=num_byzantine), **options)


@register(Kind.STRATEGY, "multi_krum", paper=_PAPER, contract=_CONTRACT)
class MultiKrum(FederatedStrategy):
    """Average, unweighted, the ``num_selected`` updates with the best Krum scores.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients to tolerate, >= 0; needs ``n >= 2f + 3``.
    num_selected : int, optional
        How many to average, at most ``n − f``; default see :class:`fl_plugins.aggregation.krum.MultiKrum`.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self, *, num_byzantine: int, num_selected: int | None = None, **options: Unpack[StrategyOptions]
    ) -> None:
        super().__init__(krum.MultiKrum(num_byzantine=num_byzantine, num_selected=num_selected), **options)
