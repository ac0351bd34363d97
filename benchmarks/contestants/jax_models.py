"""The models in plain JAX: ``apply(parameters, x) -> logits``, and their loss.

Convolution and pooling are chosen by the caller: JAX's own (what a user writes), or ``clients.layers``'.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .workload import BLOCKS, HEADS, WIDTH

Apply = Callable[[Any, Any], Any]


def lax_conv(x: Any, kernel: Any) -> Any:
    """Convolve without padding, NHWC and HWIO."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def lax_pool(x: Any) -> Any:
    """2×2 max-pool."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def own_conv(x: Any, kernel: Any) -> Any:
    """Convolve with this project's gradients."""
    from clients.layers import conv_general_dilated

    return conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def own_pool(x: Any) -> Any:
    """Pool with this project's gradients."""
    from clients.layers import max_pool_2x2

    return max_pool_2x2(x)


def make_apply(model: str, *, conv: Apply = lax_conv, pool: Callable[[Any], Any] = lax_pool) -> Apply:
    """Return the model's function."""

    def lenet(p: Any, x: Any) -> Any:
        x = pool(jax.nn.relu(conv(x, p["k1"]) + p["c1"]))
        x = pool(jax.nn.relu(conv(x, p["k2"]) + p["c2"]))
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["w1"] + p["b1"])
        return jax.nn.relu(x @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]

    return {"mlp": _mlp, "lenet": lenet, "charlm": _charlm}[model]


def per_example_loss(logits: Any, y: Any) -> Any:
    """Return cross-entropy ``(b,)``; over tokens it is averaged."""
    picked = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return losses if losses.ndim == 1 else losses.mean(axis=-1)


def make_loss(apply: Apply) -> Callable[[Any, Any, Any], Any]:
    """Return ``loss(parameters, x, y)``, averaged over the batch."""
    return lambda p, x, y: per_example_loss(apply(p, x), y).mean()


def _mlp(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def _charlm(p: Any, tokens: Any) -> Any:
    batch, length = tokens.shape
    h = p["embed"][tokens] + p["position"]
    causal = jnp.tril(jnp.ones((length, length), bool))
    for i in range(BLOCKS):
        q, k, v = jnp.split(_normalised(h) @ p[f"qkv{i}"], 3, axis=-1)
        q, k, v = (t.reshape(batch, length, HEADS, -1) for t in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH // HEADS) ** 0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        h = h + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, WIDTH) @ p[f"out{i}"]
        h = h + jax.nn.relu(_normalised(h) @ p[f"up{i}"]) @ p[f"down{i}"]
    return _normalised(h) @ p["head"]


def _normalised(h: Any) -> Any:
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
