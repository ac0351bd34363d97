"""Free-riding: the global parameters come back, a little noise over them (Fraboni et al. 2021, §3)."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.registry import Kind, register
from fl_plugins.seeds import derive_rng
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine, check_number


@register(Kind.ATTACK, "free_rider", paper="Fraboni et al. 2021, AISTATS, Free-rider Attacks, §3.2")
@dataclass(frozen=True, kw_only=True)
class FreeRider:
    """Send the global parameters plus N(0, stddev²): nothing of what the client learned.

    Only what the noise hides in makes it differ from ``zero``. The variant that replays the *last* change of
    the global parameters needs memory over rounds, which a client process need not have; it is
    ``fl_plugins.attacks.free_rider``, for benchmarks.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    stddev : float
        Standard deviation of the noise; >= 0, and 0 replays the parameters as they are.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    stddev: float = 0.001

    def __post_init__(self) -> None:
        check_num_byzantine("free_rider", self.num_byzantine)
        check_number("free_rider", "stddev", self.stddev, minimum=0)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:
        """Return noise of the update's shapes and dtypes; equal seeds give equal noise."""
        with np.errstate(over="ignore"):
            return {
                name: np.asarray(
                    derive_rng(seed, "free_rider", name).normal(0.0, self.stddev, array.shape)
                ).astype(array.dtype)
                for name, array in update.items()
            }
