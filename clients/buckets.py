"""Padding a client's examples to one of a few capacities, so that sizes share compiled programs.

XLA compiles one program per array shape. Clients have any number of examples, so their arrays are
padded to a *bucket*: ``unit · GROWTH^k`` examples, the smallest that holds them. The programs of
:mod:`clients.local_train` run a number of steps that depends on the real number of examples only, so a
bucket that is far too large costs memory, not arithmetic.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import DataError
from fl_plugins.training import Dataset

GROWTH = 4
"""Ratio of one capacity to the next: few programs (a logarithm of the sizes).

The padding costs little: it is never read, and memory that the system hands out zeroed is not even touched.
"""

ALIGNMENT = 64
"""Bytes; NumPy arrays that begin at a multiple of it are not copied by JAX on a CPU (a test checks it)."""


class PaddedDatasets(NamedTuple):
    """``(slots, capacity, ...)`` arrays; rows from ``num_examples[slot]`` on are zeros and never read."""

    x: NDArray[Any]
    y: NDArray[Any]
    num_examples: NDArray[np.int32]


def bucket_capacity(num_examples: int, *, unit: int) -> int:
    """Return the smallest ``unit * GROWTH**k`` that is at least ``num_examples``.

    >>> [bucket_capacity(n, unit=32) for n in (1, 32, 33, 129, 1000)]
    [32, 32, 128, 512, 2048]
    """
    capacity = unit
    while capacity < num_examples:
        capacity *= GROWTH
    return capacity


def stack_in_bucket(
    datasets: Sequence[Dataset], positions: Sequence[int], *, slots: int, capacity: int
) -> PaddedDatasets:
    """Copy data sets of one shape into the slots at ``positions``, in the dtypes that JAX computes with.

    Empty slots say that they have one example, so that whoever computes them anyway divides by no zero.

    Raises
    ------
    DataError
        If the data are not numbers.
    """
    num_examples = np.ones(slots, np.int32)
    num_examples[positions] = [len(data) for data in datasets]
    x, y = (
        _stacked([getattr(data, name) for data in datasets], positions, (slots, capacity), name=name)
        for name in ("x", "y")
    )
    return PaddedDatasets(x, y, num_examples)


def check_not_empty(datasets: Sequence[Dataset]) -> None:
    """Raise unless every data set has examples.

    Raises
    ------
    DataError
        Naming the first that has none, by its number if there are several.
    """
    for number, data in enumerate(datasets):
        if len(data) == 0:
            which = "Dataset" if len(datasets) == 1 else f"Dataset {number} of {len(datasets)}"
            raise DataError(
                f"{which}: 0 examples, but a client needs at least 1 to train or evaluate; give this client "
                "data or use fewer partitions."
            )


def _stacked(
    arrays: Sequence[NDArray[Any]], positions: Sequence[int], leading: tuple[int, int], *, name: str
) -> NDArray[Any]:
    """Return ``arrays`` of one shape and dtype in zeros of ``(slots, capacity, ...)``."""
    dtype, shape = arrays[0].dtype, arrays[0].shape[1:]
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_):
        raise DataError(
            f"Dataset: {name} has dtype {dtype}, but a trainer needs numbers; encode it in the task's loader."
        )
    stacked = _aligned_zeros((*leading, *shape), jax.dtypes.canonicalize_dtype(dtype))
    for position, array in zip(positions, arrays, strict=True):
        stacked[position, : len(array)] = array
    return stacked


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros that begin at a multiple of :data:`ALIGNMENT`."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.zeros(num_bytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    zeros: NDArray[Any] = buffer[start : start + num_bytes].view(dtype).reshape(shape)
    return zeros
