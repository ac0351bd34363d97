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
    attack: str,
    honest: NDArray[np.float64],
    hostile: Callable[[float], NDArray[np.float64]],
    *,
    against: Aggregator | None,
    num_byzantine: int,
    grid: Sequence[float],
    default: float,
) -> float:
    """Return the parameter with the greatest damage through ``against``; ``default`` if that is ``None``.

    Parameters
    ----------
    attack : str
        The name in messages.
    honest : NDArray
        ``(m, d)``, the virtual clients' updates.
    hostile : Callable
        A parameter to the ``num_byzantine`` hostile rows.
    grid : Sequence[float]
        Tried, beside ``default``: the damage is at least that of all of them.
    """
    if against is None:
        return default
    rule = simulated_rule(attack, against, len(honest), num_byzantine)
    return line_search(
        honest,
        hostile,
        aggregate=lambda rows: call_rule(rule, rows).value,
        parameters=sorted({*grid, default}),
        refinements=1,
    ).parameter
