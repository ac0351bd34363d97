"""What attacks share that estimate the honest updates from several trainings on parts of a client's data."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.seeds import derive_rng
from fl_plugins.training import Dataset, NamedArrays


class FromVirtualClients(ABC):
    """Trains honestly on parts of the client's data, and sends what :meth:`_attack` makes of the updates."""

    name: ClassVar[str]
    virtual_clients: int

    def split_data(self, data: Dataset, *, seed: int) -> list[Dataset]:
        """Return ``virtual_clients`` random parts, equal in size but for one example.

        Raises
        ------
        DataError
            If there are fewer examples than parts.
        """
        return split_into_parts(self.name, data, self.virtual_clients, seed=seed)

    def combine_updates(self, updates: list[NamedArrays], *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return the hostile update of the parts' updates, in their shapes and dtypes."""
        return from_row(self._attack(to_rows(updates)), like=updates[0])

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``update`` itself: all is done in :meth:`combine_updates`, from the parts' updates."""
        return update

    @abstractmethod
    def _attack(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is sent, ``(d,)``, for the parts' updates, ``(m, d)``."""


def to_rows(updates: list[NamedArrays]) -> NDArray[np.float64]:
    """Return ``(m, d)``: every update's arrays, one after the other in the first update's order."""
    return np.stack(
        [
            np.concatenate([update[name].astype(np.float64).reshape(-1) for name in updates[0]])
            for update in updates
        ]
    )


def from_row(row: NDArray[np.float64], *, like: NamedArrays) -> NamedArrays:
    """Return a row's arrays in ``like``'s shapes and dtypes; what a dtype cannot hold becomes infinite."""
    ends = np.cumsum([array.size for array in like.values()])[:-1]
    with np.errstate(over="ignore"):
        return {
            name: part.reshape(array.shape).astype(array.dtype)
            for (name, array), part in zip(like.items(), np.split(row, ends), strict=True)
        }


def check_virtual_clients(attack: str, value: int) -> None:
    """Raise unless ``value`` is an int >= 2."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"{attack}: virtual_clients={value!r} must be an int; give a whole number.")
    if value < 2:
        raise ConfigError(f"{attack}: virtual_clients={value} must be >= 2; one has no spread.")


def split_into_parts(attack: str, data: Dataset, parts: int, *, seed: int) -> list[Dataset]:
    """Return ``parts`` random parts, equal in size but for one example.

    Raises
    ------
    DataError
        If there are fewer examples than parts.
    """
    if len(data) < parts:
        raise DataError(
            f"{attack}: {len(data)} examples cannot make virtual_clients={parts} parts; lower "
            "virtual_clients."
        )
    order = derive_rng(seed, attack).permutation(len(data))
    return [data.take(np.sort(part)) for part in np.array_split(order, parts)]
