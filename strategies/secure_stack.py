"""What may stand inside secure aggregation: strategies that can do with a sum and lose nothing else by it."""

from typing import Any

from fl_plugins.aggregation.core import Foldable
from fl_plugins.contracts import Access, Weighting
from fl_plugins.errors import ConfigError, ContractError

from .wrapping import check_wrappable

NO_COHORT_NODES = (
    "a node that hosts many clients would add them up in clear, and be one party of the protocol for all "
    "of them; give every client a SuperNode of its own."
)


def check_inner(inner: object, *, owner: str) -> None:
    """Refuse a strategy that could not do with the sum, or would lose something of its own."""
    strategy = check_wrappable(owner, inner)
    rule: Any = strategy.aggregator
    if rule.contract.access is not Access.SUM or not isinstance(rule, Foldable):
        raise ContractError(
            f"{owner}: {rule.name} must see every client's update, but only their sum is ever known; use a "
            "strategy with a linear rule, fedavg()."
        )
    if strategy.fallback is not None:
        raise ContractError(
            f"{owner}: fallback={strategy.fallback!r} is given, but without individual updates no other "
            "rule can stand in; leave it out."
        )


def public_max_weight(weighting: Weighting, given: float | None, *, owner: str) -> float:
    """Return the public bound of a client's weight."""
    if weighting is Weighting.EXAMPLES and given is None:
        raise ConfigError(
            f"{owner}: clients are weighted by their numbers of examples, which travel masked and need a "
            "public bound; give max_weight=1000 (the most that one client has), or "
            'fedavg(weighting="uniform").'
        )
    if weighting is Weighting.UNIFORM and given is not None:
        raise ConfigError(f"{owner}: max_weight={given}, but every client counts the same; leave it out.")
    return 1.0 if given is None else float(given)
