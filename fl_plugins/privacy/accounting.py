"""The ε of everything that was released: composition, and the gate before each further release.

Three ways of accounting bound the same quantity; the smallest of those that apply is reported, with its name.

=========  ======================================  ====================================================
method     applies to                              cost
=========  ======================================  ====================================================
exact      Gaussian noise without sampling         microseconds
pure       Laplace noise                           nothing
rdp        everything                              a cached vector per kind of release; microseconds
pld        Gaussian and Laplace noise, but not     tenths of a second
           hardly any
=========  ======================================  ====================================================

PLD needs 10 to 30 % less ε than RDP for the same run. The gate asks the cheap bounds first and PLD only once
they say no; how many more equal releases fit is then found once, by bisection, and remembered.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError, ContractError

from . import divergences
from .mechanisms import Gaussian, Laplace
from .releases import Release
from .units import NeighborRelation

_FURTHEST = 4.0
"""The square root of how many times as many releases as were found to fit are tried next."""


class Method(StrEnum):
    """How an ε was computed."""

    EXACT = "exact"
    PURE = "pure"
    RDP = "rdp"
    PLD = "pld"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The largest (ε, δ) that may be spent."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_number("budget", "epsilon", self.epsilon, minimum=0.0, open_below=True)
        check_delta("budget", self.delta)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was spent, with all that the number needs to mean something.

    Parameters
    ----------
    epsilon, delta : float
        The smallest upper bound.
    relation : NeighborRelation
        Whom it protects.
    method : Method
        Which accounting gave ``epsilon``.
    by_method : Mapping[Method, float]
        ε by every accounting that applies.
    num_releases : int
        How many releases were composed.
    secure : bool
        False if any noise came from a seed: whoever knows it subtracts the noise, and ε is void.
    """

    epsilon: float
    delta: float
    relation: NeighborRelation
    method: Method
    by_method: Mapping[Method, float]
    num_releases: int
    secure: bool

    def __str__(self) -> str:
        text = (
            f"ε = {self.epsilon:.4g} at δ = {self.delta:g} ({self.relation}; {self.method.value}, "
            f"{self.num_releases} releases)"
        )
        return text if self.secure else f"VOID, noise came from a seed: {text}"


class Accountant:
    """Composes releases for one neighbour relation.

    >>> from fl_plugins.privacy import Everyone, Gaussian, NeighborRelation
    >>> relation = NeighborRelation.of(unit="client", adjacency="replace")
    >>> accountant = Accountant(relation)
    >>> accountant.compose(Release(mechanism=Gaussian(noise_multiplier=2.0), sampling=Everyone(),
    ...                            relation=relation))
    >>> round(accountant.report(1e-5).epsilon, 3)
    4.377

    Parameters
    ----------
    relation : NeighborRelation
        What every release must be for: an ε for clients and one for records do not add up.
    """

    def __init__(self, relation: NeighborRelation) -> None:
        self.relation = relation
        self._counts: dict[Release, int] = {}
        self._rdp = np.zeros_like(divergences.ORDERS)
        self._truncated = 0.0
        self._mu_squared = 0.0
        self._pure = 0.0
        self._bracket: tuple[object, tuple[int, float], tuple[float, float]] | None = None

    @property
    def counts(self) -> Mapping[Release, int]:
        """What was composed, and how often."""
        return MappingProxyType(self._counts)

    def compose(self, release: Release, count: int = 1) -> None:
        """Add ``count`` releases.

        Raises
        ------
        ContractError
            If the release is for another unit or adjacency.
        """
        check_int("accountant", "count", count, minimum=1)
        self.check_relation(release)
        rdp, truncated, mu_squared, pure = self._after(release, count)
        self._rdp, self._truncated, self._mu_squared, self._pure = rdp, truncated, mu_squared, pure
        self._counts[release] = self._counts.get(release, 0) + count

    def report(self, delta: float, *, pld: bool = True) -> Report:
        """Return what was spent, by the smallest bound: exact where there is one, else PLD among others.

        Without ``pld`` it takes microseconds, but may be more than needed.
        """
        check_delta("accountant", delta)
        state = (self._rdp, self._truncated, self._mu_squared, self._pure)
        by_method = _cheap(*state, delta, dict(self._counts))
        numerical = pld and self._counts and Method.EXACT not in by_method
        if numerical and all(map(divergences.has_pld, self._counts)):
            by_method[Method.PLD] = self._pld_epsilon(self._counts, delta)
        # Of equal bounds the first is named: an exact form before a numerical one.
        method = min(by_method, key=lambda each: by_method[each])
        return Report(
            epsilon=by_method[method],
            delta=delta,
            relation=self.relation,
            method=method,
            by_method=MappingProxyType(by_method),
            num_releases=sum(self._counts.values()),
            secure=all(release.secure for release in self._counts),
        )

    def would_exceed(self, release: Release, budget: Budget) -> bool:
        """Whether one more ``release`` would spend more than ``budget``; nothing is composed.

        Raises
        ------
        ContractError
            If the release is for another unit or adjacency.
        """
        self.check_relation(release)
        counts = {**self._counts, release: self._counts.get(release, 0) + 1}
        cheap = _cheap(*self._after(release, 1), budget.delta, counts)
        if min(cheap.values()) <= budget.epsilon:
            return False
        if Method.EXACT in cheap:
            return True  # no numerical distribution finds less, and one of very little noise takes all memory
        if not all(map(divergences.has_pld, counts)):
            return True
        return not self._fits(release, budget, counts[release])

    def _after(self, release: Release, count: int) -> tuple[divergences.Vector, float, float, float]:
        """Return the state after ``count`` more releases."""
        mechanism = release.mechanism
        unsampled = isinstance(mechanism, Gaussian) and not release.sampling.amplifies
        mu_squared = release.effective_noise_multiplier**-2 if unsampled else math.inf
        pure = 1.0 / release.effective_noise_multiplier if isinstance(mechanism, Laplace) else math.inf
        return (
            self._rdp + count * divergences.rdp(release),
            self._truncated + count * divergences.truncation_probability(release),
            self._mu_squared + count * mu_squared,
            self._pure + count * pure,
        )

    def _fits(self, release: Release, budget: Budget, count: int) -> bool:
        """Whether so many of ``release`` fit beside all others, by PLD.

        It is asked for one more each round, so what is found further on is remembered until others are added.
        ε grows like the square root of their number, or faster: that says where to look next, first further
        on, then between what fits and what does not.
        """
        others = {each: number for each, number in self._counts.items() if each != release}
        key = (release, budget, frozenset(others.items()))

        def spends(number: int) -> float:
            return self._pld_epsilon({**others, release: number}, budget.delta) if number or others else 0.0

        if self._bracket is None or self._bracket[0] != key:
            self._bracket = (key, (self._counts.get(release, 0), math.nan), (math.inf, math.inf))
        _, (low, below), (high, above) = self._bracket
        halve = False
        while low < count < high:
            width = high - low
            probe = 2 * count
            if math.isinf(high) and low > 0 and below > 0.0:
                probe = max(probe, int(low * min(budget.epsilon / below, _FURTHEST) ** 2))
            if math.isfinite(high):
                below = spends(low) if math.isnan(below) else below
                if below > budget.epsilon:
                    return False
                probe = int(low + high) // 2
                if not halve and below < budget.epsilon < above < math.inf:  # ε grows like a square root
                    share = (budget.epsilon - below) / (above - below)
                    probe = int((math.sqrt(low) + share * (math.sqrt(high) - math.sqrt(low))) ** 2)
                probe = int(min(max(probe, low + 1), high - 1))
            spent_then = spends(probe)
            if spent_then <= budget.epsilon:
                low, below = probe, spent_then
            else:
                high, above = probe, spent_then
            halve = high - low > width / 2
        self._bracket = (key, (low, below), (high, above))
        return count <= low

    def _pld_epsilon(self, counts: Mapping[Release, int], delta: float) -> float:
        """Return ε by composing privacy loss distributions."""
        total = None
        interval = divergences.pld_interval(counts)
        for release, count in counts.items():
            if count == 0:
                continue
            one = divergences.pld(release, count, interval)
            total = one if total is None else total.compose(one)
        assert total is not None, "somebody was composed"
        return float(total.get_epsilon_for_delta(delta))

    def check_relation(self, release: Release) -> None:
        """Refuse a release for another unit or adjacency.

        Raises
        ------
        ContractError
            If it is for one.
        """
        if release.relation != self.relation:
            raise ContractError(
                f"accountant: a release for {release.relation} cannot be composed with those for "
                f"{self.relation}; keep one accountant, or one ledger, for each."
            )


def costliest(releases: Iterable[Release]) -> list[Release]:
    """Return the releases that no other one costs at least as much as, whatever δ is: most often one.

    Only releases that are accounted alike are compared. A Rényi divergence may be a loose bound where the
    loss distribution, or an exact form, costs less: above another's it does not yet mean more ε.
    """
    kept: dict[Release, tuple[object, divergences.Vector]] = {}
    for release in releases:
        kind = _accounted_as(release)
        cost = np.append(divergences.rdp(release), divergences.truncation_probability(release))
        if not any(alike == kind and np.all(other >= cost) for alike, other in kept.values()):
            kept = {
                each: (alike, other)
                for each, (alike, other) in kept.items()
                if alike != kind or not np.all(cost >= other)
            }
            kept[release] = (kind, cost)
    return list(kept)


def _accounted_as(release: Release) -> object:
    """Return what releases have in common whose ε grows with their Rényi divergence, by every method."""
    if isinstance(release.mechanism, Gaussian) and not release.sampling.amplifies:
        return Method.EXACT
    if not divergences.has_pld(release):
        return Method.RDP
    return type(release.mechanism), release.sampling


def check_delta(owner: str, delta: float) -> None:
    """Check a δ in (0, 1).

    Raises
    ------
    ConfigError
        If it is not.
    """
    check_number(owner, "delta", delta, minimum=0.0, maximum=1.0, open_below=True)
    if delta == 1.0:
        raise ConfigError(f"{owner}: delta=1 promises nothing; use less than 1 / (number of units).")


def _cheap(
    rdp: divergences.Vector,
    truncated: float,
    mu_squared: float,
    pure: float,
    delta: float,
    counts: Mapping[Release, int],
) -> dict[Method, float]:
    """Return the bounds that cost no convolution; only those that apply."""
    bounds: dict[Method, float] = {}
    if math.isfinite(mu_squared):
        bounds[Method.EXACT] = divergences.gaussian_epsilon(delta, math.sqrt(mu_squared))
    if math.isfinite(pure) and counts:
        bounds[Method.PURE] = pure
    bounds[Method.RDP] = _rdp_epsilon(rdp, truncated, delta)
    return bounds


def _rdp_epsilon(rdp: divergences.Vector, truncated: float, delta: float) -> float:
    """Return ε by RDP, with the probability ``truncated`` of an unaccounted event set aside.

    Let M′ be the mechanism that cuts the cohort before the unit in question may join. M′ has the given RDP,
    is the real one without the unit, and with it differs from the real one with probability τ. So
    δ = δ(M′) + e^ε · τ is enough in both directions; the smallest such ε is the limit of this
    iteration, whose steps only ever go up.
    """
    epsilon = divergences.epsilon_from_rdp(divergences.ORDERS, rdp, delta)
    if truncated == 0.0:
        return epsilon
    for _ in range(200):
        if epsilon > 700.0:
            break
        left = delta - math.exp(epsilon) * truncated
        if left <= 0.0:
            break
        needed = divergences.epsilon_from_rdp(divergences.ORDERS, rdp, left)
        if needed <= epsilon:
            return epsilon
        epsilon = needed * (1.0 + 1e-12)
    return math.inf
