"""The sum of clipped per-example gradients of a batch, from one forward and one backward pass."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fl_plugins.training import PyTree

from .products import ROUNDING, Sum, squares, used
from .tracing import BookKept, TracedLoss

LossOfOne = Callable[..., tuple[Any, PyTree]]
"""``(params, state, x, y, key)`` of one example to (its loss, new state)."""


class ClippedSum(NamedTuple):
    """What a batch gives.

    ``gradients`` is Σᵢ mᵢ gᵢ min(1, C/‖gᵢ‖) in float32, ``norms`` are the ‖gᵢ‖ ``(b,)`` that were clipped by,
    never smaller than the true ones but for rounding that the bound allows for.
    """

    gradients: PyTree
    norms: jax.Array


@dataclass(frozen=True, kw_only=True)
class ClippedBatch:
    """Clips the gradients of examples that a :class:`TracedLoss` was traced for.

    Guarantees
    ----------
    One example, whatever is in it, moves ``gradients`` by at most ``clip_norm``: its loss is traced apart
    from the others'; its norm is rounded up, by an allowance (``products.ROUNDING``) that is not a worst-case
    bound; if its gradient has a number that is not finite, or a norm whose square float32 cannot hold, it
    contributes nothing.
    """

    traced: TracedLoss
    clip_norm: float

    def __call__(
        self, params: PyTree, state: PyTree, x: jax.Array, y: jax.Array, keys: jax.Array, mask: jax.Array
    ) -> ClippedSum:
        """Return the sum over the examples that ``mask`` ``(b,)`` names."""
        traced, size = self.traced, len(mask)
        leaves, structure = jax.tree.flatten(params)
        shapes = [traced.result_shape(kept) for kept in traced.book_kept]
        shifts = [jnp.zeros((size, *shape.shape), shape.dtype) for shape in shapes]
        copies = {
            leaf: jnp.broadcast_to(leaves[leaf], (size, *leaves[leaf].shape)) for leaf in traced.materialised
        }

        def total_loss(shifts: list[jax.Array], copies: dict[int, jax.Array]) -> Any:
            def loss_of_one(
                shifts: list[jax.Array], copies: dict[int, jax.Array], x: Any, y: Any, key: Any
            ) -> Any:
                values = [copies.get(number, leaf) for number, leaf in enumerate(leaves)]
                (loss, _), factors = traced.evaluate(values, (state, x, y, key), shifts)
                return loss, factors

            losses, factors = jax.vmap(loss_of_one)(shifts, copies, x, y, keys)
            return losses.sum(), factors

        (cotangents, per_example), factors = jax.grad(total_loss, argnums=(0, 1), has_aux=True)(
            shifts, copies
        )

        squared = jnp.zeros(size, jnp.float32)
        sums: dict[int, Sum] = {}
        for kept, factor, cotangent in zip(traced.book_kept, factors, cotangents, strict=True):
            norms, total = kept.product.book(factor, cotangent)
            squared += norms
            sums[kept.leaf] = functools.partial(_book_kept_sum, traced, kept, total)
        for leaf, gradients in per_example.items():
            squared += squares(gradients)
            sums[leaf] = functools.partial(_materialised_sum, gradients)
        norms = jnp.sqrt(squared)
        bound = jnp.float32(self.clip_norm * (1 - ROUNDING))
        factor = jnp.minimum(1, bound / jnp.maximum(norms, jnp.float32(2.0**-126)))
        weights = jnp.where(mask & jnp.isfinite(norms), factor, 0)
        gradients = [
            sums[number](weights) if number in sums else jnp.zeros(leaf.shape, jnp.float32)
            for number, leaf in enumerate(leaves)
        ]
        return ClippedSum(jax.tree.unflatten(structure, gradients), norms)


def _book_kept_sum(traced: TracedLoss, kept: BookKept, total: Sum, weights: jax.Array) -> jax.Array:
    """Return Σᵢ wᵢ gᵢ of a book-kept parameter."""
    return traced.back(kept, total(weights))


def _materialised_sum(gradients: jax.Array, weights: jax.Array) -> jax.Array:
    """Return Σᵢ wᵢ gᵢ of the gradients themselves."""
    return jnp.einsum("b,b...->...", weights, used(gradients, weights).astype(jnp.float32))
