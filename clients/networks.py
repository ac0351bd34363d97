"""Small NNX networks that the ready-made tasks train."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import Conv, max_pool_2x2


class MLP(nnx.Module):
    """Linear layers with ReLU between them over flattened inputs; no hidden layer is logistic regression."""

    def __init__(self, in_features: int, out_features: int, *, hidden: Sequence[int], rngs: nnx.Rngs) -> None:
        sizes = [in_features, *hidden, out_features]
        self.layers = nnx.List(nnx.Linear(before, after, rngs=rngs) for before, after in pairwise(sizes))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits ``(b, out_features)``."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class CNN(nnx.Module):
    """Two 3×3 convolutions, each with ReLU and 2×2 max-pool, then one hidden layer."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        out_features: int,
        *,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 64,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, depth = image_shape
        first, second = channels
        self.conv1 = Conv(depth, first, (3, 3), rngs=rngs)
        self.conv2 = Conv(first, second, (3, 3), rngs=rngs)
        self.dense = nnx.Linear((height // 4) * (width // 4) * second, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, out_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits ``(b, out_features)`` of images ``(b, h, w, c)``."""
        x = max_pool_2x2(nnx.relu(self.conv1(x)))
        x = max_pool_2x2(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.output(x)


class LeNet(nnx.Module):
    """LeCun et al. 1998's small CNN as PyTorch's and Flower's tutorials have it: 62,006 parameters.

    Two 5×5 convolutions without padding (6 and 16 channels), each with ReLU and 2×2 max-pool, then hidden
    layers of 120 and 84.
    """

    def __init__(self, image_shape: tuple[int, int, int], out_features: int, *, rngs: nnx.Rngs) -> None:
        height, width, depth = image_shape
        self.conv1 = Conv(depth, 6, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        pooled = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
        self.head = MLP(pooled[0] * pooled[1] * 16, out_features, hidden=(120, 84), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits ``(b, out_features)`` of images ``(b, h, w, c)``, h and w at least 16."""
        x = max_pool_2x2(nnx.relu(self.conv1(x)))
        x = max_pool_2x2(nnx.relu(self.conv2(x)))
        return self.head(x)


class TransformerBlock(nnx.Module):
    """Causal self-attention and a two-layer MLP of four times the width, each after a LayerNorm."""

    def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.project = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``(b, t, width)`` of ``(b, t, width)``."""
        x = x + self.project(self._attend(self.qkv(self.norm1(x))))
        return x + self.contract(nnx.gelu(self.expand(self.norm2(x))))

    def _attend(self, qkv: jax.Array) -> jax.Array:
        """Return the attention of ``(b, t, 3 * width)``, each position to itself and those before."""
        batch, length, _ = qkv.shape
        query, key, value = jnp.moveaxis(qkv.reshape(batch, length, 3, self.heads, -1), 2, 0)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return attended.reshape(batch, length, -1)


class Transformer(nnx.Module):
    """A decoder-only transformer: for every position, logits of the next token."""

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        rngs: nnx.Rngs,
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List(TransformerBlock(width, heads=heads, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits ``(b, t, vocabulary)`` of tokens ``(b, t)``, t at most ``context``."""
        hidden = self.tokens(x) + self.positions(jnp.arange(x.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        return self.output(self.norm(hidden))
