"""Small NNX networks that the ready-made tasks train."""

from collections.abc import Sequence
from itertools import pairwise

import jax
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
