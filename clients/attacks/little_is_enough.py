"""A Little Is Enough with what one client knows: the spread of several trainings on parts of its own data."""

from dataclasses import dataclass

import numpy as np

from fl_plugins.attacks.little_is_enough import little_is_enough
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine, check_number
from ._virtual import check_virtual_clients, split_into_parts


@register(
    Kind.ATTACK, "little_is_enough", paper="Baruch et al. 2019, NeurIPS, A Little Is Enough, Algorithm 3"
)
@dataclass(frozen=True, kw_only=True)
class LittleIsEnough:
    """Send mean − z · standard deviation, per coordinate, of several honest trainings on parts of the data.

    The paper's attackers, too, estimate both from the data that they control. One client's parts are more
    alike than different clients are: on heterogeneous clients it underestimates the spread, and is weaker
    than the searched attack of ``benchmarks/robustness.py``, which knows the honest updates.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    z : float
        Standard deviations away from the mean; finite. ``fl_plugins.attacks.z_max(n, f)`` is the paper's.
    virtual_clients : int
        Parts of the client's data, each trained on alone; >= 2, and at most its number of examples.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    z: float = 1.5
    virtual_clients: int = 4

    def __post_init__(self) -> None:
        check_num_byzantine("little_is_enough", self.num_byzantine)
        check_number("little_is_enough", "z", self.z)
        check_virtual_clients("little_is_enough", self.virtual_clients)

    def split_data(self, data: Dataset, *, seed: int) -> list[Dataset]:
        """Return ``virtual_clients`` random parts, equal in size but for one example.

        Raises
        ------
        DataError
            If there are fewer examples than parts.
        """
        return split_into_parts("little_is_enough", data, self.virtual_clients, seed=seed)

    def combine_updates(self, updates: list[NamedArrays], *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return mean − z · standard deviation of the parts' updates, in their shapes and dtypes."""
        return {
            name: little_is_enough(
                np.stack([update[name].reshape(-1) for update in updates]), 1, z=float(self.z)
            ).reshape(array.shape)
            if array.size
            else array
            for name, array in updates[0].items()
        }

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``update`` itself: without the parts' updates there is no spread to hide in."""
        return update
