"""Padding a client's examples to one of a few capacities, so that sizes share compiled programs.

XLA compiles one program per array shape. Clients have any number of examples, so their arrays are
padded to a *bucket*: ``unit · GROWTH^k`` examples, the smallest that holds them. The programs of
:mod:`clients.local_train` run a number of steps that depends on the real number of examples only, so a
bucket that is twice too large costs memory, not arithmetic.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import DataError
from fl_plugins.training import Dataset

GROWTH = 2
"""Ratio of one capacity to the next: few programs (a logarithm of the sizes), at most twice the memory."""


class PaddedDataset(NamedTuple):
    """``x`` and ``y`` of a bucket's capacity; rows from ``num_examples`` on are zeros and never read."""

    x: NDArray[Any]
    y: NDArray[Any]
    num_examples: np.int32


def bucket_capacity(num_examples: int, *, unit: int) -> int:
    """Return the smallest ``unit * GROWTH**k`` that is at least ``num_examples``.

    >>> [bucket_capacity(n, unit=32) for n in (1, 32, 33, 65, 1000)]
    [32, 32, 64, 128, 1024]
    """
    capacity = unit
    while capacity < num_examples:
        capacity *= GROWTH
    return capacity


def pad_to_bucket(data: Dataset, *, unit: int) -> PaddedDataset:
    """Copy ``data`` into arrays of its bucket's capacity, in the dtypes that JAX computes with.

    ``data`` itself is returned, uncopied, where it fills its bucket and has such dtypes.

    Raises
    ------
    DataError
        If there are no examples, or they are not numbers.
    """
    if len(data) == 0:
        raise DataError(
            "Dataset: 0 examples, but a client needs at least 1 to train or evaluate; give this client data "
            "or use fewer partitions."
        )
    capacity = bucket_capacity(len(data), unit=unit)
    return PaddedDataset(
        _padded(data.x, capacity, name="x"), _padded(data.y, capacity, name="y"), np.int32(len(data))
    )


def _padded(array: NDArray[Any], capacity: int, *, name: str) -> NDArray[Any]:
    """Return ``array`` with zero rows up to ``capacity``."""
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise DataError(
            f"Dataset: {name} has dtype {array.dtype}, but a trainer needs numbers; encode it in the task's "
            "loader."
        )
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if len(array) == capacity and array.dtype == dtype:
        return array
    padded = np.zeros((capacity, *array.shape[1:]), dtype)
    padded[: len(array)] = array
    return padded
