"""(f, κ)-robustness (Allouah et al. 2023, Definition 2) against thousands of random adversaries.

A rule F is (f, κ)-robust if for every set S of n − f honest rows, whatever the other f are,

    ‖F(x) − x̄_S‖² <= κ · (1/|S|) Σ_{i in S} ‖xᵢ − x̄_S‖².

Every κ here is derived, not quoted. Write m = n − f, V for the right-hand mean, x̄ for x̄_S,
rᵢ = ‖xᵢ − x̄‖.

*Trimmed mean*, per coordinate (the squares add up). With x and, of S alone, y sorted, y_j <= x_{f+j} <=
y_{f+j} for j <= q = n − 2f: so it is at least the mean of the q lowest of y. Where that is δ below x̄, the
other f are on average δq/f above, and mV >= qδ² + q²δ²/f = δ²qm/f. Likewise above: κ = f/(n−2f).

*Median*. n odd: it is x_{f+j} with j = (n+1)/2 − f, hence at least y_j and at most y_{m−j+1}. If δ below
x̄, at least j of S are, and the others make up for it: mV >= jδ²m/(m−j). For even n both middle values obey
this with j = n/2 − f. So κ = (m−j)/j <= n/(n−2f).

*Geometric median* g, D = ‖g − x̄‖. Σ‖g − xᵢ‖ <= Σ‖x̄ − xᵢ‖ over all rows; on the left an honest term is at
least D − rᵢ, a hostile one at least ‖xᵢ − x̄‖ − D: (m−f)D <= 2 Σ_S rᵢ, so κ = 4(m/(n−2f))².

*Krum*, which selects k: of its n − f − 2 neighbours h >= n − 2f − 2 are honest, and by ‖x_k − x̄‖² <= 2‖x_k
− xⱼ‖² + 2rⱼ² over them, ‖x_k − x̄‖² <= (2/h)(score + mV). The least score is at most the mean of the honest
ones', which is at most 2mV: κ = 6m/(n−2f−2).

*MDA*. Its subset and S differ in at most f rows each, any two of which are within two honest diameters by
way of a common row, and a squared diameter is at most 2mV: κ = 8f²/m.

*NNM* before a rule with κ. The mean yᵢ of an honest row's m nearest differs from x̄ in k <= f rows of each
side, and whoever is in is no farther from xᵢ than whoever is out: ‖yᵢ − x̄‖ <= (2/m) Σ_{k out}‖xⱼ − xᵢ‖,
whose square is at most (4f/m²) Σ_S‖xⱼ − xᵢ‖². The mean over S of ‖yᵢ − x̄‖² is thus at most 8fV/m; it is
the spread of y plus ‖ȳ − x̄‖², so by Cauchy and Schwarz ‖F(y) − x̄‖² <= (κ + 1)·8fV/m.

*CAF*, for n > 3f. Let s <= V be the honest rows' largest variance in any direction, λ that of the weighted
rows (weights c, honest ones a in all, hostile b). Shared mass moves means little: x̄ and the weighted mean
of S are within √(s(m−a)/a), that and the weighted mean of all within √(λb/a). While honest rows have lost
no more weight than hostile ones, a − b >= n − 2f, and along the largest variance Σ_S cτ <= ms + λb; so they
again lose less than hostile ones if λ > 2ms/(n−2f). That cannot go on until 2f are lost, so at some step,
hence at the best, λ <= 2ms/(n−2f), and there a > n − 3f and m − a < 2f; whence κ = f/(n−3f)·(√2 +
√(2m/(n−2f)))². For n <= 3f the geometric median's is required: a check, not a theorem.
"""

from collections.abc import Callable

import numpy as np
import pytest

from fl_plugins.aggregation import (
    Aggregator,
    Caf,
    Chain,
    GeometricMedian,
    Krum,
    Mda,
    Mean,
    Median,
    NearestNeighborMixing,
    TrimmedMean,
)
from strategies import Robust

Kappa = Callable[[int, int], float]
SIZES = [(5, 1), (8, 1), (9, 2), (9, 3), (13, 3), (20, 4), (20, 8)]
TRIALS = 25  # 7 sizes x 25 trials x 7 adversaries, and 150 steps of search a size: over 2,000 for every rule


def trimmed_kappa(n: int, f: int) -> float:
    return f / (n - 2 * f)


def median_kappa(n: int, f: int) -> float:
    return n / (n - 2 * f)


def geometric_kappa(n: int, f: int) -> float:
    return 4 * ((n - f) / (n - 2 * f)) ** 2


def krum_kappa(n: int, f: int) -> float:
    return 6 * (n - f) / (n - 2 * f - 2)


def mda_kappa(n: int, f: int) -> float:
    return 8 * f**2 / (n - f)


def caf_kappa(n: int, f: int) -> float:
    if n <= 3 * f:
        return geometric_kappa(n, f)
    return f / (n - 3 * f) * (np.sqrt(2) + np.sqrt(2 * (n - f) / (n - 2 * f))) ** 2


def mixed(rule: Callable[[int], Aggregator]) -> Callable[[int], Aggregator]:
    return lambda f: Chain(NearestNeighborMixing(num_byzantine=f), rule(f))


def mixed_kappa(kappa: Kappa) -> Kappa:
    return lambda n, f: 8 * f / (n - f) * (kappa(n, f) + 1)


def geometric(f: int) -> Aggregator:
    return GeometricMedian(num_byzantine=f)


def trim(f: int) -> Aggregator:
    return TrimmedMean(num_byzantine=f)


RULES: dict[str, tuple[Callable[[int], Aggregator], Kappa]] = {
    "trimmed_mean": (trim, trimmed_kappa),
    "median": (lambda f: Median(), median_kappa),
    "geometric_median": (geometric, geometric_kappa),
    "krum": (lambda f: Krum(num_byzantine=f), krum_kappa),
    "mda": (lambda f: Mda(num_byzantine=f), mda_kappa),
    "caf": (lambda f: Caf(num_byzantine=f), caf_kappa),
    "nnm_trimmed_mean": (mixed(trim), mixed_kappa(trimmed_kappa)),
    "nnm_median": (mixed(lambda f: Median()), mixed_kappa(median_kappa)),
    "nnm_geometric_median": (mixed(geometric), mixed_kappa(geometric_kappa)),
    "nnm_krum": (mixed(lambda f: Krum(num_byzantine=f)), mixed_kappa(krum_kappa)),
}


def ratio(rule: Aggregator, honest: np.ndarray, hostile: np.ndarray) -> float:
    """Return ‖F(x) − x̄_S‖² over the honest mean squared deviation."""
    middle = honest.mean(axis=0)
    deviation = float(np.mean(np.sum((honest - middle) ** 2, axis=1)))
    value = rule(np.concatenate([hostile, honest])).value
    return float(np.sum((value - middle) ** 2)) / deviation


def adversaries(honest: np.ndarray, f: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return f rows of each kind: random, far, ALIE, inner-product, near somebody, mimic, one axis."""
    d, middle, spread = honest.shape[1], honest.mean(axis=0), honest.std(axis=0)
    direction = rng.normal(size=d)
    copied = honest[rng.integers(0, len(honest), f)]
    return [
        middle + rng.normal(size=(f, d)) * 10.0 ** rng.uniform(-2, 3),
        middle + direction * 10.0 ** rng.uniform(0, 9) + rng.normal(size=(f, d)) * 1e-3,
        np.tile(middle - rng.uniform(0, 3) * spread, (f, 1)),
        np.tile(-rng.uniform(0, 5) * middle, (f, 1)),
        copied + rng.normal(size=(f, d)) * spread * rng.uniform(0, 0.3),
        np.tile(honest[rng.integers(len(honest))], (f, 1)),
        np.tile(middle + spread * np.sqrt(d) * rng.uniform(0, 4) * (np.arange(d) == 0), (f, 1)),
    ]


def worst_case(make: Callable[[int], Aggregator], n: int, f: int, trials: int = TRIALS) -> float:
    """Return the largest ratio over the adversaries."""
    rule, worst = make(f), 0.0
    for trial in range(trials):
        rng = np.random.default_rng([n, f, trial])
        d = int(rng.integers(1, 7))
        # Heterogeneous on purpose: skewed scales, and a minority of honest rows far from the others.
        honest = rng.normal(size=(n - f, d)) * rng.choice([0.1, 1.0, 10.0], d) + rng.normal(size=d) * 3
        honest[: len(honest) // 4] *= rng.choice([1.0, 5.0])
        worst = max(worst, *(ratio(rule, honest, hostile) for hostile in adversaries(honest, f, rng)))
    return worst


def climbed(make: Callable[[int], Aggregator], n: int, f: int, steps: int = 150) -> float:
    """Return the ratio that an adversary reaches who asks the rule again and again (a random search)."""
    rng, rule = np.random.default_rng([n, f]), make(f)
    honest = rng.normal(size=(n - f, 3)) * [5.0, 1.0, 0.2]
    best, best_ratio, width = honest[:f].copy(), 0.0, 3.0
    for _ in range(steps):
        tried = best + rng.normal(size=best.shape if rng.random() < 0.5 else (1, 3)) * width
        found = ratio(rule, honest, tried)
        if found > best_ratio:
            best, best_ratio = tried, found
        else:
            width *= 0.98
    return best_ratio


@pytest.mark.parametrize("name", RULES)
def test_the_aggregate_stays_within_the_bound(name: str) -> None:
    make, kappa = RULES[name]
    for n, f in SIZES:
        if "krum" in name and n < 2 * f + 3:
            continue
        assert worst_case(make, n, f) <= kappa(n, f) * (1 + 1e-9), (n, f)
        assert climbed(make, n, f) <= kappa(n, f) * (1 + 1e-9), (n, f)


def test_a_mean_leaves_every_one_of_the_bounds() -> None:
    """Negative control: the adversaries are strong enough to tell a defence from none."""
    for n, f in SIZES:
        worst = worst_case(lambda f: Mean(), n, f, trials=10)
        assert all(worst > 100 * kappa(n, f) for _, kappa in RULES.values() if n > 2 * f + 2)


def test_too_small_an_f_leaves_the_bound() -> None:
    """Negative control: the bounds are not true of a defence against fewer than there are."""
    for make, kappa in (RULES["trimmed_mean"], RULES["mda"], RULES["nnm_trimmed_mean"]):
        assert worst_case(lambda f, make=make: make(f - 1), 13, 3, trials=10) > kappa(13, 3)


def test_the_default_is_never_longer_than_the_longest_honest_update_whatever_comes() -> None:
    """ARC leaves no row longer, and CAF's result is a convex combination."""
    rng = np.random.default_rng(0)
    for n, f in SIZES:
        rule = Robust(num_byzantine=f).aggregator
        for _ in range(20):
            honest = rng.normal(size=(n - f, 5))
            longest = np.linalg.norm(honest, axis=1).max()
            for hostile in adversaries(honest, f, rng):
                value = rule(np.concatenate([honest, hostile])).value
                assert np.linalg.norm(value) <= longest * (1 + 1e-9)
