"""What an audit found, beside what was accounted, in the ledger's words."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..privacy import NeighborRelation
from ..privacy.audit import Guesses, Shown, best_shown, epsilon_lower_bound, mu_lower_bound
from ..privacy.divergences import gaussian_epsilon


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Lower bounds on ε that hold together with ``confidence``, and the accounted upper bound.

    Parameters
    ----------
    relation : NeighborRelation
        What all of them are for.
    delta, confidence : float
        δ of every ε; with what probability the lower bounds are true.
    shown : Shown
        ε by :func:`fl_plugins.privacy.audit.epsilon_lower_bound`: of any mechanism.
    shown_gaussian : Shown, optional
        μ by :func:`fl_plugins.privacy.audit.mu_lower_bound`, where a Gaussian trade-off was accounted.
    most : float
        The ε that the same number of canaries shows if every guess is right.
    accounted : float, optional
        The upper bound; ``None`` where nothing is promised for this relation.
    account : str
        How it was accounted, as a report says it.
    """

    relation: NeighborRelation
    delta: float
    confidence: float
    shown: Shown
    shown_gaussian: Shown | None = None
    most: float
    accounted: float | None
    account: str

    @classmethod
    def of(
        cls,
        scores: NDArray[np.float64],
        coins: NDArray[np.bool_],
        *,
        relation: NeighborRelation,
        delta: float,
        confidence: float,
        accounted: float | None,
        account: str,
        gaussian: bool = False,
    ) -> Self:
        """Return what scores show of coins; with ``gaussian``, the error is shared by both bounds."""
        each = 1.0 - (1.0 - confidence) / 2 if gaussian else confidence

        def any_mechanism(guesses: Guesses, confidence: float) -> float:
            return epsilon_lower_bound(guesses, delta=delta, confidence=confidence)

        bound: Callable[..., Shown] = partial(best_shown, coins=coins, confidence=each)
        perfect = np.where(coins, 1.0, -1.0)
        kinds = [any_mechanism, *([_of_mu] if gaussian else [])]
        shown, *rest = [bound(scores, bound=kind) for kind in kinds]
        best = [bound(perfect, bound=kind).value for kind in kinds]
        most = max(best[0], *(gaussian_epsilon(delta, mu) for mu in best[1:]), 0.0)
        return cls(
            relation=relation,
            delta=delta,
            confidence=confidence,
            shown=shown,
            shown_gaussian=rest[0] if rest else None,
            most=most,
            accounted=accounted,
            account=account,
        )

    @property
    def epsilon_if_gaussian(self) -> float | None:
        """ε, at δ, of the least Gaussian trade-off that is not refuted."""
        if self.shown_gaussian is None:
            return None
        mu = self.shown_gaussian.value
        return gaussian_epsilon(self.delta, mu) if mu > 0.0 else 0.0

    @property
    def lower_bound(self) -> float:
        """The larger of the two lower bounds."""
        return max(self.shown.value, self.epsilon_if_gaussian or 0.0)

    @property
    def violated(self) -> bool:
        """Whether more was shown than was accounted."""
        return self.accounted is not None and self.lower_bound > self.accounted

    def __str__(self) -> str:
        def line(epsilon: float, guesses: Guesses, which: str) -> str:
            return (
                f"lower bound  ε ≥ {epsilon:.4g} at δ = {self.delta:g} with {self.confidence:.1%} confidence "
                f"({self.relation}; {which}; {guesses.num_correct} of {guesses.num_guesses} guesses right, "
                f"{guesses.num_canaries} canaries)"
            )

        lines = [f"accounted    {self.account}", line(self.shown.value, self.shown.guesses, "any mechanism")]
        if self.shown_gaussian is not None and self.epsilon_if_gaussian is not None:
            lines.append(line(self.epsilon_if_gaussian, self.shown_gaussian.guesses, "Gaussian as accounted"))
        if self.violated:
            lines.append("verdict      VIOLATION: more is shown than was accounted")
        elif self.accounted is None:
            lines.append("verdict      nothing is promised for this unit and adjacency")
        elif self.most <= self.accounted:
            lines.append(
                f"verdict      none: so many canaries show ε = {self.most:.4g} at most; take more, or a "
                "smaller ε"
            )
        else:
            lines.append(f"verdict      consistent (perfect guesses would have shown ε ≥ {self.most:.4g})")
        return "\n".join(lines)


def _of_mu(guesses: Guesses, confidence: float) -> float:
    """Return the bound on μ."""
    return mu_lower_bound(guesses, confidence=confidence)
