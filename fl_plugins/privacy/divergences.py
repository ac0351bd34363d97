"""What one release costs: Rényi divergences at fixed orders, exact forms, and privacy loss distributions.

Vectors are cached per release. dp-accounting supplies the Rényi divergences of (sampled) Gaussian and Laplace
noise and the numerical privacy loss distributions (PLD); it takes seconds to import and is imported when
first needed. Here is what it lacks: truncation for RDP, discrete Gaussian and Skellam noise, the exact
composition of unsampled Gaussians; in :mod:`.without_replacement` the PLD of cohorts of fixed size.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import without_replacement
from .mechanisms import (
    DiscreteGaussian,
    DistributedGaussian,
    DistributedSkellam,
    Gaussian,
    Laplace,
    Skellam,
)
from .releases import Release
from .sampling import FixedSize, Poisson

Vector = NDArray[np.float64]

ORDERS: Vector = np.array(
    [*(1.0 + tenth / 10.0 for tenth in range(1, 100)), *range(11, 64), 128.0, 256.0, 512.0, 1024.0]
)
"""The Rényi orders of every accountant: dp-accounting's own, so that values can be compared."""

COARSE, FINE = 1e-3, 1e-4
"""Discretisations of privacy losses. Where a round's loss is below ten of COARSE, ε comes out too large by
percents (q = 0.001, z = 1, 1000 rounds: 0.155 for 0.149); elsewhere COARSE takes a tenth of the time."""

_LARGEST_LOG = 600.0
"""Of an integrand in float64, with room for a sum of many."""

LEAST_NOISE = 0.05
"""Below this effective noise multiplier, losses reach into the hundreds: a grid for them takes gigabytes, and
what it could say is that there is no privacy."""


@lru_cache(maxsize=4096)
def rdp(release: Release) -> Vector:
    """Return the Rényi divergence of one release at each of :data:`ORDERS`; read-only.

    For truncated Poisson sampling it is that of the mechanism that is left when the event of probability
    :func:`truncation_probability` is set aside.
    """
    mechanism = release.mechanism
    if isinstance(mechanism, (Skellam, DistributedSkellam)):
        total = mechanism if isinstance(mechanism, Skellam) else mechanism.total
        vector = _skellam_rdp(total, release.relation.adjacency.clip_norms)
    elif isinstance(mechanism, DistributedGaussian):
        vector = _distributed_gaussian_rdp(mechanism, release.relation.adjacency.clip_norms)
    elif isinstance(mechanism, DiscreteGaussian):
        shift = mechanism.l2_sensitivity * release.relation.adjacency.clip_norms
        vector = ORDERS * (shift / mechanism.std) ** 2 / 2.0
    elif isinstance(mechanism, Gaussian) and not release.sampling.amplifies:
        vector = ORDERS / (2.0 * release.effective_noise_multiplier**2)
    else:
        vector = _library_rdp(release)
    vector.flags.writeable = False
    return vector


def epsilon_from_rdp(orders: Vector, values: Vector, delta: float) -> float:
    """Return the smallest ε over all orders (Canonne, Kamath & Steinke 2020, Proposition 12).

    ε = min_α RDP(α) + log((α − 1)/α) − (log δ + log α)/(α − 1); 0 if already the total variation, bounded by
    √(1 − e^(−KL)), is below δ.
    """
    if not delta > 0.0:
        return math.inf if np.any(values > 0.0) else 0.0
    if np.any(delta**2 + np.expm1(-values) > 0.0):
        return 0.0
    candidates = values + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0)
    return max(float(np.min(candidates)), 0.0)


@lru_cache(maxsize=4096)
def truncation_probability(release: Release) -> float:
    """Return the probability that one unit is drawn *and* its round's cohort is cut.

    Only then does truncation make a release depend on the unit in another way than Poisson sampling does.
    """
    sampling = release.sampling
    if not isinstance(sampling, Poisson):
        return 0.0
    from scipy.stats import binom

    return float(sampling.rate * binom.sf(sampling.cap - 1, sampling.population - 1, sampling.rate))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return δ(ε) of a Gaussian mechanism whose sensitivity is μ standard deviations (Balle & Wang 2018).

    δ = Φ(μ/2 − ε/μ) − e^ε · Φ(−μ/2 − ε/μ). T rounds have μ = √T · (μ of one).
    """
    from scipy.special import log_ndtr

    if mu == 0.0:
        return 0.0
    upper = float(log_ndtr(mu / 2.0 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2.0 - epsilon / mu))
    return -math.exp(upper) * math.expm1(lower - upper) if lower < upper else 0.0


def gaussian_epsilon(delta: float, mu: float) -> float:
    """Return the smallest ε ≥ 0 with δ(ε) ≤ ``delta``, never below the exact value."""
    if not delta > 0.0:
        return math.inf if mu > 0.0 else 0.0
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > delta:
        low, high = high, 2.0 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def has_pld(release: Release) -> bool:
    """Whether the release has a privacy loss distribution here."""
    return (
        isinstance(release.mechanism, (Gaussian, Laplace))
        and release.effective_noise_multiplier >= LEAST_NOISE
    )


def pld_interval(releases: Iterable[Release]) -> float:
    """Return the discretisation that fits all: a tenth of the smallest loss's standard deviation, or less.

    A loss whose mean is the divergence R (of the order next to 1) has a standard deviation of about √(2R).
    """
    smallest = min(math.sqrt(2.0 * float(rdp(release)[0])) for release in releases)
    return COARSE if smallest >= 10.0 * COARSE else FINE


@lru_cache(maxsize=8)
def pld(release: Release, count: int, interval: float) -> Any:
    """Return dp-accounting's privacy loss distribution of ``count`` such releases."""
    from dp_accounting.pld import privacy_loss_distribution as library

    noise = release.effective_noise_multiplier
    sampling = release.sampling
    if isinstance(release.mechanism, Laplace):
        return library.from_laplace_mechanism(noise, value_discretization_interval=interval).self_compose(
            count
        )
    if isinstance(sampling, (Poisson, FixedSize)):
        return _sampled_pld(release, interval).self_compose(count)
    return library.from_gaussian_mechanism(noise / math.sqrt(count), value_discretization_interval=interval)


@lru_cache(maxsize=8)
def _sampled_pld(release: Release, interval: float) -> Any:
    """Return the privacy loss distribution of one release under truncated Poisson or fixed-size sampling."""
    sampling = release.sampling
    if isinstance(sampling, FixedSize):
        return without_replacement.privacy_loss_distribution(
            rate=sampling.size / sampling.population,
            noise_multiplier=release.effective_noise_multiplier,
            interval=interval,
        )
    from dp_accounting.pld import privacy_loss_distribution as library

    assert isinstance(sampling, Poisson), "of pld()"
    return library.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=sampling.population,
        sampling_probability=sampling.rate,
        truncated_batch_size=sampling.cap,
        noise_multiplier=release.effective_noise_multiplier,
        value_discretization_interval=interval,
    )


def _library_rdp(release: Release) -> Vector:
    """Return dp-accounting's Rényi divergences."""
    from dp_accounting import (
        DpEvent,
        GaussianDpEvent,
        LaplaceDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
        SampledWithoutReplacementDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant

    noise, sampling = release.effective_noise_multiplier, release.sampling
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    event: DpEvent = (
        LaplaceDpEvent(noise) if isinstance(release.mechanism, Laplace) else GaussianDpEvent(noise)
    )
    if isinstance(sampling, Poisson):
        event = PoissonSampledDpEvent(sampling.rate, event)
    elif isinstance(sampling, FixedSize):
        # dp-accounting 0.6 takes the noise over the clip norm here and forgets that a replaced unit moves the
        # sum by two of them (its issue 378); the effective multiplier is over the sensitivity already.
        relation = NeighboringRelation.REPLACE_ONE
        event = SampledWithoutReplacementDpEvent(sampling.population, sampling.size, event)
    # For Poisson sampling dp-accounting is exact at whole orders only: between them it adds up the absolute
    # values of an alternating series, and gives up with a warning where that does not converge.
    fractional = (np.rint(ORDERS) != ORDERS) & isinstance(sampling, Poisson)
    accountant = RdpAccountant(ORDERS[~fractional], relation)
    accountant.compose(event)
    values = np.empty_like(ORDERS)
    values[~fractional] = accountant.rdp
    if isinstance(sampling, Poisson):
        values[fractional] = (
            _poisson_rdp(sampling.rate, noise, ORDERS[fractional])
            if noise >= LEAST_NOISE
            else ORDERS[fractional] / (2.0 * noise**2)  # as if everyone took part
        )
    return values


def _poisson_rdp(rate: float, noise: float, orders: Vector) -> Vector:
    """Return the Rényi divergences of the Poisson-sampled Gaussian, by the trapezoid rule.

    log(1 + ∫ φ(x) · ((1 + u)^α − 1 − α·u) dx) / (α − 1) with u = q·(e^((2x − 1)/2σ²) − 1), whose mean is 0:
    in this form small divergences keep their digits, and no term is negative. The rule converges
    exponentially, as the integrand is analytic within πσ² of the real line.
    """
    step = min(noise / 16.0, noise**2 / 8.0)
    x = np.arange(-40.0 * noise, float(np.max(orders)) + 40.0 * noise, step)
    log_density = -0.5 * (x / noise) ** 2 - math.log(noise * math.sqrt(2.0 * math.pi))
    density = np.exp(log_density)
    exponent = (2.0 * x - 1.0) / (2.0 * noise**2)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)  # of the densities
    near = np.abs(exponent) < 1.0
    u = rate * np.expm1(np.where(near, exponent, 0.0))
    exact_log_ratio = np.where(near, np.log1p(u), log_ratio)
    u = np.where(near, u, rate * np.expm1(np.minimum(exponent, 600.0)))

    def divergence(order: float) -> float:
        log_power = log_density + order * log_ratio
        if (peak := float(np.max(log_power))) > _LARGEST_LOG:  # the other terms are lost beside this one
            return (peak + math.log(step * float(np.sum(np.exp(log_power - peak))))) / (order - 1.0)
        power = order * exact_log_ratio
        small = power < 1.0
        terms = density * (np.expm1(np.where(small, power, 0.0)) - order * u)
        large = np.exp(log_density + power) - density * (1.0 + order * u)
        return math.log1p(step * float(np.sum(np.where(small, terms, large)))) / (order - 1.0)

    return np.array([divergence(order) for order in orders.tolist()])


def _skellam_rdp(mechanism: Skellam, clip_norms: int) -> Vector:
    """Return the bound of Agarwal, Kairouz & Liu 2021, Theorem 3.5, for whole orders; others use the next."""
    l2, l1 = mechanism.l2_sensitivity * clip_norms, mechanism.l1_sensitivity * clip_norms
    variance, alpha = mechanism.variance, np.ceil(ORDERS)
    correction = np.minimum(
        ((2.0 * alpha - 1.0) * l2**2 + 6.0 * l1) / (4.0 * variance**2), 3.0 * l1 / (2.0 * variance)
    )
    return np.asarray(alpha * l2**2 / (2.0 * variance) + correction)


def _distributed_gaussian_rdp(mechanism: DistributedGaussian, clip_norms: int) -> Vector:
    """Return the bound on a sum of discrete Gaussians; compare Kairouz, Liu & Steinke 2021, Proposition 14.

    Let R be the sum of n shares and N the discrete Gaussian of variance n·σ², with |log R/N| ≤ t = τ·d/2 over
    all d values. In (α − 1)·D_α(R + x ‖ R) = log Σ (R + x)^α · R^(1 − α), putting N for R costs at most
    (2α − 1)·t, and D_α(N + x ‖ N) ≤ α‖x‖²/(2nσ²). The paper has τ·d where this short proof gives
    τ·d·(2α − 1)/(2α − 2). From σ = 2 on both are below 10⁻⁸ for every d and n in reach.
    """
    shift = mechanism.l2_sensitivity * clip_norms
    variance = mechanism.num_shares * mechanism.local_std**2
    distance = mechanism.tau * mechanism.dimension / 2.0
    return np.asarray(ORDERS * shift**2 / (2.0 * variance) + distance * (2.0 * ORDERS - 1.0) / (ORDERS - 1.0))
