"""Seconds to train a cohort: one program for all clients against one call per client and one per step.

    python benchmarks/trainer.py --quick             # 20 clients, three repeats
    python benchmarks/trainer.py --models mlp lenet --clients 100
    python benchmarks/trainer.py --convolutions      # where a convolution is faster as a product with patches

A cohort is ``--clients`` clients with 100 examples each, batch 10, one epoch of SGD. The ways take turns
within a repeat, so that the machine's other load hits all of them. Printed are medians after one warm-up, and
how many times faster than a naive client they are: a jitted step called from a Python loop, parameters in and
out as NumPy. ``first`` is the warm-up, with compilation or what the persistent cache holds of it. Two devices
are XLA host devices in a process of their own. No network, no Flower: what is left is the trainer.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from clients import layers
from clients.losses import softmax_cross_entropy
from clients.models import nnx_model
from clients.networks import MLP, LeNet, Transformer
from clients.supervised import Supervised
from fl_plugins.pytrees import unflatten_named
from fl_plugins.training import ClientData, Dataset, Model, NamedArrays, Task

EXAMPLES, BATCH, RATE, CONTEXT, VOCABULARY = 100, 10, 0.05, 32, 65


class FlaxLeNet(LeNet):
    """LeNet as a user writes it, with Flax's own convolutions and pooling."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__((32, 32, 3), 10, rngs=rngs)
        self.conv1 = nnx.Conv(3, 6, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.head(x)


NETWORKS: dict[str, tuple[Callable[[nnx.Rngs], Any], tuple[int, ...]]] = {
    "mlp": (lambda rngs: MLP(784, 10, hidden=(200,), rngs=rngs), (784,)),
    "lenet": (lambda rngs: LeNet((32, 32, 3), 10, rngs=rngs), (32, 32, 3)),
    "flax-lenet": (FlaxLeNet, (32, 32, 3)),
    "transformer": (lambda rngs: Transformer(VOCABULARY, context=CONTEXT, rngs=rngs), (CONTEXT,)),
}


def data_of(model: str, client: int) -> Dataset:
    rng = np.random.default_rng(client)
    shape = NETWORKS[model][1]
    if model == "transformer":
        text = rng.integers(0, VOCABULARY, (EXAMPLES, CONTEXT + 1)).astype(np.int32)
        return Dataset(text[:, :-1], text[:, 1:])
    x = rng.standard_normal((EXAMPLES, *shape), dtype=np.float32)
    return Dataset(x, rng.integers(0, 10, EXAMPLES).astype(np.int32))


def task_of(name: str, model: Model) -> Task:
    def load_partition(partition_id: int, num_partitions: int) -> ClientData:  # noqa: ARG001
        data = data_of(name, partition_id)
        return ClientData(data, data.take(np.arange(0)))

    return Task(name=name, model=model, loss=softmax_cross_entropy, load_partition=load_partition)


def naive(model: Model) -> Callable[[NamedArrays, Dataset, int], Any]:
    """A client as many are written: one jitted step, called for every batch."""
    optimizer = optax.sgd(RATE)

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, _ = model.apply({"params": params}, x, train=True, key=jax.random.key(0))
            return softmax_cross_entropy(outputs, y).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    def train(params: Any, data: Dataset, seed: int) -> Any:
        state, total = optimizer.init(params), 0.0
        order = np.random.default_rng(seed).permutation(len(data))
        for first in range(0, len(data), BATCH):
            rows = order[first : first + BATCH]
            params, state, value = step(params, state, data.x[rows], data.y[rows])
            total += float(value)
        return jax.device_get(params), total

    return train


def measure(name: str, ways: list[str], *, clients: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Return ``(first, median)`` seconds per cohort of each way."""
    model = nnx_model(NETWORKS[name][0])
    datasets = [data_of(name, client) for client in range(clients)]
    seeds = list(range(clients))
    options: dict[str, Any] = {
        "optimizer": "sgd",
        "learning_rate": RATE,
        "batch_size": BATCH,
        "local_epochs": 1,
    }
    task = task_of(name, model)
    start = Supervised(task, **options).init(seed=0)
    params = unflatten_named(start, jax.eval_shape(model.init, jax.random.key(0)))["params"]
    loop, vmap = (Supervised(task, mapping=mapping, **options) for mapping in ("loop", "vmap"))
    step = naive(model)
    calls: dict[str, Callable[[], Any]] = {
        "naive": lambda: [step(params, data, seed) for data, seed in zip(datasets, seeds, strict=True)],
        "one by one": lambda: [
            loop.train(start, data, seed=seed) for data, seed in zip(datasets, seeds, strict=True)
        ],
        "loop": lambda: loop.train_cohort(start, datasets, seeds=seeds),
        "vmap": lambda: vmap.train_cohort(start, datasets, seeds=seeds),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + repeats):
        for way in ways:
            began = time.perf_counter()
            calls[way]()
            times[way].append(time.perf_counter() - began)
    return {way: (first, statistics.median(rest)) for way, (first, *rest) in times.items()}


def measure_two_devices(name: str, *, clients: int, repeats: int) -> tuple[float, float]:
    finished = subprocess.run(
        [sys.executable, __file__, "--models", name, "--ways", "loop", "--raw",
         "--clients", str(clients), "--repeats", str(repeats)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    first, median = map(float, finished.stdout.split())
    return first, median


CONVOLUTIONS = [  # batch, height and width, window, input channels
    (10, 32, 5, 3), (10, 14, 5, 6), (10, 28, 3, 1), (10, 14, 3, 16), (32, 32, 5, 3), (256, 32, 5, 3),
]  # fmt: skip


def compare_convolutions() -> None:
    """Print CPU milliseconds in a loop, as training is one, of value and kernel's gradient, either way."""
    print("batch  size window  in out |  value: lax product | gradient: lax product")
    rng = np.random.default_rng(0)
    for batch, size, window, inputs in CONVOLUTIONS:
        for outputs in (4, 6, 8, 16, 32):
            x = rng.standard_normal((batch, size, size, inputs), dtype=np.float32)
            kernel = rng.standard_normal((window, window, inputs, outputs), dtype=np.float32)
            given = rng.standard_normal((batch, *2 * (size - window + 1,), outputs), dtype=np.float32)

            def value(kernel: jax.Array, x: jax.Array) -> jax.Array:
                return layers.conv_general_dilated(
                    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )

            def gradient(kernel: jax.Array, x: jax.Array, given: jax.Array) -> jax.Array:
                return jax.vjp(lambda kernel: value(kernel, x), kernel)[1](given)[0]

            times = []
            for function, arguments in ((value, (kernel, x)), (gradient, (kernel, x, given))):
                for few, most in ((0, 0), (outputs + 1, 2**30)):
                    layers.FEW_CHANNELS, layers.MAX_PATCHES = few, most
                    times.append(cpu_ms(function, *arguments, steps=max(1, 200 // batch)))
            print(
                f"{batch:5} {size:5} {window:6} {inputs:3} {outputs:3} | {times[0]:11.3f} {times[1]:7.3f}"
                f" | {times[2]:13.3f} {times[3]:7.3f}",
                flush=True,
            )


def cpu_ms(function: Callable[..., jax.Array], *arguments: Any, steps: int) -> float:
    """Return the least of five times, over ``steps`` that depend on each other."""

    @jax.jit
    def run(*arguments: jax.Array) -> jax.Array:
        def step(_: Any, shift: jax.Array) -> jax.Array:
            return jnp.max(function(*(argument + shift for argument in arguments))) * 1e-30

        return lax.fori_loop(0, steps, step, jnp.float32(0))

    run(*arguments).block_until_ready()
    times = []
    for _ in range(5):
        began = time.process_time()
        run(*arguments).block_until_ready()
        times.append(time.process_time() - began)
    return min(times) / steps * 1e3


def main() -> None:
    ways = ["naive", "one by one", "loop", "vmap"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="20 clients, three repeats, no vmap of convolutions"
    )
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=0, help="default 3 with --quick, else 7")
    parser.add_argument("--convolutions", action="store_true", help="compare forms of convolutions instead")
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convolutions:
        compare_convolutions()
        return
    repeats = options.repeats or (3 if options.quick else 7)
    size = {"clients": options.clients, "repeats": repeats}
    if options.raw:
        ((first, median),) = measure(options.models[0], ["loop"], **size).values()
        print(first, median)
        return
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {Path(sys.executable).name}, {size}")
    print(f"{'model':12} {'way':12} {'first s':>8} {'s/cohort':>9} {'× naive':>8}")
    for name in options.models:
        chosen = [way for way in options.ways if not (options.quick and way == "vmap" and "lenet" in name)]
        results = measure(name, chosen, **size)
        results["2 devices"] = measure_two_devices(name, **size)
        base = results.get("naive", next(iter(results.values())))[1]
        for way, (first, median) in results.items():
            print(f"{name:12} {way:12} {first:8.2f} {median:9.4f} {base / median:8.2f}", flush=True)


if __name__ == "__main__":
    main()
