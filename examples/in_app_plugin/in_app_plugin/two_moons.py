"""A task of one's own: a small network on scikit-learn's two moons."""

import numpy as np
from flax import nnx
from jax import numpy as jnp
from sklearn.datasets import make_moons

from clients.losses import accuracy, softmax_cross_entropy
from clients.models import nnx_model
from fl_plugins.registry import Kind, register
from fl_plugins.training import ClientData, Dataset, Task


class Network(nnx.Module):
    """Two features, 16 hidden units, two classes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(2, 16, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


@register(Kind.TASK, "two_moons")
def two_moons(*, noise: float = 0.1, examples_per_client: int = 100) -> Task:
    """Two interleaving half circles; every client draws its own examples.

    Parameters
    ----------
    noise : float
        Standard deviation of the noise.
    examples_per_client : int
        Training examples of each client.
    """

    def draw(count: int, seed: int) -> Dataset:
        x, y = make_moons(count, noise=noise, random_state=seed)
        return Dataset(x.astype(np.float32), y.astype(np.int32))

    return Task(
        name="two_moons",
        model=nnx_model(Network),
        loss=softmax_cross_entropy,
        metrics={"accuracy": accuracy},
        load_partition=lambda partition, _: ClientData(
            draw(examples_per_client, partition), draw(20, 10_000 + partition)
        ),
        load_test=lambda: draw(500, 99_999),
        num_classes=2,
    )
