"""Lower bounds on ε from one run: many canaries, one coin each, and guesses that are right too often.

====  ==========================================================================================
m     canaries; each has an independent fair coin that says which of its two contributions is used
r     guesses of coins from what was released; the auditor abstains from the m − r others
v     correct guesses
μ     of a Gaussian trade-off curve: the mechanism tells two N(·, 1) at distance μ apart
====  ==========================================================================================

:func:`epsilon_lower_bound` assumes nothing of the mechanism (Steinke, Nasr & Jagielski 2023, *Privacy
Auditing with One (1) Training Run*, Theorem 5.2). :func:`mu_lower_bound` refutes that it is μ-Gaussian
(Mahloujifar, Melis & Chaudhuri 2024, *Auditing f-Differential Privacy in One Run*), which shows more where
the accounting claims just that, as for Gaussian noise without sampling.

Both need that the two runs in which one coin differs are *neighbours*, and no more: the bound is for
the adjacency that the two contributions of a canary stand for. A canary that is there or not gives
add_remove, one that contributes itself or zero zero_out, one that contributes itself or its opposite replace.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, ndtr, ndtri

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError

Floats = NDArray[np.float64]

GUESSED_PARTS = (1.0, 0.3, 0.1)
"""Parts of the canaries that are guessed: where noise is small all of them show most, where it is large the
clearest ones do. The error is shared among them, so that the largest bound may be reported."""

_LARGEST = 60.0
"""ε and μ are searched up to here, which is more than a million canaries can show."""

_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How well coins were guessed: ``num_correct`` of ``num_guesses``, of ``num_canaries`` in all."""

    num_canaries: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        for name in ("num_canaries", "num_guesses"):
            check_int("audit", name, getattr(self, name), minimum=1)
        check_int("audit", "num_correct", self.num_correct, minimum=0)
        if not self.num_correct <= self.num_guesses <= self.num_canaries:
            raise ConfigError(
                f"audit: {self.num_correct} correct of {self.num_guesses} guesses of {self.num_canaries} "
                "canaries, but each number is at most the next; count again."
            )


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one run shows: the parameter (ε or μ) is not below ``value``, by these guesses."""

    value: float
    guesses: Guesses


def guess(scores: Floats, coins: NDArray[np.bool_], *, num_guesses: int) -> Guesses:
    """Guess the coins of the largest |scores|, heads if positive; coins have no say in which are guessed."""
    if scores.shape != coins.shape or scores.ndim != 1:
        raise ConfigError(
            f"audit: scores of shape {scores.shape} and coins of shape {coins.shape}; give (m,) of each."
        )
    if not np.isfinite(scores).all():
        raise ConfigError("audit: a score is not finite; score such canaries 0, which is no evidence.")
    check_int("audit", "num_guesses", num_guesses, minimum=1)
    chosen = np.argsort(-np.abs(scores), kind="stable")[:num_guesses]
    correct = int(np.count_nonzero((scores[chosen] > 0.0) == coins[chosen]))
    return Guesses(num_canaries=len(scores), num_guesses=len(chosen), num_correct=correct)


def best_shown(
    scores: Floats,
    coins: NDArray[np.bool_],
    *,
    bound: Callable[[Guesses, float], float],
    confidence: float,
) -> Shown:
    """Return the largest bound of those that each of :data:`GUESSED_PARTS` gives; they share the error.

    Parameters
    ----------
    scores : NDArray
        ``(m,)``: positive speaks for heads, its size for how clearly. They must not depend on the coins other
        than through what was released.
    coins : NDArray
        ``(m,)``: true for heads.
    bound : callable
        ``(guesses, confidence) -> lower bound``: one of the two below.
    confidence : float
        With which the result holds.

    Raises
    ------
    ConfigError
        If shapes differ, a score is not finite, or ``confidence`` is out of range.
    """
    each = 1.0 - (1.0 - _checked(confidence)) / len(GUESSED_PARTS)
    counts = [max(1, math.ceil(part * len(scores))) for part in GUESSED_PARTS]
    tried = [guess(scores, coins, num_guesses=count) for count in counts]
    return max((Shown(value=bound(one, each), guesses=one) for one in tried), key=lambda shown: shown.value)


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of so many correct guesses if the mechanism is (ε, δ)-private.

    P[V ≥ v] ≤ P[B ≥ v] + 2mδ · maxᵢ P[v − i ≤ B < v]/i, with B binomial of r trials at e^ε/(1 + e^ε).
    """
    check_number("audit", "epsilon", epsilon, minimum=0.0)
    check_number("audit", "delta", delta, minimum=0.0, maximum=1.0)
    r, v = guesses.num_guesses, guesses.num_correct
    if v == 0:
        return 1.0
    log_wrong = -np.logaddexp(0.0, epsilon)
    log_right = epsilon + log_wrong
    tail = float(betainc(v, r - v + 1, math.exp(log_right)))
    if delta == 0.0:
        return tail
    below = np.arange(v - 1, -1, -1, dtype=np.float64)
    log_choose = gammaln(r + 1.0) - gammaln(below + 1.0) - gammaln(r - below + 1.0)
    mass = np.cumsum(np.exp(log_choose + below * log_right + (r - below) * log_wrong))
    steepest = float(np.max(mass / np.arange(1.0, v + 1.0)))
    return min(1.0, tail + 2.0 * guesses.num_canaries * delta * steepest)


def epsilon_lower_bound(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """Return the largest ε such that (ε, δ)-privacy is refuted with ``confidence``; 0 if none is.

    Refuting (ε, δ) refutes every smaller ε with it.

    >>> sure = Guesses(num_canaries=100, num_guesses=100, num_correct=100)
    >>> round(epsilon_lower_bound(sure, delta=0.0, confidence=0.95), 3)
    3.493
    """
    error = 1.0 - _checked(confidence)
    return _largest(lambda epsilon: p_value(guesses, epsilon=epsilon, delta=delta) < error)


def mu_lower_bound(guesses: Guesses, *, confidence: float) -> float:
    """Return the largest μ such that a μ-Gaussian trade-off curve is refuted with ``confidence``; 0 if none.

    >>> sure = Guesses(num_canaries=100, num_guesses=100, num_correct=100)
    >>> round(mu_lower_bound(sure, confidence=0.95), 3)
    1.703
    """
    error = 1.0 - _checked(confidence)

    def refuted(mu: float) -> bool:
        return is_refuted(guesses, inverse=lambda part: float(ndtr(ndtri(part) - mu)), error=error)

    return _largest(refuted)


def is_refuted(guesses: Guesses, *, inverse: Callable[[float], float], error: float) -> bool:
    """Return whether a mechanism with that trade-off curve has so many correct guesses with P < ``error``.

    ``inverse`` is the inverse of x ↦ 1 − f(x), f the trade-off curve: an event of probability y under one
    coin has at least probability ``inverse(y)`` under the other.

    Let J be a uniform canary, V the number of correct guesses, and
    aᵢ = P[V ≥ i, J guessed correctly] = Σ_{j≥i} (j/m)·P[V = j],
    bᵢ = P[V ≥ i, J guessed wrongly] = Σ_{j≥i} ((r − j)/m)·P[V = j].
    Flipping J's coin turns "V ≥ i + 1, J correct" into "V ≥ i, J wrong", so bᵢ ≥ inverse(aᵢ₊₁): f is convex,
    which lets the average over J and the other coins pass. If P[V ≥ v] is ``error``, a and b are
    smallest with all of it at v, and each step down adds what the inequality asks for. At the bottom a + b
    is r/m; if it had to be more, P[V ≥ v] is less than ``error``.
    """
    m, r, v = guesses.num_canaries, guesses.num_guesses, guesses.num_correct
    correct, wrong = error * v / m, error * (r - v) / m
    for i in range(v - 1, -1, -1):
        more = max(inverse(correct) - wrong, 0.0)
        wrong += more
        correct += more * i / (r - i)
        if correct + wrong > r / m:
            return True
    return False


def _largest(refuted: Callable[[float], bool]) -> float:
    """Return a value that is refuted and hardly below the largest, or 0."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _LARGEST and refuted(high):
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _checked(confidence: float) -> float:
    """Return a confidence in [0.5, 1)."""
    check_number("audit", "confidence", confidence, minimum=0.5, maximum=1.0 - 1e-12)
    return confidence
