"""An attack's free parameter, searched against the actual rule: the attacker knows the defence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ._checks import check_count, honest_updates

Aggregate = Callable[[NDArray[Any]], NDArray[Any]]
"""``(n, d)`` updates to the ``(d,)`` that the server would apply."""

Damage = Callable[[NDArray[Any]], float]
"""How bad a ``(d,)`` aggregate is for the honest clients: larger is worse."""


@dataclass(frozen=True, eq=False)
class Found:
    """The worst parameter, what is sent with it ``(f, d)``, and the damage done."""

    parameter: float
    hostile: NDArray[Any]
    damage: float


def distance_from_honest_mean(honest: NDArray[Any]) -> Damage:
    """Return the damage ‖aggregate − honest mean‖, which (f, κ)-resilience bounds."""
    mean = honest_updates(honest, attack="line_search").mean(axis=0)
    return lambda aggregate: float(np.linalg.norm(np.asarray(aggregate, np.float64) - mean))


def line_search(
    honest: NDArray[Any],
    attack: Callable[[float], NDArray[Any]],
    *,
    aggregate: Aggregate,
    parameters: Sequence[float],
    damage: Damage | None = None,
    refinements: int = 0,
) -> Found:
    """Return the parameter whose hostile rows do the greatest damage through the rule.

    Parameters
    ----------
    honest : NDArray
        ``(m, d)`` honest updates.
    attack : Callable
        A parameter to hostile rows ``(f, d)``, for example
        ``lambda z: little_is_enough(honest, f, z=z)``.
    aggregate : Callable
        The rule. It gets honest rows, then hostile ones.
    parameters : sequence of float
        The grid, ascending; at least one.
    damage : Callable, optional
        By default :func:`distance_from_honest_mean`. A damage that is NaN counts as infinite.
    refinements : int
        Times that the gaps on both sides of the best parameter are halved; each costs two evaluations.

    Guarantees
    ----------
    The damage is at least that of every grid parameter. Of equal damages the first found stays.

    Raises
    ------
    ConfigError
        If the grid is empty or does not ascend.
    """
    grid = [float(parameter) for parameter in parameters]
    if not grid or any(a >= b for a, b in pairwise(grid)):
        raise ConfigError(
            f"line_search: parameters={grid} must be an ascending grid; give at least one number."
        )
    check_count(refinements, attack="line_search", name="refinements")
    harm = damage or distance_from_honest_mean(honest)

    def evaluate(parameter: float) -> Found:
        hostile = attack(parameter)
        value = harm(aggregate(np.concatenate([honest, hostile])))
        return Found(parameter, hostile, np.inf if np.isnan(value) else value)

    best = evaluate(grid[0])
    for parameter in grid[1:]:
        best = max(best, evaluate(parameter), key=lambda found: found.damage)
    place = grid.index(best.parameter)
    below = best.parameter - grid[place - 1] if place else 0.0
    above = grid[place + 1] - best.parameter if place + 1 < len(grid) else 0.0
    for _ in range(refinements):
        below, above = below / 2, above / 2
        centre = best.parameter
        for parameter in (centre - below, centre + above):
            if parameter != centre:
                best = max(best, evaluate(parameter), key=lambda found: found.damage)
    return best
