"""ε by privacy loss distributions against Fourier inversion of their moment generating functions.

δ(ε) = E[(1 − e^(ε − L))₊] is the integral of e^(−sε) M(s) / (2πi · s(s + 1)) over Re s = c > 0, where
M(s) = E[e^(sL)] = ∫ P^(1+s) Q^(−s) under P of the pair (P, Q) of one round, multiplied over rounds. No grid
of losses, no rounding, no convolution: nothing in common with how dp-accounting finds δ.
"""

import math

import numpy as np
import pytest
from scipy import stats

from fl_plugins.privacy import (
    Accountant,
    Everyone,
    FixedSize,
    Gaussian,
    Laplace,
    Method,
    NeighborRelation,
    Poisson,
    Release,
)
from fl_plugins.privacy import divergences as d
from fl_plugins.privacy.without_replacement import delta_profile

ADD = NeighborRelation.of(unit="client", adjacency="add_remove")
REPLACE = NeighborRelation.of(unit="client", adjacency="replace")
EVERYONE = Everyone()


def whole(q, n=10_000):
    return Poisson(rate=q, population=n, max_cohort=n)


def release(z, sampling=EVERYONE, relation=ADD, kind=Gaussian):
    return Release(mechanism=kind(noise_multiplier=float(z)), sampling=sampling, relation=relation)


def log_density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def mixed(x, q, mean, std):
    return np.logaddexp(math.log1p(-q) + log_density(x, 0, std), math.log(q) + log_density(x, mean, std))


NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)


def nodes(low, high, s, std, shift):
    """Return Gauss-Legendre nodes and weights, dense enough for e^(i·Im s·L), as |L'| ≤ shift/std²."""
    fastest = max(abs(s.imag).max() * shift / std**2, 1e-9)
    edges = np.linspace(low, high, math.ceil((high - low) / min(std / 2, 8 / fastest)) + 1)
    half = np.diff(edges)[:, np.newaxis] / 2
    return (edges[:-1, np.newaxis] + half * (1 + NODES)).ravel(), (half * WEIGHTS).ravel()


def moments(pair, s, std, shift, low=None, high=None):
    """Return ∫ P^(1+s) Q^(−s) at each s; the integrand is a Gaussian around at most (1 + Re s) · shift."""
    reach, found = (2 + s.real.max()) * shift + 14 * std, []
    for some in np.array_split(s, 16):
        if some.size:
            x, weights = nodes(
                -reach if low is None else low, reach if high is None else high, some, std, shift
            )
            log_p, log_q = pair(x)
            found.append(np.exp(log_p + np.multiply.outer(some, log_p - log_q)) @ weights)
    return np.concatenate(found)


def gaussian(z):
    return [lambda s: np.exp(s * (s + 1) / (2 * z * z))]


def poisson(q, z):
    """Remove and add: the unit is in the first of the two data sets, or in the second."""
    return [
        lambda s: moments(lambda x: (mixed(x, q, 1, z), log_density(x, 0, z)), s, z, 1),
        lambda s: moments(lambda x: (log_density(x, 0, z), mixed(x, q, 1, z)), s, z, 1),
    ]


def truncated(q, z, n, cap):
    """A cut cohort moves by ± two clip norms, and the unit is in it more rarely."""
    cut = stats.binom.sf(cap - 1, n - 1, q)
    inside = stats.binom.sf(cap, n, q) * cap / (cut * n)

    def moment(s, whole):
        pair = lambda x: (mixed(x, inside, -2, z), mixed(x, inside, 2, z))  # noqa: E731
        return cut * moments(pair, s, z, 4) + (1 - cut) * whole(s)

    return [lambda s, whole=whole: moment(s, whole) for whole in poisson(q, z)]


def laplace(b):
    """P and Q of scale b, one apart: losses of ± 1/b, and those between; in closed form."""

    def moment(s):
        inner = (np.exp(s / b) - np.exp(-(1 + s) / b)) / (2 * (1 + 2 * s))
        return np.exp(s / b) / 2 + np.exp(-(1 + s) / b) / 2 + inner

    return [moment]


def fixed(rate, z):
    """The pair ((1−γ)Q + γP, Q) where the loss is positive, (P, (1−γ)P + γQ) where it is negative, else 0."""
    low, high = (lambda x: log_density(x, 0, z)), (lambda x: log_density(x, 1, z))

    def mixture(x, one, other):
        return np.logaddexp(math.log1p(-rate) + one(x), math.log(rate) + other(x))

    up = (1 - rate) * stats.norm.sf(0.5 / z) + rate * stats.norm.cdf(0.5 / z)
    still = 1 - up - stats.norm.cdf(-0.5 / z)

    def moment(s):
        above = moments(lambda x: (mixture(x, low, high), low(x)), s, z, 1, low=0.5)
        below = moments(lambda x: (high(x), mixture(x, high, low)), s, z, 1, high=0.5)
        return still + above + below

    return [moment]


def exact_delta(epsilon, rounds):
    """Return δ(ε) of pairs, each so many times: the larger of both directions."""
    ways = max(len(pair) for pair, _ in rounds)
    return max(
        inverted(epsilon, [(pair[way % len(pair)], count) for pair, count in rounds]) for way in range(ways)
    )


def inverted(epsilon, factors):
    """Invert on a line where the integrand is small, with a step whose error is bounded before it is used."""

    def size(c):
        """Return the logarithm of M(c)·e^(−cε), which bounds δ(ε) (Chernoff)."""
        with np.errstate(over="ignore"):
            return sum(count * math.log(moment(np.array([c]))[0]) for moment, count in factors) - c * epsilon

    lines = np.geomspace(0.2, 100.0, 50)
    sizes = np.array([size(line) for line in lines])
    best = int(np.argmin((sizes - np.log(lines * (lines + 1)))[:-8]))
    if sizes[best] < math.log(1e-10):
        return math.exp(sizes[best])  # nothing beside the other direction
    c, further, bounds = float(lines[best]), lines[best + 1 : best + 12], sizes[best + 1 : best + 12]
    # Poisson summation: the rule's error is the sum of e^(2πkc/h) δ(ε + 2πk/h) over k ≠ 0; δ ≤ 1 for k < 0.
    period = 32.0 / c
    while (error := math.exp(-c * period) + math.exp(min(bounds - (further - c) * period))) > 1e-12:
        period *= 1.3
    step, total, start = 2 * math.pi / period, 0.0, 0.0
    while True:
        s = c + 1j * (start + step * np.arange(64))
        terms = np.exp(-s * epsilon) / (s * (s + 1))
        for moment, count in factors:
            terms *= moment(s) ** count
        total += float(terms.real.sum()) - (0.5 * float(terms[0].real) if start == 0.0 else 0.0)
        start += 64 * step
        if abs(terms[-32:]).max() * start < 1e-6 * abs(total) * step:
            break
        assert start < 1e5 * step, "it does not converge"
    assert error < 1e-6 * total * step / math.pi
    return total * step / math.pi


CASES = {
    "Gaussian": ([(release(2), 4)], [(gaussian(2.0), 4)]),
    "Poisson .01 1 1000": ([(release(1, whole(0.01)), 1000)], [(poisson(0.01, 1.0), 1000)]),
    "Poisson .1 1 100": ([(release(1, whole(0.1)), 100)], [(poisson(0.1, 1.0), 100)]),
    "Poisson .001 1 1000": ([(release(1, whole(0.001)), 1000)], [(poisson(0.001, 1.0), 1000)]),
    "Poisson .5 4 50": ([(release(4, whole(0.5)), 50)], [(poisson(0.5, 4.0), 50)]),
    "Poisson .02 .6 300": ([(release(0.6, whole(0.02)), 300)], [(poisson(0.02, 0.6), 300)]),
    "Poisson .05 3 3000": ([(release(3, whole(0.05)), 3000)], [(poisson(0.05, 3.0), 3000)]),
    "cut at 150": (
        [(release(1, Poisson(rate=0.01, population=10_000)), 1000)],
        [(truncated(0.01, 1.0, 10_000, 150), 1000)],
    ),
    "cut at 128": (
        [(release(1, Poisson(rate=0.01, population=10_000, max_cohort=128)), 1000)],
        [(truncated(0.01, 1.0, 10_000, 128), 1000)],
    ),
    "cut at 30 of 100": (
        [(release(2, Poisson(rate=0.2, population=100, max_cohort=30)), 40)],
        [(truncated(0.2, 2.0, 100, 30), 40)],
    ),
    "Laplace 1 100": ([(release(1, kind=Laplace), 100)], [(laplace(1.0), 100)]),
    "Laplace 4 60": ([(release(4, kind=Laplace), 60)], [(laplace(4.0), 60)]),
    "Laplace 10 500": ([(release(10, kind=Laplace), 500)], [(laplace(10.0), 500)]),
    "10 of 100": (
        [(release(4, FixedSize(size=10, population=100), REPLACE), 100)], [(fixed(0.1, 2.0), 100)],
    ),
    "50 of 1000": (
        [(release(2, FixedSize(size=50, population=1000), REPLACE), 200)], [(fixed(0.05, 1.0), 200)],
    ),
    "3 of 10": ([(release(6, FixedSize(size=3, population=10), REPLACE), 30)], [(fixed(0.3, 3.0), 30)]),
    "Gaussian, then Poisson": (
        [(release(5), 3), (release(1, whole(0.01)), 500)],
        [(gaussian(5.0), 3), (poisson(0.01, 1.0), 500)],
    ),
    "two rates": (
        [(release(1, whole(0.01)), 300), (release(2, whole(0.1)), 100)],
        [(poisson(0.01, 1.0), 300), (poisson(0.1, 2.0), 100)],
    ),
    "Laplace, then Gaussian": (
        [(release(8, kind=Laplace), 20), (release(6), 10)], [(laplace(8.0), 20), (gaussian(6.0), 10)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("delta", [1e-5])
def test_epsilon_is_above_the_exact_one_by_less_than_half_a_percent(name, delta):
    releases, rounds = CASES[name]
    accountant = Accountant(releases[0][0].relation)
    for one, count in releases:
        accountant.compose(one, count)
    found = accountant.report(delta).by_method
    epsilon = found[Method.PLD] if Method.PLD in found else found[Method.EXACT]
    assert exact_delta(epsilon, rounds) <= delta * (1 + 1e-4)  # 1e-4 of δ is 1e-5 of ε
    assert exact_delta(epsilon / 1.005, rounds) > delta


def test_the_inversion_finds_the_analytic_gaussian_and_rejects_a_wrong_pair():
    for epsilon in (0.5, 1.5, 4.0):
        assert inverted(epsilon, [(gaussian(2.0)[0], 4)]) == pytest.approx(
            d.gaussian_delta(epsilon, 1.0), rel=1e-6
        )
    # The negative control: 1 % less noise breaks the bound above.
    epsilon = Accountant(ADD)
    epsilon.compose(release(1, whole(0.1)), 100)
    assert exact_delta(epsilon.report(1e-5).epsilon, [(poisson(0.1, 0.99), 100)]) > 1.02e-5


@pytest.mark.parametrize(("rate", "mu"), [(0.1, 1.0), (0.01, 0.3), (0.5, 3.0)])
def test_the_profile_of_a_fixed_size_cohort_is_the_exact_one_of_both_pairs(rate, mu):
    """The hockey-stick divergence of the two mixtures, integrated; the second pair for negative ε."""
    z = 1.0 / mu
    x = np.arange(-14 * z, 1 + 14 * z, z / 20_000)
    low, high = np.exp(log_density(x, 0, z)), np.exp(log_density(x, 1, z))
    pairs = {1: ((1 - rate) * low + rate * high, low), -1: (high, (1 - rate) * high + rate * low)}
    for sign, (p, q) in pairs.items():
        for size in (1e-3, 0.1, 0.7):
            found = float(delta_profile(np.array([sign * size]), rate=rate, mu=mu)[0])
            exact = float(np.maximum(p - math.exp(sign * size) * q, 0.0).sum() * (x[1] - x[0]))
            assert found == pytest.approx(exact, rel=1e-5, abs=1e-12)


def test_no_cohort_of_fixed_size_breaks_the_profile():
    """Three of six units, all subsets, one unit exchanged: several numbers, none above the bound."""
    from itertools import combinations

    z, size, n = 1.5, 3, 6
    others = np.array([-1.0, 1.0, 0.3, -0.6, 1.0])
    x = np.arange(-25, 25, 1e-3)
    for mine, exchanged in ((1.0, -1.0), (-1.0, 1.0), (1.0, 0.0)):
        p, q = (
            np.mean(
                [np.exp(log_density(x, np.append(others, unit)[list(drawn)].sum(), z))
                 for drawn in combinations(range(n), size)], axis=0,
            )
            for unit in (mine, exchanged)
        )  # fmt: skip
        for epsilon in (-0.5, 0.0, 0.2, 1.0):
            exact = float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum() * 1e-3)
            bound = float(delta_profile(np.array([epsilon]), rate=size / n, mu=2 / z)[0])
            assert exact <= bound
