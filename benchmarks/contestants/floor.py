"""The bare-XLA floor: one process, one program per round, nothing between the rounds.

``python -m contestants.floor --model lenet --rounds 12 --marks FILE --devices 2``

The cohort's clients are trained one after the other (``lax.map``), each in one ``fori_loop`` over its
steps; with two host devices, half of them on each (``shard_map``).
"""

import os
from typing import Any

from .marks import MarkWriter, contestant_parser
from .workload import (
    BATCH,
    EXAMPLES,
    LEARNING_RATE,
    NUM_CLIENTS,
    SAMPLED,
    STEPS,
    client_data,
    initial_parameters,
    test_data,
)


def main() -> None:
    parser = contestant_parser(__doc__)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    if options.devices > 1:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    run(options.model, options.rounds, MarkWriter(options.marks), devices=options.devices)


def run(model: str, rounds: int, marks: MarkWriter, *, devices: int) -> None:
    import jax
    import numpy as np

    from . import jax_models

    apply = jax_models.make_apply(model, conv=jax_models.own_conv, pool=jax_models.own_pool)
    train_round = make_round(jax_models.make_loss(apply), LEARNING_RATE[model], devices=devices)
    clients = [client_data(model, i) for i in range(NUM_CLIENTS)]
    xs, ys = np.stack([c.x for c in clients]), np.stack([c.y for c in clients])
    parameters, rng = jax.device_put(initial_parameters(model)), np.random.default_rng(1)
    for number in range(rounds):
        cohort = rng.choice(NUM_CLIENTS, SAMPLED, replace=False)
        parameters = train_round(parameters, xs[cohort], ys[cohort], jax.random.key(number))
        jax.block_until_ready(parameters)
        marks.round_ended()
    held_out = test_data(model)
    loss = float(jax.jit(jax_models.make_loss(apply))(parameters, held_out.x, held_out.y))
    marks.done(steps=rounds * SAMPLED * STEPS, loss=loss)


def make_round(loss: Any, learning_rate: float, *, devices: int) -> Any:
    """Return ``train_round(parameters, xs, ys, key)``, xs being ``(m, n, ...)``, jitted."""
    import jax
    from jax import lax
    from jax.sharding import Mesh, PartitionSpec

    def train(parameters: Any, x: Any, y: Any, key: Any) -> Any:
        order = jax.random.permutation(key, EXAMPLES)

        def step(number: Any, parameters: Any) -> Any:
            rows = lax.dynamic_slice_in_dim(order, number * BATCH, BATCH)
            gradients = jax.grad(loss)(parameters, x[rows], y[rows])
            return jax.tree.map(lambda p, g: p - learning_rate * g, parameters, gradients)

        return lax.fori_loop(0, STEPS, step, parameters)

    def cohort(parameters: Any, xs: Any, ys: Any, keys: Any) -> Any:
        trained = lax.map(lambda client: train(parameters, *client), (xs, ys, keys))
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), trained)

    if devices == 1:
        sharded = cohort
    else:
        mesh = Mesh(jax.devices()[:devices], ("clients",))
        clients, everywhere = PartitionSpec("clients"), PartitionSpec()

        def part(parameters: Any, xs: Any, ys: Any, keys: Any) -> Any:
            return lax.pmean(cohort(parameters, xs, ys, keys), "clients")

        sharded = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(everywhere, clients, clients, clients),
            out_specs=everywhere,
            check_vma=False,
        )

    @jax.jit
    def train_round(parameters: Any, xs: Any, ys: Any, key: Any) -> Any:
        return sharded(parameters, xs, ys, jax.random.split(key, xs.shape[0]))

    return train_round


if __name__ == "__main__":
    main()
