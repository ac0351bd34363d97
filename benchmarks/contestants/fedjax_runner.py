"""FedJAX: its federated averaging over in-memory clients, as its documentation has it.

``python -m contestants.fedjax_runner --model lenet --rounds 12 --marks FILE``
"""

from typing import Any

import jax
import numpy as np

if not hasattr(jax, "tree_map"):
    # The newest release, 0.0.17, calls this name, which JAX has since taken away. With it FedJAX runs on the
    # same JAX as the others, which is faster than the old one that still has it.
    jax.tree_map = jax.tree.map

import fedjax
from fedjax.algorithms import fed_avg

from . import jax_models
from .marks import MarkWriter, contestant_parser
from .workload import (
    BATCH,
    LEARNING_RATE,
    NUM_CLIENTS,
    SAMPLED,
    client_data,
    initial_parameters,
    test_data,
)


def main() -> None:
    parser = contestant_parser(__doc__)
    options = parser.parse_args()
    marks = MarkWriter(options.marks)
    loss = jax_models.make_loss(jax_models.make_apply(options.model))

    def gradient(parameters: Any, batch: Any, _: Any) -> Any:
        return jax.grad(loss)(parameters, batch["x"], batch["y"])

    batching = fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1)
    algorithm = fed_avg.federated_averaging(
        gradient,
        fedjax.optimizers.sgd(LEARNING_RATE[options.model]),
        fedjax.optimizers.sgd(1.0),
        batching,
    )
    datasets = []
    for number in range(NUM_CLIENTS):
        data = client_data(options.model, number)
        datasets.append(fedjax.ClientDataset({"x": data.x, "y": data.y}))
    state = algorithm.init(jax.device_put(initial_parameters(options.model)))
    rng, steps = np.random.default_rng(1), 0
    batches = sum(1 for _ in datasets[0].shuffle_repeat_batch(batching))
    for number in range(options.rounds):
        cohort = rng.choice(NUM_CLIENTS, SAMPLED, replace=False)
        keys = jax.random.split(jax.random.PRNGKey(number), SAMPLED)
        state, _ = algorithm.apply(
            state, [(int(i), datasets[i], key) for i, key in zip(cohort, keys, strict=True)]
        )
        jax.block_until_ready(state.params)
        steps += batches * SAMPLED
        marks.round_ended()
    held_out = test_data(options.model)
    marks.done(steps=steps, loss=float(jax.jit(loss)(state.params, held_out.x, held_out.y)))


if __name__ == "__main__":
    main()
