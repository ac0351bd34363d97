"""The federation that the robustness benchmark trains: its data, its model, and a round's honest updates."""

import gzip
import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clients.partition import dirichlet, hold_out, iid
from clients.tasks.digits import load_images
from fl_plugins import attacks as hostile
from fl_plugins.seeds import derive_rng

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 10
HIDDEN = 32
BATCH = 32
TARGET = 0
TRIGGER = hostile.pixel_trigger(size=2, value=1.0)


@dataclass(frozen=True)
class Federation:
    """Padded client data ``(n, capacity, k)``, their sizes ``(n,)`` and the common test set."""

    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    side: int


def load(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(N, side, side)`` in [0, 1] and labels; MNIST's are averaged 2 × 2 to 14 × 14."""
    if dataset == "digits":
        data = load_images()
        return data.x[..., 0], data.y
    folder = mnist_folder()
    images = np.frombuffer(gzip.decompress(next(folder.glob("*images*")).read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress(next(folder.glob("*labels*")).read_bytes()), np.uint8, offset=8)
    pooled = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    return pooled.astype(np.float32), labels.astype(np.int32)


def mnist_folder() -> Path:
    """Return where MNIST-10k is, or would be."""
    return Path(os.environ.get("FL_PLUGINS_DATA", ROOT.parent / "shared" / "data")) / "mnist10k"


@cache
def federation(dataset: str, heterogeneity: str, num_clients: int, seed: int) -> Federation:
    """Deal 80 % of the examples to the clients; the rest, stratified, is the test set."""
    images, labels = load(dataset)
    rng = derive_rng(seed, "robustness", dataset, heterogeneity)
    rest, test = hold_out(labels, 0.2, rng=rng)
    if heterogeneity == "IID":
        parts = iid(labels[rest], num_clients, rng=rng)
    else:
        alpha = float(heterogeneity.removeprefix("Dirichlet "))
        parts = dirichlet(labels[rest], num_clients, alpha=alpha, rng=rng, min_examples=8)
    capacity = max(map(len, parts))
    # Rows beyond a client's size are never drawn.
    rows = np.stack([np.resize(rest[part], capacity) for part in parts])
    flat = images.reshape(len(images), -1)
    sizes = np.array([len(part) for part in parts], np.int32)
    return Federation(flat[rows], labels[rows], sizes, flat[test], labels[test], images.shape[1])


def shapes(num_inputs: int) -> list[tuple[int, ...]]:
    """Return the parameters' shapes, in the order in which they lie in the vector."""
    return [(num_inputs, HIDDEN), (HIDDEN,), (HIDDEN, NUM_CLASSES), (NUM_CLASSES,)]


def initial(num_inputs: int, rng: np.random.Generator) -> np.ndarray:
    """Return He-initialised parameters ``(d,)``; biases are zero."""
    return np.concatenate(
        [
            rng.normal(0, np.sqrt(2 / shape[0]), shape).ravel() if len(shape) == 2 else np.zeros(shape)
            for shape in shapes(num_inputs)
        ]
    ).astype(np.float32)


def logits(parameters: Any, x: Any) -> Any:
    """Return ``(b, 10)`` for ``(b, k)``."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes(x.shape[-1])])
    w1, b1, w2, b2 = (
        part.reshape(shape)
        for part, shape in zip(jnp.split(parameters, ends[:-1]), shapes(x.shape[-1]), strict=True)
    )
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def _loss(parameters: Any, x: Any, y: Any) -> Any:
    return -jnp.mean(jax.nn.log_softmax(logits(parameters, x))[jnp.arange(len(y)), y])


@partial(jax.jit, static_argnames="steps")
def local_updates(parameters: Any, x: Any, y: Any, sizes: Any, seed: Any, rate: Any, *, steps: int) -> Any:
    """Return every client's update ``(n, d)`` after ``steps`` of SGD on batches drawn with replacement."""

    def one(x: Any, y: Any, size: Any, key: Any) -> Any:
        def step(current: Any, key: Any) -> Any:
            rows = jax.random.randint(key, (BATCH,), 0, size)
            return current - rate * jax.grad(_loss)(current, x[rows], y[rows]), None

        return jax.lax.scan(step, parameters, jax.random.split(key, steps))[0] - parameters

    return jax.vmap(one)(x, y, sizes, jax.random.split(jax.random.key(seed), x.shape[0]))


def predict(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return labels ``(b,)``; in NumPy, since it happens once a run."""
    with np.errstate(all="ignore"):
        w1, b1, w2, b2 = (
            part.reshape(shape)
            for part, shape in zip(
                np.split(parameters, np.cumsum([int(np.prod(s)) for s in shapes(x.shape[-1])])[:-1]),
                shapes(x.shape[-1]),
                strict=True,
            )
        )
        return np.argmax(np.maximum(x @ w1 + b1, 0) @ w2 + b2, axis=1)


def poisoned(data: Federation, attack: str, f: int) -> Federation:
    """Return the data with the hostile clients' poisoned, where the attack poisons data."""
    x, y = data.x.copy(), data.y.copy()
    if attack == "label flip":
        y[:f] = NUM_CLASSES - 1 - y[:f]
    elif attack == "backdoor":
        # Every second example; the batch is drawn from all of a client's rows.
        x[:f, ::2] = triggered(data, x[:f, ::2])
        y[:f, ::2] = TARGET
    return replace(data, x=x, y=y)


def triggered(data: Federation, x: np.ndarray) -> np.ndarray:
    """Return flat examples ``(..., k)`` with the trigger."""
    return TRIGGER(x.reshape(-1, data.side, data.side)).reshape(x.shape)
