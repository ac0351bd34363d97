"""One release: what a round (or any other query) makes public, as data that an accountant can charge.

A release is the mechanism, the sampling it was applied under, and whom it protects. It is made once, from
the configuration, and goes as the same object to the sampler, the noise, the accountant and the ledger, so
that none of them can be told something else.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from fl_plugins.errors import ConfigError, DataError

from .mechanisms import (
    BandedGaussian,
    DiscreteGaussian,
    DistributedGaussian,
    DistributedSkellam,
    Gaussian,
    Laplace,
    Mechanism,
    Skellam,
)
from .sampling import Everyone, FixedSize, MinSeparation, Poisson, Sampling
from .units import Adjacency, NeighborRelation

_DISTRIBUTED = (DistributedGaussian, DistributedSkellam)
_MECHANISMS = {
    kind.name: kind for kind in (Gaussian, BandedGaussian, Laplace, DiscreteGaussian, Skellam, *_DISTRIBUTED)
}
_SAMPLINGS = {
    "everyone": Everyone,
    "poisson": Poisson,
    "fixed_size": FixedSize,
    "min_separation": MinSeparation,
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A mechanism under a sampling, for a neighbour relation.

    Parameters
    ----------
    mechanism : Mechanism
        What noise is added to the sum.
    sampling : Sampling
        Who takes part.
    relation : NeighborRelation
        Whom it protects, and against what.
    secure : bool
        Whether the noise comes from the operating system's randomness. With False, which is for tests and
        comparisons, every report that it is part of is void.

    Raises
    ------
    ConfigError
        If no accounting is known for the combination.
    """

    mechanism: Mechanism
    sampling: Sampling
    relation: NeighborRelation
    secure: bool = True

    def __post_init__(self) -> None:
        owner, adjacency = _sampling_name(self.sampling), self.relation.adjacency
        if adjacency not in self.sampling.adjacencies:
            known = ", ".join(sorted(each.value for each in self.sampling.adjacencies))
            raise ConfigError(
                f"privacy: {owner} sampling has no accounting under adjacency={adjacency.value!r}; use "
                f"{known}, or Everyone(), which holds under every adjacency."
            )
        if not isinstance(self.mechanism, Gaussian) and not isinstance(self.sampling, Everyone):
            raise ConfigError(
                f"privacy: {self.mechanism.name} noise is accounted without amplification by sampling, but "
                f"the sampling is {owner}; use Everyone() or Gaussian noise."
            )
        if isinstance(self.mechanism, BandedGaussian) and not (
            isinstance(self.sampling, MinSeparation) and self.sampling.rounds >= self.mechanism.bands
        ):
            raise ConfigError(
                f"privacy: noise with bands={self.mechanism.bands} is for units that take part at least so "
                f"many rounds apart, but the sampling is {self.sampling}; use MinSeparation(rounds="
                f"{self.mechanism.bands}, …), or Gaussian noise."
            )

        if isinstance(self.mechanism, _DISTRIBUTED) and adjacency is Adjacency.ADD_REMOVE:
            raise ConfigError(
                f"privacy: {self.mechanism.name}: a client that leaves takes its share of the noise along, "
                "so the two sums differ in their noise too and adjacency='add_remove' has no accounting; use "
                "zero_out or replace."
            )

    @property
    def effective_noise_multiplier(self) -> float:
        """Gaussian and Laplace: standard deviation (scale) over the *sensitivity*, 2C under replace."""
        if isinstance(self.mechanism, (Gaussian, Laplace)):
            return self.mechanism.noise_multiplier / self.relation.adjacency.clip_norms
        raise TypeError(f"{self.mechanism.name} has no noise multiplier")

    def to_json(self) -> dict[str, Any]:
        """Return the release as plain JSON types, for a ledger."""
        return {
            "mechanism": {"name": self.mechanism.name, **dataclasses.asdict(self.mechanism)},
            "sampling": {"name": _sampling_name(self.sampling), **dataclasses.asdict(self.sampling)},
            "unit": self.relation.unit.value,
            "adjacency": self.relation.adjacency.value,
            "secure": self.secure,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` wrote.

        Raises
        ------
        DataError
            If it is not a release of a kind that this version knows.
        """
        try:
            mechanism, sampling = dict(data["mechanism"]), dict(data["sampling"])
            return cls(
                mechanism=_MECHANISMS[mechanism.pop("name")](**mechanism),
                sampling=_SAMPLINGS[sampling.pop("name")](**sampling),
                relation=NeighborRelation.of(unit=data["unit"], adjacency=data["adjacency"]),
                secure=data["secure"],
            )
        except (KeyError, TypeError, ConfigError) as error:
            raise DataError(
                f"privacy: {str(dict(data))[:200]} is no release that this version knows ({error}); "
                "read it with the fl-plugins version that wrote it."
            ) from error


def _sampling_name(sampling: Sampling) -> str:
    """Return the name that a sampling has in a ledger and in messages."""
    return next(name for name, kind in _SAMPLINGS.items() if type(sampling) is kind)
