"""Label flipping: honest training on wrong labels (Tolpegin et al. 2020; Fang et al. 2020, §5)."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.errors import ConfigError, DataError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine


@register(Kind.ATTACK, "label_flip", paper="Fang et al. 2020, USENIX Security, §5.1")
@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Train on labels ``num_classes - 1 - y``; the update is sent as it is.

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
        check_num_byzantine("label_flip", self.num_byzantine)

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:
        """Return ``data`` with flipped labels.

        Raises
        ------
        ConfigError
            If the task does not say how many classes it has.
        DataError
            If labels are not integers in ``0 .. num_classes - 1``.
        """
        if num_classes is None:
            raise ConfigError(
                "label_flip: the task has num_classes=None, but flipping needs classes; use another "
                "attack or a classification task."
            )
        y = data.y
        if not np.issubdtype(y.dtype, np.integer) or (
            y.size and not (y.min() >= 0 and y.max() < num_classes)
        ):
            raise DataError(
                f"label_flip: labels of dtype {y.dtype} must be integers in 0..{num_classes - 1}; check the "
                "task's loader."
            )
        return Dataset(data.x, (num_classes - 1 - y.astype(np.int64)).astype(y.dtype))

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``update`` itself."""
        return update
