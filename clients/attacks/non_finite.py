"""NaN or infinity in an update: without quarantine one such client ends the training of all."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from fl_plugins.attacks.plain import NonFinite as Value
from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine


@register(
    Kind.ATTACK, "non_finite", paper="Blanchard et al. 2017, NeurIPS, Krum, Lemma 1: one arbitrary update"
)
@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """Send NaN or an infinity in every coordinate.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    value : {"nan", "inf", "-inf"}
        What to send.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    value: Value = "nan"

    def __post_init__(self) -> None:
        check_num_byzantine("non_finite", self.num_byzantine)
        if self.value not in get_args(Value):
            raise ConfigError(
                f"non_finite: value={self.value!r} must be one of {', '.join(get_args(Value))}; choose one."
            )

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``value`` in the update's shapes and dtypes."""
        return {
            name: np.full(array.shape, float(self.value)).astype(array.dtype)
            for name, array in update.items()
        }
