"""Which strategies a layer can be put around: those that only choose a plain mean."""

from collections.abc import Mapping

from fl_plugins.aggregation.mean import Mean
from fl_plugins.contracts import Access, Weighting
from fl_plugins.errors import ConfigTypeError, ContractError

from .base import FederatedStrategy

_SEAMS = (
    "_aggregate",
    "_form",
    "_judge",
    "_step",
    "aggregate_evaluate",
    "aggregate_rows",
    "aggregate_train",
    "announce",
    "announced_size",
    "begin",
    "configure_evaluate",
    "configure_train",
    "draw",
    "restore",
    "run",
    "state",
    "stop_before",
)
"""What a strategy may override that a layer around it would lose, as it takes over options, not methods."""

_OPTIONS = {
    "fallback": "another rule would stand in, whose sensitivity is not the mean's",
    "fraction_train": "who is sampled is part of the guarantee; give sampling",
    "num_train_nodes": "who is sampled is part of the guarantee; give sampling",
    "min_train_nodes": "who is sampled is part of the guarantee; give sampling",
    "quorum": "whether there is a release must not depend on who answers; see min_replies",
    "on_shortfall": "a second attempt would be another release",
    "max_attempts": "a second attempt would be another release",
}
"""Options of an inner strategy that contradict a private one around it, and why."""


def check_wrappable(owner: str, inner: object) -> FederatedStrategy:
    """Return ``inner`` if a layer can take over all that it does.

    Raises
    ------
    ConfigTypeError
        If it is no strategy of ours.
    ContractError
        If it does more than choose a rule.
    """
    if not isinstance(inner, FederatedStrategy):
        raise ConfigTypeError(
            f"{owner}: the inner strategy is {inner!r}, but it is a FederatedStrategy; give "
            'fedavg(weighting="uniform").'
        )
    kind = type(inner)
    for seam in _SEAMS:
        if getattr(kind, seam) is not getattr(FederatedStrategy, seam):
            raise ContractError(
                f"{owner}: {kind.__name__} has a {seam} of its own, which a layer around it would not run; "
                "put layers around a strategy that only chooses its rule."
            )
    return inner


def check_plain_mean(owner: str, inner: object, *, may_weight: bool) -> None:
    """Check that one client changes the inner strategy's result by a known amount.

    Raises
    ------
    ConfigTypeError
        If it is no strategy of ours.
    ContractError
        With what makes the sensitivity unknown.
    """
    strategy = check_wrappable(owner, inner)
    rule = strategy.aggregator
    if not isinstance(rule, Mean):
        sees = "sees every update" if rule.contract.access is Access.EVERY_UPDATE else "is not the plain mean"
        raise ContractError(
            f"{owner}: {rule.name} {sees}, so how far one client moves its result is not known (it may "
            "switch which updates count); only the mean has a sensitivity that noise can cover: give "
            'fedavg(weighting="uniform").'
        )
    if strategy.weighting is Weighting.EXAMPLES and not may_weight:
        raise ContractError(
            f'{owner}: the inner strategy has weighting="examples", but a client that claims many examples '
            'moves the mean by more than the noise covers; give fedavg(weighting="uniform"), or a public '
            "bound: max_examples."
        )
    options: Mapping[str, object] = {**strategy.options()}
    for option, reason in _OPTIONS.items():
        if options.get(option) is not None:
            raise ContractError(
                f"{owner}: the inner strategy has {option}={options[option]!r}, but {reason}."
            )
