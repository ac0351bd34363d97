"""Sign flipping: push the model away from where honest training goes (Li et al. 2019, RSA, §5)."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_finite, check_num_byzantine


@register(
    Kind.ATTACK, "sign_flip", paper="Li et al. 2019, AAAI, RSA: Byzantine-Robust Stochastic Aggregation, §5"
)
@dataclass(frozen=True, kw_only=True)
class SignFlip:
    """Train honestly, then send ``-scale`` times the update.

    With f hostile of n equal clients, a mean moves by ``(n - f - f * scale) / n`` of an honest update:
    backwards as soon as ``scale > (n - f) / f``, which is 4 for 2 of 10.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    scale : float
        Factor of the negated update; > 0.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    scale: float = 10.0

    def __post_init__(self) -> None:
        check_num_byzantine("sign_flip", self.num_byzantine)
        check_finite("sign_flip", "scale", self.scale)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``-scale * update``; what a dtype cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            return {
                name: (array.astype(np.float64) * -self.scale).astype(array.dtype)
                for name, array in update.items()
            }
