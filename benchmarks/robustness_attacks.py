"""What the hostile clients of the robustness benchmark send: one line of ``ATTACKS`` each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fl_plugins import attacks as hostile

MIMIC_WARM_UP = 5
Z_GRID = (-1.5, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
EPSILON_GRID = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 8.0)

Updates = np.ndarray
"""``(m, d)`` float32."""


@dataclass(frozen=True)
class Round:
    """What the hostile clients know: honest updates, theirs if they were honest, the rule, the past."""

    honest: Updates
    own: Updates
    aggregate: Callable[[Updates], np.ndarray]
    previous: np.ndarray | None
    history: list[Updates]
    rng: np.random.Generator


def gaussian(now: Round, f: int) -> Updates:
    """Noise three times as long as a typical honest update."""
    size = 3 * float(np.sqrt(np.mean(now.honest.astype(np.float64) ** 2)))
    return hostile.gaussian_noise(now.honest, f, stddev=size, rng=now.rng)


def mimic(now: Round, f: int) -> Updates:
    """Copy the client that the warm-up rounds chose."""
    return hostile.mimic(
        now.honest, f, target=hostile.mimic_target(np.stack([*now.history, now.honest][:MIMIC_WARM_UP]))
    )


def searched(
    attack: Callable[..., Updates], name: str, grid: tuple[float, ...], now: Round, f: int
) -> Updates:
    """Search the attack's parameter against the rule."""
    return hostile.line_search(
        now.honest,
        lambda value: attack(now.honest, f, **{name: value}),
        aggregate=now.aggregate,
        parameters=grid,
        refinements=1,
    ).hostile


ATTACKS: dict[str, Callable[[Round, int], Updates] | None] = {
    "none": None,
    "absent": lambda now, _: now.honest[:0],
    "sign flip ×10": lambda now, f: hostile.sign_flip(now.honest, f, scale=10.0),
    "Gaussian": gaussian,
    "zero": lambda now, f: hostile.zero(now.honest, f),
    "constant": lambda now, f: hostile.constant(now.honest, f, value=1.0),
    "NaN": lambda now, f: hostile.non_finite(now.honest, f),
    "free-rider": lambda now, f: hostile.free_rider(now.honest, f, previous=now.previous),
    "Sybil": lambda now, f: np.repeat(-now.own[:1], f, axis=0),
    "mimic": mimic,
    "label flip": lambda now, _: now.own,
    "backdoor": lambda now, _: now.own,
    "min-max": lambda now, f: hostile.min_max(now.honest, f),
    "min-sum": lambda now, f: hostile.min_sum(now.honest, f),
    "ALIE": lambda now, f: hostile.little_is_enough(now.honest, f),
    "ALIE*": partial(searched, hostile.little_is_enough, "z", Z_GRID),
    "IPM": lambda now, f: hostile.inner_product_manipulation(now.honest, f, epsilon=0.5),
    "IPM*": partial(searched, hostile.inner_product_manipulation, "epsilon", EPSILON_GRID),
}
"""``none``: everybody is honest. ``absent``: the hostile clients do not answer."""

BASELINES = ("none", "absent")
