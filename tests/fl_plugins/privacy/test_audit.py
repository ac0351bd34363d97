"""One-run bounds: closed forms, exact rationals, and how often they exceed a known ε."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, norm

from fl_plugins.errors import ConfigError
from fl_plugins.privacy.audit import (
    GUESSED_PARTS,
    Guesses,
    best_shown,
    epsilon_lower_bound,
    guess,
    is_refuted,
    mu_lower_bound,
    p_value,
)


def guesses(m: int, r: int, v: int) -> Guesses:
    return Guesses(num_canaries=m, num_guesses=r, num_correct=v)


@pytest.mark.parametrize("m", [1, 20, 300, 5000])
@pytest.mark.parametrize("error", [0.05, 1e-4])
def test_all_guesses_right_and_pure_epsilon_is_the_closed_form(m: int, error: float) -> None:
    """q^m = error with q = e^ε/(1 + e^ε)."""
    right = error ** (1.0 / m)
    expected = math.log(right / (1.0 - right)) if right > 0.5 else 0.0
    shown = epsilon_lower_bound(guesses(m, m, m), delta=0.0, confidence=1.0 - error)
    assert shown == pytest.approx(expected, rel=1e-9)


def exact_p_value(m: int, r: int, v: int, odds: Fraction, delta: Fraction) -> Fraction:
    """Theorem 5.2 with rational numbers, e^ε = odds."""
    right = odds / (1 + odds)

    def mass(low: int, high: int) -> Fraction:
        terms = (math.comb(r, k) * right**k * (1 - right) ** (r - k) for k in range(max(low, 0), high))
        return sum(terms, Fraction(0))

    steepest = max((mass(v - i, v) / i for i in range(1, m + 1)), default=Fraction(0))
    return min(Fraction(1), mass(v, r + 1) + 2 * m * delta * steepest)


@pytest.mark.parametrize(("m", "r", "v"), [(1, 1, 1), (9, 9, 7), (30, 20, 15), (40, 40, 40), (40, 8, 0)])
@pytest.mark.parametrize("odds", [Fraction(1), Fraction(3, 2), Fraction(20)])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**5), Fraction(1, 50)])
def test_p_values_are_those_of_exact_rationals(
    m: int, r: int, v: int, odds: Fraction, delta: Fraction
) -> None:
    expected = float(exact_p_value(m, r, v, odds, delta))
    found = p_value(guesses(m, r, v), epsilon=math.log(odds), delta=float(delta))
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_mechanism_that_tells_everything_with_probability_delta_is_allowed_to() -> None:
    """It is (0, δ)-private and right about all m with probability δ + (1 − δ)/2^m: no less may be said."""
    for m in (1, 5, 200):
        happens = 0.01 + 0.99 * 0.5**m
        assert p_value(guesses(m, m, m), epsilon=0.0, delta=0.01) >= happens


def test_more_right_guesses_show_more_and_more_delta_or_confidence_show_less() -> None:
    base = epsilon_lower_bound(guesses(500, 200, 150), delta=1e-5, confidence=0.95)
    assert 0.0 < base < epsilon_lower_bound(guesses(500, 200, 160), delta=1e-5, confidence=0.95)
    assert base > epsilon_lower_bound(guesses(500, 200, 150), delta=1e-3, confidence=0.95)
    assert base > epsilon_lower_bound(guesses(500, 200, 150), delta=1e-5, confidence=0.999)
    assert epsilon_lower_bound(guesses(500, 200, 100), delta=1e-5, confidence=0.95) == 0.0


# -- Trade-off curves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5001, 0.8, 0.999])
def test_one_canary_refutes_no_gaussian_that_a_fair_coin_is_right_about_so_often(confidence: float) -> None:
    """For m = 1 the best accuracy under μ is Φ(μ/2) ≥ 1/2 > error, so one guess shows nothing."""
    assert mu_lower_bound(guesses(1, 1, 1), confidence=confidence) == 0.0


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.999])
def test_one_canary_has_the_closed_form_of_the_best_accuracy(accuracy: float) -> None:
    """P[right] = ``accuracy`` is refuted exactly for μ < 2·Φ⁻¹(accuracy)."""
    threshold = 2.0 * norm.ppf(accuracy)
    for mu, refuted in ((threshold * 0.999, True), (threshold * 1.001, False)):

        def inverse(part: float, mu: float = mu) -> float:
            return float(norm.cdf(norm.ppf(part) - mu))

        assert is_refuted(guesses(1, 1, 1), inverse=inverse, error=accuracy) is refuted


@pytest.mark.parametrize("m", [2, 17])
def test_all_right_under_a_pure_curve_is_the_binomial_again(m: int) -> None:
    """With all guesses right the tail is one point, where the recursion is exact: the binomial's masses."""
    epsilon = 1.3
    tail = (math.exp(epsilon) / (1.0 + math.exp(epsilon))) ** m
    for error, refuted in ((tail * 1.001, True), (tail * 0.999, False)):
        found = is_refuted(guesses(m, m, m), inverse=lambda part: math.exp(-epsilon) * part, error=error)
        assert found is refuted


def test_independent_gaussians_are_never_refuted_at_their_own_mu() -> None:
    """The binomial's tail is at most the bound, for every count: exact, no simulation."""
    for m, mu in ((10, 0.5), (200, 1.0), (200, 3.0)):
        for v in range(m // 2, m + 1):
            tail = float(binom.sf(v - 1, m, norm.cdf(mu / 2.0)))
            if tail < 1e-12:
                continue

            def own(part: float, mu: float = mu) -> float:
                return float(norm.cdf(norm.ppf(part) - mu))

            assert not is_refuted(guesses(m, m, v), inverse=own, error=tail * (1.0 - 1e-9))


# -- How often they are wrong --------------------------------------------------------------------------


def _randomized_response(epsilon: float, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    coins = rng.random(m) < 0.5
    kept = rng.random(m) < 1.0 / (1.0 + math.exp(-epsilon))
    return np.where(kept == coins, 1.0, -1.0), coins


def _gaussian(mu: float, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    coins = rng.random(m) < 0.5
    return (coins - 0.5) * mu + rng.normal(size=m), coins


NUM_RUNS = 1500
ALARM = 1e-6
"""Probability that a valid bound fails a test of how often it is wrong."""

MOST_WRONG = int(binom.isf(ALARM, NUM_RUNS, 0.1))
"""Of NUM_RUNS bounds at 90 % confidence."""


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("m", [50, 400])
def test_the_bound_exceeds_a_known_epsilon_no_more_often_than_stated(epsilon: float, m: int) -> None:
    """Randomized response, for which the bound is tight: it errs nearly as often as it may."""
    rng = np.random.default_rng(17)
    bounds = {v: epsilon_lower_bound(guesses(m, m, v), delta=0.0, confidence=0.9) for v in range(m + 1)}
    runs = [_randomized_response(epsilon, m, rng) for _ in range(NUM_RUNS)]
    right = [guess(scores, coins, num_guesses=m).num_correct for scores, coins in runs]
    wrong = sum(bounds[v] > epsilon for v in right)
    assert wrong <= MOST_WRONG
    assert wrong > 0.02 * NUM_RUNS
    # Negative control: counts that are 0.6·√m too high are caught.
    careless = sum(bounds[min(v + math.ceil(0.6 * math.sqrt(m)), m)] > epsilon for v in right)
    assert careless > MOST_WRONG


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_the_best_of_several_bounds_holds_as_often_as_stated_for_a_gaussian(mu: float) -> None:
    """ε at δ is known exactly; the largest of the bounds by several numbers of guesses is what is counted."""
    from fl_plugins.privacy.divergences import gaussian_epsilon

    rng, m, delta = np.random.default_rng(5), 100, 1e-3
    true = gaussian_epsilon(delta, mu)
    of_epsilon = _cached(lambda one, sure: epsilon_lower_bound(one, delta=delta, confidence=sure))
    of_mu = _cached(lambda one, sure: mu_lower_bound(one, confidence=sure))
    wrong = {"epsilon": 0, "mu": 0}
    for _ in range(NUM_RUNS):
        scores, coins = _gaussian(mu, m, rng)
        wrong["epsilon"] += best_shown(scores, coins, bound=of_epsilon, confidence=0.9).value > true
        wrong["mu"] += best_shown(scores, coins, bound=of_mu, confidence=0.9).value > mu
    assert wrong["epsilon"] <= MOST_WRONG
    assert wrong["mu"] <= MOST_WRONG


def _cached(bound):  # type: ignore[no-untyped-def]
    from functools import lru_cache

    return lru_cache(maxsize=None)(bound)


def test_a_gaussian_of_small_noise_is_seen_through() -> None:
    scores, coins = _gaussian(4.0, 500, np.random.default_rng(1))
    mu = best_shown(scores, coins, bound=lambda g, c: mu_lower_bound(g, confidence=c), confidence=0.95)
    assert 1.0 < mu.value < 4.0


# -- Guesses -------------------------------------------------------------------------------------------


def test_the_clearest_scores_are_guessed_and_the_others_left() -> None:
    scores = np.array([0.1, -3.0, 2.0, -0.2])
    coins = np.array([False, False, True, True])
    assert guess(scores, coins, num_guesses=2) == guesses(4, 2, 2)
    assert guess(scores, coins, num_guesses=4) == guesses(4, 4, 2)


def test_which_are_guessed_does_not_depend_on_the_coins() -> None:
    """All scores equal: whatever the coins, the first are guessed, so that chance alone decides."""
    rng = np.random.default_rng(3)
    right = [guess(np.ones(10), rng.random(10) < 0.5, num_guesses=3).num_correct for _ in range(4000)]
    assert np.mean(right) == pytest.approx(1.5, abs=5 * math.sqrt(0.75 / 4000))


@pytest.mark.parametrize(
    ("scores", "coins", "reason"),
    [
        (np.zeros(3), np.zeros(2, bool), r"shape \(3,\)"),
        (np.array([np.nan]), np.zeros(1, bool), "not finite"),
    ],
)
def test_scores_that_are_none_are_refused(scores: np.ndarray, coins: np.ndarray, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        guess(scores, coins, num_guesses=1)


def test_impossible_counts_and_confidences_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most the next"):
        guesses(10, 5, 6)
    with pytest.raises(ConfigError, match="confidence"):
        epsilon_lower_bound(guesses(10, 5, 5), delta=0.0, confidence=0.2)
    assert max(GUESSED_PARTS) == 1.0
