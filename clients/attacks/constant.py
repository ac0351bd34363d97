"""One number in every coordinate."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine, check_number


@register(Kind.ATTACK, "constant", paper="Li et al. 2019, AAAI, RSA, §5 (same-value attack)")
@dataclass(frozen=True, kw_only=True)
class Constant:
    """Send ``value`` in every coordinate; what the client learned is thrown away.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    value : float
        The number; finite.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    value: float = 1.0

    def __post_init__(self) -> None:
        check_num_byzantine("constant", self.num_byzantine)
        check_number("constant", "value", self.value)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``value`` in the update's shapes and dtypes; what a dtype cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            return {
                name: np.full(array.shape, float(self.value)).astype(array.dtype)
                for name, array in update.items()
            }
