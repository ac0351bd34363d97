"""ROC curves against a slow loop, intervals against exact binomials, and how often the bound is wrong."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from fl_plugins.errors import ConfigError
from fl_plugins.privacy import NoiseSource
from fl_plugins.privacy.membership import (
    auc,
    clopper_pearson,
    epsilon_lower_bound,
    epsilon_of_errors,
    roc,
)

ALARM = 1e-6
"""Probability that a valid bound fails a test of how often it is wrong."""


def scores(*shifts: float, size: int = 60, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.round(rng.normal(shift, size=size), 1) for shift in shifts]  # rounded: with ties


def test_the_curve_and_the_area_are_those_of_a_slow_loop() -> None:
    members, others = scores(0.7, 0.0)
    curve = roc(members, others)
    thresholds = sorted({*members.tolist(), *others.tolist()}, reverse=True)
    points = [(np.mean(others >= t), np.mean(members >= t)) for t in thresholds]
    np.testing.assert_allclose(curve.false_positive, [0.0, *(x for x, _ in points)])
    np.testing.assert_allclose(curve.true_positive, [0.0, *(y for _, y in points)])
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    assert np.trapezoid(curve.true_positive, curve.false_positive) == pytest.approx(np.mean(pairs))
    for limit in (0.0, 0.05, 1.0):
        assert curve.true_positive_at(limit) == max(y for x, y in [(0.0, 0.0), *points] if x <= limit)


def test_scores_that_say_nothing_have_half_the_area_and_those_that_say_all_the_whole() -> None:
    same = np.ones(10)
    assert auc(same, same) == 0.5
    assert auc(same + 1.0, same) == 1.0
    assert roc(same + 1.0, same).true_positive_at(0.0) == 1.0


@pytest.mark.parametrize("trials", [1, 7, 200])
def test_intervals_are_where_the_binomial_tails_are_the_error(trials: int) -> None:
    for count in range(trials + 1):
        low, high = clopper_pearson(count, trials, error=0.03)
        if count:
            assert binom.sf(count - 1, trials, float(low)) == pytest.approx(0.03, rel=1e-6)
        if count < trials:
            assert binom.cdf(count, trials, float(high)) == pytest.approx(0.03, rel=1e-6)
    assert clopper_pearson(0, trials, error=0.03)[0] == 0.0
    assert clopper_pearson(trials, trials, error=0.03)[1] == 1.0


def test_perfect_tests_have_the_closed_form() -> None:
    """n of n right and none of n wrong: p = e^(1/n), q = 1 − e^(1/n), e half of the error."""
    n, delta = 400, 1e-3
    edge = 0.025 ** (1.0 / n)
    shown = epsilon_of_errors(
        true_positives=n, members=n, false_positives=0, others=n, delta=delta, confidence=0.95
    )
    assert float(shown) == pytest.approx(math.log((edge - delta) / (1.0 - edge)), rel=1e-9)


@pytest.mark.parametrize("of_members", [True, False])
def test_a_known_epsilon_is_exceeded_no_more_often_than_stated(of_members: bool) -> None:
    """A rare sign that only members (or only others) give: P = 0.2 and 0.2/e. It shows itself in one way."""
    rng, epsilon, size, runs = np.random.default_rng(11), 1.0, 600, 600
    source = NoiseSource(insecure_seed=4)
    bounds = []
    for _ in range(runs):
        members = (rng.random(size) < 0.2).astype(np.float64)
        others = (rng.random(size) < 0.2 * math.exp(-epsilon)).astype(np.float64)
        if not of_members:
            members, others = -others, -members
        bounds.append(epsilon_lower_bound(members, others, delta=0.0, confidence=0.8, source=source))
    wrong = np.mean(np.array(bounds) > epsilon)
    assert wrong * runs <= binom.isf(ALARM, runs, 0.2)
    assert np.mean(bounds) > 0.3


def test_a_threshold_chosen_where_it_is_used_would_be_wrong_too_often() -> None:
    """Negative control: equal distributions (ε = 0), the best of all thresholds on the very scores."""
    rng, runs, size = np.random.default_rng(2), 400, 150
    source = NoiseSource(insecure_seed=5)
    honest = selected = 0
    for _ in range(runs):
        members, others = rng.normal(size=size), rng.normal(size=size)
        honest += epsilon_lower_bound(members, others, delta=0.0, confidence=0.8, source=source) > 0.0
        for ins, outs in ((members, others), (-members, -others)):
            thresholds = np.quantile(ins, np.linspace(0.02, 0.98, 25))
            bounds = epsilon_of_errors(
                true_positives=(ins[:, None] >= thresholds).sum(axis=0),
                members=size,
                false_positives=(outs[:, None] >= thresholds).sum(axis=0),
                others=size,
                delta=0.0,
                confidence=0.8,
            )
            if bounds.max() > 0.0:
                selected += 1
                break
    most = binom.isf(ALARM, runs, 0.2)
    assert honest <= most
    assert selected > most


def test_groups_without_finite_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="others have scores"):
        auc(np.ones(3), np.array([np.nan]))
    with pytest.raises(ConfigError, match="members have scores"):
        epsilon_lower_bound(np.ones(1), np.ones(5), delta=0.0, confidence=0.95)
