"""The kernels that JAX compiles: sorting networks over columns, and sums that keep their rounding errors.

Importing this imports JAX; ``order_statistics`` does so when the work is worth it. Nothing here assumes a
CPU. A network is straight-line code, so XLA makes one vectorised loop of it that reads every
element once. Programs depend on the number of rows and the block's width, never on the model, and are kept
in the persistent cache (:mod:`fl_plugins.compilation_cache`).
"""

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

WindowKernel = Callable[[Sequence[NDArray[Any]]], NDArray[Any]]

Network = Sequence[tuple[int, int]]

_CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""LLVM's default of 256 bits takes twice the time where there is AVX-512; elsewhere it changes nothing."""


@lru_cache(maxsize=64)
def window_kernel(
    n: int, width: int, dtype: DType, kept: int, network: Network, *, moving: bool
) -> WindowKernel:
    """Return the compiled ``order_statistics`` kernel for n vectors of ``width`` columns.

    It gives, per column, the mean of ``kept`` values that are neighbours in sorted order: the middle ones or,
    if ``moving``, those nearest the median. The mean is that of their float64 sum, and within them; it is NaN
    where any of the column's values is not finite.

    One output only: XLA on a CPU makes a loop for each, and each loop would run the whole network again. The
    rows come one by one: vectors at multiples of 64 bytes are then read where they lie.
    """

    def kernel(*rows: jax.Array) -> jax.Array:
        wires = list(rows)
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
        mean = lax.clamp(lowest, (total / kept).astype(dtype), highest)
        return jnp.where(finite, mean, jnp.nan)

    enable_compilation_cache()
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else {}
    with jax.enable_x64(True):  # sums are in float64, whatever JAX's default is
        like = [jnp.zeros(width, dtype)] * n
        compiled = jax.jit(kernel, compiler_options=options).lower(*like).compile()

    def run(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        with jax.enable_x64(True):
            return np.asarray(compiled(*rows))

    return run


@lru_cache(maxsize=8)
def two_sum_kernel(num_terms: int, width: int, dtype: DType) -> Callable[..., tuple[Any, Any]]:
    """Return the compiled ``(high, low, factors, rows) -> (high, low)`` of ``streaming``.

    ``rows`` are ``(num_terms, width)``. In float64 they are the terms as they are, and ``factors`` are not
    used: a product that becomes part of a fused multiply-add is not rounded, and TwoSum is exact only for the
    rounded one. In float32 each is multiplied by its factor; the caller sees to it that products are exact,
    so that fused or not is the same. Without fast-math, which XLA does not use, additions stay as written.
    """

    def kernel(
        high: jax.Array, low: jax.Array, factors: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        for factor, row in zip(factors, rows, strict=True):
            term = row if row.dtype == jnp.float64 else row.astype(jnp.float64) * factor
            total = high + term
            added = total - high
            low = low + ((term - added) + (high - (total - added)))
            high = total
        return high, low

    enable_compilation_cache()
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else {}
    with jax.enable_x64(True):
        vector, factors = jnp.zeros(width, np.float64), jnp.zeros(num_terms, np.float64)
        rows = jnp.zeros((num_terms, width), dtype)
        compiled = jax.jit(kernel, compiler_options=options).lower(vector, vector, factors, rows).compile()

    def run(*arguments: Any) -> tuple[Any, Any]:
        with jax.enable_x64(True):
            new_high, new_low = compiled(*arguments)
            return new_high, new_low

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
