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

from ..compilation_cache import enable_compilation_cache
from ..dtypes import DType
from .in_memory import SLACK

Network = Sequence[tuple[int, int]]

_CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""LLVM's default of 256 bits takes twice the time where there is AVX-512; elsewhere it changes nothing."""


@lru_cache(maxsize=64)
def window_kernel(
    n: int, width: int, dtype: DType, kept: int, network: Network, *, moving: bool, direct: bool
) -> Callable[..., Any]:
    """Return the compiled ``order_statistics`` kernel for n rows of ``width`` columns.

    If ``direct``, it is a :data:`Kernel` of n differences, else a function of one aligned ``(n, width)``
    array. It gives, per column, the mean of ``kept`` values that are neighbours in sorted order: the middle
    ones or, if ``moving``, those nearest the median. The mean is that of their float64 sum, and within them;
    it is NaN where any of the column's values is not finite.

    One output only: XLA on a CPU makes a loop for each, and each loop would run the whole network again.
    """

    def combine(wires: list[jax.Array]) -> jax.Array:
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

    def gathered(block: jax.Array) -> jax.Array:
        return combine([block[i] for i in range(n)])

    def differences(skipped: jax.Array, *vectors: jax.Array) -> jax.Array:
        return combine(_differences(skipped, vectors, width))

    if not direct:
        with jax.enable_x64(True):
            block = jnp.zeros((n, width), dtype)
        return _compile(gathered, block)
    with jax.enable_x64(True):
        skipped, vector = jnp.zeros(n + 1, np.int32), jnp.zeros(width + SLACK, dtype)
    compiled = _compile(differences, skipped, *[vector] * (n + 1))
    return lambda skipped, vectors: compiled(skipped, *vectors)


@lru_cache(maxsize=64)
def combination_kernel(m: int, width: int) -> Callable[..., Any]:
    """Return the compiled ``(shares, skipped, [b, a, ...]) -> Σ shareᵢ·(aᵢ − b)`` of m float32 differences.

    ``shares`` is ``(m,)`` float64, and so is the sum before it is rounded.
    """

    def kernel(shares: jax.Array, skipped: jax.Array, *vectors: jax.Array) -> jax.Array:
        total = jnp.zeros(width, np.float64)
        for i, row in enumerate(_differences(skipped, vectors, width)):
            total += shares[i] * row.astype(np.float64)
        return total.astype(np.float32)

    with jax.enable_x64(True):
        shares, skipped = jnp.zeros(m, np.float64), jnp.zeros(m + 1, np.int32)
        vector = jnp.zeros(width + SLACK, np.float32)
    compiled = _compile(kernel, shares, skipped, *[vector] * (m + 1))

    return lambda shares, skipped, vectors: compiled(shares, skipped, *vectors)


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

    with jax.enable_x64(True):
        vector, factors = jnp.zeros(width, np.float64), jnp.zeros(num_terms, np.float64)
        rows = jnp.zeros((num_terms, width), dtype)
    return _compile(kernel, vector, vector, factors, rows)


def _compile(kernel: Callable[..., Any], *like: jax.Array) -> Callable[..., Any]:
    """Return ``kernel`` compiled for arguments like these, from the persistent cache if it is there."""
    enable_compilation_cache()
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else {}
    with jax.enable_x64(True):  # sums are in float64, whatever JAX's default is
        compiled = jax.jit(kernel, compiler_options=options).lower(*like).compile()

    def run(*arguments: Any) -> Any:
        with jax.enable_x64(True):
            return compiled(*arguments)

    return run


def _differences(skipped: jax.Array, vectors: Sequence[jax.Array], width: int) -> list[jax.Array]:
    """Return the ``(width,)`` rows of the windows that a kernel gets, the first of which is the base."""
    base, *rows = (lax.dynamic_slice(vector, (skipped[i],), (width,)) for i, vector in enumerate(vectors))
    return [row - base for row in rows]


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
