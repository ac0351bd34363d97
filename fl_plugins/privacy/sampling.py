"""Who takes part in a round, and what that does to a unit's privacy.

The accounting follows from the type of the sampling: a :class:`Release` takes one of these, and only with
an adjacency for which its amplification is proven.

====================  ==========================  =========================================================
sampling              adjacency                   accounted as
====================  ==========================  =========================================================
Everyone              any                         the mechanism itself; exact for Gaussian noise
Poisson               add_remove, zero_out        Poisson amplification; truncated at ``max_cohort``
FixedSize             replace                     Wang, Balle & Kasiviswanathan 2019, with twice the clip
MinSeparation         zero_out, replace           the mechanism itself, once for a whole block of rounds
====================  ==========================  =========================================================

Fixed size under add_remove or zero_out is refused: leaving one unit out changes who else is drawn, so the sum
moves by up to two clip norms there too, and no smaller bound holds. MinSeparation under add_remove likewise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError, PreconditionError

from .random import NoiseSource
from .units import Adjacency

T = TypeVar("T")

TRUNCATION_DEVIATIONS = 5.0
"""Poisson cohorts are cut at the mean plus so many standard deviations: there the cut costs 0.1 % of ε
(N = 10⁴, q = 0.01, z = 1, 1000 rounds), at 2.8 it doubles it."""


@dataclass(frozen=True, kw_only=True)
class Everyone:
    """Every unit takes part in every round: no amplification, nothing to get wrong."""

    adjacencies: ClassVar[frozenset[Adjacency]] = frozenset(Adjacency)
    amplifies: ClassVar[bool] = False

    def draw(self, names: Sequence[T], source: NoiseSource) -> list[T]:  # noqa: ARG002  like the others
        """Return all names."""
        return list(names)


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Each unit takes part with probability ``rate``, independently; above ``max_cohort`` some are left out.

    Parameters
    ----------
    rate : float
        Probability q in (0, 1) that a unit takes part in a round.
    population : int
        N: how many units there are at most. It is public, and q·N the denominator of the mean.
    max_cohort : int, optional
        Drawn cohorts above it are cut to a uniformly drawn subset of this size; by default the mean plus
        :data:`TRUNCATION_DEVIATIONS` standard deviations.
    """

    adjacencies: ClassVar[frozenset[Adjacency]] = frozenset({Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT})
    amplifies: ClassVar[bool] = True

    rate: float
    population: int
    max_cohort: int | None = None

    def __post_init__(self) -> None:
        check_number("poisson", "rate", self.rate, minimum=0.0, maximum=1.0, open_below=True)
        if self.rate == 1.0:
            raise ConfigError(
                "poisson: rate=1.0 samples everyone; use Everyone(), whose accounting is exact."
            )
        check_int("poisson", "population", self.population, minimum=1)
        if self.max_cohort is None:
            mean = self.rate * self.population
            wide = mean + TRUNCATION_DEVIATIONS * math.sqrt(mean * (1.0 - self.rate))
            object.__setattr__(self, "max_cohort", min(math.ceil(wide), self.population))
        else:
            check_int("poisson", "max_cohort", self.max_cohort, minimum=1)

    @property
    def cap(self) -> int:
        """The largest cohort."""
        assert self.max_cohort is not None, "set in __post_init__"
        return self.max_cohort

    def draw(self, names: Sequence[T], source: NoiseSource) -> list[T]:
        """Return a cohort, which may be empty; the release still gets its noise then.

        Raises
        ------
        PreconditionError
            If there are more names than the population that was accounted.
        """
        _check_population("poisson", len(names), self.population)
        mask = source.bernoulli(self.rate, len(names))
        chosen = [name for name, taken in zip(names, mask.tolist(), strict=True) if taken]
        if len(chosen) > self.cap:
            chosen = [chosen[index] for index in sorted(source.choose(len(chosen), self.cap))]
        return chosen


@dataclass(frozen=True, kw_only=True)
class FixedSize:
    """A uniformly drawn subset of ``size`` units, without replacement."""

    adjacencies: ClassVar[frozenset[Adjacency]] = frozenset({Adjacency.REPLACE})
    amplifies: ClassVar[bool] = True

    size: int
    population: int

    def __post_init__(self) -> None:
        check_int("fixed_size", "size", self.size, minimum=1)
        check_int("fixed_size", "population", self.population, minimum=1)
        if self.size >= self.population:
            raise ConfigError(
                f"fixed_size: size={self.size} of population={self.population} leaves nobody out; draw "
                "fewer, or use Everyone(), whose accounting is exact."
            )

    def draw(self, names: Sequence[T], source: NoiseSource) -> list[T]:
        """Return a cohort of exactly ``size`` names.

        Raises
        ------
        PreconditionError
            If the names are not exactly the population that was accounted: with fewer the true sampling rate
            would be higher.
        """
        if len(names) != self.population:
            raise PreconditionError(
                f"fixed_size: {len(names)} units are there, but the accounting is for population="
                f"{self.population}; wait for all of them, or use Poisson(rate=…)."
            )
        return [names[index] for index in sorted(source.choose(len(names), self.size))]


@dataclass(frozen=True, kw_only=True)
class MinSeparation:
    """``size`` units a round, and none again before ``rounds`` rounds have passed.

    One release is what a whole block of ``rounds`` rounds makes public: a unit takes part in it once at most.
    Who takes part is no secret and amplifies nothing.

    Parameters
    ----------
    size : int
        Units in a round, at most.
    rounds : int
        b, from 2: who takes part in round t is drawn again in round t + b at the earliest.
    population : int
        N, at least size · rounds: fewer could not fill the rounds.
    """

    adjacencies: ClassVar[frozenset[Adjacency]] = frozenset({Adjacency.ZERO_OUT, Adjacency.REPLACE})
    amplifies: ClassVar[bool] = False

    size: int
    rounds: int
    population: int

    def __post_init__(self) -> None:
        check_int("min_separation", "size", self.size, minimum=1)
        check_int("min_separation", "rounds", self.rounds, minimum=2)
        check_int("min_separation", "population", self.population, minimum=1)
        if self.size * self.rounds > self.population:
            raise ConfigError(
                f"min_separation: size={self.size} units in each of rounds={self.rounds} rounds are more "
                f"than population={self.population}, so some would have to come back too soon; make size "
                f"at most {self.population // self.rounds}, or rounds at most {self.population // self.size}."
            )

    def draw(self, names: Sequence[T], source: NoiseSource) -> list[T]:
        """Return ``size`` of ``names``, all if there are fewer; the caller leaves those out that must rest.

        Raises
        ------
        PreconditionError
            If there are more names than the population that was accounted.
        """
        _check_population("min_separation", len(names), self.population)
        chosen = source.choose(len(names), min(self.size, len(names)))
        return [names[index] for index in sorted(chosen)]


Sampling = Everyone | Poisson | FixedSize | MinSeparation


def _check_population(owner: str, present: int, population: int) -> None:
    """Refuse more units than were accounted."""
    if present > population:
        raise PreconditionError(
            f"{owner}: {present} units are there, but the accounting is for population={population}; "
            "plan with the larger population."
        )
