"""Products of a parameter: the norms and the weighted sum of its per-example gradients, without them.

Notation, per example: the gradient is Σₜ aₜ cₜᵀ, a (K, O) matrix for each of G groups, with the *factors*
a (G, T, K) that the parameter was multiplied with and the *cotangents* c (G, T, O). T is 1 for a dense layer
of a vector, the length of a sequence, the number of windows of a convolution.

- T = 1: ‖a cᵀ‖² = ‖a‖² ‖c‖².
- *gram*: ‖Σₜ aₜ cₜᵀ‖² = Σₜ cₜ · Σₛ (aₜ·aₛ) cₛ (Goodfellow 2015; Li et al. 2022). It cancels where the terms
  do, and a norm that is too small would break the clipping bound: :data:`ROUNDING` of (Σₜ ‖aₜ‖ ‖cₜ‖)² is
  added.
- *direct*: form the K × O matrices of all examples where that is less work and not much more memory than
  T × T (Bu et al. 2022, mixed ghost clipping); the sum is then taken over these.

An embedding's gradient has the rows Σ cₜ over the positions t of one token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

ROUNDING = 2.0**-18
"""Allowance for the gram form's rounding error, relative to (Σₜ ‖aₜ‖ ‖cₜ‖)²: chosen, tested, not proved."""

MAX_DIRECT = 8
"""The matrices of the direct form may have so many numbers for each of a T × T matrix."""

MEMORY_COST = 8
"""Operations that writing or reading a number counts as."""


class Product(Protocol):
    """An equation that is linear in its operand number ``position``, the parameter."""

    @property
    def position(self) -> int:
        """Which operand the parameter is."""
        ...

    def book(self, factors: jax.Array, cotangents: jax.Array) -> tuple[jax.Array, "Sum"]:
        """Return the squared norms ``(b,)`` of the gradients, float32, and what sums them.

        Both arguments have the examples as first axis. Where a number that the gradient depends on is not
        finite, neither is the norm.
        """
        ...


Sum = Callable[[jax.Array], jax.Array]
"""``weights (b,)`` to Σᵢ wᵢ gᵢ, float32, in the operand's shape; weight 0 leaves out NaN too."""


def recognise(equation: Any, position: int) -> Product | None:
    """Return how to book-keep operand ``position`` of an equation, or None."""
    operands = [atom.aval for atom in equation.invars]
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(parameters["dimension_numbers"], operands, position)
    if name == "conv_general_dilated" and position == 1:
        return _convolution(parameters, operands, equation.outvars[0].aval)
    if name == "gather" and position == 0:
        return _gather(parameters, operands)
    return None


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """A product of matrices, once ``rows`` and ``columns`` have brought the arrays of one example there."""

    position: int
    rows: Callable[[jax.Array], jax.Array]
    """Factors to (G, T, K)."""
    columns: Callable[[jax.Array], jax.Array]
    """Cotangents to (G, T, O)."""
    operand: Callable[[jax.Array], jax.Array]
    """(G, K, O) to the parameter's layout."""

    def book(self, factors: jax.Array, cotangents: jax.Array) -> tuple[jax.Array, Sum]:
        """See :class:`Product`."""
        a, c = jax.vmap(self.rows)(factors), jax.vmap(self.columns)(cotangents)
        length, inner, outer = a.shape[2], a.shape[3], c.shape[3]
        if is_direct(length, inner, outer):
            gradients = jnp.einsum("bgtk,bgto->bgko", a, c, preferred_element_type=jnp.float32)
            norms = squares(gradients)

            def total(weights: jax.Array) -> jax.Array:
                return jnp.einsum("b,bgko->gko", weights, used(gradients, weights))
        else:
            norms = squares(a) * squares(c) if a.shape[1] == length == 1 else _gram_norms(a, c)

            def total(weights: jax.Array) -> jax.Array:
                weighted = used(c, weights) * weights.astype(c.dtype)[:, None, None, None]
                return jnp.einsum(
                    "bgtk,bgto->gko", used(a, weights), weighted, preferred_element_type=jnp.float32
                )

        return norms, lambda weights: self.operand(total(weights))


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of a table, taken at one index per position."""

    position: int
    table: tuple[int, int]
    options: dict[str, Any]

    def book(self, factors: jax.Array, cotangents: jax.Array) -> tuple[jax.Array, Sum]:
        """See :class:`Product`; the factors are the indices ``(b, ..., 1)``."""
        num_rows, width = self.table
        indices = factors.reshape(len(factors), -1)
        c = cotangents.reshape(*indices.shape, width)
        if self.options["mode"] == lax.GatherScatterMode.CLIP:
            indices = jnp.clip(indices, 0, num_rows - 1)
        inside = (indices >= 0) & (indices < num_rows)
        c = jnp.where(inside[..., None], c, jnp.zeros_like(c))
        same = (indices[:, :, None] == indices[:, None, :]).astype(c.dtype)
        rows = jnp.einsum("bts,bsd->btd", same, c, preferred_element_type=jnp.float32)
        counts = same.sum(axis=2, dtype=jnp.float32)
        norms = (jnp.square(rows).sum(axis=2) / counts).sum(axis=1)

        def total(weights: jax.Array) -> jax.Array:
            weighted = used(c, weights).astype(jnp.float32) * weights[:, None, None]
            return jnp.zeros(self.table, jnp.float32).at[indices].add(weighted, mode="drop")

        return norms, total


def is_direct(length: int, inner: int, outer: int) -> bool:
    """Whether T, K, O ask for the direct form."""
    matrix, gram = inner * outer, length * length
    if length == 1 or matrix > MAX_DIRECT * gram:
        return False
    by_gram = gram * (inner + outer) + length * matrix + 2 * MEMORY_COST * gram
    return length * matrix + (1 + 2 * MEMORY_COST) * matrix <= by_gram


def _gram_norms(a: jax.Array, c: jax.Array) -> jax.Array:
    """Return ‖Σₜ aₜ cₜᵀ‖² summed over groups, ``(b,)``, rounded up."""
    gram = jnp.einsum("bgtk,bgsk->bgts", a, a, preferred_element_type=jnp.float32)
    c = c.astype(jnp.float32)
    norms = jnp.sum(c * jnp.einsum("bgts,bgso->bgto", gram, c), axis=(1, 2, 3))
    lengths = jnp.sqrt(jnp.square(a.astype(jnp.float32)).sum(3) * jnp.square(c).sum(3)).sum(2)
    return jnp.maximum(norms, 0) + ROUNDING * jnp.square(lengths).sum(1)


def used(array: jax.Array, weights: jax.Array) -> jax.Array:
    """Return ``array`` with zeros for the examples of weight 0, which need not have finite numbers."""
    keep = (weights > 0).reshape(-1, *(1 for _ in array.shape[1:]))
    return jnp.where(keep, array, jnp.zeros_like(array))


def squares(array: jax.Array) -> jax.Array:
    """Return the sum of squares over every axis but the first, in float32."""
    return jnp.square(array.astype(jnp.float32)).sum(axis=tuple(range(1, array.ndim)))


def _merge(shape: Sequence[int], *groups: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of groups of axes of ``shape``."""
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def _dot_general(dimension_numbers: Any, operands: Sequence[Any], position: int) -> Product:
    """Return the product of one operand of a ``dot_general``."""
    contracted, batched = dimension_numbers
    parameter, factor = operands[position].shape, operands[1 - position].shape
    ours, others = list(contracted[position]), list(contracted[1 - position])
    our_batch, other_batch = list(batched[position]), list(batched[1 - position])
    our_free = [axis for axis in range(len(parameter)) if axis not in (*ours, *our_batch)]
    free = [axis for axis in range(len(factor)) if axis not in (*others, *other_batch)]
    groups, length, inner = _merge(factor, other_batch, free, others)
    (outer,) = _merge(parameter, our_free)
    our_axes = [*our_batch, *ours, *our_free]

    def rows(a: jax.Array) -> jax.Array:
        return a.transpose(*other_batch, *free, *others).reshape(groups, length, inner)

    def columns(c: jax.Array) -> jax.Array:
        if position == 1:
            return c.reshape(groups, length, outer)
        return c.reshape(groups, outer, length).swapaxes(1, 2)

    def operand(gradient: jax.Array) -> jax.Array:
        back = gradient.reshape([parameter[axis] for axis in our_axes])
        return back.transpose([our_axes.index(axis) for axis in range(len(parameter))])

    return MatrixProduct(position, rows, columns, operand)


def _convolution(parameters: Any, operands: Sequence[Any], result: Any) -> Product | None:
    """Return the product of the kernel of a convolution: with the contents of all windows."""
    kernel = operands[1]
    layout = parameters["dimension_numbers"]
    if parameters["batch_group_count"] != 1 or any(size != 1 for size in parameters["lhs_dilation"]):
        return None
    groups = parameters["feature_group_count"]
    out_axis, in_axis, *window_axes = layout.rhs_spec
    windows = [kernel.shape[axis] for axis in window_axes]
    inner, outer = kernel.shape[in_axis], kernel.shape[out_axis] // groups
    positions = [result.shape[axis] for axis in layout.out_spec[2:]]
    strides, dilations = parameters["window_strides"], parameters["rhs_dilation"]
    zero = (0, 0, 0)

    def rows(a: jax.Array) -> jax.Array:
        a = a.transpose(layout.lhs_spec[0], *layout.lhs_spec[2:], layout.lhs_spec[1])
        a = lax.pad(a, jnp.zeros((), a.dtype), [zero, *((*pad, 0) for pad in parameters["padding"]), zero])
        shifted = []
        for offsets in combinations(*map(range, windows)):
            starts = [offset * dilation for offset, dilation in zip(offsets, dilations, strict=True)]
            stops = [
                start + (count - 1) * stride + 1
                for start, count, stride in zip(starts, positions, strides, strict=True)
            ]
            slices = map(slice, starts, stops, strides)
            shifted.append(a[(slice(None), *slices)].reshape(-1, groups, inner))
        return jnp.stack(shifted, axis=2).swapaxes(0, 1).reshape(groups, -1, len(shifted) * inner)

    def columns(c: jax.Array) -> jax.Array:
        c = c.transpose(layout.out_spec[0], *layout.out_spec[2:], layout.out_spec[1])
        return c.reshape(-1, groups, outer).swapaxes(0, 1)

    def operand(gradient: jax.Array) -> jax.Array:
        gradient = gradient.reshape(groups, -1, outer).swapaxes(0, 1)
        plain = gradient.reshape(*windows, inner, groups * outer)
        axes = [*window_axes, in_axis, out_axis]
        return plain.transpose([axes.index(axis) for axis in range(len(axes))])

    return MatrixProduct(1, rows, columns, operand)


def _gather(parameters: Any, operands: Sequence[Any]) -> Product | None:
    """Return the lookup of whole rows of a table, as embeddings do it."""
    table, indices = operands
    numbers = parameters["dimension_numbers"]
    last = len(indices.shape) - 1
    if (
        len(table.shape) != 2
        or indices.shape[last] != 1
        or numbers.collapsed_slice_dims != (0,)
        or numbers.start_index_map != (0,)
        or numbers.operand_batching_dims
        or numbers.offset_dims != (last,)
        or tuple(parameters["slice_sizes"]) != (1, table.shape[1])
    ):
        return None
    return Lookup(0, table.shape, {"mode": parameters["mode"]})
