"""ε of closed forms and of Rényi divergences against mpmath and quadrature.

Each row is a configuration: release, rounds, δ. Together with test_loss_distributions.py and
test_published_values.py they are the conformance table of the accountant.
"""

import math
from functools import cache

import mpmath
import numpy as np
import pytest

from fl_plugins.privacy import (
    Accountant,
    Budget,
    DiscreteGaussian,
    Everyone,
    FixedSize,
    Gaussian,
    Laplace,
    Method,
    NeighborRelation,
    Poisson,
    Release,
    Skellam,
)
from fl_plugins.privacy import divergences as d
from fl_plugins.privacy.calibration import plan

ADD = NeighborRelation.of(unit="client", adjacency="add_remove")
ZERO_OUT = NeighborRelation.of(unit="record", adjacency="zero_out")
REPLACE = NeighborRelation.of(unit="client", adjacency="replace")
EVERYONE = Everyone()


def whole(q, n=10_000):
    return Poisson(rate=q, population=n, max_cohort=n)


def release(mechanism, sampling=EVERYONE, relation=ADD):
    return Release(mechanism=mechanism, sampling=sampling, relation=relation)


def by_method(one, rounds, delta):
    accountant = Accountant(one.relation)
    accountant.compose(one, rounds)
    return accountant.report(delta, pld=False).by_method


@pytest.mark.parametrize("relation", [ADD, ZERO_OUT, REPLACE], ids=lambda relation: relation.adjacency.value)
@pytest.mark.parametrize(
    ("z", "rounds", "delta"),
    [(2.0, 1, 1e-5), (0.7, 1, 1e-6), (13.906, 100, 1e-5), (30.0, 2000, 1e-9), (8.0, 10, 1e-2)],
)
def test_the_exact_gaussian_solves_the_analytic_equation_to_nine_digits(z, rounds, delta, relation):
    found = by_method(release(Gaussian(noise_multiplier=z), relation=relation), rounds, delta)
    clip_norms = 2 if relation is REPLACE else 1
    with mpmath.workdps(40):
        mu = mpmath.sqrt(rounds) * clip_norms / mpmath.mpf(z)

        def exact(epsilon):
            lower = mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)
            return mpmath.ncdf(mu / 2 - epsilon / mu) - lower

        assert exact(found[Method.EXACT] * (1 + 1e-9)) < delta < exact(found[Method.EXACT] * (1 - 1e-9))


NODES, WEIGHTS = (array.astype(np.longdouble) for array in np.polynomial.legendre.leggauss(24))


@cache
def sampled_gaussian(q, z):
    """Return log E[(1 − q + q·e^((2x − 1)/2z²))^α]/(α − 1) at all orders: Gauss-Legendre in 80-bit floats."""
    z = np.longdouble(z)
    edges = np.arange(-14 * z, d.ORDERS.max() + 14 * z, z / 2)
    x = (edges[:-1, np.newaxis] + z / 4 * (1 + NODES)).ravel()
    weights = np.tile(z / 4 * WEIGHTS, edges.size - 1)
    log_density = -((x / z) ** 2) / 2 - np.log(z * np.sqrt(2 * np.arccos(np.longdouble(-1))))
    log_ratio = np.logaddexp(
        np.log1p(np.longdouble(-q)), np.log(np.longdouble(q)) + (2 * x - 1) / (2 * z * z)
    )
    values = []
    for order in d.ORDERS:
        exponents = log_density + order * log_ratio
        largest = exponents.max()
        values.append((largest + np.log(np.sum(weights * np.exp(exponents - largest)))) / (order - 1))
    return values


def converted(values, delta):
    """Return the smallest ε of Canonne, Kamath & Steinke's δ = e^((α−1)(R−ε)) · (1 − 1/α)^α / (α − 1)."""
    candidates = []
    for order, value in zip(d.ORDERS, values, strict=True):
        alpha = mpmath.mpf(order)
        rest = mpmath.log((1 - 1 / alpha) ** alpha / ((alpha - 1) * delta))
        candidates.append(mpmath.mpf(float(value)) + rest / (alpha - 1))
    return max(float(min(candidates)), 0.0)


@pytest.mark.parametrize("delta", [1e-5, 1e-8])
@pytest.mark.parametrize(
    ("q", "z", "rounds"),
    [(0.01, 1.0, 1000), (0.01, 1.0, 10_000), (0.1, 1.0, 100), (0.001, 1.0, 1000), (0.5, 4.0, 60),
     (0.02, 0.6, 300), (0.05, 3.0, 3000), (0.2, 8.0, 50)],
)  # fmt: skip
def test_poisson_sampled_gaussians_cost_what_the_integral_says(q, z, rounds, delta):
    oracle = converted(rounds * np.array(sampled_gaussian(q, z)), delta)
    found = by_method(release(Gaussian(noise_multiplier=z), whole(q)), rounds, delta)
    assert found[Method.RDP] == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize(("scale", "rounds"), [(1.0, 100), (4.0, 60), (10.0, 500)])
def test_laplace_noise_costs_what_its_closed_forms_say(scale, rounds):
    def value(order):
        a = mpmath.mpf(order)
        larger = a / (2 * a - 1) * mpmath.exp((a - 1) / scale)
        return mpmath.log(larger + (a - 1) / (2 * a - 1) * mpmath.exp(-a / scale)) / (a - 1)

    with mpmath.workdps(30):
        oracle = converted([rounds * value(order) for order in d.ORDERS], 1e-5)
    found = by_method(release(Laplace(noise_multiplier=scale)), rounds, 1e-5)
    assert found[Method.RDP] == pytest.approx(oracle, rel=1e-6)
    assert found[Method.PURE] == pytest.approx(rounds / scale, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "population", "z", "rounds"),
    [(10, 100, 2.0, 1), (10, 100, 4.0, 1), (50, 1000, 6.0, 200), (3, 10, 12.0, 30)],
)
def test_the_rdp_of_fixed_size_cohorts_is_wang_balle_and_kasiviswanathans_bound(size, population, z, rounds):
    """Their Theorem 27, with its alternating sums in 200 digits; the sensitivity is two clip norms."""
    gamma, sigma = mpmath.mpf(size) / population, mpmath.mpf(z) / 2

    def term(j):
        return mpmath.exp(j * (j - 1) / (2 * sigma**2))

    @cache
    def difference(j):
        return sum((-1) ** i * mpmath.binomial(j, i) * term(i) for i in range(j + 1))

    @cache
    def cumulant(alpha):
        second = min(4 * (term(2) - 1), 2 * term(2))
        total = 1 + gamma**2 * mpmath.binomial(alpha, 2) * second
        for j in range(3, alpha + 1):
            root = mpmath.sqrt(difference(2 * (j // 2)) * difference(2 * ((j + 1) // 2)))
            total += gamma**j * mpmath.binomial(alpha, j) * min(4 * root, 2 * term(j))
        return mpmath.log(total)

    def value(order):
        """Between whole orders the cumulant is convex, so below its chord (their Corollary 10)."""
        below, part = int(order), order - int(order)
        chord = (1 - part) * (cumulant(below) if below > 1 else 0)
        return (chord + (part * cumulant(below + 1) if part else 0)) / (order - 1)

    with mpmath.workdps(200):
        values = [rounds * value(order) if order < 64 else math.inf for order in d.ORDERS]
        oracle = converted(values, 1e-5)
    one = release(Gaussian(noise_multiplier=z), FixedSize(size=size, population=population), REPLACE)
    assert by_method(one, rounds, 1e-5)[Method.RDP] == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize(("std", "shift", "rounds"), [(1.0, 1, 1), (3.0, 1, 20), (4.0, 2, 10)])
def test_discrete_gaussians_cost_their_closed_form_which_is_above_the_exact_sum(std, shift, rounds):
    closed = converted([rounds * order * shift**2 / (2 * std**2) for order in d.ORDERS], 1e-5)
    one = release(DiscreteGaussian(std=std, l2_sensitivity=float(shift)))
    found = by_method(one, rounds, 1e-5)[Method.RDP]
    assert found == pytest.approx(closed, rel=1e-6)
    # In one dimension all rounds' loss depends on the sum of their noise alone, whose probabilities are a
    # convolution.
    values = np.arange(-int(14 * std), int(14 * std) + 1)
    weights = np.exp(-(values**2) / (2 * std**2))
    pmf = total = weights / weights.sum()
    for _ in range(rounds - 1):
        total = np.convolve(total, pmf)
    sums = np.arange(total.size) - total.size // 2
    losses = (2 * shift * sums + rounds * shift**2) / (2 * std**2)

    def delta(epsilon):
        return math.fsum(np.maximum(-np.expm1(epsilon - losses), 0.0) * total)

    assert delta(found) <= 1e-5 < delta(found / 1.25)  # RDP is loose by less than that


@pytest.mark.parametrize(("variance", "shift", "rounds"), [(50.0, 2, 20), (400.0, 5, 10)])
def test_skellam_noise_costs_its_theorems_bound(variance, shift, rounds):
    def value(order):
        """Agarwal, Kairouz & Liu 2021, Theorem 3.5, which holds for whole orders."""
        alpha = math.ceil(order)
        rest = mpmath.mpf((2 * alpha - 1) * shift**2 + 6 * shift) / (4 * variance**2)
        return alpha * shift**2 / (2 * variance) + min(rest, 3 * shift / (2 * variance))

    oracle = converted([rounds * value(order) for order in d.ORDERS], 1e-5)
    mechanism = Skellam(variance=variance, l2_sensitivity=float(shift), l1_sensitivity=float(shift))
    assert by_method(release(mechanism), rounds, 1e-5)[Method.RDP] == pytest.approx(oracle, rel=1e-6)


# dp.md C: the σ of ε = 3 at δ = 1e-5.
@pytest.mark.parametrize(
    ("q", "rounds", "pld", "rdp"), [(0.01, 1000, 0.814, 0.865), (0.1, 100, 1.675, 1.796)]
)
def test_a_plan_finds_the_noise_for_a_sampled_run_by_every_method(q, rounds, pld, rdp):
    budget = Budget(epsilon=3.0, delta=1e-5)
    for method, noise in ((None, pld), (Method.RDP, rdp)):
        made = plan(budget, rounds=rounds, sampling=whole(q), relation=ADD, method=method)
        assert made.noise_multiplier == pytest.approx(noise, rel=3e-3)
        # The plan's own promise: it fits, and noise less by its precision does not.
        less = release(Gaussian(noise_multiplier=made.noise_multiplier * 0.998), whole(q))
        spent = by_method(less, rounds, 1e-5)[Method.RDP] if method else pld_epsilon(less, rounds)
        assert made.report.epsilon <= 3.0 < spent


def pld_epsilon(one, rounds):
    accountant = Accountant(one.relation)
    accountant.compose(one, rounds)
    return accountant.report(1e-5).epsilon


def test_a_plan_for_a_fixed_size_cohort_takes_the_loss_distribution_and_needs_less_noise():
    budget, sampling = Budget(epsilon=2.0, delta=1e-5), FixedSize(size=50, population=1000)
    best = plan(budget, rounds=100, sampling=sampling, relation=REPLACE)
    rdp = plan(budget, rounds=100, sampling=sampling, relation=REPLACE, method=Method.RDP)
    assert best.report.method is Method.PLD
    assert best.noise_multiplier < 0.9 * rdp.noise_multiplier
    assert pld_epsilon(best.release, 100) <= 2.0
    everyone = plan(budget, rounds=100, sampling=EVERYONE, relation=REPLACE)
    assert best.noise_multiplier < 0.5 * everyone.noise_multiplier
