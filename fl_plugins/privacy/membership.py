"""How well scores tell members from others: ROC curve, true positives at few false ones, and a bound on ε.

A higher score speaks for membership. Scores equal to the threshold count as "member".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import rankdata

from fl_plugins.checks import check_number
from fl_plugins.errors import ConfigError

from .random import NoiseSource

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Roc:
    """The points of an ROC curve, from nobody to everybody: both ``(k,)``, not decreasing, from 0 to 1."""

    false_positive: Floats
    true_positive: Floats

    def true_positive_at(self, false_positive: float) -> float:
        """Return the largest true-positive rate of a threshold with at most that false-positive rate."""
        check_number("membership", "false_positive", false_positive, minimum=0.0, maximum=1.0)
        return float(self.true_positive[self.false_positive <= false_positive].max())


def roc(members: Floats, others: Floats) -> Roc:
    """Return the curve over all thresholds that the scores distinguish."""
    _check(members, others)
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    return Roc(
        false_positive=np.concatenate([[0.0], _counts_from(others, thresholds) / len(others)]),
        true_positive=np.concatenate([[0.0], _counts_from(members, thresholds) / len(members)]),
    )


def auc(members: Floats, others: Floats) -> float:
    """Return the probability that a member's score is above another's, ties by half."""
    _check(members, others)
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    least = len(members) * (len(members) + 1) / 2
    return float((ranks.sum() - least) / (len(members) * len(others)))


def clopper_pearson(
    successes: NDArray[np.int64] | int, trials: int, *, error: float
) -> tuple[Floats, Floats]:
    """Return a lower and an upper bound on a probability, *each* wrong with probability at most ``error``."""
    count = np.asarray(successes, dtype=np.float64)
    low = np.where(count == 0, 0.0, betaincinv(np.maximum(count, 1.0), trials - count + 1.0, error))
    high = np.where(
        count == trials, 1.0, betaincinv(count + 1.0, np.maximum(trials - count, 1.0), 1.0 - error)
    )
    return low, high


def epsilon_of_errors(
    *,
    true_positives: NDArray[np.int64] | int,
    members: int,
    false_positives: NDArray[np.int64] | int,
    others: int,
    delta: float,
    confidence: float,
) -> Floats:
    """Return a lower bound on ε from a test's counts (Kairouz, Oh & Viswanath 2015; Jagielski et al. 2020).

    (ε, δ)-privacy asks TPR ≤ e^ε·FPR + δ of every test that was fixed before the trials: with p below TPR and
    q above FPR, each with half the error, ε ≥ log((p − δ)/q).

    Guarantees
    ----------
    The trials must be independent given who is a member: each from a run of its own. Scores from *one* model
    are not; use :func:`fl_plugins.privacy.audit.epsilon_lower_bound` for those.
    """
    error = 0.5 * (1.0 - confidence)
    least, _ = clopper_pearson(true_positives, members, error=error)
    _, most = clopper_pearson(false_positives, others, error=error)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(least > delta, np.maximum(np.log((least - delta) / most), 0.0), 0.0)


def epsilon_lower_bound(
    members: Floats, others: Floats, *, delta: float, confidence: float, source: NoiseSource | None = None
) -> float:
    """Return a lower bound on ε from independent scores: the test is chosen on one half, used on the other.

    Both ways of the inequality are tried: "member" above a threshold, and "other" below it. The halves are
    drawn from ``source`` (the operating system's by default), so that the order of scores does not matter.

    Raises
    ------
    ConfigError
        If a group has fewer than two scores, or one is not finite.
    """
    _check(members, others, least=2)
    check_number("membership", "delta", delta, minimum=0.0, maximum=1.0)
    check_number("membership", "confidence", confidence, minimum=0.5, maximum=1.0 - 1e-12)
    source = NoiseSource() if source is None else source
    (first, one), (second, two) = (_halves(scores, source) for scores in (members, others))
    given = {"delta": delta, "confidence": confidence}
    best, chosen = -1.0, (0.0, False)
    for flipped in (False, True):
        ins, outs = (-second, -first) if flipped else (first, second)
        thresholds = np.unique(np.concatenate([ins, outs]))
        bounds = epsilon_of_errors(
            true_positives=_counts_from(ins, thresholds),
            members=len(ins),
            false_positives=_counts_from(outs, thresholds),
            others=len(outs),
            **given,
        )
        at = int(np.argmax(bounds))
        if bounds[at] > best:
            best, chosen = float(bounds[at]), (float(thresholds[at]), flipped)
    threshold, flipped = chosen
    ins, outs = (-two, -one) if flipped else (one, two)
    return float(
        epsilon_of_errors(
            true_positives=int(np.count_nonzero(ins >= threshold)),
            members=len(ins),
            false_positives=int(np.count_nonzero(outs >= threshold)),
            others=len(outs),
            **given,
        )
    )


def _counts_from(scores: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """Return how many scores are at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left").astype(np.int64)


def _halves(scores: Floats, source: NoiseSource) -> tuple[Floats, Floats]:
    """Return two halves, drawn at random."""
    order = np.array(source.choose(len(scores), len(scores)))
    return scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]


def _check(members: Floats, others: Floats, *, least: int = 1) -> None:
    """Check two groups of finite scores."""
    for name, scores in (("members", members), ("others", others)):
        if scores.ndim != 1 or len(scores) < least or not np.isfinite(scores).all():
            raise ConfigError(
                f"membership: {name} have scores of shape {scores.shape}, but at least {least} finite ones "
                "are needed, (n,); score more records, and those without a finite score as the least likely."
            )
