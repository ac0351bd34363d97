"""Gaussian noise in place of an update (Blanchard et al. 2017, Krum, §5: the Gaussian attack)."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.registry import Kind, register
from fl_plugins.seeds import derive_rng
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_finite, check_num_byzantine


@register(Kind.ATTACK, "gaussian_noise", paper="Blanchard et al. 2017, NeurIPS, Krum, §5")
@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Send N(0, stddev²) in every coordinate; what the client learned is thrown away.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    stddev : float
        Standard deviation of every coordinate; > 0. Honest updates of small models have coordinates of
        about 0.01.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    stddev: float = 1.0

    def __post_init__(self) -> None:
        check_num_byzantine("gaussian_noise", self.num_byzantine)
        check_finite("gaussian_noise", "stddev", self.stddev)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:
        """Return noise of the update's shapes and dtypes; equal seeds give equal noise."""
        with np.errstate(over="ignore"):
            return {
                name: np.asarray(
                    derive_rng(seed, "gaussian_noise", name).normal(0.0, self.stddev, array.shape)
                ).astype(array.dtype)
                for name, array in update.items()
            }
