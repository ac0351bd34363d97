"""How noise is added to a sum of clipped contributions, as data: what accounting and noise both follow.

Noise is measured in clip norms (Gaussian, Laplace) or in grid steps (the discrete ones, whose inputs are
integers). What is added where is in :mod:`.noise`.
"""

from dataclasses import dataclass
from typing import ClassVar

from fl_plugins.checks import check_number


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """N(0, (noise_multiplier · C)²) on the sum of contributions whose L2 norm is at most C.

    Several Gaussian releases from one cohort (updates, clipping bits, metrics) are one Gaussian release with
    the multiplier that :func:`joint_noise_multiplier` returns.
    """

    name: ClassVar[str] = "gaussian"

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive(self.name, "noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class Laplace:
    """Laplace noise of scale noise_multiplier · C on a sum of contributions whose *L1* norm is at most C."""

    name: ClassVar[str] = "laplace"

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive(self.name, "noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussian:
    """Independent discrete Gaussians on an integer vector (Canonne, Kamath & Steinke 2020).

    Parameters
    ----------
    std : float
        The parameter σ in grid steps; from one generator, not a sum over clients, which is another
        distribution.
    l2_sensitivity : float
        The largest L2 norm of one contribution, in grid steps, after rounding.
    """

    name: ClassVar[str] = "discrete_gaussian"

    std: float
    l2_sensitivity: float

    def __post_init__(self) -> None:
        _positive(self.name, "std", self.std)
        _positive(self.name, "l2_sensitivity", self.l2_sensitivity)


@dataclass(frozen=True, kw_only=True)
class Skellam:
    """Independent Skellam noise on an integer vector (Agarwal, Kairouz & Liu 2021); sums of it are Skellam.

    Parameters
    ----------
    variance : float
        The total variance in grid steps², summed over those who add noise and are counted on to be honest.
    l2_sensitivity, l1_sensitivity : float
        The largest norms of one contribution, in grid steps, after rounding.
    """

    name: ClassVar[str] = "skellam"

    variance: float
    l2_sensitivity: float
    l1_sensitivity: float

    def __post_init__(self) -> None:
        _positive(self.name, "variance", self.variance)
        _positive(self.name, "l2_sensitivity", self.l2_sensitivity)
        _positive(self.name, "l1_sensitivity", self.l1_sensitivity)


Mechanism = Gaussian | Laplace | DiscreteGaussian | Skellam


def joint_noise_multiplier(*noise_multipliers: float) -> float:
    """Return the multiplier of the one Gaussian release that several from the same cohort amount to.

    >>> joint_noise_multiplier(2.0, 2.0)
    1.4142135623730951
    """
    for value in noise_multipliers:
        _positive("joint_noise_multiplier", "noise_multipliers", value)
    return float(sum(value**-2.0 for value in noise_multipliers) ** -0.5)


def remaining_noise_multiplier(total: float, *others: float) -> float:
    """Return the multiplier that, released with ``others``, makes ``total``: adaptive clipping's z_Δ.

    Raises
    ------
    ConfigError
        If the others alone cost as much as ``total`` allows.
    """
    from fl_plugins.errors import ConfigError

    left = total**-2.0 - sum(value**-2.0 for value in others)
    if left <= 0.0:
        raise ConfigError(
            f"privacy: noise multipliers {others} beside the updates use all of the total {total:g}; "
            "raise the noise on what is released beside the updates."
        )
    return float(left**-0.5)


def _positive(owner: str, name: str, value: float) -> None:
    """Check a positive, finite number."""
    check_number(owner, name, value, minimum=0.0, open_below=True)
