"""Rules that end a run early; pure functions of the metrics so far, so that a resumed run stops alike.

A history is ``[(round, metrics), ...]``, oldest first; the rules do not care which rounds were evaluated.
NaN is no progress: a metric that is NaN never reaches a target and never counts as an improvement.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError
from .registry import Kind, register

Mode = Literal["auto", "max", "min"]
"""Whether more is better (accuracy) or less (loss); ``auto`` knows by the metric's name."""

LOWER_IS_BETTER = ("loss", "logloss", "error", "perplexity", "nll", "mae", "mse", "rmse")
HIGHER_IS_BETTER = ("accuracy", "acc", "auc", "auroc", "f1", "f1_score", "precision", "recall", "r2")
"""The names that ``auto`` knows; more may stand before them: ``last_epoch_loss``, ``val/accuracy``."""


@register(Kind.STOPPER, "target")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Stop once a metric has reached a value.

    Parameters
    ----------
    metric : str
        Its name, for example ``accuracy``.
    value : float
        The value to reach: at least, or at most if less is better.
    mode : {"auto", "max", "min"}
        Whether more is better, or less. ``auto`` goes by the metric's name: less of ``loss``, ``logloss``,
        ``error``, ``perplexity``, ``nll``, ``mae``, ``mse`` and ``rmse``; more of ``accuracy``, ``acc``,
        ``auc``, ``auroc``, ``f1``, ``f1_score``, ``precision``, ``recall`` and ``r2``; also where a name
        ends so (``last_epoch_loss``). It refuses any other name.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    metric: str
    value: float
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        _check_metric("target", self.metric)
        if not math.isfinite(self.value):
            raise ConfigError(f"target: value={self.value}, but a target must be finite.")
        _sign("target", self.metric, self.mode)

    def should_stop(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> str | None:
        """Return why to stop, or ``None``; looks at all rounds, so that a late question has the same answer.

        Raises
        ------
        ConfigError
            If the metric is in none of the rounds; names those that are.
        """
        sign = _sign("target", self.metric, self.mode)
        for number, measured in _series("target", self.metric, history):
            if sign * measured >= sign * self.value:
                relation = ">=" if sign > 0 else "<="
                return f"{self.metric} = {measured:g} {relation} {self.value:g} in round {number}"
        return None


@register(Kind.STOPPER, "plateau", paper="Prechelt 1998 (early stopping)")
@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Stop when a metric has not improved for some evaluations in a row.

    Parameters
    ----------
    metric : str
        Its name, for example ``loss``.
    patience : int
        How many evaluations without improvement end the run, >= 1.
    min_delta : float
        What counts as an improvement: more than this over the best so far; >= 0.
    mode : {"auto", "max", "min"}
        Whether more is better, or less; ``auto`` goes by the metric's name, as in :class:`Target`.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        _check_metric("plateau", self.metric)
        if self.patience < 1:
            raise ConfigError(f"plateau: patience={self.patience}, but it must be >= 1.")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(f"plateau: min_delta={self.min_delta}, but it must be finite and >= 0.")
        _sign("plateau", self.metric, self.mode)

    def should_stop(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> str | None:
        """Return why to stop, or ``None``; looks at all rounds, so that a late question has the same answer.

        Raises
        ------
        ConfigError
            If the metric is in none of the rounds; names those that are.
        """
        sign = _sign("plateau", self.metric, self.mode)
        best, best_round, stale = -math.inf, None, 0
        for number, measured in _series("plateau", self.metric, history):
            if sign * measured > best + self.min_delta:
                best, best_round, stale = sign * measured, number, 0
            else:
                stale += 1
            if stale >= self.patience:
                since = (
                    "it was never a number"
                    if best_round is None
                    else f"{sign * best:g} in round {best_round}"
                )
                return f"{self.metric} has not improved for {self.patience} evaluations (best: {since})"
        return None


def _check_metric(rule: str, metric: str) -> None:
    """Check that a metric is named."""
    if not metric:
        raise ConfigError(
            f"{rule}: metric={metric!r}, but it must be the name of a metric, such as 'accuracy'."
        )


def _sign(rule: str, metric: str, mode: Mode) -> int:
    """Return the factor that makes more better, 1 or -1.

    Raises
    ------
    ConfigError
        If ``mode`` is none, or ``auto`` and the metric's name does not tell.
    """
    if mode not in ("auto", "max", "min"):
        raise ConfigError(f"{rule}: mode={mode!r}, but it must be 'auto', 'max' or 'min'.")
    if mode != "auto":
        return 1 if mode == "max" else -1
    for names, sign in ((LOWER_IS_BETTER, -1), (HIGHER_IS_BETTER, 1)):
        if _ends_in(metric, names):
            return sign
    raise ConfigError(
        f"{rule}: metric={metric!r}, but its name does not tell whether more of it is better; give "
        "mode='max' or mode='min'."
    )


def _ends_in(metric: str, names: Sequence[str]) -> bool:
    """Whether the last words of a metric's name are one of ``names``.

    >>> [_ends_in(name, LOWER_IS_BETTER) for name in ("val/Loss", "last-epoch-loss", "gloss", "loss_ratio")]
    [True, True, False, False]
    """
    words = re.sub(r"[^a-z0-9]+", "_", metric.lower())
    return any(f"_{words}".endswith(f"_{name}") for name in names)


def _series(
    rule: str, metric: str, history: Sequence[tuple[int, Mapping[str, float]]]
) -> Iterator[tuple[int, float]]:
    """Yield the metric by round, leaving out rounds that do not have it."""
    if history and not any(metric in metrics for _, metrics in history):
        known = sorted({name for _, metrics in history for name in metrics})
        raise ConfigError(
            f"{rule}: metric={metric!r} is not measured; known are {', '.join(known) or 'none'}."
        )
    yield from ((number, metrics[metric]) for number, metrics in history if metric in metrics)
