"""Small tasks and a slow oracle of local training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fl_plugins.training import ClientData, Dataset, Model, Task

FEATURES, CLASSES = 5, 3


def cross_entropy(outputs, y):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y)


def correct(outputs, y):
    return (outputs.argmax(-1) == y).astype(jnp.float32)


def mlp_model(dtype=jnp.float32):
    def init(key):
        first, second = jax.random.split(key)
        return {
            "params": {
                "first": {
                    "kernel": jax.random.normal(first, (FEATURES, 7), dtype) * 0.5,
                    "bias": jnp.zeros(7, dtype),
                },
                "second": {"kernel": jax.random.normal(second, (7, CLASSES), dtype) * 0.5},
            }
        }

    def apply(variables, x, *, train, key):
        layers = variables["params"]
        hidden = jnp.tanh(x.astype(dtype) @ layers["first"]["kernel"] + layers["first"]["bias"])
        return hidden @ layers["second"]["kernel"], {}

    return Model(init=init, apply=apply)


def task_of(model, **changes):
    def no_data(partition_id, num_partitions):
        return ClientData(examples(10), examples(2))

    options = {
        "name": "toy",
        "model": model,
        "loss": cross_entropy,
        "metrics": {"accuracy": correct},
        "load_partition": no_data,
        "num_classes": CLASSES,
    }
    return Task(**{**options, **changes})


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    return Dataset(x, rng.integers(0, CLASSES, n).astype(np.int32))


def key_of(seed):
    return jax.random.wrap_key_data(
        jnp.array([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32), impl="threefry2x32"
    )


def oracle(task, optimizer, variables, data, *, seed, epochs, batch_size, mu=0.0, fill=False):
    """ClientUpdate as a Python loop: one gradient and one optax step per batch, nothing padded.

    The last batch is the ragged one; ``fill`` fills it from the start of the epoch's order, with its loss
    over the real examples only (for models with batch statistics). Returns variables and mean epoch losses.
    """
    params = variables["params"]
    state = {name: tree for name, tree in variables.items() if name != "params"}
    start, optimizer_state, losses = params, optimizer.init(params), []
    n = len(data)
    for epoch in range(epochs):
        shuffle_key, model_key = jax.random.split(jax.random.fold_in(key_of(seed), epoch))
        order = np.argsort(np.asarray(jax.random.bits(shuffle_key, (n,), jnp.uint32)), kind="stable")
        total = 0.0
        for number, first in enumerate(range(0, n, batch_size)):
            rows = order[first : first + batch_size]
            real = len(rows)
            if fill:
                rows = np.concatenate([rows, *[order] * batch_size])[:batch_size]

            key = jax.random.fold_in(model_key, number)

            def objective(params, state=state, rows=rows, real=real, key=key):
                outputs, new_state = task.model.apply(
                    {"params": params, **state}, data.x[rows], train=True, key=key
                )
                loss = task.loss(outputs, data.y[rows])[:real].mean()
                gaps = jax.tree.map(lambda w, w0: jnp.sum(jnp.square(w - w0)), params, start)
                return loss + mu / 2 * sum(jax.tree.leaves(gaps)), (loss, new_state)

            gradients, (loss, state) = jax.grad(objective, has_aux=True)(params)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            params = optax.apply_updates(params, updates)
            total += float(loss) * real
        losses.append(total / n)
    return {"params": params, **state}, losses
