"""The least noise for a budget: σ for (ε, δ, rounds, sampling), and what PLD saves over RDP."""

from collections.abc import Callable
from dataclasses import dataclass

from fl_plugins.checks import check_int

from .accounting import Accountant, Budget, Method, Report
from .mechanisms import Gaussian
from .releases import Release
from .sampling import Sampling
from .units import NeighborRelation

_PRECISION = 1e-3
"""Relative precision of a noise multiplier; the result is on the safe side."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A noise multiplier and what it spends."""

    release: Release
    rounds: int
    report: Report

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on the sum, in clip norms."""
        assert isinstance(self.release.mechanism, Gaussian), "plan() makes no others"
        return self.release.mechanism.noise_multiplier


def plan(
    budget: Budget,
    *,
    rounds: int,
    sampling: Sampling,
    relation: NeighborRelation,
    method: Method | None = None,
) -> Plan:
    """Return the least Gaussian noise with which ``rounds`` releases stay within ``budget``.

    Parameters
    ----------
    method : Method, optional
        Account by this method only, for comparison; by default by the best that applies.
    """
    check_int("plan", "rounds", rounds, minimum=1)

    def spend(noise_multiplier: float) -> Report:
        release = Release(
            mechanism=Gaussian(noise_multiplier=noise_multiplier), sampling=sampling, relation=relation
        )
        accountant = Accountant(relation)
        accountant.compose(release, rounds)
        cheap = accountant.report(budget.delta, pld=False)
        if method in (Method.RDP, Method.EXACT) or Method.EXACT in cheap.by_method:
            return cheap
        return accountant.report(budget.delta)

    def epsilon(noise_multiplier: float) -> float:
        report = spend(noise_multiplier)
        return report.epsilon if method is None else report.by_method[method]

    found = smallest(lambda value: epsilon(value) <= budget.epsilon)
    release = Release(mechanism=Gaussian(noise_multiplier=found), sampling=sampling, relation=relation)
    return Plan(release=release, rounds=rounds, report=spend(found))


def smallest(good: Callable[[float], bool]) -> float:
    """Return the smallest value, to :data:`_PRECISION`, from which on ``good`` holds."""
    low, high = 0.0, 1.0
    if good(high):
        while good(high / 2.0):
            high /= 2.0
        low = high / 2.0
    else:
        while not good(high):
            low, high = high, 2.0 * high
    while high - low > _PRECISION * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if good(middle) else (middle, high)
    return high
