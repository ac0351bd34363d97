"""Differential privacy without Flower: mechanisms, sampling, accounting, calibration, ledger.

What a round releases is one :class:`Release`: mechanism, sampling, and whom it protects. The same object goes
to the sampler, the noise, the :class:`Accountant` and the ledger. Unit and adjacency are required
everywhere and printed beside every ε.

Names are imported when they are first asked for; dp-accounting, which takes seconds, when a number needs it.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .accounting import Accountant, Budget, Method, Report
    from .matrix import BandedMatrix, CorrelatedNoise
    from .mechanisms import (
        BandedGaussian,
        DiscreteGaussian,
        DistributedGaussian,
        DistributedSkellam,
        Gaussian,
        Laplace,
        Mechanism,
        Skellam,
        joint_noise_multiplier,
        remaining_noise_multiplier,
    )
    from .random import NoiseSource
    from .releases import Release
    from .sampling import Everyone, FixedSize, MinSeparation, Poisson, Sampling
    from .units import Adjacency, NeighborRelation, Unit

__all__ = [
    "Accountant",
    "Adjacency",
    "BandedGaussian",
    "BandedMatrix",
    "Budget",
    "CorrelatedNoise",
    "DiscreteGaussian",
    "DistributedGaussian",
    "DistributedSkellam",
    "Everyone",
    "FixedSize",
    "Gaussian",
    "Laplace",
    "Mechanism",
    "Method",
    "MinSeparation",
    "NeighborRelation",
    "NoiseSource",
    "Poisson",
    "Release",
    "Report",
    "Sampling",
    "Skellam",
    "Unit",
    "joint_noise_multiplier",
    "remaining_noise_multiplier",
]

_HOMES = {
    "Accountant": "accounting",
    "Adjacency": "units",
    "BandedGaussian": "mechanisms",
    "BandedMatrix": "matrix",
    "Budget": "accounting",
    "CorrelatedNoise": "matrix",
    "DiscreteGaussian": "mechanisms",
    "DistributedGaussian": "mechanisms",
    "DistributedSkellam": "mechanisms",
    "Everyone": "sampling",
    "FixedSize": "sampling",
    "Gaussian": "mechanisms",
    "Laplace": "mechanisms",
    "Mechanism": "mechanisms",
    "Method": "accounting",
    "MinSeparation": "sampling",
    "NeighborRelation": "units",
    "NoiseSource": "random",
    "Poisson": "sampling",
    "Release": "releases",
    "Report": "accounting",
    "Sampling": "sampling",
    "Skellam": "mechanisms",
    "Unit": "units",
    "joint_noise_multiplier": "mechanisms",
    "remaining_noise_multiplier": "mechanisms",
}
"""The module that each name is from."""

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
