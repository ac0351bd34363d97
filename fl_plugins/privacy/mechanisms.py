"""How noise is added to a sum of clipped contributions, as data: what accounting and noise both follow.

Noise is measured in clip norms (Gaussian, Laplace) or in grid steps (the discrete ones, whose inputs are
integers). What is added where is in :mod:`.noise`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_plugins.checks import check_int, check_number


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
class BandedGaussian(Gaussian):
    """Gaussian noise that cancels out over the rounds: one block of ``bands`` rounds, see :mod:`.matrix`.

    ``noise_multiplier`` is σ/√w: standard deviation of the independent noise under the block's rounds, over
    how much a unit's part counts there.
    """

    name: ClassVar[str] = "banded_gaussian"

    bands: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int(self.name, "bands", self.bands, minimum=2)


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


@dataclass(frozen=True, kw_only=True)
class DistributedGaussian:
    """A sum of independent discrete Gaussians, one from each client (Kairouz, Liu & Steinke 2021).

    The sum is no discrete Gaussian, but the nearer to one the larger σ is; see :attr:`tau`.

    Parameters
    ----------
    local_std : float
        The parameter σ of one share, in grid steps.
    num_shares : int
        The fewest shares in a sum that are unknown to the adversary: survivors without those who collude.
        Further ones only help (they are added independently).
    dimension : int
        How many values get noise.
    l2_sensitivity : float
        The largest L2 norm of one contribution, in grid steps, after rounding.
    """

    name: ClassVar[str] = "distributed_gaussian"

    local_std: float
    num_shares: int
    dimension: int
    l2_sensitivity: float

    def __post_init__(self) -> None:
        # The theorem on sums needs σ ≥ 1/2.
        check_number(self.name, "local_std", self.local_std, minimum=0.5)
        check_int(self.name, "num_shares", self.num_shares, minimum=1)
        check_int(self.name, "dimension", self.dimension, minimum=1)
        _positive(self.name, "l2_sensitivity", self.l2_sensitivity)

    @property
    def tau(self) -> float:
        """How far the sum is from a discrete Gaussian: |log ratio of probabilities| ≤ τ/2 for each value.

        τ = 10 · Σ_{k<n} exp(−2π²σ²k/(k + 1)), n shares of parameter σ (their Theorem 1).
        """
        k = np.arange(1, self.num_shares, dtype=np.float64)
        return float(10.0 * np.sum(np.exp(-2.0 * (np.pi * self.local_std) ** 2 * k / (k + 1.0))))


@dataclass(frozen=True, kw_only=True)
class DistributedSkellam:
    """A sum of independent Skellam values, one from each client, which is Skellam (Agarwal et al. 2021).

    Parameters
    ----------
    local_std : float
        The standard deviation of one share, in grid steps.
    num_shares : int
        The fewest shares in a sum that are unknown to the adversary: survivors without those who collude.
    l2_sensitivity, l1_sensitivity : float
        The largest norms of one contribution, in grid steps, after rounding.
    """

    name: ClassVar[str] = "distributed_skellam"

    local_std: float
    num_shares: int
    l2_sensitivity: float
    l1_sensitivity: float

    def __post_init__(self) -> None:
        _positive(self.name, "local_std", self.local_std)
        check_int(self.name, "num_shares", self.num_shares, minimum=1)
        _positive(self.name, "l2_sensitivity", self.l2_sensitivity)
        _positive(self.name, "l1_sensitivity", self.l1_sensitivity)

    @property
    def total(self) -> Skellam:
        """The noise on the sum."""
        return Skellam(
            variance=self.num_shares * self.local_std**2,
            l2_sensitivity=self.l2_sensitivity,
            l1_sensitivity=self.l1_sensitivity,
        )


Mechanism = Gaussian | Laplace | DiscreteGaussian | Skellam | DistributedGaussian | DistributedSkellam


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
