"""Metrics of the clients that a private strategy gives out: clipped to public ranges, summed, noised.

=====  ========================================================================================
J      how many metrics are named
vᵢ     ``(J,)``: client i's values, clipped to their ranges and mapped to [−1, 1]; 0 is the middle
Σ vᵢ   one client moves it by at most √J, or 2√J if its data are exchanged for others
mean   middle + half the range · (Σ vᵢ + N(0, (z_m·√J)²)) / (expected cohort)
=====  ========================================================================================

A client that does not answer, does not report a metric, or reports a list under its name counts as the middle
of the range: neither the denominator nor the noise depends on who reports what.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_number
from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.privacy import NoiseSource
from fl_plugins.privacy.noise import add_gaussian

OWNER = "dp_fedavg: metrics"

DEFAULT_NOISE = 3.3
"""In noise multipliers of the round: the updates' noise grows by 5 %."""

RESERVED = frozenset({"privacy-epsilon", "privacy-delta"})
"""What the strategy itself reports."""


@dataclass(frozen=True, kw_only=True)
class NoisedMetrics:
    """Which metrics are released, in what ranges, under how much noise.

    Parameters
    ----------
    names : tuple of str
        As clients report them with their training.
    upper, lower : tuple of float
        The ranges; public, so they must not be taken from the clients' data. ``lower`` is 0 without.
    noise_multiplier : float, optional
        z_m: standard deviation of the noise over √J; by default :data:`DEFAULT_NOISE` times the round's.
    """

    name: ClassVar[str] = "noised"

    names: tuple[str, ...]
    upper: tuple[float, ...]
    lower: tuple[float, ...] | None = None
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        for field, value in (("names", self.names), ("upper", self.upper), ("lower", self.lower)):
            if isinstance(value, list):
                object.__setattr__(self, field, tuple(value))
            elif value is not None and not isinstance(value, tuple):
                raise ConfigTypeError(
                    f"{OWNER}: {field}={value!r} is no list; give names=('loss',), upper=(4.0,)."
                )
        if not self.names or len(set(self.names)) < len(self.names) or not all(map(_is_name, self.names)):
            raise ConfigError(f"{OWNER}: names={self.names}, but they are one or more, each a text and once.")
        if taken := RESERVED.intersection(self.names):
            raise ConfigError(f"{OWNER}: {sorted(taken)[0]!r} is what the strategy reports; leave it out.")
        if not len(self.names) == len(self.upper) == len(self._lower):
            raise ConfigError(
                f"{OWNER}: {len(self.names)} names, {len(self.upper)} upper and {len(self._lower)} lower "
                "bounds; give each metric its range."
            )
        for metric, low, high in zip(self.names, self._lower, self.upper, strict=True):
            check_number(OWNER, f"lower bound of {metric}", low, minimum=-math.inf)
            check_number(OWNER, f"upper bound of {metric}", high, minimum=low, open_below=True)
        if self.noise_multiplier is not None:
            check_number(OWNER, "noise_multiplier", self.noise_multiplier, minimum=0.0, open_below=True)

    @property
    def _lower(self) -> tuple[float, ...]:
        """The lower bounds."""
        return (0.0,) * len(self.names) if self.lower is None else self.lower

    def multiplier(self, total: float) -> float:
        """Return z_m where the whole round has the noise multiplier ``total``."""
        return DEFAULT_NOISE * total if self.noise_multiplier is None else float(self.noise_multiplier)

    def contribution(self, reported: Mapping[str, float | list[float]]) -> NDArray[np.float64]:
        """Return one client's ``(J,)``, whose norm is at most √J whatever was reported."""
        values = np.zeros(len(self.names))
        for index, (metric, middle, half) in enumerate(self._ranges()):
            value = reported.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                values[index] = min(max((value - middle) / half, -1.0), 1.0)
        return values

    def release(
        self, total: NDArray[np.float64], multiplier: float, expected_cohort: float, source: NoiseSource
    ) -> dict[str, float]:
        """Return the noisy means; they can be outside of the ranges, on which no bias depends."""
        noisy = add_gaussian({"metrics": total}, multiplier * math.sqrt(len(self.names)), source)["metrics"]
        means = noisy / expected_cohort
        return {
            metric: middle + half * float(mean)
            for (metric, middle, half), mean in zip(self._ranges(), means, strict=True)
        }

    def _ranges(self) -> list[tuple[str, float, float]]:
        """Return name, middle and half the length of each range."""
        return [
            (metric, low / 2.0 + high / 2.0, high / 2.0 - low / 2.0)
            for metric, low, high in zip(self.names, self._lower, self.upper, strict=True)
        ]


def _is_name(value: object) -> bool:
    """Whether a metric can have that name."""
    return isinstance(value, str) and bool(value)
