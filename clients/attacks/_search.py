"""An attack's parameter, searched against the server's rule on a cohort in small: the virtual clients'."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.core import Aggregator, CohortRule, call_rule
from fl_plugins.attacks.line_search import line_search
from fl_plugins.errors import ConfigTypeError, PreconditionError


def simulated_rule(attack: str, against: Aggregator, virtual_clients: int, num_byzantine: int) -> Aggregator:
    """Return the rule as it judges ``virtual_clients`` honest and ``num_byzantine`` hostile updates.

    Raises
    ------
    ConfigTypeError
        If ``against`` is no rule.
    PreconditionError
        If the rule needs more updates than that.
    """
    if not isinstance(against, Aggregator):
        raise ConfigTypeError(
            f"{attack}: against={against!r}, but it is a rule, for example krum(num_byzantine=2)."
        )
    n = virtual_clients + num_byzantine
    try:
        rule = against.for_cohort(n) if isinstance(against, CohortRule) else against
        rule.check(n)
    except PreconditionError as error:
        raise PreconditionError(
            f"{attack}: virtual_clients={virtual_clients} and num_byzantine={num_byzantine} make n={n} "
            f"updates, too few for against={against!r} ({error}); raise virtual_clients."
        ) from error
    return rule


def worst_parameter(
    honest: NDArray[np.float64],
    attack: Callable[[float], NDArray[np.float64]],
    *,
    rule: Aggregator,
    grid: Sequence[float],
) -> float:
    """Return the parameter with the greatest damage through ``rule``: at least that of all of ``grid``."""
    return line_search(
        honest,
        attack,
        aggregate=lambda rows: call_rule(rule, rows).value,
        parameters=sorted(set(grid)),
        refinements=1,
    ).parameter
