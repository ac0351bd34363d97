"""Per-example losses and metrics: ``(outputs, y) -> (b,)``, traceable by JAX."""

import jax
import jax.numpy as jnp
import optax

__all__ = ["accuracy", "softmax_cross_entropy", "squared_error"]


def softmax_cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross entropy of logits ``(b, ..., classes)`` and integer labels ``(b, ...)``, as ``(b,)``.

    Further axes (the positions of a sequence) are averaged.
    """
    return _per_example_mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return 1 where the largest logit is the label's and 0 elsewhere, as float32 ``(b,)``; axes averaged."""
    return _per_example_mean((jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32))


def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the squared error, averaged over all axes but the first, as ``(b,)``.

    ``y`` of shape ``(b,)`` is compared with outputs of shape ``(b,)`` or ``(b, 1)``.
    """
    return _per_example_mean(jnp.square(outputs - y.reshape(outputs.shape)))


def _per_example_mean(values: jax.Array) -> jax.Array:
    """Average over every axis but the first."""
    return values.reshape(values.shape[0], -1).mean(axis=1)
