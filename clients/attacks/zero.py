"""No change at all: the global parameters come back."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine


@register(Kind.ATTACK, "zero", paper="Li et al. 2019, AAAI, RSA, §5 (zero-gradient attack)")
@dataclass(frozen=True, kw_only=True)
class Zero:
    """Send an update of zeros, which wins at rules that like small updates.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int

    def __post_init__(self) -> None:
        check_num_byzantine("zero", self.num_byzantine)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return zeros of the update's shapes and dtypes."""
        return {name: np.zeros_like(array) for name, array in update.items()}
