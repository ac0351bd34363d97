"""The privacy loss distribution of a Gaussian sum over a cohort of fixed size, which dp-accounting lacks.

Draw m of N units, one of which is exchanged for another: γ = m/N. Conditioned on the draw, the sums are
Gaussians whose means are ≤ 2C apart, whether the unit is in one of them or in both, so each two of them have
at most δ_μ(ε), μ = 2C/σ (:func:`.divergences.gaussian_delta`). Then for ε ≥ 0 (Balle, Barthe & Gaboardi 2018,
Theorem 9)

    δ(ε) ≤ γ · δ_μ(log(1 + (e^ε − 1)/γ)),

and as either of the two data sets may be the first, δ(−ε) = 1 − e^−ε + e^−ε · δ(ε). This profile is convex in
e^ε, hence that of a pair of distributions that dominates the round, and products of dominating pairs dominate
rounds one after another (Zhu, Dong & Wang 2022, Theorems 10 and 11). dp-accounting makes a distribution on a
grid of it that lies above (Doroshenko et al. 2022).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_DEVIATIONS = 10.0
"""Where the losses end: beyond so many standard deviations there is a probability of 10⁻²³."""


def delta_profile(epsilons: Vector, *, rate: float, mu: float) -> Vector:
    """Return δ(ε) of one round at each of ``epsilons``, which may be negative."""
    from scipy.special import log_ndtr

    size = np.abs(epsilons)
    # log(1 + (e^ε − 1)/γ) = log(e^ε − (1 − γ)) − log γ
    inner = size + np.log1p(-(1.0 - rate) * np.exp(-size)) - math.log(rate)
    upper = log_ndtr(mu / 2.0 - inner / mu)
    lower = inner + log_ndtr(-mu / 2.0 - inner / mu)
    deltas = -rate * np.exp(upper) * np.expm1(np.minimum(lower - upper, 0.0))
    return np.asarray(np.where(epsilons < 0.0, -np.expm1(-size) + np.exp(-size) * deltas, deltas))


def privacy_loss_distribution(*, rate: float, noise_multiplier: float, interval: float) -> Any:
    """Return dp-accounting's distribution of one round; ``noise_multiplier`` is over the sensitivity 2C."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap as connect_dots
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    mu = 1.0 / noise_multiplier
    largest = float(np.logaddexp(math.log1p(-rate), math.log(rate) + mu * (_DEVIATIONS + mu / 2.0)))
    last = math.ceil(largest / interval)
    grid = np.arange(-last, last + 1, dtype=np.float64) * interval
    deltas = delta_profile(grid, rate=rate, mu=mu)
    return PrivacyLossDistribution(connect_dots(interval, -last, last, deltas))
