"""Sybils: one adversary behind several nodes, all sending one update (Fung et al. 2018, FoolsGold, §3)."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine, check_number


@register(
    Kind.ATTACK, "sybil", paper="Fung et al. 2018, Mitigating Sybils in Federated Learning Poisoning, §3"
)
@dataclass(frozen=True, kw_only=True)
class Sybil:
    """Every hostile client trains on partition 0 with its seed and sends ``scale`` times that update.

    The copies are bit for bit equal, a dense cluster for rules that look at distances. A hostile node must be
    able to load partition 0, which in a real run means that its operator has those data.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    scale : float
        Factor of the update; finite, not 0. 1 sends honest copies, which count too often; -1 pushes back
        with updates of honest length.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    scale: float = -1.0

    def __post_init__(self) -> None:
        check_num_byzantine("sybil", self.num_byzantine)
        check_number("sybil", "scale", self.scale)
        if self.scale == 0:
            raise ConfigError("sybil: scale=0 must not be 0; use the attack zero for that.")

    def acts_as(self, partition_id: int) -> int:  # noqa: ARG002
        """Return 0: all hostile clients are one."""
        return 0

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``scale * update``; what a dtype cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            return {
                name: (array.astype(np.float64) * self.scale).astype(array.dtype)
                for name, array in update.items()
            }
