"""A JAX client for Flower as one writes it first: a jitted step in a Python loop over batches.

The step is built once per process; rebuilt per message, as in Flower's JAX quickstart, it would compile anew
every time.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import jax_models
from .workload import (
    BATCH,
    EXAMPLES,
    LEARNING_RATE,
    Examples,
    client_data,
)

app = ClientApp()


@functools.cache
def _stepper(model: str) -> tuple[Any, Any]:
    """Return the optimizer and the jitted step."""
    loss = jax_models.make_loss(jax_models.make_apply(model))
    optimizer = optax.sgd(LEARNING_RATE[model])

    @jax.jit
    def step(parameters: Any, state: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, x, y)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return optimizer, step


@functools.cache
def _data(model: str, partition: int) -> Examples:
    return client_data(model, partition)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one epoch."""
    model = str(message.content["config"]["model"])
    data = _data(model, int(context.node_config["partition-id"]))
    optimizer, step = _stepper(model)
    parameters = {name: array.numpy() for name, array in message.content["arrays"].items()}
    state, losses = optimizer.init(parameters), []
    for rows in np.random.default_rng().permutation(EXAMPLES).reshape(-1, BATCH):
        parameters, state, loss = step(parameters, state, data.x[rows], data.y[rows])
        losses.append(loss)
    metrics = MetricRecord(
        {"num-examples": EXAMPLES, "train_loss": float(np.mean(losses)), "steps": len(losses)}
    )
    content = RecordDict({"arrays": _record(parameters), "metrics": metrics})
    return Message(content, reply_to=message)


def _record(parameters: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in parameters.items()})
