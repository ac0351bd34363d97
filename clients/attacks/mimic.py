"""Mimic: copies of one honest client (Karimireddy et al. 2022, Learning via Bucketing, §3.2)."""

from dataclasses import dataclass

from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine


@register(
    Kind.ATTACK, "mimic", paper="Karimireddy et al. 2022, ICLR, Byzantine-Robust Learning via Bucketing, §3.2"
)
@dataclass(frozen=True, kw_only=True)
class Mimic:
    """Every hostile client sends what one honest client sends, to rounding: its data count f + 1 times.

    Nothing about the updates is abnormal; rules that drop outliers drop the other honest clients. The paper
    chooses whom to copy by the updates that it sees (``fl_plugins.attacks.mimic_target``); a client sees
    none, so the target is named. A hostile node must be able to load the target's partition.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    target : int, optional
        The honest partition to copy, >= ``num_byzantine``; by default the first.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    target: int | None = None

    def __post_init__(self) -> None:
        check_num_byzantine("mimic", self.num_byzantine)
        if self.target is None:
            return
        if type(self.target) is not int:
            raise ConfigTypeError(f"mimic: target={self.target!r} must be an int; give a whole number.")
        if self.target < self.num_byzantine:
            raise ConfigError(
                f"mimic: target={self.target} must be >= num_byzantine={self.num_byzantine}; choose an "
                "honest client."
            )

    def acts_as(self, partition_id: int) -> int:  # noqa: ARG002
        """Return the target."""
        return self.num_byzantine if self.target is None else self.target

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself: the target's."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``update`` itself: the target's."""
        return update
