"""What may stand inside secure aggregation: strategies that can do with a sum and lose nothing else by it."""

from typing import Any

from fl_plugins.aggregation.core import Foldable
from fl_plugins.contracts import Access, Weighting
from fl_plugins.errors import ConfigError, ConfigTypeError, ContractError
from fl_plugins.secure_round import LAYER

from .base import FederatedStrategy

NO_COHORT_NODES = (
    "a node that hosts many clients would add them up in clear, and be one party of the protocol for all "
    "of them; "
    "give every client a SuperNode of its own."
)

_SEAMS = (
    "_aggregate",
    "_judge",
    "_step",
    "aggregate_evaluate",
    "aggregate_rows",
    "aggregate_train",
    "announce",
    "begin",
    "configure_evaluate",
    "configure_train",
    "draw",
    "restore",
    "run",
    "state",
    "stop_before",
)
"""What an inner strategy may not have of its own: options are taken over, methods are not."""


def check_inner(inner: object) -> None:
    """Refuse a strategy that could not do with the sum, or would lose something of its own."""
    if not isinstance(inner, FederatedStrategy):
        raise ConfigTypeError(
            f"{LAYER}: the inner strategy is {inner!r}, but it is a FederatedStrategy; give fedavg()."
        )
    rule: Any = inner.aggregator
    if rule.contract.access is not Access.SUM or not isinstance(rule, Foldable):
        raise ContractError(
            f"{LAYER}: {rule.name} must see every client's update, but only their sum is ever known; use a "
            "strategy "
            "with a linear rule, fedavg()."
        )
    if inner.fallback is not None:
        raise ContractError(
            f"{LAYER}: fallback={inner.fallback!r} is given, but without individual updates no other rule "
            "can stand "
            "in; leave it out."
        )
    for seam in _SEAMS:
        if getattr(type(inner), seam) is not getattr(FederatedStrategy, seam):
            raise ContractError(
                f"{LAYER}: {type(inner).__name__} has a {seam} of its own, which would not be run around "
                "masked "
                "updates; put the layer around a strategy that only chooses a rule, fedavg()."
            )


def public_max_weight(weighting: Weighting, given: float | None) -> float:
    """Return the public bound of a client's weight."""
    if weighting is Weighting.EXAMPLES and given is None:
        raise ConfigError(
            f"{LAYER}: clients are weighted by their numbers of examples, which travel masked and need a "
            "public "
            'bound; give max_weight=1000 (the most that one client has), or fedavg(weighting="uniform").'
        )
    if weighting is Weighting.UNIFORM and given is not None:
        raise ConfigError(f"{LAYER}: max_weight={given}, but every client counts the same; leave it out.")
    return 1.0 if given is None else float(given)
