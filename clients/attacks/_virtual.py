"""What attacks share that estimate the honest updates from several trainings on parts of a client's data."""

import numpy as np

from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.seeds import derive_rng
from fl_plugins.training import Dataset


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
