"""Min-max and min-sum (Shejwalkar and Houmansadr 2021, Manipulating the Byzantine, §IV-B), exactly.

The hostile update is μ + γ·p: the honest mean and as much of a direction p as a distance constraint allows.
The paper finds γ by halving. Both constraints are quadratic in γ, so the largest γ is a root.

==========  ==================================================================
min-max     max over i of ‖μ + γp − x_i‖ <= max over i, j of ‖x_i − x_j‖
min-sum     Σ over i of ‖μ + γp − x_i‖² <= max over i of Σ over j of ‖x_i − x_j‖²
==========  ==================================================================
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ._checks import check_count, copies, honest_updates

Direction = Literal["std", "unit", "sign"]
"""p: minus the standard deviations, minus the mean's unit vector, or minus the mean's signs."""


def min_max(honest: NDArray[Any], num_byzantine: int, *, direction: Direction = "std") -> NDArray[Any]:
    """Go so far that the hostile update is not farther from any honest one than two honest ones are."""
    check_count(num_byzantine, attack="min_max")
    values = honest_updates(honest, attack="min_max", minimum=2)
    mean, p = values.mean(axis=0), _direction(values, direction, attack="min_max")
    squared = float(p @ p)
    if squared == 0:
        return copies(mean, num_byzantine, like=honest)
    away = mean - values
    slack = _squared_distances(values).max() - (away * away).sum(axis=1)
    along = away @ p
    gamma = ((-along + np.sqrt(along * along + squared * slack)) / squared).min()
    return copies(mean + gamma * p, num_byzantine, like=honest)


def min_sum(honest: NDArray[Any], num_byzantine: int, *, direction: Direction = "std") -> NDArray[Any]:
    """Go so far that the squared distances' sum is not larger than the largest of an honest update."""
    check_count(num_byzantine, attack="min_sum")
    values = honest_updates(honest, attack="min_sum", minimum=2)
    mean, p = values.mean(axis=0), _direction(values, direction, attack="min_sum")
    squared = float(p @ p)
    if squared == 0:
        return copies(mean, num_byzantine, like=honest)
    away = mean - values
    slack = _squared_distances(values).sum(axis=1).max() - (away * away).sum()
    # The linear term is 2γ·p·Σ(μ − x_i) = 0.
    gamma = np.sqrt(slack / (len(values) * squared))
    return copies(mean + gamma * p, num_byzantine, like=honest)


def _direction(values: NDArray[np.float64], direction: str, *, attack: str) -> NDArray[np.float64]:
    """Return p, ``(d,)``."""
    mean = values.mean(axis=0)
    match direction:
        case "std":
            return np.asarray(-values.std(axis=0))
        case "unit":
            norm = np.linalg.norm(mean)
            return -mean / norm if norm > 0 else np.zeros_like(mean)
        case "sign":
            return np.asarray(-np.sign(mean))
        case _:
            raise ConfigError(
                f"{attack}: direction={direction!r} must be one of {', '.join(get_args(Direction))}; "
                "choose one."
            )


def _squared_distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(m, m)`` squared distances; differences, not a Gram matrix, so none is negative."""
    return np.stack([((values - row) ** 2).sum(axis=1) for row in values])
