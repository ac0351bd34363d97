"""The kernels that JAX compiles: sorting networks over the columns of a block.

Importing this imports JAX; ``order_statistics`` does so when the work is worth it. Nothing here assumes a
CPU. A network is straight-line code, so XLA makes one vectorised loop of it that reads every
element once. Programs depend on the number of rows and the block's width, never on the model, and are kept
in the persistent cache (:mod:`fl_plugins.compilation_cache`).
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from ..compilation_cache import enable_compilation_cache
from ..dtypes import DType

BlockKernel = Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]
Network = Sequence[tuple[int, int]]


@lru_cache(maxsize=64)
def window_kernel(
    n: int, width: int, dtype: DType, kept: int, network: Network, *, moving: bool
) -> BlockKernel:
    """Return the compiled ``order_statistics`` kernel for ``(n, width)`` blocks.

    It gives, per column, the float64 sum of ``kept`` values that are neighbours in sorted order, the least
    and the greatest of them; the sum is NaN where any of the column's values is not finite. The neighbours
    are the middle ones or, if ``moving``, those nearest the median.
    """

    def kernel(block: jax.Array) -> Any:
        wires = list(block)
        finite = jnp.isfinite(wires[0])
        for wire in wires[1:]:
            finite &= jnp.isfinite(wire)
        for low, high in network:
            # A select is one instruction; lax.min and lax.max propagate NaN, which costs three.
            ordered = wires[low] < wires[high]
            wires[low], wires[high] = (
                lax.select(ordered, wires[low], wires[high]),
                lax.select(ordered, wires[high], wires[low]),
            )
        total, lowest, highest = _nearest_median(wires, kept) if moving else _middle(wires, kept)
        found = jnp.where(finite, total, jnp.nan), lowest, highest
        return _pack(*found) if dtype == np.float32 else found

    enable_compilation_cache()
    with jax.enable_x64(True):  # sums are in float64, whatever JAX's default is
        compiled = jax.jit(kernel).lower(jnp.zeros((n, width), dtype)).compile()

    def run(block: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        if dtype == np.float32:
            return _unpack(np.asarray(compiled(_borrowed(block))))
        with jax.enable_x64(True):
            return tuple(map(np.asarray, compiled(_borrowed(block))))

    return run


def _middle(wires: Sequence[jax.Array], kept: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sum, least and greatest of the ``kept`` values in the middle of sorted ``wires``."""
    first = (len(wires) - kept) // 2
    total = wires[first].astype(jnp.float64)
    for wire in wires[first + 1 : first + kept]:
        total += wire.astype(jnp.float64)
    return total, wires[first], wires[first + kept - 1]


def _nearest_median(wires: Sequence[jax.Array], kept: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sum, least and greatest of the ``kept`` values of sorted ``wires`` nearest the median.

    Values are halved so that no sum of two overflows. Ranks outside count as 0 and not as something that is
    subtracted again: an attacker's 1e30 would take the honest digits with it.
    """
    n = len(wires)
    halves = [wire.astype(jnp.float64) * 0.5 for wire in wires]
    median = halves[(n - 1) // 2] + halves[n // 2]
    # The window moves up past rank i as long as that value is farther from the median than its successor.
    passed = [halves[i] + halves[i + kept] < median for i in range(n - kept)]
    total = jnp.zeros_like(median)
    lowest, highest = wires[0], wires[kept - 1]
    for i, wire in enumerate(wires):
        value = wire.astype(jnp.float64)
        if i < n - kept:
            value = jnp.where(passed[i], 0.0, value)
        if i >= kept:
            value = jnp.where(passed[i - kept], value, 0.0)
        total += value
    for i, further in enumerate(passed):
        lowest = lax.select(further, wires[i + 1], lowest)
        highest = lax.select(further, wires[i + kept], highest)
    return total, lowest, highest


def _pack(total: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Return one complex number: the sum as its real part, the bits of the other two as its imaginary part.

    XLA on a CPU makes a loop for each output, and each loop would run the whole network again.
    """
    bits = [lax.bitcast_convert_type(part, jnp.uint32).astype(jnp.uint64) for part in (low, high)]
    return lax.complex(total, lax.bitcast_convert_type((bits[1] << 32) | bits[0], jnp.float64))


def _unpack(packed: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Undo :func:`_pack`; ``total`` is a strided view, the others are contiguous."""
    low, high = (2, 3) if sys.byteorder == "little" else (3, 2)
    parts = packed.view(np.float32).reshape(-1, 4)
    return packed.real, parts[:, low].copy(), parts[:, high].copy()


def _borrowed(block: NDArray[Any]) -> Any:
    """Return the block as a JAX array, without a copy where JAX can read it where it is."""
    if jax.default_backend() != "cpu" or block.ctypes.data % 64:
        return block
    return jnp.from_dlpack(block)
