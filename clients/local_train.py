"""Local training and evaluation as pure functions of arrays: each is one XLA program.

Local training is FedAvg's ClientUpdate (McMahan et al. 2017, Algorithm 1) with any optax optimizer, and
FedProx's proximal term μ/2·‖w − w_global‖² (Li et al. 2020, Algorithm 2). Notation: n examples in arrays
of capacity c >= n, batches of B, E epochs of S = ⌈n/B⌉ steps.

- S is *traced*: the inner loop is a ``fori_loop`` with a trip count known at run time, not a ``scan`` over
  c/B steps of which some are masked. Padding then costs no steps, and momentum or Adam see exactly the S
  real steps per epoch rather than S steps and some no-ops that a mask must undo.
- Every epoch visits the real examples once, in an order drawn from (key, epoch) alone. The order does not
  depend on c, so neither does the result.
- The last batch of an epoch is filled up with examples from the start of the same order. They have no
  weight in loss and gradient, so a model without batch statistics trains exactly as on the ragged batch;
  with BatchNorm, statistics are taken over B real examples, never over zeros or over a batch of one.

The functions are not jitted here, so that a caller may map them over clients first.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fl_plugins.errors import StructureError
from fl_plugins.training import Model, PerExample, PyTree

EVALUATION_BATCH = 256
"""Largest batch of evaluation: bounds its memory, and large enough to fill a core."""

Variables = dict[str, PyTree]


class LocalTrainOutput(NamedTuple):
    """New variables and, per epoch, the mean loss over examples, taken before each step: ``(E,)``."""

    variables: Variables
    epoch_losses: jax.Array


def make_local_train(
    model: Model,
    loss: PerExample,
    *,
    optimizer: optax.GradientTransformation,
    local_epochs: int,
    batch_size: int,
    proximal_mu: float,
) -> Callable[..., LocalTrainOutput]:
    """Return ``local_train(variables, x, y, num_examples, key)``.

    ``x`` is ``(c, ...)`` and ``y`` ``(c, ...)``, of which the first ``num_examples`` (an int32 scalar >= 1)
    are real. Reported losses leave the proximal term out, so that they compare across μ.
    """

    def batch_loss(
        params: PyTree, state: Variables, x: Any, y: Any, real: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Variables]]:
        outputs, new_state = model.apply({"params": params, **state}, x, train=True, key=key)
        total = _masked_sum(loss, outputs, y, real, name="loss")
        return total / jnp.sum(real, dtype=total.dtype), (total, new_state)

    def local_train(
        variables: Variables, x: jax.Array, y: jax.Array, num_examples: jax.Array, key: jax.Array
    ) -> LocalTrainOutput:
        params, state = _split(variables)
        anchor = params
        steps = (num_examples + (batch_size - 1)) // batch_size

        def epoch(index: jax.Array, carry: Any) -> Any:
            shuffle_key, model_key = jax.random.split(jax.random.fold_in(key, index))
            order = _random_order(shuffle_key, num_examples, capacity=x.shape[0])

            def step(number: jax.Array, carry: Any) -> Any:
                params, state, optimizer_state, epoch_total = carry
                rows, real = _batch_rows(number, num_examples, batch_size=batch_size)
                rows = order[rows]
                gradients, (total, state) = jax.grad(batch_loss, has_aux=True)(
                    params, state, x[rows], y[rows], real, jax.random.fold_in(model_key, number)
                )
                if proximal_mu:
                    gradients = jax.tree.map(
                        lambda g, w, w_global: g + proximal_mu * (w - w_global), gradients, params, anchor
                    )
                updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
                params = optax.apply_updates(params, updates)
                return params, state, optimizer_state, epoch_total + total.astype(jnp.float32)

            params, state, optimizer_state, losses = carry
            params, state, optimizer_state, total = lax.fori_loop(
                0, steps, step, (params, state, optimizer_state, jnp.float32(0))
            )
            losses = losses.at[index].set(total / num_examples.astype(jnp.float32))
            return params, state, optimizer_state, losses

        losses = jnp.zeros(local_epochs, jnp.float32)
        params, state, _, losses = lax.fori_loop(
            0, local_epochs, epoch, (params, state, optimizer.init(params), losses)
        )
        return LocalTrainOutput({"params": params, **state}, losses)

    return local_train


def make_evaluate(model: Model, values: Mapping[str, PerExample]) -> Callable[..., dict[str, jax.Array]]:
    """Return ``evaluate(variables, x, y, num_examples)``: each value's *sum* over the real examples.

    ``x`` and ``y`` are padded as for training, to a capacity that is at most :data:`EVALUATION_BATCH` or a
    multiple of it.
    """

    def evaluate(
        variables: Variables, x: jax.Array, y: jax.Array, num_examples: jax.Array
    ) -> dict[str, jax.Array]:
        batch_size = min(x.shape[0], EVALUATION_BATCH)

        def step(number: jax.Array, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
            rows, real = _batch_rows(number, num_examples, batch_size=batch_size)
            targets = y[rows]
            outputs, _ = model.apply(variables, x[rows], train=False, key=None)
            return {
                name: sums[name]
                + _masked_sum(function, outputs, targets, real, name=name).astype(jnp.float32)
                for name, function in values.items()
            }

        steps = (num_examples + (batch_size - 1)) // batch_size
        zeros = {name: jnp.float32(0) for name in values}
        sums: dict[str, jax.Array] = lax.fori_loop(0, steps, step, zeros)
        return sums

    return evaluate


def _split(variables: Variables) -> tuple[PyTree, Variables]:
    """Return the trained collection and the carried ones."""
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _random_order(key: jax.Array, num_examples: jax.Array, *, capacity: int) -> jax.Array:
    """Return ``(capacity,)`` row numbers: the real ones in random order, then the padding.

    Random words are drawn per row, so those of real rows do not depend on ``capacity``. Sorting is stable:
    a real row with the largest word still comes before every padding row.
    """
    words = jax.random.bits(key, (capacity,), jnp.uint32)
    padding = jnp.arange(capacity, dtype=jnp.int32) >= num_examples
    return jnp.argsort(jnp.where(padding, jnp.uint32(0xFFFFFFFF), words), stable=True)


def _batch_rows(
    number: jax.Array, num_examples: jax.Array, *, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Return batch ``number``'s positions ``(B,)``, wrapped around at n, and which are real ``(B,)``."""
    positions = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return positions % num_examples, positions < num_examples


def _masked_sum(function: PerExample, outputs: Any, y: Any, real: jax.Array, *, name: str) -> jax.Array:
    """Return the sum of ``function(outputs, y)`` over the real rows, in float32 or wider."""
    values = function(outputs, y)
    if jnp.shape(values) != real.shape:
        raise StructureError(
            f"{name}: returned shape {jnp.shape(values)} for a batch of {real.shape[0]}, but one value per "
            f"example, shape {real.shape}, is needed; return per-example values, not their mean."
        )
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.sum(jnp.where(real, values, jnp.zeros_like(values)))
