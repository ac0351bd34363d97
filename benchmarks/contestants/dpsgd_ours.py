# ruff: noqa: E402
"""One of our contestants of ``benchmarks/privacy_dpsgd.py``: prints examples per CPU-second."""

import os
import sys
import time

os.sched_setaffinity(0, {0})  # before any library starts its threads

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from clients.dp_sgd.randomness import SystemRandom
from clients.dp_sgd.steps import Carry, _noisy, make_steps, noise_words, trace_model
from clients.local_train import make_local_train
from clients.losses import softmax_cross_entropy
from clients.models import nnx_model
from clients.networks import MLP

BATCH, STEPS, REPEATS = 128, 10, 6


class SmallCNN(nnx.Module):
    """The 26,010-parameter MNIST CNN of TF-Privacy's and Opacus' tutorials."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (8, 8), strides=(2, 2), padding=((3, 3), (3, 3)), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (4, 4), strides=(2, 2), padding="VALID", rngs=rngs)
        self.dense, self.output = nnx.Linear(512, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (1, 1))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (1, 1))
        return self.output(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


NETWORKS = {"mlp": lambda rngs: MLP(784, 10, hidden=(256,), rngs=rngs), "cnn": SmallCNN}


def main(name: str, network: str) -> None:
    model = nnx_model(NETWORKS[network])
    variables = model.init(jax.random.key(0))
    params = variables["params"]
    rng = np.random.default_rng(0)
    n = BATCH * STEPS
    x = rng.normal(size=(n, 28, 28, 1)).astype(np.float32)
    y = rng.integers(0, 10, n).astype(np.int32)
    sgd = optax.sgd(0.05)
    words = np.empty((STEPS, noise_words(params)), np.uint32)
    SystemRandom().fill(words)
    on_device = jnp.asarray(words)

    def noisy_update(gradients, step, params=None):
        noisy = _noisy(gradients, on_device[step], scale=1e-3)
        return sgd.update(noisy, sgd.init(params), params)[0], step + 1

    noisy_sgd = optax.GradientTransformation(lambda params: jnp.int32(0), noisy_update)
    if name == "words":

        def run():
            SystemRandom().fill(words)
            return ()
    elif name == "ghost + noise":
        shapes = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (x, y)]
        like = jax.eval_shape(model.init, jax.random.key(0))
        steps = make_steps(
            trace_model(model, softmax_cross_entropy, like, *shapes), optimizer=sgd, clip_norm=1.0,
            noise_multiplier=1.0, expected_batch_size=BATCH, physical_batch_size=BATCH, proximal_mu=0.0,
        )  # fmt: skip
        rows, counts = np.arange(n, dtype=np.int32).reshape(STEPS, BATCH), np.full(STEPS, BATCH, np.int32)
        carry, program = Carry(params, {}, sgd.init(params)), jax.jit(steps)

        def run():
            return program(
                carry, params, x, y, rows, counts, words, np.int32(0), np.int32(STEPS), jax.random.key(0)
            )
    else:
        optimizer = sgd if name == "plain" else noisy_sgd
        local = jax.jit(
            make_local_train(
                model, softmax_cross_entropy, optimizer=optimizer, local_epochs=1, batch_size=BATCH,
                proximal_mu=0.0,
            )
        )  # fmt: skip

        def run():
            return local(variables, x, y, np.int32(n), jax.random.key(0))

    times = []
    for _ in range(1 + REPEATS):
        start = time.process_time()
        jax.block_until_ready(run())
        times.append(time.process_time() - start)
    print(n / min(times[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
