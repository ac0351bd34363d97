"""DP-SGD's steps (Abadi et al. 2016, Algorithm 1) as one XLA program with any optax optimizer.

Notation: Poisson batches of B expected examples; clip norm C; noise multiplier z. A step is
θ ← Optimizer(θ, (Σᵢ gᵢ min(1, C/‖gᵢ‖) + z C N(0, 1)) / B): B is the expected size, whoever is in the batch.

A batch is computed in passes of a fixed number of rows, as many as it needs: the number is traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fl_plugins.errors import ConfigError, StructureError
from fl_plugins.training import Model, PerExample, PyTree

from .clipping import ClippedBatch, LossOfOne
from .noise import normals, words_needed
from .tracing import TracedLoss, trace_loss


class Carry(NamedTuple):
    """What goes from step to step."""

    params: PyTree
    state: PyTree
    optimizer_state: PyTree


def trace_model(model: Model, loss: PerExample, like: dict[str, PyTree], x: Any, y: Any) -> TracedLoss:
    """Trace the loss of one example; ``like``, ``x``, ``y`` give shapes and dtypes.

    Raises
    ------
    ConfigError
        If the new state depends on the example.
    StructureError
        If the loss is not one value per example.
    """
    state = {name: tree for name, tree in like.items() if name != "params"}
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = trace_loss(_loss_of_one(model, loss), like["params"], state, x, y, key)
    num_state = len(jax.tree.leaves(state))
    sources = [*range(traced.num_leaves), *range(traced.num_leaves + num_state, traced.num_inputs)]
    if any(traced.depends_on(sources)[1:]):
        raise ConfigError(
            "dp_supervised: the model's state outside 'params' is computed from the examples, which would "
            "leave the client without noise; use layers without such state (GroupNorm, LayerNorm)."
        )
    return traced


def make_steps(
    traced: TracedLoss,
    *,
    optimizer: optax.GradientTransformation,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: int,
    physical_batch_size: int,
    proximal_mu: float,
) -> Callable[..., Carry]:
    """Return ``steps(carry, anchor, x, y, rows, counts, words, first, num_steps, key)``.

    ``rows`` ``(s, r)`` are the members of the batches, ``counts[t]`` of them; ``words`` ``(s, w)`` the random
    bits of the noise; ``first`` is the number of the first of the ``num_steps <= s`` steps.
    """
    clipped = ClippedBatch(traced=traced, clip_norm=clip_norm)
    noise_scale = noise_multiplier * clip_norm

    def steps(
        carry: Carry,
        anchor: PyTree,
        x: jax.Array,
        y: jax.Array,
        rows: jax.Array,
        counts: jax.Array,
        words: jax.Array,
        first: jax.Array,
        num_steps: jax.Array,
        key: jax.Array,
    ) -> Carry:
        size = min(physical_batch_size, x.shape[0])
        members = jnp.pad(rows, [(0, 0), (0, size)])

        def step(number: jax.Array, carry: Carry) -> Carry:
            params, state, optimizer_state = carry
            step_key = jax.random.fold_in(key, first + number)

            def one_pass(index: jax.Array, total: PyTree) -> PyTree:
                start = index * size
                batch = lax.dynamic_slice(members, (number, start), (1, size))[0]
                real = start + jnp.arange(size, dtype=jnp.int32) < counts[number]
                keys = jax.random.split(jax.random.fold_in(step_key, index), size)
                gradients = clipped(params, state, x[batch], y[batch], keys, real).gradients
                return jax.tree.map(jnp.add, total, gradients)

            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
            passes = (counts[number] + (size - 1)) // size
            total = lax.fori_loop(0, passes, one_pass, nothing)
            # Once a step, whoever is in the batch: the number of passes is private.
            state = traced.state_after(params, (state, x[0], y[0], step_key))
            total = _noisy(total, words[number], scale=noise_scale)
            gradients = jax.tree.map(
                lambda leaf, like: (leaf / jnp.float32(expected_batch_size)).astype(like.dtype), total, params
            )
            if proximal_mu:
                gradients = jax.tree.map(
                    lambda g, w, w_global: g + proximal_mu * (w - w_global), gradients, params, anchor
                )
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            return Carry(optax.apply_updates(params, updates), state, optimizer_state)

        result: Carry = lax.fori_loop(0, num_steps, step, carry)
        return result

    return steps


def noise_words(params: PyTree) -> int:
    """Return how many random words the noise of one step takes."""
    return sum(words_needed(leaf.size) for leaf in jax.tree.leaves(params))


def _noisy(total: PyTree, words: jax.Array, *, scale: float) -> PyTree:
    """Return ``total`` with independent normal noise of standard deviation ``scale`` on every number."""
    leaves, structure = jax.tree.flatten(total)
    # The same words by either branch, in memory of their own: from a row that is picked by a running index
    # XLA:CPU computes the noise number by number, which takes four times as long. Equal branches are merged.
    words = lax.cond(words[0] > 0, lambda row: row, lambda row: row + jnp.uint32(0), words)
    noisy, start = [], 0
    for leaf in leaves:
        needed = words_needed(leaf.size)
        noise = normals(words[start : start + needed], leaf.size).reshape(leaf.shape)
        noisy.append(leaf + jnp.float32(scale) * noise)
        start += needed
    return jax.tree.unflatten(structure, noisy)


def _loss_of_one(model: Model, loss: PerExample) -> LossOfOne:
    """Return the loss of one example, and the new state."""

    def loss_of_one(params: PyTree, state: PyTree, x: Any, y: Any, key: Any) -> tuple[Any, PyTree]:
        outputs, new_state = model.apply({"params": params, **state}, x[None], train=True, key=key)
        values = loss(outputs, y[None])
        if jnp.shape(values) != (1,):
            raise StructureError(
                f"loss: returned shape {jnp.shape(values)} for a batch of 1, but one value per example, "
                "shape (1,), is needed; return per-example values, not their mean."
            )
        return values[0], new_state

    return loss_of_one
